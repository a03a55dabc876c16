"""Degradations of documents and line drawings, each a domain of its own, and a mixture of them."""

import numpy as np

from darkroom.degradations import marks, optics
from darkroom.degradations.levels import place
from darkroom.degradations.pixels import clip

SINGLE = {
    "Gaussian": optics.gaussian,
    "Motion": optics.motion,
    "LowResolution": optics.low_resolution,
    "Compression": optics.compression,
    "Scan": optics.scan,
    "PrintScan": optics.print_scan,
    "LocalBlur": optics.local_blur,
    "Background": marks.background,
    "Noise": marks.noise,
    "Fading": marks.fading,
    "LineGaps": marks.line_gaps,
    "Text": marks.text,
    "Lines": marks.lines,
    "ScanLines": marks.scan_lines,
    "Threshold": marks.threshold,
    "Spectral": marks.spectral,
}
# the recipe of a mixture
BASE = ("Background", "Fading", "LineGaps", "Noise")
DESTRUCTIVE = ("LowResolution", "Gaussian", "Compression", "PrintScan", "Motion")
OTHERS = ("Spectral", "Text", "Lines", "Scan", "LocalBlur", "ScanLines")
NUM_ADDED = ((0, 0), (1, 2), (1, 3))  # easy, medium, hard


def mixed(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Apply what `plan` draws, one after the other at the same severity; noise at a third of it."""
    for name in plan(severity, generator):
        # on every picture, and under all that follows: at its full strength it hides the rest
        strength = severity / 3 if name == "Noise" else severity
        image = clip(SINGLE[name](image, strength, generator))
    return image


def plan(severity: float, generator: np.random.Generator) -> tuple[str, ...]:
    """Draw what a mixture consists of: the base, then none to three of the others.

    With probability 1/2 exactly one of those added is destructive, and comes last.
    """
    low, high = NUM_ADDED[place(severity)[0]]
    count = int(generator.integers(low, high + 1))
    last: tuple[str, ...] = ()
    if count and generator.random() < 0.5:
        last = (DESTRUCTIVE[int(generator.integers(len(DESTRUCTIVE)))],)
    chosen = generator.permutation(len(OTHERS))[: count - len(last)]
    return (*BASE, *(OTHERS[i] for i in chosen), *last)


DOCUMENT = {**SINGLE, "Mixed": mixed}
