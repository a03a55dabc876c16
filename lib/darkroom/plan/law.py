"""The memory of a step as a function of its sizes: a few traces, then microseconds.

A step at another batch size makes the same tensors in the same order, only larger, and every
tensor's bytes are linear in products of sizes (samples, samples x pixels, rank). So the bytes alive
at every single event are, too, and so many traces as there are such products give them all. The
peak is the largest event; which one that is may change with the sizes, the law stays exact.

Where a step repeats a part (the tail, a few samples at a time) one trace has more events than the
other: what they share at the beginning and at the end is its first and its last part.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import history
from .trace import Trace

GAP, LOOK = 16, 24  # events between two pieces, and those that must agree beyond them
COLUMNS = ("total", "ema", "optimizer", "gradients")  # categories that levers move elsewhere


class NoLaw(ValueError):
    """The traces are not of the same sequence of events, so nothing is linear between them."""


@dataclass
class Law:
    """Bytes at the events that may be a peak: `coefficients` (terms, events, COLUMNS).

    Holds for sizes of at least 1, each in its own unit. `terms` are products of sizes, () for a
    constant; `phase` is an index in `phases` for each event. `gradients` has the coefficients,
    (terms,), of what each turn's gradients hold in all.
    """

    terms: list[tuple[str, ...]]
    coefficients: np.ndarray
    phase: np.ndarray
    phases: list[str]
    gradients: dict[str, np.ndarray]

    def at(self, **sizes: float) -> np.ndarray:
        """Return the bytes at every event, (events, COLUMNS), for these sizes."""
        return np.tensordot(self.values(sizes), self.coefficients, 1)

    def values(self, sizes: dict[str, float]) -> np.ndarray:
        """Return what every term is at these sizes, (terms,)."""
        return _values(self.terms, sizes)

    def peaks(self, bytes_: np.ndarray) -> dict[str, float]:
        """Return the largest of some bytes, (events,), by phase."""
        largest = np.full(len(self.phases), -1.0)
        np.maximum.at(largest, self.phase, bytes_)
        return {n: float(v) for n, v in zip(self.phases, largest, strict=True) if v >= 0}


def _values(terms: Sequence[tuple[str, ...]], sizes: dict[str, float]) -> np.ndarray:
    return np.array([np.prod([sizes[name] for name in term]) for term in terms], float)


def fit(traces: list[Trace], sizes: list[dict[str, float]], terms: list[tuple[str, ...]]) -> Law:
    """Return the law through traces of one structure at different sizes, one trace a term.

    Raises NoLaw where their events differ, and ValueError where the sizes do not tell the terms
    apart.
    """
    design = np.stack([_values(terms, s) for s in sizes])
    if np.linalg.matrix_rank(design) < len(terms):
        raise ValueError(f"the sizes {sizes} do not tell the terms {terms} apart")
    shortest = min(range(len(traces)), key=lambda n: len(traces[n].events))
    reference = traces[shortest]
    pairs = [aligned(reference.events, t.events) for t in traces]
    common = functools.reduce(np.intersect1d, [own for own, _ in pairs])
    tables = [
        _table(t)[rows[np.searchsorted(own, common)]]
        for t, (own, rows) in zip(traces, pairs, strict=True)
    ]
    inverse = np.linalg.pinv(design)
    coefficients = np.tensordot(inverse, np.stack(tables).astype(float), 1)
    phase = history.phases(reference.events)[common]
    births = reference.events[common, 0] == history.BIRTH
    kept = np.flatnonzero(births)
    kept = kept[_candidates(coefficients[:, kept], phase[kept])]
    held = COLUMNS.index("gradients")
    gradients = {}
    for name in reference.turns:
        inside = phase == reference.phases.index(name)
        gradients[name] = inverse @ np.array([t[inside, held].max() for t in tables], float)
    return Law(terms, coefficients[:, kept], phase[kept], reference.phases, gradients)


def aligned(short: np.ndarray, long: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of `short` and their likes in `long`, stretch by stretch of one phase.

    A stretch is followed from its end as far as both agree, a repeated part before that from its
    last time on, the rest from its beginning. Up to GAP events between these have no like: the
    results of the parts, put together. Raises NoLaw where more differs.
    """
    starts = _stretches(short), _stretches(long)
    if len(starts[0]) != len(starts[1]):
        raise NoLaw(f"{len(starts[0]) - 1} stretches of phases, and {len(starts[1]) - 1}")
    a, b, own, like = _tokens(short), _tokens(long), [], []
    for from_a, to_a, from_b, to_b in zip(
        starts[0], starts[0][1:], starts[1], starts[1][1:], strict=False
    ):
        one, other = _stretch(a[from_a:to_a], b[from_b:to_b])
        own.append(from_a + one)
        like.append(from_b + other)
    return np.concatenate(own), np.concatenate(like)


