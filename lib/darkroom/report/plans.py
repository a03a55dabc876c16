"""Figures and tables of the memory plan: the timeline of a step, what holds its peak, what fits."""

from __future__ import annotations

import numpy as np

from .style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Picture,
    figure,
    styled,
)
from .tables import Table

# what stays over the whole step is grey, what comes and goes has a colour
HELD = {
    "weights": "#4d545c",
    "trained weights": "#737b85",
    "optimizer": "#989fa8",
    "ema": "#b9bfc6",
    "gradients": ORANGE,
    "batch": "#d9dde1",
}
COMING = (BLUE, VERMILION, GREEN, PURPLE, SKY, "#F0E442")
OTHERS = "everything else"
NO_BUDGET = (
    "no budget to fit: set budget.gpu ('A100-40G', 'RTX 4090') or budget.memory_gib, with "
    "budget.hours if you like"
)
SHORT = 0.035  # of the width: a phase narrower than this has no name
HIDDEN = ("start",)  # phases that are over before a step begins


def _unit(gib: float) -> tuple[float, str]:
    return (1.0, "GiB") if gib >= 1 else (1024.0, "MiB")


def _series(frame) -> list[tuple[str, np.ndarray, str]]:
    """Return (name, GiB, colour) bottom up: what is held, then the largest of what comes and goes.

    A module's activations and what its backward makes are one.
    """
    found: dict[str, np.ndarray] = {}
    for column in frame.columns[3:]:
        name = column.removesuffix(" activations").removesuffix(" backward")
        found[name] = found.get(name, 0) + frame[column].to_numpy()
    held = [(n, found.pop(n), colour) for n, colour in HELD.items() if n in found]
    order = sorted(found, key=lambda n: -found[n].max())
    largest, rest = order[: len(COMING)], order[len(COMING) :]
    coming = [(n, found[n], colour) for n, colour in zip(largest, COMING, strict=False)]
    if rest:
        coming.append((OTHERS, sum(found[n] for n in rest), "#e8d9c5"))
    return [s for s in held + coming if s[1].max() > 0]


@styled
def timeline(plan, card=None) -> Picture:
    """Draw the memory of a run's turns by category, phases named, the peak marked.

    From left to right is the order in which memory is taken and given back, not time. A `card`'s
    memory is the budget.
    """
    budget_gib = card.memory_gib if card else None
    frame = plan.timeline.filter(~plan.timeline["phase"].is_in(HIDDEN))
    scale, unit = _unit(plan.peak_gib)
    title = f"The peak is {plan.peak_gib * scale:.1f} {unit}, in '{plan.peak_phase}'"
    picture, axes = figure(title, height=4.4)
    axis, x = axes[0, 0], np.arange(len(frame))
    series = _series(frame)
    axis.stackplot(
        x,
        *(values * scale for _, values, _ in series),
        colors=[colour for *_, colour in series],
        labels=[name for name, *_ in series],
        linewidth=0,
    )
    total = frame["total"].to_numpy() * scale
    top = max(total.max(), (budget_gib or 0) * scale) * 1.42
    at = int(total.argmax())
    left = at > 0.7 * len(x)
    axis.annotate(
        f"{total[at]:.1f} {unit}",
        (at, total[at]),
        (-44 if left else 44, -2),
        textcoords="offset points",
        ha="right" if left else "left",
        color=INK,
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 1.0},
    )
    if budget_gib:
        axis.axhline(budget_gib * scale, color=VERMILION, linewidth=1.4, linestyle=(0, (5, 3)))
        axis.annotate(
            f"budget {budget_gib * scale:.4g} {unit}",
            (len(x), budget_gib * scale),
            (-4, 3),
            textcoords="offset points",
            ha="right",
            color=VERMILION,
        )
    _bands(axis, frame["phase"].to_list(), top)
    axis.set(xlim=(0, len(x) - 1), ylim=(0, top), ylabel=unit, xlabel="order of events →")
    axis.set_xticks([])
    axis.grid(axis="x", visible=False)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=False
    )
    return picture


def _bands(axis, phases: list[str], top: float) -> None:
    """Shade every other phase and write the names of those with room, the bottom of the name up."""
    starts = [n for n, name in enumerate(phases) if n == 0 or name != phases[n - 1]]
    ends = [*starts[1:], len(phases)]
    for number, (a, b) in enumerate(zip(starts, ends, strict=True)):
        if number % 2:
            axis.axvspan(a, b, color="#f3f5f7", zorder=0, linewidth=0)
        if a:
            axis.axvline(a, color="#ffffff", linewidth=0.8)
        if b - a > SHORT * len(phases):
            wide = b - a > 0.2 * len(phases)
            text = phases[a] if wide else phases[a].replace(": ", ":\n")
            axis.text(
                (a + b) / 2,
                top * 0.985,
                text,
                ha="center",
                va="top",
                color=MUTED,
                fontsize=8.5,
                rotation=0 if wide else 90,
            )


