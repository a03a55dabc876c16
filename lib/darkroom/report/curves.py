"""Training curves from the rows of `train.jsonl`: losses, rates, gradient norms, memory."""

from __future__ import annotations

import numpy as np

from .style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    VERMILION,
    Picture,
    colour_of,
    figure,
    plural,
    prefers_log,
    smooth,
    styled,
)

TERM_NAMES = {
    "l2": "L2",
    "l1": "L1",
    "charbonnier": "Charbonnier",
    "ssim": "1 − SSIM",
    "lpips": "LPIPS",
    "vgg": "VGG",
    "psnr": "−PSNR",
    "gan": "GAN",
}


def _columns(frame, prefix: str) -> list[str]:
    return [c for c in frame.columns if c.startswith(prefix) and frame[c].is_not_null().any()]


def phases(frame) -> list[str]:
    """Return the names of the phases that these rows report, in the order of their turns."""
    totals = [c for c in _columns(frame, "loss/") if c.endswith("_total")]
    names = [c.removeprefix("loss/").removesuffix("_total") for c in totals]
    turns = [c.removeprefix("lr/") for c in _columns(frame, "lr/")]
    return sorted(names, key=lambda n: turns.index(n) if n in turns else len(turns))


def _points(frame, column: str) -> tuple[np.ndarray, np.ndarray]:
    part = frame.select("step", column).drop_nulls()
    return part["step"].to_numpy(), part[column].cast(float).to_numpy()


def _decade_labels(axis) -> None:
    """Write the ticks of a log axis as plain numbers, more of them where under two decades show."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_ylim()
    subs = (1, 2, 5) if high / low < 300 else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _curve(axis, frame, column: str, colour: str, label: str | None = None) -> np.ndarray:
    """Draw a series, raw and thin under its running mean; returns the running mean."""
    steps, values = _points(frame, column)
    mean = smooth(values)
    axis.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
    axis.plot(steps, mean, color=colour, label=label)
    return mean


def _loss_scale(axis, means: list[np.ndarray]) -> None:
    """Scale the y axis: logarithmic over decades, else close around the bulk of what is drawn.

    Single outliers may leave the axis, the running means never do; zero is shown when it is near.
    """
    if not means:
        return
    if prefers_log(np.concatenate(means)):
        axis.set_yscale("log")
        _decade_labels(axis)
        return
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines])
    low, high = np.nanquantile(drawn, [0.01, 0.99])
    low = min(low, *(np.nanmin(m) for m in means))
    high = max(high, *(np.nanmax(m) for m in means))
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    near_zero = 0 <= low < 0.35 * high
    axis.set_ylim(0 if near_zero else low - room, high + room)


@styled
def losses(frame) -> Picture:
    """Draw every phase's loss and its weighted terms, a panel each: raw thin, mean over 5 % thick.

    Terms have scales of their own, so that a small one (the GAN's) shows beside a large one.
    """
    names = phases(frame)
    if not names:
        raise ValueError("the rows hold no loss/<phase>_total: train a step first")
    _, values = _points(frame, f"loss/{names[0]}_total")
    mean = smooth(values)
    title = (
        f"{names[0].capitalize()} loss {_number(mean[0])} → {_number(mean[-1])} "
        f"in {plural(len(values), 'step')}"
    )
    panels = _panels(frame, names)
    columns = min(3, len(panels))
    picture, axes = figure(title, -(-len(panels) // columns), columns, height=2.2)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (heading, lines) in zip(axes.flat, panels, strict=False):
        means = [_curve(axis, frame, c, colour, label) for c, label, colour in lines]
        _loss_scale(axis, means)
        axis.set(title=heading, xlabel="step")
        if len(lines) > 1:
            axis.legend(ncols=2)
    return picture


def _panels(frame, names: list[str]) -> list[tuple[str, list]]:
    """Return (heading, [(column, label, colour)]) of every phase's total, its terms, and logits."""
    panels = []
    for name in names:
        total = f"loss/{name}_total"
        terms = [c for c in _columns(frame, f"loss/{name}_") if c != total]
        if len(terms) == 1:
            terms = []
        heading = f"{name} · weighted sum" if terms else f"{name} · loss"
        panels.append((heading, [(total, "total", INK if terms else BLUE)]))
        for column in terms:
            label = column.removeprefix(f"loss/{name}_")
            panels.append((f"{name} · {TERM_NAMES.get(label, label)}", [(column, label, BLUE)]))
    logits = [c for c in ("logits/real", "logits/fake") if c in _columns(frame, "logits/")]
    if logits:
        colours = {"logits/real": GREEN, "logits/fake": VERMILION}
        lines = [(c, c.removeprefix("logits/"), colours[c]) for c in logits]
        panels.append(("discriminator · mean logits", lines))
    return panels


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


@styled
def loss_by_degradation(frame) -> Picture:
    """Draw the first phase's loss for every degradation, running means over 15 % of the rows."""
    columns = _columns(frame, "loss_by_degradation/")
    if not columns:
        raise ValueError("the rows hold no loss_by_degradation/<type>: train a step first")
    names = [c.split("/", 1)[1] for c in columns]
    last = {n: smooth(_points(frame, c)[1], 0.15)[-1] for n, c in zip(names, columns, strict=True)}
    worst = max(last, key=last.get)
    picture, axes = figure(f"{worst} has the highest loss at the end", height=3.0)
    axis, drawn = axes[0, 0], []
    for name, column in zip(names, columns, strict=True):
        steps, values = _points(frame, column)
        mean = smooth(values, 0.15)
        axis.plot(steps, mean, color=colour_of(name, names), label=name)
        drawn.append(mean)
    _loss_scale(axis, drawn)
    axis.set(xlabel="step", ylabel="loss (running mean over 15 %)")
    axis.legend(ncols=len(names), loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return picture


@styled
def learning_rates(frame) -> Picture:
    """Draw the learning rate that every phase took."""
    columns = _columns(frame, "lr/")
    picture, axes = figure(_lr_title([_points(frame, c)[1] for c in columns]), height=2.4)
    series = {c.removeprefix("lr/"): _points(frame, c) for c in columns}
    _draw_rates(axes[0, 0], series)
    return picture


@styled
def schedule(config, horizon: int, phase_rates: dict[str, float]) -> Picture:
    """Draw a config's learning rates before training; `phase_rates` maps a phase to its base."""
    from .. import schedule as source

    section = config.optim.schedule
    steps = np.unique(np.linspace(0, horizon - 1, min(horizon, 600)).round().astype(int))
    series = {
        name: (
            steps,
            np.array([lr * source.lr_factor(section, lr, int(s), horizon) for s in steps]),
        )
        for name, lr in phase_rates.items()
    }
    picture, axes = figure(_lr_title([v for _, v in series.values()], section.kind), height=2.4)
    _draw_rates(axes[0, 0], series)
    for number, start in enumerate(source.boundaries(config, horizon)):
        axes[0, 0].axvline(
            start, color=MUTED, linestyle=":", label="stage starts" if number == 0 else None
        )
    axes[0, 0].legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return picture


def _lr_title(series: list[np.ndarray], kind: str = "") -> str:
    first = series[0]
    text = f"Learning rate: peak {first.max():.2g}, ends at {first[-1]:.2g}"
    return f"{text} ({kind})" if kind else text


def _draw_rates(axis, series: dict) -> None:
    for number, (colour, (name, (steps, values))) in enumerate(
        zip(SERIES, series.items(), strict=False)
    ):
        # equal schedules lie on each other: dashes let the one below show
        axis.plot(steps, values, color=colour, label=name, linestyle=("-", (0, (4, 3)))[number % 2])
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    axis.yaxis.set_major_formatter(lambda v, _: _scientific(v))
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))


