"""Which files are held out where nothing says so, and which of the training files a run uses."""

from __future__ import annotations

import hashlib

import numpy as np

from .duplicates import components

HELD_OUT_SHARE = 0.1


def share(seed: int, purpose: str, content: str) -> float:
    """Return a number in [0, 1) that depends on these three alone."""
    digest = hashlib.blake2b(f"{seed} {purpose} {content}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def draw_splits(clean, pairs: np.ndarray, seed: int) -> dict[str, str]:
    """Hold out a seeded tenth of the contents, at least one a degradation: content hash -> split.

    The draw is by content, not by name or order, so a picture keeps its side when others come.
    Near duplicates (`pairs` of rows) stay together, and at least one picture trains.
    """
    hashes = clean["content_hash"].to_list()
    kinds = clean["degradation"].fill_null("").to_list()
    first: dict[str, int] = {}
    repeats = [(first.setdefault(h, i), i) for i, h in enumerate(hashes)]
    links = np.array([*repeats, *map(tuple, pairs.tolist())], np.int64).reshape(-1, 2)
    roots = components(len(hashes), links)
    names: dict[int, str] = {}  # a component is named by its smallest content
    for i, root in enumerate(roots.tolist()):
        names[root] = min(names.get(root, hashes[i]), hashes[i])
    draws = {root: share(seed, "split", name) for root, name in names.items()}
    held_out = {root for root, draw in draws.items() if draw < HELD_OUT_SHARE}
    for kind in sorted(set(kinds)):
        of_kind = {r for r, k in zip(roots.tolist(), kinds, strict=True) if k == kind}
        if not of_kind & held_out and len(of_kind) > 1:
            held_out.add(min(of_kind, key=lambda root: (draws[root], names[root])))
    if held_out >= set(draws) and draws:
        held_out.discard(max(draws, key=lambda root: (draws[root], names[root])))
    return {
        h: "val" if root in held_out else "train"
        for h, root in zip(hashes, roots.tolist(), strict=True)
    }


def select(table, section, seed: int):
    """Add `selected`: false for what `data.types` or `data.sample_ratio` leaves aside.

    The ratio is drawn a degradation, on usable training samples; validation is never thinned.
    """
    import polars as pl

    wanted = pl.lit(True)
    if section.types is not None:
        wanted = pl.col("degradation").is_null() | pl.col("degradation").is_in(section.types)
    table = table.with_columns(wanted.alias("selected"))
    if section.sample_ratio >= 1:
        return table
    usable = (pl.col("split") == "train") & (pl.col("status") != "excluded") & pl.col("selected")
    pool = table.filter(usable & (pl.col("role") != "lq")).select(
        "image", "listing", "split", "degradation",
        (pl.col("content_hash") + " " + pl.col("image")).alias("content"),
    )  # fmt: skip
    draws = [share(seed, "sample_ratio", c) for c in pool["content"].to_list()]
    pool = pool.with_columns(pl.Series("draw", draws, dtype=pl.Float64))
    kept = pl.max_horizontal(pl.lit(1.0), (pl.len() * section.sample_ratio).round(0))
    pool = pool.with_columns(
        (pl.col("draw").rank("ordinal") <= kept).over("degradation").alias("drawn")
    )
    table = table.join(
        pool.select("image", "listing", "split", "drawn"),
        on=["image", "listing", "split"], how="left", nulls_equal=True,
    )  # fmt: skip
    return table.with_columns(pl.col("selected") & pl.col("drawn").fill_null(True)).drop("drawn")
