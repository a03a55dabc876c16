"""What a line chart shows: curves of several kinds, and the words and colours around them.

All draws are made in one order whatever the size, so that a chart keeps its curves, colours and
words when it is drawn larger.
"""
# N points of a curve

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .page import Page, Style

NUM_POINTS = 400
GREYS = ("#000000", "#1c1c1c", "#3a3a3a", "#5c5c5c", "#808080")
COLOURS = (
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7"),  # Okabe & Ito
    ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"),  # matplotlib's own
    ("#0000ff", "#ff0000", "#008000", "#000000"),  # what spreadsheets and old software take
    ("#1b3a6b", "#8c1c13", "#3f6634", "#6b4e9b"),
)
PAPERS = (*["#ffffff"] * 9, "#fdfcf7", "#f7f7f4", "#f3f5f8")
X_WORDS = (
    "wavelength (nm)", "wavenumber (1/cm)", "time (s)", "energy (eV)", "2θ (deg)",
    "frequency (kHz)", "m/z", "T (K)", "distance (mm)", "t / min", "pH", "U (V)", "dose",
)  # fmt: skip
Y_WORDS = (
    "absorbance", "intensity (a.u.)", "counts", "transmittance (%)", "signal", "I (mA)", "y",
    "flux", "amplitude", "rate (1/s)", "log p", "counts / s", "error (%)",
)  # fmt: skip
TITLES = (
    "Sample A", "Run 12", "Fig. 3", "T = 300 K", "Raman spectrum", "Calibration", "Channel 2",
    "Before and after", "NMR", "XRD of film B", "Loss", "Series 4", "Chromatogram", "Station 7",
)  # fmt: skip
NAMES = ("A", "B", "C", "fit", "data", "ref.", "model", "n = 4", "320 K", "blank", "old", "new")


def draw(figure, size: int, generator: np.random.Generator) -> None:
    """Draw one chart into an empty square matplotlib Figure of `size` pixels."""
    style = _draw_style(generator)
    x_range = X_RANGES[int(generator.integers(len(X_RANGES)))]
    y_scale = 10.0 ** generator.integers(-1, 4)
    words = [str(generator.choice(w)) for w in (X_WORDS, Y_WORDS, TITLES)]
    lines = _draw_lines(generator)
    page = Page(figure, style, size)
    low, high = min(y.min() for y, _ in lines), max(y.max() for y, _ in lines)
    room = 0.06 * (high - low) + 1e-6
    y_range = (low - room) * y_scale, (high + (3.5 if style.peaks else 1) * room) * y_scale
    page.frame(x_range, y_range, words)
    x = np.linspace(*x_range, NUM_POINTS)
    for y, options in lines:
        page.line(page.across(x), page.up(y * y_scale), solid_joinstyle="round", **options)
    if style.peaks and page.wordy:
        page.mark_peaks(x, lines[0][0] * y_scale)
    if style.legend and page.wordy:
        page.legend([(str(name), options) for name, (_, options) in zip(
            generator.permutation(NAMES), lines, strict=False)])  # fmt: skip


def _draw_style(generator: np.random.Generator) -> Style:
    where = generator.random(12)
    return Style(
        font=("DejaVuSans", "DejaVuSans", "DejaVuSerif", "STIXGeneral")[int(4 * where[0])],
        scale=0.85 + 0.35 * where[1],
        paper=PAPERS[int(len(PAPERS) * where[2])],
        ink=GREYS[int(4 * where[3])],
        spines=("box", "box", "corner", "corner", "none")[int(5 * where[4])],
        ticks=("in", "out", "out", "none")[int(4 * where[5])],
        grid=("", "", "-", ":", "--")[int(5 * where[6])],
        numbers=bool(where[7] < 0.75),
        labels=bool(where[8] < 0.6),
        title=bool(where[9] < 0.4),
        legend=bool(where[10] < 0.35),
        peaks=bool(where[11] < 0.2),
    )


