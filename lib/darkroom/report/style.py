"""One look for every figure: palette, grid, sizes, and a Figure that shows itself in a notebook.

No pyplot: a figure belongs to its caller, so nothing leaks between cells, threads and runs.
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure

WIDTH = 10.0  # inches; 1100 px at the DPI below, the width of a notebook's output
DPI = 110

# Okabe & Ito (2008), distinguishable with every common colour blindness
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
INK, MUTED, GRID, PAPER = "#22262b", "#6a717b", "#e3e6ea", "#ffffff"

# one meaning, one colour, in every figure
INPUT, RESTORED, BASELINE = "#a7adb6", BLUE, ORANGE
SPLITS = {"train": BLUE, "val": ORANGE}
TYPES = {"Blur": PURPLE, "Haze": SKY, "Lowlight": VERMILION, "Rain": BLUE, "Snow": GREEN}
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, INK)

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b8bdc4",
    "axes.facecolor": PAPER,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "regular",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": PAPER,
}


class Picture(Figure):
    """A matplotlib Figure that a notebook shows as PNG, with or without pyplot's inline backend."""

    def __repr__(self) -> str:
        # a log cannot show the picture, but can say what it found
        return f"[figure] {self.get_suptitle()}"

    def png(self) -> bytes:
        """Return the rendered figure as PNG bytes."""
        from matplotlib import rc_context

        buffer = io.BytesIO()
        with rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()

    def keep(self, config, name: str) -> Picture:
        """Write the figure to `runs/<run>/figures/<name>.png` and return it, to be shown."""
        from ..paths import write_atomically

        folder = config.run_dir / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.png", self.png())
        return self

    def _repr_png_(self) -> bytes:
        return self.png()


def figure(title: str, rows: int = 1, columns: int = 1, *, height: float = 3.0, **options):
    """Return (Picture, axes array (rows, columns)) under a title that states the finding.

    `height` is inches a row; `options` go to `subplots`.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        picture = Picture(figsize=(WIDTH, height * rows + 0.5), dpi=DPI, layout="constrained")
        picture.get_layout_engine().set(w_pad=0.08, h_pad=0.07)
        axes = picture.subplots(rows, columns, squeeze=False, **options)
        picture.suptitle(title, x=0.008, ha="left", fontsize=12.5, fontweight="bold")
    return picture, axes


def styled(draw):
    """Draw under the house style; a decorator for functions that return a Picture."""
    import functools

    from matplotlib import rc_context

    @functools.wraps(draw)
    def inner(*args, **options):
        with rc_context(STYLE):
            return draw(*args, **options)

    return inner


def bare(axes) -> None:
    """Strip an axes to its picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def colour_of(name: str, order: list[str]) -> str:
    """Return a degradation's or series' colour: the fixed one, or by its place in `order`."""
    return TYPES.get(name) or SERIES[order.index(name) % len(SERIES)]


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Return a running mean over `share` of the series, centred, non-finite values left out.

    At both ends the window is cut off.
    """
    values = np.asarray(values, dtype=float)
    half = int(len(values) * share / 2)
    if half < 1:
        return values
    good = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(good)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[high] - total[low]) / (count[high] - count[low])


def prefers_log(values) -> bool:
    """Say whether a series wants a logarithmic axis: all positive, and over a decade wide."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() <= 0:
        return False
    low, high = np.quantile(values, [0.02, 0.98])
    return bool(high / low > 10)


def spread(places: list[float], gap: float) -> list[float]:
    """Return positions near `places` that keep `gap` from each other, for labels at line ends."""
    order = np.argsort(places)
    out = np.array(places, dtype=float)
    for _ in range(50):
        moved = False
        for a, b in zip(order, order[1:], strict=False):
            short = gap - (out[b] - out[a])
            if short > 1e-9:
                out[a], out[b], moved = out[a] - short / 2, out[b] + short / 2, True
        if not moved:
            break
    return out.tolist()


def plural(count: int, noun: str) -> str:
    """Return "1 image", "2 images"."""
    endings = {"photograph": "photographs", "class": "classes"}
    return f"{count:,} {noun if count == 1 else endings.get(noun, noun + 's')}"
