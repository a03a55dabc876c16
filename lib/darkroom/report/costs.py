"""What a run costs before it starts: parameters, and static memory by module."""

from __future__ import annotations

import numpy as np

from .style import BLUE, GREEN, INK, MUTED, ORANGE, SKY, Picture, figure, styled
from .tables import Table

PARTS = {"weights": BLUE, "gradients": ORANGE, "optimizer": GREEN, "ema": SKY}


def parameters(frame) -> Table:
    """Return `darkroom.plan.memory.static`'s frame as a table; memory in MiB below 1 GiB in all."""
    import polars as pl

    scale, unit = _unit(frame)
    gib = [*PARTS, "total"]
    table = frame.with_columns(pl.col(gib) * scale).rename({c: f"{c} ({unit})" for c in gib})
    total = frame.filter(pl.col("module") == "total").to_dicts()[0]
    share = total["trained"] / max(1, total["parameters"])
    title = f"{total['parameters']:,} parameters, {share:.1%} of them trained"
    return Table(table, title, digits={f"{c} ({unit})": 2 for c in gib})


def _unit(frame) -> tuple[float, str]:
    import polars as pl

    total = frame.filter(pl.col("module") == "total")["total"][0]
    return (1.0, "GiB") if total >= 1 else (1024.0, "MiB")


@styled
def static_memory(frame) -> Picture:
    """Draw static memory by module: weights, gradients, optimizer state, EMA."""
    import polars as pl

    scale, unit = _unit(frame)
    total = frame.filter(pl.col("module") == "total")["total"][0] * scale
    rows = frame.filter(pl.col("module") != "total")
    names, place = rows["module"].to_list(), np.arange(len(rows))
    title = f"{total:.2f} {unit} are held all the time; activations come on top"
    picture, axes = figure(title, height=0.85 + 0.42 * len(names))
    axis, left = axes[0, 0], np.zeros(len(names))
    for part, colour in PARTS.items():
        width = rows[part].to_numpy() * scale
        axis.barh(place, width, left=left, color=colour, label=part, height=0.62)
        left += width
    for spot, end in zip(place, left, strict=True):
        text = f"{end:.2f} {unit}"
        axis.annotate(
            text, (end, spot), (6, 0), textcoords="offset points", va="center", color=MUTED
        )
    axis.set_yticks(place, names)
    axis.set(xlabel=unit, xlim=(0, left.max() * 1.15))
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return picture