def _draw_lines(generator: np.random.Generator) -> list[tuple[np.ndarray, dict]]:
    """Draw one to three curves, (N,) about 0 to 1 each, with matplotlib's options for them."""
    count = int(generator.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))
    kind = KINDS[int(generator.integers(len(KINDS)))]
    palette = COLOURS[int(generator.integers(len(COLOURS)))]
    if generator.random() < 0.4:
        palette = GREYS
    palette = [palette[i] for i in generator.permutation(len(palette))]
    width, stacked = 0.8 + 1.2 * generator.random(), generator.random() < 0.35
    lines = []
    for n in range(count):
        if generator.random() < 0.25:
            kind = KINDS[int(generator.integers(len(KINDS)))]
        dashed = generator.random() < (0.1 if n == 0 else 0.25)
        options = {
            "color": palette[n],
            "linewidth": float(np.clip(width * (0.85 + 0.3 * generator.random()), 0.8, 2.0)),
            "linestyle": ("--", "-.", ":")[int(generator.integers(3))] if dashed else "-",
        }
        y = kind(np.linspace(0.0, 1.0, NUM_POINTS), generator) * (0.6 + 0.4 * generator.random())
        lines.append((y + (0.75 * n if stacked else 0.0), options))
    return lines


def smooth(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a few slow waves on a slope."""
    y = (generator.random() - 0.5) * x
    for _ in range(int(generator.integers(1, 5))):
        wave, phase = 0.4 + 3.5 * generator.random(), 2 * np.pi * generator.random()
        y = y + generator.random() * np.sin(2 * np.pi * wave * x + phase) / (1 + wave)
    return _unit(y)


def spectrum(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw Gaussian and Lorentzian peaks on a slow baseline, in a third of draws downwards."""
    y = 0.15 * generator.random() * np.exp(-3 * generator.random() * x)
    for _ in range(int(generator.integers(3, 12))):
        centre, height = generator.random(), 0.1 + 0.9 * generator.random() ** 2
        width = 0.004 + 0.03 * generator.random() ** 2
        offset = (x - centre) / width
        peak = np.exp(-0.5 * offset**2) if generator.random() < 0.5 else 1 / (1 + offset**2)
        y = y + height * peak
    noise = 0.012 * generator.random() * generator.standard_normal(len(x))
    return _unit((-y if generator.random() < 0.33 else y) + noise)


def steps(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw constant stretches with jumps between them."""
    edges = np.sort(generator.random(int(generator.integers(3, 12))))
    levels = generator.random(len(edges) + 1)
    if generator.random() < 0.4:
        levels = np.sort(levels)
    return _unit(levels[np.searchsorted(edges, x)])


def noisy(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a random walk, or a slow curve under measurement noise."""
    noise = generator.standard_normal(len(x))
    if generator.random() < 0.5:
        return _unit(np.cumsum(noise))
    return _unit(smooth(x, generator) + (0.02 + 0.08 * generator.random()) * noise)


def saturation(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a decay, a growth that saturates, or a titration's S."""
    kind, rate = generator.random(), 2 + 8 * generator.random()
    if kind < 0.35:
        return np.exp(-rate * x)
    if kind < 0.7:
        return 1 - np.exp(-rate * x)
    return 1 / (1 + np.exp(-4 * rate * (x - 0.25 - 0.5 * generator.random())))


def polyline(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw straight segments between few points, as of a table of measurements."""
    num_knots = int(generator.integers(4, 14))
    return _unit(np.interp(x, np.linspace(0, 1, num_knots), generator.random(num_knots)))


KINDS: tuple[Callable, ...] = (
    spectrum, spectrum, spectrum, smooth, smooth, steps, noisy, saturation, polyline,
)  # fmt: skip
X_RANGES = (
    (0, 1), (0, 10), (0, 100), (400, 800), (500, 4000), (1, 12), (20, 80), (1990, 2025), (-5, 5),
    (0, 0.4), (200, 350), (0, 60),
)  # fmt: skip


def _unit(y: np.ndarray) -> np.ndarray:
    return (y - y.min()) / max(float(np.ptp(y)), 1e-6)
