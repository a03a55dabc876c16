"""How a document degradation's severity in [0, 1] becomes a parameter: three levels of ranges.

Easy is [0, 0.33], medium (0.33, 0.67], hard (0.67, 1], as the config's words say. Every level has a
range or two candidates; a severity's place inside its level is the place inside the range, so a
severity drawn uniformly over a level gives the level's ranges.
"""

import numpy as np

EDGES = (0.0, 0.33, 0.67, 1.0)

Range = tuple[float, float]  # from its mild to its hard end, so a JPEG quality falls
Levels = tuple[tuple[Range, ...], tuple[Range, ...], tuple[Range, ...]]


def place(severity: float) -> tuple[int, float]:
    """Return the level (0 easy, 1 medium, 2 hard) of a severity and its share of that level."""
    level = int(np.searchsorted(EDGES[1:3], severity))
    return level, (severity - EDGES[level]) / (EDGES[level + 1] - EDGES[level])


def pick(levels: Levels, severity: float, generator: np.random.Generator) -> float:
    """Return a parameter at this severity: one of the level's ranges, each as likely."""
    level, share = place(severity)
    mild, hard = levels[level][int(generator.integers(len(levels[level])))]
    return mild + (hard - mild) * share


def pick_number(levels: Levels, severity: float, generator: np.random.Generator) -> int:
    """Return a count at this severity; a fraction is rounded up as often as it says."""
    return int(pick(levels, severity, generator) + generator.random())
