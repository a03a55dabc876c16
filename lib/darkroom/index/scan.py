"""Measure every file that is new or has changed, in several processes, and keep the results."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from ..bar import bar as progress_bar
from .cache import Cache, schema
from .measure import measure_group

SECONDS_BETWEEN_PARTS = 2.0
CHUNK_BYTES = 2**21  # of files in one task
IN_PROCESS_BYTES = 24 * 2**20  # below it, starting processes takes longer than they save

Group = list[tuple[str, str | None]]


def scan(listed, cache: Cache, *, workers: int | None, progress: bool):
    """Return the measures of all listed files, a row a (path, partner).

    `listed` is a frame with path, partner, bytes, modified_ns; files that do not exist (null
    bytes) get none. A GT and its LQs are measured together, so one changed file repeats them all.
    """
    import polars as pl

    wanted = listed.filter(pl.col("bytes").is_not_null()).select(
        "path", "partner", "bytes", "modified_ns"
    ).unique(["path", "partner"], keep="first", maintain_order=True)  # fmt: skip
    kept = cache.read()
    known = wanted.join(
        kept, on=["path", "partner", "bytes", "modified_ns"], how="left", nulls_equal=True
    )
    fresh = pl.col("content_hash").is_not_null()  # null: it could not even be read; try again
    group = pl.coalesce("partner", "path")
    done = known.filter(fresh.all().over(group))
    stale = known.filter(~fresh.all().over(group)).select("path", "partner", "bytes", "modified_ns")
    if len(stale) == 0:
        if len(kept) != len(done) or cache.has_parts():
            cache.settle(done)
        return done
    rows = _measure(stale, cache, workers=workers, progress=progress)
    found = pl.concat([done.select(list(schema())), pl.DataFrame(rows, schema=schema())])
    cache.settle(found)
    return found


def _measure(stale, cache: Cache, *, workers: int | None, progress: bool) -> list[dict]:
    places = {(r[0], r[1]): (r[2], r[3]) for r in stale.iter_rows()}
    groups: dict[str, Group] = {}
    for path, partner in places:
        groups.setdefault(partner or path, []).append((path, partner))
    for group in groups.values():
        group.sort(key=lambda member: member[1] is not None)  # the GT first
    size = int(stale["bytes"].sum())
    workers = workers if workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError(f"workers {workers}: at least 1, or None for one a core")
    if size < IN_PROCESS_BYTES:
        workers = 1
    rows, unsaved, saved_at = [], [], time.monotonic()
    bar = progress_bar(len(places), "index", "file", show=progress)
    results = _results(list(_chunks(groups, places)), workers)
    try:
        for chunk in results:
            for row in chunk:
                row["bytes"], row["modified_ns"] = places[row["path"], row["partner"]]
            unsaved += chunk
            bar.update(len(chunk))
            if time.monotonic() - saved_at >= SECONDS_BETWEEN_PARTS:
                cache.add(unsaved)
                rows, unsaved, saved_at = rows + unsaved, [], time.monotonic()
    except BaseException:
        if unsaved:
            cache.add(unsaved)
        raise
    finally:
        results.close()
        bar.close()
    return rows + unsaved


def _chunks(groups: dict[str, Group], places: dict) -> Iterator[list[Group]]:
    """Yield lists of groups of about CHUNK_BYTES of files."""
    chunk, size = [], 0
    for group in groups.values():
        chunk.append(group)
        size += sum(places[member][0] for member in group) + 2**12
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def measure_chunk(chunk: list[Group]) -> list[dict]:
    """Measure several groups: the unit of work of a process."""
    return [row for group in chunk for row in measure_group(group)]


def _results(chunks: list[list[Group]], workers: int) -> Iterator[list[dict]]:
    """Yield the rows of every chunk as they are measured.

    A worker that dies (killed, or out of memory) does not end the run: what it left is measured
    here, one file at a time.
    """
    if workers == 1 or len(chunks) == 1:
        yield from map(measure_chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of torch's threads
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, initializer=_prepare_worker)
    waiting: dict[Future, int] = {}
    left = dict(enumerate(chunks))
    try:
        queue = iter(range(len(chunks)))
        while left:
            with contextlib.suppress(StopIteration):
                while len(waiting) < 3 * workers:
                    number = next(queue)
                    waiting[pool.submit(measure_chunk, left[number])] = number
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                rows = future.result()
                del left[waiting.pop(future)]
                yield rows
    except BrokenProcessPool:
        yield from map(measure_chunk, list(left.values()))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
