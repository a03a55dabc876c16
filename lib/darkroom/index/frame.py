"""The index as a table: the samples it holds, their hash, and parquet that other programs read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .. import charts, images, tar
from ..paths import write_atomically

LAYOUTS = ("hypir", "paired")


def schema() -> dict:
    """Return the columns of an index, a row a file."""
    import polars as pl

    numbers = dict.fromkeys(("width", "height", "bytes", "modified_ns"), pl.Int64)
    names = (
        "path", "pair", "role", "split", "degradation", "width", "height", "bytes", "content_hash",
        "status", "reason", "prompt", "modified_ns", "image", "selected",
    )  # fmt: skip
    return {n: numbers.get(n, pl.Boolean if n == "selected" else pl.String) for n in names}


def samples(frame, split: str):
    """Return the usable samples of a split, a row each, sorted by image.

    Columns: image (id), lq_path (null when degraded on the fly), gt_path, degradation (null when
    drawn a sample), prompt, width, height, gt_hash, lq_hash.
    """
    import polars as pl

    if split not in ("train", "val"):
        raise ValueError(f"split {split!r}: train or val")
    rows = frame.filter(
        (pl.col("split") == split) & (pl.col("status") != "excluded") & pl.col("selected")
    )
    lq = rows.filter(pl.col("role") == "lq").select(
        "pair", pl.col("path").alias("lq_path"), pl.col("content_hash").alias("lq_hash")
    )
    gt = rows.filter(pl.col("role") != "lq").select(
        "image",
        "pair",
        "role",
        "degradation",
        "prompt",
        "width",
        "height",
        pl.col("path").alias("gt_path"),
        pl.col("content_hash").alias("gt_hash"),
    )
    return (
        gt.join(lq, on="pair", how="left")
        .filter((pl.col("role") == "image") | pl.col("lq_path").is_not_null())
        .select(
            "image", "lq_path", "gt_path", "degradation", "prompt", "width", "height",
            "gt_hash", "lq_hash",
        )
        .sort("image", "gt_path")
    )  # fmt: skip


def index_hash(samples) -> str:
    """Return one hash, hex, of the contents of these samples; where the files lie plays no part."""
    digest = hashlib.blake2b(digest_size=8)
    columns = ("image", "gt_hash", "lq_hash", "degradation", "prompt")
    for row in samples.select(columns).sort("image", "gt_hash", "lq_hash").iter_rows():
        digest.update(repr(row).encode())
    return digest.hexdigest()


def write_parquet(frame, path: str | Path, layout: str = "hypir", *, split: str = "train") -> None:
    """Write the usable samples of a split as parquet for other programs.

    hypir: image_path, prompt, of every clean image. paired: lq_path, gt_path, prompt, of the pairs.
    What is no file is written beside it: embedded charts as PNG to a folder `charts`, members of
    shards as they are to a folder `members`.
    Raises ValueError when the layout would hold no row.
    """
    import polars as pl

    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: one of {', '.join(LAYOUTS)}")
    rows = samples(frame, split)
    path = Path(path)
    columns = ["gt_path"]
    if layout == "paired":
        rows, columns = rows.filter(pl.col("lq_path").is_not_null()), ["lq_path", "gt_path"]
    rows = rows.with_columns(_on_disk(rows[name], path.absolute().parent) for name in columns)
    table = rows.select(*columns, "prompt")
    if layout == "hypir":
        table = table.rename({"gt_path": "image_path"})
    if len(table) == 0:
        way_out = "; layout hypir writes images without pairs" if layout == "paired" else ""
        raise ValueError(f"no usable {split} sample for the layout {layout}{way_out}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table.write_parquet)


def _on_disk(paths, folder: Path):
    """Return a column of paths with what is no file written below `folder`, and its path there."""
    import polars as pl

    places = []
    for path in paths:
        if chart := charts.find(path):
            place = folder / "charts" / str(chart[1]) / f"{charts.name_of(chart[0])}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            images.write_image(place, charts.render(*chart))
            path = str(place)
        elif member := tar.find(path):
            shard = Path(member.archive)
            below = Path(f"{shard.stem}-{member.offset}{Path(member.name).suffix}")
            place = folder / "members" / shard.parent.name / below
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, tar.read(member))
            path = str(place)
        places.append(path)
    return pl.Series(paths.name, places, dtype=pl.String)
