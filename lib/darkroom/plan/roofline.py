"""The least time a step can take on a card: operations, bytes moved and kernels launched.

Every kernel of a trace takes at least its operations over the card's peak in that arithmetic, and
at least its bytes over the memory's bandwidth (roofline, Williams et al. 2009). Python needs a few
microseconds to launch each one, too, which is what a step at batch 1 waits for. Both are bounds
from below on datasheet peaks; what a run takes is measured by a probe of it: see `time`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .phase_names import FIRST, LATER, NORMS, OPTIMIZER
from .trace import ARITHMETIC, Trace

# Python, dispatcher and autograd for one kernel. An estimate, not measured on a GPU: PyTorch's own
# overhead is some microseconds an operator, twice that in a backward with casts.
LAUNCH_SECONDS = 5e-6
FALLBACK = {"bf16": "fp16", "tf32": "fp32", "fp16": "fp32"}  # arithmetic that a card has not


@dataclass
class Bound:
    """What a phase costs at least: `seconds` of the card, `launches`, TFLOP, and GiB moved."""

    seconds: float = 0.0
    launches: float = 0.0
    tflop: float = 0.0
    gib_moved: float = 0.0

    def __add__(self, other: Bound) -> Bound:
        return Bound(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __mul__(self, times: float) -> Bound:
        return Bound(*(times * a for a in self.values))

    @property
    def values(self) -> tuple[float, ...]:
        """The four numbers."""
        return self.seconds, self.launches, self.tflop, self.gib_moved

    @property
    def floor(self) -> float:
        """The larger of the card's time and that of launching, in seconds."""
        return max(self.seconds, self.launches * LAUNCH_SECONDS)


def peak(card, arithmetic: str) -> float:
    """Return the card's peak in TFLOP/s; what it has no units for runs in the next wider format."""
    while card.tflops.get(arithmetic) is None and arithmetic in FALLBACK:
        arithmetic = FALLBACK[arithmetic]
    return card.tflops[arithmetic]


def phases(traced: Trace, card) -> dict[str, Bound]:
    """Return the bound of every phase, as often as it was rehearsed."""
    rates = np.array([peak(card, name) * 1e12 for name in ARITHMETIC])
    bandwidth = card.bandwidth_gbs * 1e9
    found: dict[str, Bound] = {}
    for number, name in enumerate(traced.phases):
        rows = traced.kernels[traced.kernels[:, 0] == number]
        if not len(rows):
            continue
        _, kind, flops, moved, count = rows.T.astype(float)
        seconds = np.maximum(flops / rates[rows[:, 1]], moved / bandwidth)
        found[name] = Bound(
            float((seconds * count).sum()),
            float(count.sum()),
            float((flops * count).sum()) / 1e12,
            float((moved * count).sum()) / 2**30,
        )
    return found


def step(bounds: dict[str, Bound], accumulation: int) -> Bound:
    """Return the bound of one optimizer step without term norms, pictures and validation.

    `bounds` are those of `phases`. Where only a first micro batch was rehearsed, it counts for all.
    """
    total = Bound()
    for name, bound in bounds.items():
        if name in ("start", "images", "validation", "between") or name.endswith((FIRST, NORMS)):
            continue
        if name.endswith(LATER):
            total += bound * (accumulation - 1)
        elif name.endswith(OPTIMIZER) or name == "ema" or name + LATER in bounds:
            total += bound
        else:
            total += bound * accumulation
    return total
