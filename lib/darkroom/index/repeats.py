"""Pictures that occur more than once: within a split, and on both sides of it."""

from __future__ import annotations

import numpy as np

from .duplicates import near, near_pairs


def judge_repeats(table):
    """Add the reasons of exact repeats: a pair or image that occurs again is left out.

    A GT with several LQs is how paired sets are made, and no fault; one LQ with two GTs is.
    """
    import polars as pl

    usable = table.filter(_usable() & pl.col("content_hash").is_not_null())
    lq = usable.filter(pl.col("role") == "lq").select("pair", "listing", lq_hash="content_hash")
    samples = (
        usable.filter(pl.col("role") != "lq")
        .join(lq, on=["pair", "listing"], how="left", nulls_equal=False)
        .filter((pl.col("role") == "image") | pl.col("lq_hash").is_not_null())
        .select("row", "split", "image", "pair", "listing", "lq_hash", gt_hash="content_hash")
        .sort("row")
    )
    same = ["split", "gt_hash", "lq_hash"]
    first = pl.col("image").first().over(same)
    first_lq = pl.col("image").first().over("split", "lq_hash")
    repeated = samples.with_columns(
        pl.when(pl.int_range(pl.len()).over(same) > 0)
        .then(pl.format("the same bytes as {}", first))
        .alias("excluded:repeat"),
        pl.when(
            pl.col("lq_hash").is_not_null()
            & (pl.col("gt_hash").n_unique().over("split", "lq_hash") > 1)
        )
        .then(pl.format("the same LQ as {}, with another GT", first_lq))
        .alias("warned:lq"),
    )  # fmt: skip
    return _attach(
        table, repeated.select("image", "listing", "split", "excluded:repeat", "warned:lq")
    )


def judge_near(table, pairs: np.ndarray, clean):
    """Add the reasons of near duplicates: warned in one split, left out of train across the two.

    `pairs` are the rows in `clean` (images and GTs) of near duplicates. In one split, a pair is a
    near duplicate only when its LQ is one too: a GT under several degradations is not.
    """
    import polars as pl

    split, names, rows = (clean[c].to_numpy() for c in ("split", "image", "row"))
    across = split[pairs[:, 0]] != split[pairs[:, 1]]
    swapped = split[pairs[:, 0]] != "train"
    train = np.where(swapped, pairs[:, 1], pairs[:, 0])[across]
    held_out = np.where(swapped, pairs[:, 0], pairs[:, 1])[across]
    a, b = pairs[~across].T
    inside = _also_near(clean, a, b)
    a, b = a[inside], b[inside]
    reasons = pl.concat(
        [
            _reasons(rows[train], names[held_out], "excluded:shared",
                     "nearly the same picture as {} in validation"),
            _reasons(rows[b], names[a], "warned:near", "nearly the same picture as {}"),
        ],
        how="diagonal",
    ).group_by("row").agg(pl.all().drop_nulls().first())  # fmt: skip
    found = clean.select("row", "image", "listing", "split").join(reasons, on="row").drop("row")
    return _attach(table, found)


def judge_shared(table):
    """Add the reason of files whose bytes are in train and in validation: train gives way."""
    import polars as pl

    held_out = (
        table.filter((pl.col("split") == "val") & _usable() & pl.col("content_hash").is_not_null())
        .group_by("content_hash")
        .agg(pl.col("image").first().alias("held_out"))
    )
    table = table.join(held_out, on="content_hash", how="left")
    return table.with_columns(
        pl.when((pl.col("split") == "train") & pl.col("held_out").is_not_null())
        .then(pl.format("the same bytes as {} in validation", "held_out"))
        .alias("excluded:shared bytes")
    ).drop("held_out")


def clean_pictures(table):
    """Return the usable images and GTs, one a content and split, with their LQ's fingerprint."""
    import polars as pl

    lq = table.filter(pl.col("role") == "lq").select(
        "pair", "listing", lq_dhash="dhash", lq_thumbnail="thumbnail"
    )
    return (
        table.filter((pl.col("role") != "lq") & _usable() & pl.col("dhash").is_not_null())
        .join(lq, on=["pair", "listing"], how="left", nulls_equal=False)
        .sort("row")
    )


def find_near(clean) -> np.ndarray:
    """Return the near duplicates in `clean` as (P, 2) row numbers; equal contents count once."""
    import polars as pl

    if len(clean) == 0:
        return np.empty((0, 2), np.int64)
    first = clean.with_row_index("at").unique("content_hash", keep="first", maintain_order=True)
    hashes, pictures = first["dhash"].to_numpy(), thumbnails(first["thumbnail"])
    pairs, at = near_pairs(hashes, pictures), first["at"].to_numpy()
    if len(first) == len(clean):
        return pairs
    # a content that occurs several times stands for all of its rows
    several = clean.with_row_index("at").filter(pl.len().over("content_hash") > 1)
    members = dict(several.group_by("content_hash").agg("at").iter_rows())
    contents = first["content_hash"]
    many = contents.is_in(list(members)).to_numpy()[pairs].any(1)
    expanded = [
        tuple(sorted((i, j)))
        for a, b in pairs[many].tolist()
        for i in members.get(contents[a], [at[a]])
        for j in members.get(contents[b], [at[b]])
    ]
    return np.concatenate([at[pairs[~many]], np.array(expanded, np.int64).reshape(-1, 2)])


def thumbnails(column) -> np.ndarray:
    """Return a column of thumbnails as (N, D) uint8."""
    joined = b"".join(column.to_list())
    return np.frombuffer(joined, np.uint8).reshape(len(column), -1)


def _also_near(clean, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Say of the rows a[i], b[i] whether their LQs are near too; true where there are none."""
    import polars as pl

    if len(a) == 0 or clean["lq_thumbnail"].null_count() == len(clean):
        return np.ones(len(a), bool)
    filled = clean["lq_thumbnail"].fill_null(pl.lit(b"\0" * 256))
    none = clean["lq_thumbnail"].is_null().to_numpy()
    return (none[a] & none[b]) | near(thumbnails(filled), a, b)


def _reasons(rows: np.ndarray, others: np.ndarray, column: str, text: str):
    import polars as pl

    frame = pl.DataFrame(
        {"row": rows, "other": others}, schema={"row": pl.UInt32, "other": pl.String}
    )
    return frame.unique("row", keep="first").select("row", pl.format(text, "other").alias(column))


def _usable():
    import polars as pl

    return pl.col("problem").is_null() & pl.col("error").is_null() & pl.col("bytes").is_not_null()


def _attach(table, reasons):
    """Join reasons of a sample to all of its files."""
    return table.join(
        reasons.unique(["image", "listing", "split"], keep="first"),
        on=["image", "listing", "split"],
        how="left",
        nulls_equal=True,
    )
