"""Bootstrap intervals over photographs."""

from __future__ import annotations

import numpy as np


def bootstrap_interval(
    values, groups=None, *, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean of values and its percentile bootstrap interval.

    Whole groups are resampled (Davison and Hinkley 1997, section 3.8): the draws of one photograph
    are not independent. Without `groups` every value stands alone; from one group no interval can
    be known, and low and high are NaN. A function of its arguments alone.
    """
    values = np.asarray(values, dtype=float)
    names = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    totals = np.bincount(names, weights=values)
    counts = np.bincount(names)
    if len(totals) < 2:
        return float(values.mean()), float("nan"), float("nan")
    generator = np.random.Generator(np.random.Philox(key=seed))
    chosen = generator.integers(len(totals), size=(draws, len(totals)))
    means = totals[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
