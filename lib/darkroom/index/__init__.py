"""Folders, pairs and parquet turned into one checked table of images.

`build_index` decodes every file once and says of each whether it can be used and, if not, why.
What it found is cached by path, size and modification time, so a second run touches what changed.
"""

from .build import build_index
from .frame import index_hash, samples, write_parquet
from .header import headers

__all__ = ["build_index", "headers", "index_hash", "samples", "write_parquet"]