def _scientific(value: float) -> str:
    """Return "2e-4", "1.5e-3" or "0"."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value else "0"


@styled
def gradient_norms(frame, clip: float | None = None) -> Picture:
    """Draw each phase's gradient norm before clipping, with the clipping threshold."""
    columns = [f"grad_norm/{n}" for n in phases(frame) if f"grad_norm/{n}" in frame.columns]
    share = np.mean([np.mean(_points(frame, c)[1] > clip) for c in columns]) if clip else 0.0
    title = f"Gradient norms: {share:.0%} of the steps are clipped" if clip else "Gradient norms"
    picture, axes = figure(title, height=2.8)
    axis = axes[0, 0]
    drawn = [
        _curve(axis, frame, column, colour, column.removeprefix("grad_norm/"))
        for colour, column in zip(SERIES, columns, strict=False)
    ]
    _loss_scale(axis, drawn)
    if clip:
        axis.axhline(clip, color=VERMILION, linestyle="--", linewidth=1.4, label=f"clip {clip:g}")
    axis.set(xlabel="step", ylabel="L2 norm before clipping")
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return picture


MEMORY = {
    "memory/rss_gib": ("process (RSS)", BLUE),
    "memory/allocated_gib": ("GPU allocated, peak", ORANGE),
    "memory/reserved_gib": ("GPU reserved, peak", VERMILION),
}


@styled
def memory(frame, budget_gib: float | None = None) -> Picture:
    """Draw process and GPU memory in GiB over training, with the budget where there is one."""
    columns = [c for c in MEMORY if c in frame.columns and frame[c].is_not_null().any()]
    peaks = {c: float(frame[c].max()) for c in columns}
    text = ", ".join(f"{MEMORY[c][0].replace(', peak', '')} {p:.2f}" for c, p in peaks.items())
    picture, axes = figure(f"Peak memory in GiB: {text}", height=2.4)
    axis = axes[0, 0]
    for column in columns:
        steps, values = _points(frame, column)
        axis.plot(steps, values, color=MEMORY[column][1], label=MEMORY[column][0])
    if budget_gib:
        axis.axhline(budget_gib, color=MUTED, linestyle="--", label=f"budget {budget_gib:g} GiB")
    axis.set(xlabel="step", ylabel="GiB", ylim=(0, 1.12 * max(*peaks.values(), budget_gib or 0)))
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return picture


@styled
def live(frame, total: int) -> Picture:
    """Draw a running training in one strip: a panel a phase and one of the learning rates."""
    names = phases(frame)
    step = int(frame["step"][-1])
    picture, axes = figure(f"Step {step:,} of {total:,}", 1, len(names) + 1, height=2.3)
    for axis, name in zip(axes[0], names, strict=False):
        _loss_scale(axis, [_curve(axis, frame, f"loss/{name}_total", BLUE)])
        axis.set(title=f"{name} loss", xlabel="step", xlim=(0, total))
    rates = {c.removeprefix("lr/"): _points(frame, c) for c in _columns(frame, "lr/")}
    _draw_rates(axes[0, -1], rates)
    axes[0, -1].set(title="learning rate", xlim=(0, total), ylabel="")
    axes[0, -1].legend(fontsize=8)
    return picture