def _stretches(events: np.ndarray) -> list[int]:
    """Return where the phase changes, with 0 and the end."""
    return [0, *(np.flatnonzero(np.diff(history.phases(events))) + 1).tolist(), len(events)]


def _stretch(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, m = len(a), len(b)
    if n > m:
        raise NoLaw(f"{n} events of a stretch, and only {m} at other sizes")
    tail = _agree(a[::-1], b[::-1])
    left, right = n - tail, m - tail  # where what is not followed yet ends
    pieces = [(left, right, tail)]
    if left and _agree(a[:left], b[:right]) < left:  # a repeated part ends before this
        skipped, other = _gap(a[:left], b[:right])
        left, right = left - skipped, right - other
        length = _agree(a[:left][::-1], b[:right][::-1])
        left, right = left - length, right - length
        pieces.append((left, right, length))
    head = _agree(a[:left], b[:right])
    if left - head > GAP:
        raise NoLaw(f"events {head} to {left} of {n} are others at other sizes")
    pieces.append((0, 0, head))
    own = [np.arange(start, start + length) for start, _, length in reversed(pieces)]
    like = [np.arange(start, start + length) for _, start, length in reversed(pieces)]
    return np.concatenate(own), np.concatenate(like)


def _gap(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Return how many rows at the end of both to skip so that most of what is before agrees."""
    best, found = 0, (0, 0)
    for skipped in range(min(GAP, len(a))):
        for other in range(min(GAP, len(b))):
            one, two = a[: len(a) - skipped], b[: len(b) - other]
            if _agree(one[-LOOK:][::-1], two[-LOOK:][::-1]) == LOOK:
                length = _agree(one[::-1], two[::-1])
                if length > best:
                    best, found = length, (skipped, other)
    return found


def _agree(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many of the first rows are the same."""
    n = min(len(a), len(b))
    differ = (a[:n] != b[:n]).any(1)
    return int(np.argmax(differ)) if differ.any() else n


def _tokens(events: np.ndarray) -> np.ndarray:
    return events[:, [0, 3, 4, 5]]  # kind, category, path, phase


def _table(traced: Trace) -> np.ndarray:
    """Return the bytes alive after each event, (n, COLUMNS)."""
    by_category = history.by_category(traced)
    columns = [history.live(traced.events)]
    for name in COLUMNS[1:]:
        known = name in traced.categories
        columns.append(by_category[:, traced.categories.index(name)] if known else 0 * columns[0])
    return np.stack(columns, 1)


def _candidates(coefficients: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return the events that may be their phase's peak, (terms, events, COLUMNS) -> indices.

    With all sizes at least 1, an event is never the peak when another one of its phase has as much
    at sizes of 1, with and without what levers move elsewhere, and grows as fast with every term.
    """
    smallest = coefficients.sum(0).T  # (COLUMNS, events) at sizes of 1
    total, *moved = smallest
    scores = np.stack([total, total - sum(moved[:2]), total - moved[2], *coefficients[1:, :, 0]])
    kept: list[int] = []
    for number in np.unique(phase):
        left = np.flatnonzero(phase == number)
        while len(left):
            best = left[np.argmax(scores[:, left].sum(0))]  # nothing exceeds the largest sum
            kept.append(int(best))
            left = left[~(scores[:, [best]] >= scores[:, left]).all(0)]
    return np.array(sorted(kept), int)
