"""Build the index of a config: list, measure, judge, split; only an empty result stops it."""

from __future__ import annotations

from pathlib import Path

from . import judge, repeats, splits
from .cache import Cache
from .frame import schema
from .listing import IndexSourceError, Listing
from .scan import scan
from .sources import list_sources

LISTED = (
    "path", "role", "image", "pair", "partner", "split", "degradation", "prompt", "bytes",
    "modified_ns", "problem", "written_hash",
)  # fmt: skip


def build_index(config, *, workers: int | None = None, progress: bool = True):
    """Return the checked index of a config's images as a polars frame, a row a file.

    Columns: path (absolute), pair (id that LQ and GT share, else null), role (image, lq, gt), split
    (train, val), degradation (one of the five types, or null), width, height (upright, pixels),
    bytes, content_hash (blake2b, hex), status (ok, warned, excluded), reason, prompt, modified_ns,
    image (id of the sample), selected (false: left aside by data.types or data.sample_ratio).

    Without `validation.data` the photographs keep their own split and folders named train and val
    theirs; else a seeded tenth of the contents is held out, at least one of every degradation.

    Every file is decoded once; what was measured is kept in `<paths.runs>/.index-cache` by path,
    size and modification time, so a later run decodes what changed and an interrupted one
    continues. `workers` processes share the work (None: one a core).
    Raises ValueError for a place that does not exist or holds nothing usable; a single bad file
    never does.
    """
    import polars as pl

    listings = list_sources(config)
    parts = []
    for number, listing in enumerate(listings):
        listed = _table(listing, number)
        if len(listed) == 0:
            raise IndexSourceError(
                f"{listing.location} holds no image: {listing.num_found} files were found there"
            )
        cache = Cache(Path(config.paths.runs) / ".index-cache", listing.location)
        measures = scan(listed, cache, workers=workers, progress=progress)
        parts.append(
            listed.join(
                measures.drop("bytes", "modified_ns"),
                on=["path", "partner"],
                how="left",
                nulls_equal=True,
            )
        )
    table = pl.concat(parts).sort("listing", "image", "role", "path").with_row_index("row")
    table = _judge(table, config)
    table = splits.select(table, config.data, config.seed)
    _check_not_empty(table, listings)
    return table.select(list(schema())).cast(schema())


def _table(listing: Listing, number: int):
    import polars as pl

    numbers = ("bytes", "modified_ns")
    kinds = {n: pl.Int64 if n in numbers else pl.String for n in LISTED}
    table = pl.DataFrame(listing.rows, schema=kinds)
    return table.with_columns(
        pl.lit(number, pl.Int32).alias("listing"), pl.col("prompt").fill_null("")
    )


def _judge(table, config):
    import polars as pl

    clean = repeats.clean_pictures(table)
    pairs = repeats.find_near(clean)
    if table["split"].null_count():
        drawn = splits.draw_splits(clean, pairs, config.seed)
        sides = clean.select("image", "listing", drawn=pl.col("content_hash").replace_strict(
            drawn, default=None, return_dtype=pl.String))  # fmt: skip
        table = table.join(sides, on=["image", "listing"], how="left").with_columns(
            pl.coalesce("split", "drawn", pl.lit("train")).alias("split")
        )
        clean = repeats.clean_pictures(table.drop("drawn"))
    table = judge.judge_pairs(judge.judge_files(table))
    table = repeats.judge_near(repeats.judge_repeats(table), pairs, clean)
    return judge.settle(repeats.judge_shared(table))


def _check_not_empty(table, listings: list[Listing]) -> None:
    """Raise when nothing is left to train on, or nothing of a place named for validation."""
    import polars as pl

    usable = table.filter((pl.col("status") != "excluded") & pl.col("selected"))
    for number, listing in enumerate(listings):
        split = "train" if number == 0 else "val"
        if len(usable.filter(pl.col("split") == split)):
            continue
        rows = table.filter(pl.col("listing") == number)
        reasons = (
            rows.filter(pl.col("status") == "excluded")
            .group_by(pl.col("reason").str.split(":").list.first())
            .len("files")
            .sort("files", "reason", descending=[True, False])
        )
        words = [f"{count} × {reason}" for reason, count in reasons.head(5).iter_rows()]
        aside = len(rows.filter(~pl.col("selected")))
        if aside:
            words.append(f"{aside} × left aside by data.types or data.sample_ratio")
        raise IndexSourceError(
            f"no usable {split} image in {listing.location}: {listing.num_found} files found, "
            f"{len(rows)} of them images; left out: {'; '.join(words) or 'none'}"
        )
