"""What a validation says: scores against the untouched input, over training, by protocol.

Frames are `validation.parquet`: a row an image (and draw) of one validation. A photograph's draws
are not independent, so intervals are bootstrapped over photographs, not over rows.
"""

from __future__ import annotations

import numpy as np

from .style import (
    BASELINE,
    INK,
    INPUT,
    MUTED,
    RESTORED,
    Picture,
    colour_of,
    figure,
    spread,
    styled,
)
from .tables import Table

UNITS = {"psnr_y": "PSNR-Y (dB)", "ssim_y": "SSIM-Y", "lpips": "LPIPS (lower is better)"}


def latest(frame):
    """Return the rows of the last validation that the frame holds."""
    import polars as pl

    return frame.filter(pl.col("step") == pl.col("step").max())


def _kinds(frame, metric: str) -> list[tuple[str, str, str]]:
    """Return (column, label, colour) of the input, the baseline if there is one, the result."""
    known = [
        (f"{metric}_input", "untouched input", INPUT),
        (f"{metric}_affine", "best affine colour correction", BASELINE),
        (metric, "restored", RESTORED),
    ]
    return [k for k in known if k[0] in frame.columns and frame[k[0]].is_not_null().any()]


def interval(frame, column: str) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval of a column, resampling whole photographs."""
    from ..bootstrap import bootstrap_interval

    part = frame.select("image", column).drop_nulls()
    return bootstrap_interval(part[column].to_numpy(), part["image"].to_list())


def summary(frame, metric: str = "psnr_y") -> Table:
    """Return a row a degradation: input, baseline, restored, gain with its interval, SSIM."""
    import polars as pl

    from ..validate import check_comparable

    check_comparable(frame)
    frame = latest(frame).with_columns((pl.col(metric) - pl.col(f"{metric}_input")).alias("gain"))
    names, rows = sorted(frame["degradation"].unique()), []
    for name in names:
        part = frame.filter(pl.col("degradation") == name)
        gain, low, high = interval(part, "gain")
        row = {"degradation": name, "scored": len(part), "photographs": part["image"].n_unique()}
        for column, label, _ in _kinds(frame, metric):
            row[label.replace("best affine colour correction", "best affine")] = part[column].mean()
        row |= {"gain": gain, "95 % low": low, "95 % high": high}
        for column in ("ssim_y_input", "ssim_y", "lpips", "final_score"):
            if column in part.columns and part[column].is_not_null().any():
                row[column] = part[column].mean()
        rows.append(row)
    table = pl.DataFrame(rows)
    means = {c: table[c].mean() for c in table.columns if table[c].dtype == pl.Float64}
    low, high = _overall(frame)
    total = {"degradation": "mean of types", "scored": table["scored"].sum(), **means}
    total |= {"photographs": frame["image"].n_unique(), "95 % low": low, "95 % high": high}
    table = pl.concat([table, pl.DataFrame([total]).select(table.columns)], how="vertical_relaxed")
    title = (
        f"Step {frame['step'][0]:,}, {frame['weights'][0]} weights: "
        f"{total['gain']:+.2f} dB over the untouched input"
        if metric == "psnr_y"
        else f"{UNITS.get(metric, metric)}: {total['gain']:+.3f}"
    )
    return Table(table, title, digits={"ssim_y_input": 3, "ssim_y": 3, "lpips": 3})


def _overall(frame) -> tuple[float, float]:
    """Return the interval of the mean over degradations, photographs resampled jointly."""
    import polars as pl

    each = frame.group_by("image", "degradation").agg(pl.col("gain").mean())
    each = each.group_by("image").agg(pl.col("gain").mean())
    return interval(each, "gain")[1:]


def absent(config) -> Table:
    """Return a row a metric that cannot be computed here, LPIPS among them, with its reason."""
    import polars as pl

    from ..metrics import Absent, lpips
    from ..validate import absences

    found = {a.name: a.reason for a in [*absences(config), lpips()] if isinstance(a, Absent)}
    frame = pl.DataFrame({"metric": list(found), "why it is absent": list(found.values())})
    title = "No number stands for these, and no final score without LPIPS"
    return Table(frame, title if found else "Every metric can be computed here")


@styled
def bars(frame) -> Picture:
    """Draw PSNR-Y and SSIM-Y per degradation: input, baseline, restored, with 95 % whiskers."""
    import polars as pl

    frame = latest(frame)
    names = sorted(frame["degradation"].unique())
    gain = summary(frame).frame["gain"].to_list()
    at_top, at_bottom = names[int(np.argmax(gain[:-1]))], names[int(np.argmin(gain[:-1]))]
    title = f"Restoration gains {gain[-1]:+.1f} dB on average"
    if len(names) > 1:
        title += f": {max(gain[:-1]):+.1f} on {at_top}, {min(gain[:-1]):+.1f} on {at_bottom}"
    picture, axes = figure(title, 1, 2, height=3.6)
    for axis, metric in zip(axes[0], ("psnr_y", "ssim_y"), strict=True):
        kinds = _kinds(frame, metric)
        width, place, top = 0.8 / len(kinds), np.arange(len(names)), 0.0
        for number, (column, label, colour) in enumerate(kinds):
            parts = [frame.filter(pl.col("degradation") == n) for n in names]
            values = np.array([interval(part, column) for part in parts])
            mean, low, high = values.T
            x = place + (number - (len(kinds) - 1) / 2) * width
            axis.bar(x, mean, width * 0.92, color=colour, label=label)
            axis.errorbar(
                x, mean, [mean - low, high - mean], fmt="none", ecolor=INK, elinewidth=1, capsize=2
            )
            tops = np.where(np.isfinite(high), high, mean)
            top = max(top, float(tops.max()))
            if column == metric:
                for spot, value, above in zip(x, mean, tops, strict=True):
                    text = f"{value:.1f}" if metric == "psnr_y" else f"{value:.2f}"
                    axis.annotate(
                        text, (spot, above), (0, 3), textcoords="offset points", ha="center",
                        fontsize=8.5, color=RESTORED, fontweight="bold",
                        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
                    )  # fmt: skip
        axis.set_xticks(place, names)
        axis.tick_params(axis="x", length=0, labelcolor=INK)
        axis.grid(axis="x", visible=False)
        axis.set(title=UNITS[metric], ylim=(0, min(top * 1.12, 1.08 if metric == "ssim_y" else 99)))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower left", ncols=3)
    return picture


@styled
def over_training(frame, metric: str = "psnr_y") -> Picture:
    """Draw a metric's mean per degradation over the validations of a run, and the mean of types."""
    import polars as pl

    each = frame.group_by("step", "degradation").agg(pl.col(metric).mean(), pl.len()).sort("step")
    inputs = f"{metric}_input"
    names = sorted(each["degradation"].unique())
    mean = each.group_by("step").agg(pl.col(metric).mean()).sort("step")
    best = mean.sort(metric, descending=metric != "lpips")[0]
    unit = UNITS.get(metric, metric)
    title = (
        f"{unit}: best mean {best[metric][0]:.2f} at step {best['step'][0]:,} "
        f"of {mean['step'].max():,}"
    )
    picture, axes = figure(title, height=3.4)
    axis = axes[0, 0]
    ends = []
    for name in names:
        part, colour = each.filter(pl.col("degradation") == name), colour_of(name, names)
        axis.plot(
            part["step"], part[metric], color=colour, marker="o", markersize=3.5, linewidth=1.4
        )
        ends.append((name, part[metric][-1], colour))
    if len(names) > 1:
        axis.plot(mean["step"], mean[metric], color=INK, linewidth=2.6)
        ends.append(("mean", mean[metric][-1], INK))
    if inputs in frame.columns:
        level = frame.group_by("degradation").agg(pl.col(inputs).mean())[inputs].mean()
        axis.axhline(level, color=MUTED, linestyle="--", label="untouched input, mean of types")
    axis.set(xlabel="training step", ylabel=unit)
    low, high = axis.get_ylim()
    heights = spread([value for _, value, _ in ends], 0.06 * (high - low))
    for (name, value, colour), height in zip(ends, heights, strict=True):
        axis.annotate(
            name, (mean["step"][-1], value), (1.012, height), color=colour, va="center", fontsize=9,
            textcoords=axis.get_yaxis_transform(), annotation_clip=False,
        )  # fmt: skip
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return picture
