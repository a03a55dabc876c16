"""The frame of a line chart on a page of pixels: spines, ticks, numbers, words and strokes.

Every artist is placed in pixels by hand: matplotlib's axes take three times as long to set up as
their picture takes to draw. The origin is the lower left corner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """What is drawn around the curves."""

    font: str  # file name in matplotlib's own folder
    scale: float  # size of words, relative to the usual
    paper: str
    ink: str
    spines: str  # box, corner or none
    ticks: str  # in, out or none
    grid: str  # line style, or empty
    numbers: bool
    labels: bool
    title: bool
    legend: bool
    peaks: bool  # whether the highest points carry their position


class Page:
    """A square figure of `size` pixels at 72 dots an inch, so that a point is a pixel."""

    def __init__(self, figure, style: Style, size: int) -> None:
        import matplotlib
        from matplotlib.font_manager import FontProperties
        from matplotlib.transforms import IdentityTransform

        self.figure, self.style, self.size = figure, style, size
        self.pixels = IdentityTransform()
        self.wordy = size >= 96  # room for more than numbers and a title
        self.points = float(np.clip(size * 0.062, 6.0, 14.0) * style.scale)
        # the files that matplotlib ships: what a system has installed differs between machines
        path = f"{matplotlib.get_data_path()}/fonts/ttf/{style.font}.ttf"
        self.font = FontProperties(fname=path, size=self.points)
        figure.set_facecolor(style.paper)
        self.left, self.bottom, self.right, self.top = self._sides()

    def _sides(self) -> tuple[float, float, float, float]:
        style, points = self.style, self.points
        words, edge = style.labels and self.wordy, 0.035 * self.size + 1
        left = edge + (2.4 * points if style.numbers else 0) + (1.3 * points if words else 0)
        bottom = edge + (1.4 * points if style.numbers else 0) + (1.2 * points if words else 0)
        top = edge + (1.4 * points if style.title else 0)
        sides = (left, bottom, self.size - edge - 0.5 * points, self.size - top)
        return tuple(round(side) + 0.5 for side in sides)

    def line(self, x, y, **options) -> None:
        """Draw a line through points in pixels."""
        from matplotlib.lines import Line2D

        self.figure.add_artist(Line2D(x, y, transform=self.pixels, antialiased=True, **options))

    def word(self, x: float, y: float, text: str, **options) -> None:
        """Write a text at a point in pixels."""
        from matplotlib.text import Text

        self.figure.add_artist(
            Text(
                x,
                y,
                text,
                transform=self.pixels,
                fontproperties=self.font,
                color=self.style.ink,
                parse_math=False,
                antialiased=True,
                **options,
            )  # fmt: skip
        )

    def across(self, x):
        """Return where values of x lie, in pixels."""
        low, high = self.x_range
        return self.left + (np.asarray(x) - low) / (high - low) * (self.right - self.left)

    def up(self, y):
        """Return where values of y lie, in pixels."""
        low, high = self.y_range
        return self.bottom + (np.asarray(y) - low) / (high - low) * (self.top - self.bottom)

    def frame(self, x_range: Range, y_range: Range, words: list[str]) -> None:
        """Draw grid, spines, ticks and numbers of these ranges, labels of x and y, and a title."""
        self.x_range, self.y_range = x_range, y_range
        style, thin = self.style, 0.6 if self.size < 128 else 0.8
        x_ticks = _ticks(x_range, 0.7 * self.size / (4.2 * self.points))
        y_ticks = _ticks(y_range, 0.7 * self.size / (2.4 * self.points))
        if style.grid:
            look = {"linestyle": style.grid, "linewidth": 0.5, "color": "#b5b5b5"}
            for x in self.across(x_ticks):
                self.line((x, x), (self.bottom, self.top), **look)
            for y in self.up(y_ticks):
                self.line((self.left, self.right), (y, y), **look)
        look = {"linewidth": thin, "color": style.ink}
        corners = [(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)]
        if style.spines == "box":
            corners += [(self.right, self.top), (self.left, self.top)]
        if style.spines != "none":
            self.line(*zip(*corners, strict=True), **look)
        length = max(2.0, 0.35 * self.points)
        length = {"in": -length, "out": length, "none": 0.0}[style.ticks]
        for x in self.across(x_ticks) if length else ():
            self.line((x, x), (self.bottom, self.bottom - length), **look)
        for y in self.up(y_ticks) if length else ():
            self.line((self.left, self.left - length), (y, y), **look)
        away = max(length, 0.0) + 1.5
        if style.numbers:
            for x in x_ticks:
                self.word(self.across(x), self.bottom - away, f"{x:g}", ha="center", va="top")
            for y in y_ticks:
                self.word(self.left - away, self.up(y), f"{y:g}", ha="right", va="center")
        if style.labels and self.wordy:
            middle = (self.left + self.right) / 2, (self.bottom + self.top) / 2
            self.word(middle[0], 1.5, words[0], ha="center", va="bottom")
            self.word(1.5, middle[1], words[1], ha="left", va="center", rotation=90)
        if style.title:
            self.word(
                (self.left + self.right) / 2, self.top + 2, words[2], ha="center", va="bottom"
            )

    def mark_peaks(self, x: np.ndarray, y: np.ndarray) -> None:
        """Write the position above the two highest points that are apart, away from the sides."""
        edge, near = len(x) // 10, len(x) // 4
        left = y.copy()
        left[:edge] = left[-edge:] = -np.inf
        for _ in range(2):
            at = int(np.argmax(left))
            where = self.across(x[at]), self.up(y[at]) + 2
            self.word(*where, f"{x[at]:.4g}", ha="center", va="bottom")
            left[max(at - near, 0) : at + near] = -np.inf

    def legend(self, entries: list[tuple[str, dict]]) -> None:
        """Name the curves in the upper right corner: (name, options of its line) each."""
        wide = 0.6 * self.points * max(len(name) for name, _ in entries)
        start, y = self.right - wide - 2, self.top - 0.8 * self.points
        for name, options in entries:
            self.line((start - 1.6 * self.points, start - 0.3 * self.points), (y, y), **options)
            self.word(start, y, name, ha="left", va="center")
            y -= 1.15 * self.points


def _ticks(ends: Range, number: float) -> np.ndarray:
    """Return round values inside a range: at most about `number` steps, 2 to 7."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(int(np.clip(number, 2, 7))).tick_values(*ends)
    slack = 1e-6 * (ends[1] - ends[0])
    return ticks[(ticks >= ends[0] - slack) & (ticks <= ends[1] + slack)]
