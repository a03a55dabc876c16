"""Comparisons: an ablation's variants on the same images, one result under several protocols."""

from __future__ import annotations

import numpy as np

from .scores import UNITS
from .style import BLUE, INK, INPUT, MUTED, ORANGE, Picture, figure, styled
from .tables import Table


def variants(config) -> Table:
    """Return what an ablation will run: a row a variant and seed, with what it changes."""
    import polars as pl

    from .. import ablation

    todo = ablation.variants(config)
    rows = [
        {
            "variant": v.name,
            "seed": config.seed if v.seed is None else v.seed,
            "changes": ablation.describe(config, v),
        }
        for v in todo
    ]
    title = f"{len(rows)} runs below {config.run}"
    if ablation.is_example(config):
        title += ": `ablation` is empty, so a short example with the horizon cut to "
        title += f"{ablation.EXAMPLE_STEPS} steps"
    return Table(pl.DataFrame(rows), title)


@styled
def protocols(rows: list[dict]) -> Picture:
    """Draw restored images' scores under the protocols that papers mix.

    `rows` are those of `darkroom.metrics.protocols`, of any number of images; they are averaged.
    """
    import polars as pl

    frame = pl.DataFrame(rows).with_columns(pl.col("metric").str.to_uppercase())
    frame = frame.group_by("metric", "protocol", "ours", maintain_order=True).agg(
        pl.col("value").mean()
    )
    metrics = [m for m in ("PSNR", "SSIM") if m in frame["metric"].to_list()]
    parts = [frame.filter(pl.col("metric") == m).sort("value") for m in metrics]
    apart = float(parts[0]["value"].max() - parts[0]["value"].min())
    unit = "dB" if metrics[0] == "PSNR" else ""
    title = f"The same images, {apart:.1f} {unit} apart: why two papers differ"
    rows = max(len(p) for p in parts)
    picture, axes = figure(title, 1, len(parts), height=0.9 + 0.34 * rows)
    for axis, metric, part in zip(axes[0], metrics, parts, strict=True):
        place = np.arange(len(part))
        colours = [BLUE if ours else INPUT for ours in part["ours"]]
        values = part["value"].to_numpy()
        floor = values.min() - 0.35 * max(np.ptp(values), 1e-3)
        axis.hlines(place, floor, values, color=colours, linewidth=2)
        axis.scatter(values, place, color=colours, s=42, zorder=3)
        for spot, value in zip(place, values, strict=True):
            text = f"{value:.2f}" if metric == "PSNR" else f"{value:.3f}"
            axis.annotate(
                text, (value, spot), (8, 0), textcoords="offset points", va="center", fontsize=9
            )
        ours = [" (ours)" if o else "" for o in part["ours"]]
        axis.set_yticks(place, [a + b for a, b in zip(part["protocol"], ours, strict=True)])
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.grid(axis="y", visible=False)
        axis.set(title=f"{metric} ({unit})" if metric == "PSNR" else metric)
        axis.set_xlim(floor, values.max() + 0.25 * max(np.ptp(values), 1e-3))
        axis.set_ylim(len(part) - rows - 0.6, len(part) - 0.4)
    return picture


@styled
def differences(frame, metric: str = "psnr_y") -> Picture:
    """Draw every variant's paired difference to the baseline with its 95 % interval.

    `frame` is `darkroom.ablation.compare`'s: `variant`, `difference`, `low`, `high`.
    """
    others = frame.drop_nulls("difference").sort("difference")
    clear = int(((others["low"] > 0) | (others["high"] < 0)).sum())
    unit = UNITS.get(metric, metric)
    title = f"{clear} of {len(others)} variants differ from the baseline beyond their interval"
    picture, axes = figure(title, height=1.0 + 0.42 * len(others))
    axis, place = axes[0, 0], np.arange(len(others))
    value, low, high = (others[c].to_numpy() for c in ("difference", "low", "high"))
    for spot, v, a, b in zip(place, value, low, high, strict=True):
        colour = BLUE if a > 0 else ORANGE if b < 0 else MUTED
        axis.plot([a, b], [spot, spot], color=colour, linewidth=3, solid_capstyle="round")
        axis.scatter([v], [spot], color=colour, s=50, zorder=3, edgecolor="white")
        axis.annotate(
            f"{v:+.2f}", (max(a, b), spot), (8, 0), textcoords="offset points", va="center"
        )
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(place, others["variant"].to_list())
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
    axis.set_ylim(-0.6, len(others) - 0.4)
    axis.set_xlabel(f"difference in {unit}, same images, 95 % interval over photographs")
    return picture
