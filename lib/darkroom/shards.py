"""Write the usable images of an index as WebDataset shards, which `data.source: shards` reads.

`python -m darkroom.shards OUT [--base params/x.yaml] [--size 256MiB] [--override data.train=…]
[--force]`. OUT holds train-00000.tar …, val-00000.tar … and shards.parquet, which says where every
picture lies. It appears when all is written; an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from . import images
from .bar import bar as progress_bar
from .config import OVERRIDE_HELP, load_config, pair
from .index import build_index, samples
from .index.shards import TABLE, read_table, schema
from .index.trees import SUFFIXES
from .paths import RunLock, RunLocked, flush, write_atomically

SHARD_BYTES = 256 * 2**20
OURS = re.compile(r"(train|val)-\d{5,}\.tar|shards\.parquet")
PLAN, VERSION = "plan", 1  # the file that says what an unfinished folder is to become
UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def write_shards(
    frame, folder, *, max_bytes: int = SHARD_BYTES, force: bool = False, progress: bool = True
):
    """Write an index (`index.build_index`) as shards into `folder`; returns what shards.parquet is.

    Members are `<key>.gt.<ext>`, of pairs `<key>.lq.<ext>`, with the bytes of the files as they
    are, and `<key>.json` with name, split, degradation and prompt. A shard has at most `max_bytes`,
    or one sample. The same index gives the same bytes, in an order that mixes the images. What
    data.types and data.sample_ratio leave aside is written, too: they choose again when training.
    A folder that holds this already is left as it is; another one is replaced with `force`, if it
    holds nothing but shards. Raises ValueError for a folder that is taken, or a picture that
    changed since it was indexed; OSError where it cannot be written or read.
    """
    folder = Path(folder).expanduser().absolute()
    rows = _rows(frame)
    plan = _plan(rows, max_bytes)
    if (table := _finished(folder, plan)) is not None:
        return table
    _check_free(folder, force)
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with RunLock(partial):
            _begin(partial, plan)
            _fill(partial, rows, max_bytes, progress)
            table = _table(partial)
            write_atomically(
                partial / TABLE, lambda path: table.write_parquet(path, metadata={PLAN: plan})
            )
            for path in partial.iterdir():
                if not OURS.fullmatch(path.name):
                    path.unlink()
            flush(partial)
            _replace(partial, folder)
    except RunLocked as error:
        raise ValueError(f"another process is writing {folder}: wait for it ({error})") from None
    return table


def _rows(frame) -> list[dict]:
    """Return the samples to write, train before val, each split in the order of its contents."""
    import polars as pl

    frame, rows = frame.with_columns(selected=True), []
    for split in ("train", "val"):
        part = samples(frame, split).sort("gt_hash", "lq_hash", "image", nulls_last=True)
        rows += part.with_columns(split=pl.lit(split)).to_dicts()
    if not rows:
        raise ValueError("no usable image is left to write: see the index for the reasons")
    return rows


def _plan(rows: list[dict], max_bytes: int) -> str:
    """Return a hash of everything that decides the shards' bytes."""
    names = ("split", "image", "gt_hash", "lq_hash", "degradation", "prompt")
    digest = hashlib.blake2b(f"{VERSION} {max_bytes}".encode(), digest_size=16)
    for row in rows:
        digest.update(json.dumps([row[n] for n in names]).encode())
    return digest.hexdigest()


def _finished(folder: Path, plan: str):
    """Return the table of a folder that holds these shards already, whole by their sizes."""
    import polars as pl

    with contextlib.suppress(ValueError, OSError, pl.exceptions.PolarsError):
        table = read_table(folder)
        if table is None or pl.read_parquet_metadata(folder / TABLE).get(PLAN) != plan:
            return None
        shards = table.select("shard", "shard_bytes").unique().iter_rows()
        if all((folder / shard).stat().st_size == size for shard, size in shards):
            return table
    return None


