"""Seconds of a training step by part: what the forecast is made of, and what follows it up.

A step is all the wall time between two calls of `stepped`. Parts nest and are exclusive; what no
part claims is the step's `rest`, so nothing that a step does is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .schedule import PROBE_STEPS, PROBE_WARMUP

# what does not happen in every step, and is therefore counted by itself
EVENTS = ("gradient norms", "pictures", "validation", "save", "paused", "forecast")
WINDOW = 100  # steps or events over which a running mean forgets


class Mean:
    """A running mean: of all values up to WINDOW of them, then the older ones fade."""

    def __init__(self) -> None:
        self.count, self.value = 0, 0.0

    def add(self, value: float) -> None:
        """Take one more value into the mean."""
        self.count += 1
        self.value += (value - self.value) / min(self.count, WINDOW)


class Stopwatch:
    """Times the steps of one process.

    While `precise` (its first PROBE_STEPS steps) an accelerator is waited for at the end of every
    part; later it never is, and only the sums over whole steps mean something there.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device, self.precise = device, True
        self.rows: list[dict[str, float]] = []  # parts of the first PROBE_STEPS steps
        self.steps: dict[str, Mean] = {}  # seconds of a step without its events, by cost key
        self.events: dict[str, Mean] = {}  # seconds of one event, by name
        self.totals: dict[str, float] = {}  # seconds of this process by part
        self.taken = 0
        self._inside: list[float] = []  # seconds of inner parts, a number for every open part
        self.restart()

    def restart(self) -> None:
        """Begin a step now; what has passed since the last one does not count."""
        self._now: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of a `with` block as this part of the step, inner parts left out."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            self._wait()
            seconds = time.perf_counter() - started
            own = seconds - self._inside.pop()
            if self._inside:
                self._inside[-1] += seconds
            self._now[name] = self._now.get(name, 0.0) + own
            if name in EVENTS:
                self.events.setdefault(name, Mean()).add(own)

    def stepped(self, key: str = "") -> None:
        """End a step, of the cost `key` (`plan.time.cost_key`), and begin the next one."""
        now = time.perf_counter()
        parts = {k: v for k, v in self._now.items() if k not in EVENTS}
        seconds = now - self._began - sum(v for k, v in self._now.items() if k in EVENTS)
        parts["rest"] = max(0.0, seconds - sum(parts.values()))
        if self.precise:
            self.rows.append(parts)
        for name, value in (self._now | {"rest": parts["rest"]}).items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.taken += 1
        if self.taken > PROBE_WARMUP:
            self.steps.setdefault(key, Mean()).add(seconds)
        self.precise = self.precise and self.taken < PROBE_STEPS
        self.restart()

    def _wait(self) -> None:
        if self.precise and self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def spoken(seconds: float) -> str:
    """Return seconds in the unit that people would take."""
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else clock(seconds) + " min"
