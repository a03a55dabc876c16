"""What was measured before: parquet parts on the disk, keyed by path, size and modification time.

A run adds a part every few seconds, each written atomically, so that a killed run loses nothing it
had finished; the parts become one file when it ends.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from pathlib import Path

from ..paths import write_atomically
from .measure import FILE_MEASURES, PAIR_MEASURES

VERSION = 1  # of the measures: another number forgets every cache
KEY = ("path", "partner", "bytes", "modified_ns")


def schema() -> dict:
    """Return the columns of a cache: the key, then every measure."""
    import polars as pl

    kinds = {
        "bytes": pl.Int64,
        "modified_ns": pl.Int64,
        "width": pl.Int64,
        "height": pl.Int64,
        "dhash": pl.UInt64,
        "thumbnail": pl.Binary,
    } | dict.fromkeys(PAIR_MEASURES, pl.Float32)
    return {name: kinds.get(name, pl.String) for name in (*KEY, *FILE_MEASURES, *PAIR_MEASURES)}


class Cache:
    """The measures kept for one location."""

    def __init__(self, folder: Path, location: str) -> None:
        key = hashlib.blake2b(f"{VERSION} {location}".encode(), digest_size=8).hexdigest()
        self.file, self.parts = folder / f"{key}.parquet", folder / key
        self.parts.mkdir(parents=True, exist_ok=True)
        self._used: list[Path] = []
        self._names = itertools.count()

    def read(self):
        """Return all measures kept, one row a key; an unreadable file counts as nothing."""
        import polars as pl

        frames, self._used = [], sorted(self.parts.glob("*.parquet"))
        for path in (self.file, *self._used):
            try:
                frame = pl.read_parquet(path)
            except (OSError, pl.exceptions.PolarsError):  # absent, or damaged: measured again
                continue
            if dict(frame.schema) == schema():
                frames.append(frame)
        if len(frames) == 1 and not self._used:
            return frames[0]
        kept = pl.concat(frames) if frames else pl.DataFrame(schema=schema())
        return kept.unique(["path", "partner"], keep="last", maintain_order=True)

    def has_parts(self) -> bool:
        """Say whether an interrupted run left parts that are not in the one file yet."""
        return bool(self._used)

    def add(self, rows: list[dict]) -> None:
        """Put measured rows on the disk as one more part."""
        import polars as pl

        frame = pl.DataFrame(rows, schema=schema())
        path = self.parts / f"{socket.gethostname()}-{os.getpid()}-{next(self._names):06d}.parquet"
        write_atomically(path, frame.write_parquet)
        self._used.append(path)

    def settle(self, frame) -> None:
        """Keep exactly these rows, as one file."""
        import polars as pl

        write_atomically(self.file, frame.select(pl.col(list(schema()))).write_parquet)
        for path in self._used:
            path.unlink(missing_ok=True)
        self._used = []