def _check_free(folder: Path, force: bool) -> None:
    """Raise ValueError where a finished folder could not take this name."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the shards")
    held = sorted(path.name for path in folder.iterdir())
    if held and not force:
        raise ValueError(f"{folder} holds something else already: name another, or give --force")
    if other := [name for name in held if not OURS.fullmatch(name)]:
        raise ValueError(f"{folder} holds more than shards ({other[0]} …) and is not replaced")


def _begin(partial: Path, plan: str) -> None:
    """Keep what an interrupted call has finished of the same plan; else start with nothing."""
    place = partial / PLAN
    if place.is_file() and place.read_text() == plan:
        return
    for path in partial.iterdir():
        if path.name != "lock":
            path.unlink()
    write_atomically(place, plan.encode())


def _fill(partial: Path, rows: list[dict], max_bytes: int, progress: bool) -> None:
    """Write the shards that are missing, each with its part of the table after it."""
    done = 0
    bar = progress_bar(len(rows), "shards", "image", show=progress)
    for split in ("train", "val"):
        last = done + sum(row["split"] == split for row in rows)
        number = 0
        while done < last:
            shard = partial / f"{split}-{number:05d}.tar"
            part = shard.with_suffix(".rows")
            if not part.is_file():
                _write_shard(shard, part, _samples(rows, done, last), max_bytes)
            count = len({row["key"] for row in json.loads(part.read_bytes())})
            bar.update(count)
            done, number = done + count, number + 1
    bar.close()


def _write_shard(shard: Path, part: Path, stream: Iterator, max_bytes: int) -> None:
    """Write one shard from the samples to come, as many as fit, then its rows."""
    found: list[dict] = []

    def fill(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
            for row, members in stream:
                size = sum(512 + -(-len(data) // 512) * 512 for _, _, data in members)
                # a tar ends in two blocks of zeros, filled up to whole records
                end = -(-(file.offset + size + 1024) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
                if file.offset and end > max_bytes:
                    break
                found.extend(_add(file, row, members, shard.name))

    write_atomically(shard, fill)
    size = shard.stat().st_size
    write_atomically(part, json.dumps([row | {"shard_bytes": size} for row in found]).encode())


def _add(file: tarfile.TarFile, row: dict, members: list, shard: str) -> Iterator[dict]:
    """Append the members of a sample; yields the rows of its pictures."""
    for kind, name, data in members:
        info = tarfile.TarInfo(name)  # of nobody, from 1970: the bytes depend on the content alone
        info.size = len(data)
        offset = file.offset + 512
        file.addfile(info, io.BytesIO(data))
        if kind is None:
            continue
        yield {
            "key": name.partition(".")[0], "kind": kind, "member": name, "shard": shard,
            "offset": offset, "size": len(data), "image": row["image"], "split": row["split"],
            "content_hash": row["lq_hash" if kind == "lq" else "gt_hash"],
            "degradation": row["degradation"], "prompt": row["prompt"],
        }  # fmt: skip


def _samples(rows: list[dict], start: int, stop: int) -> Iterator[tuple[dict, list]]:
    """Yield (row, members): (kind, name, bytes) of a sample's LQ, its GT and its words."""
    for number in range(start, stop):
        row = rows[number]
        # a key ends at its first dot; the number makes it unique, the rest is for people
        key = f"{number:08d}-" + re.sub(r"[^A-Za-z0-9_-]+", "_", row["image"])[-60:]
        kinds = {"lq": row["lq_path"], "gt": row["gt_path"]}
        members = []
        for side, path in kinds.items():
            if path is None:
                continue
            data = images.read_bytes(path)
            if hashlib.blake2b(data, digest_size=16).hexdigest() != row[f"{side}_hash"]:
                raise ValueError(f"{path} has changed since it was indexed: run the same again")
            kind = side if row["lq_path"] else "image"
            members.append((kind, f"{key}.{side}{_extension(path, data)}", data))
        words = {"name": row["image"], **{n: row[n] for n in ("split", "degradation", "prompt")}}
        text = json.dumps(words, ensure_ascii=False).encode()
        yield row, [*members, (None, f"{key}.json", text)]


def _extension(path: str, data: bytes) -> str:
    """Return a picture's own extension, or that of its format where it has none."""
    extension = os.path.splitext(path)[1].lower()
    if extension in SUFFIXES:
        return extension
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return f".{picture.format.lower()}"


def _table(partial: Path):
    import polars as pl

    parts = sorted(partial.glob("*.rows"))
    return pl.DataFrame([r for p in parts for r in json.loads(p.read_bytes())], schema=schema())


def _replace(partial: Path, folder: Path) -> None:
    """Give the finished folder its name; what stood there is deleted after."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


# --- the command ----------------------------------------------------------------------------------


def num_bytes(text: str) -> int:
    """Return the bytes of a size such as 256MiB, 1GB or 1000000."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if not found or found[2].lower() not in UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f"a size is a number with KiB, MiB or GiB, not {text!r}")
    return int(float(found[1]) * UNITS[found[2].lower()])


def main(arguments: list[str] | None = None) -> int:
    """Write shards; exit status 0 done, 1 refused or failed."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.shards", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="the folder of the shards")
    parser.add_argument("--base", default="tiny", help="params file that names the images")
    parser.add_argument("--size", type=num_bytes, default=SHARD_BYTES, help="of a shard at most")
    parser.add_argument("--force", action="store_true", help="replace the shards that OUT holds")
    parser.add_argument(
        "--override", nargs="*", default=[], type=pair, metavar="KEY=VALUE", help=OVERRIDE_HELP
    )
    parsed = parser.parse_args(arguments)
    try:
        config = load_config(base=parsed.base, override=dict(parsed.override))
        frame = build_index(config)
        table = write_shards(frame, parsed.out, max_bytes=parsed.size, force=parsed.force)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    shards = table.select("shard", "shard_bytes").unique()
    gib = shards["shard_bytes"].sum() / 2**30
    print(f"{Path(parsed.out).absolute()}: {table['key'].n_unique()} images, {len(table)} files in")
    print(f"{len(shards)} shards, {gib:.2f} GiB; train on them with data.source: shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
