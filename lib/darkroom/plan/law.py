"""The memory of a step as a function of its sizes: a few traces, then microseconds.

A step at another batch size makes the same tensors in the same order, only larger, and every
tensor's bytes are linear in products of sizes (samples, samples x pixels, rank). So the bytes alive
at every single event are, too, and so many traces as there are such products give them all. The
peak is the largest event; which one that is may change with the sizes, the law stays exact.

Where a step repeats a part (the tail, a few samples at a time) one trace has more events than the
other: what they share at the beginning and at the end is its first and its last part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import history
from .trace import Trace

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
    picked = [aligned(reference.events, t.events) for t in traces]
    tables = [_table(t)[rows] for t, rows in zip(traces, picked, strict=True)]
    inverse = np.linalg.pinv(design)
    coefficients = np.tensordot(inverse, np.stack(tables).astype(float), 1)
    phase = history.phases(reference.events)
    births = reference.events[:, 0] == history.BIRTH
    kept = np.flatnonzero(births)
    kept = kept[_candidates(coefficients[:, kept], phase[kept])]
    held = COLUMNS.index("gradients")
    gradients = {}
    for name in reference.turns:
        inside = phase == reference.phases.index(name)
        gradients[name] = inverse @ np.array([t[inside, held].max() for t in tables], float)
    return Law(terms, coefficients[:, kept], phase[kept], reference.phases, gradients)


def aligned(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Return for each event of `short` its like in `long`, stretch by stretch of one phase.

    A stretch is followed from its end as far as both agree, the rest from its beginning. Raises
    NoLaw where that leaves a gap.
    """
    starts = _stretches(short), _stretches(long)
    if len(starts[0]) != len(starts[1]):
        raise NoLaw(f"{len(starts[0]) - 1} stretches of phases, and {len(starts[1]) - 1}")
    a, b, rows = _tokens(short), _tokens(long), []
    for from_a, to_a, from_b, to_b in zip(
        starts[0], starts[0][1:], starts[1], starts[1][1:], strict=False
    ):
        rows.append(from_b + _stretch(a[from_a:to_a], b[from_b:to_b]))
    return np.concatenate(rows)


def _stretches(events: np.ndarray) -> list[int]:
    """Return where the phase changes, with 0 and the end."""
    return [0, *(np.flatnonzero(np.diff(history.phases(events))) + 1).tolist(), len(events)]


def _stretch(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n = len(a)
    if n > len(b):
        raise NoLaw(f"{n} events of a stretch, and only {len(b)} at other sizes")
    same = (a == b[len(b) - n :]).all(1)
    tail = n if same.all() else int(np.argmin(same[::-1]))
    head = n - tail
    differ = ~(a[:head] == b[:head]).all(1)
    if differ.any():
        raise NoLaw(f"event {int(np.argmax(differ))} of {n} is another one at other sizes")
    return np.concatenate([np.arange(head), np.arange(len(b) - tail, len(b))])


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
        inside = np.flatnonzero(phase == number)
        order = inside[np.argsort(-scores[:, inside].sum(0), kind="stable")]
        chosen: list[int] = []
        front = np.empty((len(scores), 0))
        for event in order:
            if not (front >= scores[:, event, None]).all(0).any():
                chosen.append(int(event))
                front = scores[:, chosen]
        kept += chosen
    return np.array(sorted(kept), int)