def holders(plan, count: int = 12) -> Table:
    """List the modules that hold the most at the peak."""
    import polars as pl

    scale, unit = _unit(plan.peak_gib)
    frame = plan.modules.head(count)
    rest = {"module": "everything else", "category": "", "gib": plan.peak_gib - frame["gib"].sum()}
    frame = pl.concat([frame, pl.DataFrame([rest])])
    share = (100 * pl.col("gib") / plan.peak_gib).alias("%")
    module = pl.when(pl.col("module") == "").then(pl.lit("(no module)")).otherwise("module")
    frame = frame.select(
        module.alias("module"),
        pl.col("category").alias("what"),
        (pl.col("gib") * scale).alias(unit),
        share,
    )
    return Table(frame, f"What is alive at the peak, in '{plan.peak_phase}'", {"%": 0})


def phases(plan) -> Table:
    """List every phase's peak, and the operations of those that compute."""
    import polars as pl

    scale, unit = _unit(plan.peak_gib)
    rows = [
        {"phase": name, unit: gib * scale, "TFLOP": plan.tflop.get(name) or None}
        for name, gib in plan.phases.items()
    ]
    return Table(pl.DataFrame(rows, schema_overrides={"TFLOP": pl.Float64}), "Every phase's peak")


def pareto(found) -> Table:
    """List the choices that no other beats in memory and time, with what each step down costs.

    Without a search (None) it says what to set.
    """
    import polars as pl

    if found is None:
        return Table(pl.DataFrame({"fit": [NO_BUDGET]}))
    frame = found.pareto.select(
        pl.col("needed_gib").alias("GiB"),
        pl.when(pl.col("needed_gib") <= found.budget_gib)
        .then(pl.lit("yes"))
        .otherwise(pl.lit("no"))
        .alias("fits"),
        pl.col("seconds_at_least").alias("s a step ≥"),
        pl.col("hours_at_least").alias("hours ≥"),
        pl.col("step_down").alias("change from the row above"),
        pl.col("saves_gib").alias("GiB saved"),
        (100 * pl.col("costs")).alias("% more time"),
    )
    return Table(frame, found.verdict, {"GiB": 1, "hours ≥": 1, "GiB saved": 1, "% more time": 0})


@styled
def choices(found) -> Picture | Table:
    """Draw every choice as memory against the least time; the best ones joined, the budget marked.

    Time is relative to the fastest. Beyond the solid line choices cost more than time: coarser
    moments, or the norms of terms. Without a search (None) it says what to set.
    """
    if found is None:
        return pareto(None)
    frame, front = found.frame, found.pareto
    title = "No choice fits" if found.recommended is None else "What fits, and what it costs"
    picture, axes = figure(f"{title}: {len(frame):,} configs at the same batch", height=3.6)
    axis, least = axes[0, 0], frame["seconds_at_least"].min()

    def points(part) -> tuple[np.ndarray, np.ndarray]:
        more = 100 * (part["seconds_at_least"].to_numpy() / least - 1)
        return part["needed_gib"].to_numpy(), more

    x, y = points(frame)
    inside = x <= found.budget_gib
    axis.scatter(x[~inside], y[~inside], s=12, color="#c9ced4", label="too large", linewidth=0)
    axis.scatter(x[inside], y[inside], s=12, color=SKY, label="fits", linewidth=0)
    plain = front.filter(front["level"] == 0)
    axis.plot(*points(plain), color=BLUE, marker="o", markersize=5, label="no other beats these")
    if len(plain) < len(front):
        coarse = front.filter(front["level"] > 0)
        axis.plot(
            *points(coarse),
            color=PURPLE,
            marker="o",
            markersize=4,
            linestyle="",
            label="with coarser moments",
        )
    axis.axvline(found.budget_gib, color=VERMILION, linestyle=(0, (5, 3)), linewidth=1.4)
    axis.annotate(
        f"budget {found.budget_gib:g} GiB",
        (found.budget_gib, 1.0),
        (-4, -4),  # to the left: the legend stands on the right
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=VERMILION,
    )
    if found.recommended is not None:
        chosen = frame.filter(frame["choice"] == list(found.proofs)[-1])
        axis.scatter(
            *points(chosen),
            s=150,
            facecolor="none",
            edgecolor=VERMILION,
            linewidth=2,
            zorder=5,
            label="recommended",
        )
    axis.set(xlabel="GiB needed on the card", ylabel="% more time than the fastest, at least")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=-2)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return picture
