"""Many traces at once: a few planning processes, and what was traced before from the disk."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ..bar import bar
from . import cache
from .trace import Trace, Worker


def traces(requests: Iterable[tuple]) -> list[Trace]:
    """Return the trace of every (config, precision, options) on the fake accelerator, in order.

    A process a core, each at most 2 GiB; equal requests are traced once, and kept. A bar shows how
    many of those that had to be traced are done. Raises what `Worker.trace` raises, after the
    others in progress have ended.
    """
    wanted = [(cache.key(c, kind="part", precision=p, **o), c, p, o) for c, p, o in requests]
    found: dict[str, Trace] = {}
    missing = {}
    for name, config, precision, options in wanted:
        if name in found or name in missing:
            continue
        kept = cache.kept(config, name)
        if kept is None:
            missing[name] = config, precision, options
        else:
            found[name] = kept
    if missing:
        found |= _trace(missing)
    return [found[name] for name, *_ in wanted]


def _trace(missing: dict[str, tuple]) -> dict[str, Trace]:
    count = min(len(os.sched_getaffinity(0)), len(missing))
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    started = [Worker() for _ in range(count)]
    for worker in started:
        workers.put(worker)

    def one(name: str) -> tuple[str, Trace]:
        config, precision, options = missing[name]
        worker = workers.get()
        try:
            traced = worker.trace(config, "accelerator", precision, options)
        finally:
            workers.put(worker)
        cache.keep(config, name, traced)
        return name, traced

    found: dict[str, Trace] = {}
    try:
        with bar(len(missing), "planning", "trace") as shown, ThreadPoolExecutor(count) as threads:
            futures = [threads.submit(one, name) for name in missing]
            try:
                for future in futures:
                    name, traced = future.result()
                    found[name] = traced
                    shown.update()
            finally:
                for future in futures:
                    future.cancel()
    finally:
        for worker in started:
            worker.close()
    return found
