"""What an index holds: counts, sizes, a contact sheet, the problems.

Frames are the index of `darkroom.index.build_index`: a row a file. A pair counts once, by its GT.
"""

from __future__ import annotations

import numpy as np

from .style import (
    INK,
    MUTED,
    SPLITS,
    VERMILION,
    Picture,
    bare,
    figure,
    plural,
    styled,
)
from .tables import Table, short

ON_THE_FLY = "degraded on the fly"


def _images(frame):
    """Return a row an image or pair: LQ files stand behind their GT."""
    import polars as pl

    rows = frame.filter(pl.col("role") != "lq")
    return rows.with_columns(pl.col("degradation").fill_null(ON_THE_FLY))


def summary(frame) -> Table:
    """Return a table of counts: a row a split and degradation, with excluded files."""
    import polars as pl

    megapixels = pl.col("width").cast(pl.Float64) * pl.col("height") / 1e6
    table = (
        _images(frame)
        .group_by("split", "degradation")
        .agg(
            pl.len().alias("images"),
            (pl.col("status") == "ok").sum().alias("ok"),
            (pl.col("status") == "warned").sum().alias("warned"),
            (pl.col("status") == "excluded").sum().alias("excluded"),
            megapixels.median().alias("median megapixels"),
            (pl.col("bytes").sum() / 2**20).alias("MiB"),
        )
        .sort("split", "degradation")
    )
    return Table(table, digits={"MiB": 1})


@styled
def counts(frame) -> Picture:
    """Draw usable images per degradation and split, the excluded ones beside them."""
    import polars as pl

    rows = _images(frame)
    usable, excluded = (
        rows.filter(pl.col("status") != "excluded"),
        rows.filter(pl.col("status") == "excluded"),
    )
    names = sorted(rows["degradation"].unique())
    each = {s: len(usable.filter(pl.col("split") == s)) for s in SPLITS}
    title = f"{plural(len(usable), 'usable image')}: {each['train']:,} to train, "
    title += f"{each['val']:,} to validate; {len(excluded) or 'none'} left out"
    picture, axes = figure(title, height=0.75 + 0.42 * len(names))
    axis, left = axes[0, 0], np.zeros(len(names))
    words: list[list[str]] = [[] for _ in names]
    parts = [(SPLITS[s], s, usable.filter(pl.col("split") == s)) for s in SPLITS]
    for colour, label, part in [*parts, (VERMILION, "left out", excluded)]:
        count = dict(part.group_by("degradation").len().iter_rows())
        width = np.array([count.get(n, 0) for n in names], dtype=float)
        if width.any():
            axis.barh(names, width, left=left, color=colour, label=label, height=0.62)
            left += width
        for word, number in zip(words, width, strict=True):
            word += [f"{number:,.0f} {label}"] if number else []
    for place, (end, word) in enumerate(zip(left, words, strict=True)):
        text = " · ".join(word)
        axis.annotate(
            text, (end, place), (6, 0), textcoords="offset points", va="center", color=MUTED
        )
    axis.set_xlim(0, left.max() * 1.32)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_xlabel("images (a pair counts once)")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
    return picture


@styled
def resolutions(frame, crop_size: int | None = None) -> Picture:
    """Draw a histogram of the short side in px, by split, with the training crop marked."""
    import polars as pl

    rows = _images(frame).filter(pl.col("status") != "excluded")
    short_side = {
        s: part.select(pl.min_horizontal("width", "height")).to_series().to_numpy()
        for s in SPLITS
        if len(part := rows.filter(pl.col("split") == s))
    }
    if not short_side:
        raise ValueError("no usable image is left: see the table of problems")
    every = np.concatenate(list(short_side.values()))
    span = f"{every.min():,}–{every.max():,} px"
    title = f"Short side {span}"
    if crop_size:
        small = int((every < crop_size).sum())
        title += f"; {small} images are" if small > 1 else f"; {small or 'no'} image is"
        title += f" smaller than the {crop_size} px crop"
    picture, axes = figure(title, height=2.6)
    axis = axes[0, 0]
    low, high = every.min() / 1.1, every.max() * 1.1
    bins = np.geomspace(min(low, crop_size / 1.1 if crop_size else low), high, 25)
    axis.hist(
        list(short_side.values()),
        bins=bins,
        stacked=True,
        color=[SPLITS[s] for s in short_side],
        label=list(short_side),
        edgecolor="white",
        linewidth=0.5,
    )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    axis.xaxis.set_minor_formatter("")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="short side (px, log scale)", ylabel="images")
    if crop_size:
        axis.axvline(crop_size, color=VERMILION, linewidth=1.5, linestyle="--", label="crop")
    axis.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
    return picture


def _thumbnail(path: str, side: int) -> np.ndarray:
    """Return an image cut to its central square and scaled to (side, side, 3) uint8."""
    import cv2

    from ..images import read_image

    picture = read_image(path)
    edge = min(picture.shape[:2])
    top, left = (picture.shape[0] - edge) // 2, (picture.shape[1] - edge) // 2
    square = picture[top : top + edge, left : left + edge]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def _spread(frame, number: int):
    """Return at most `number` rows, evenly over the sorted frame: the same ones every time."""
    frame = frame.sort("split", "degradation", "path", nulls_last=True)
    at = np.unique(np.linspace(0, len(frame) - 1, min(number, len(frame))).round().astype(int))
    return frame[at.tolist()]


@styled
def contact_sheet(frame, number: int = 24, columns: int = 8) -> Picture:
    """Draw central squares of at most `number` usable images, labelled with split and size."""
    from pathlib import Path

    import polars as pl

    rows = _images(frame).filter(pl.col("status") != "excluded")
    shown = _spread(rows, number).to_dicts()
    lines = max(1, -(-len(shown) // columns))
    title = f"{len(shown)} of {plural(len(rows), 'usable image')}, central squares"
    picture, axes = figure(title, lines, columns, height=1.55)
    for axis in axes.flat:
        bare(axis)
    for axis, row in zip(axes.flat, shown, strict=False):
        axis.imshow(_thumbnail(row["path"], 160))
        name = short(Path(row["path"]).stem, 18)
        axis.set_title(name, fontsize=7.5, loc="center", pad=3, color=INK)
        label = f"{row['split']} · {row['width']}×{row['height']}"
        axis.set_xlabel(label, fontsize=7, color=SPLITS.get(row["split"], MUTED), labelpad=2)
    return picture


def problems(frame) -> Table:
    """Return every excluded or warned file with its reason; a title alone when there is none."""
    from pathlib import Path

    import polars as pl

    rows = frame.filter(pl.col("status") != "ok").sort("status", "path")
    excluded = int((rows["status"] == "excluded").sum())
    title = f"{excluded} excluded, {len(rows) - excluded} warned, of {plural(len(frame), 'file')}"
    if len(rows) == 0:
        title = f"No problem in {plural(len(frame), 'file')}"
    table = rows.select(
        pl.col("path").map_elements(lambda p: "/".join(Path(p).parts[-3:]), return_dtype=pl.String),
        "split",
        "status",
        "reason",
    )
    return Table(table.rename({"path": "file"}), title)
