"""What follows from a trace's events: bytes alive, by category, and the allocator's requests."""

from __future__ import annotations

import numpy as np

from .phase_names import FIRST
from .trace import Trace

BIRTH, DEATH = 1, -1  # any other kind moves a storage to another category


def live(events: np.ndarray) -> np.ndarray:
    """Return the bytes alive after each event, (n,)."""
    return np.cumsum(events[:, 0] * events[:, 2])


def alive(events: np.ndarray, at: int) -> tuple[dict, set[int], dict[int, int]]:
    """Return births by number, the numbers alive after event `at`, and their category then."""
    births, alive, categories = {}, set(), {}
    for event in events[: at + 1].tolist():
        kind, number, _, category, _, _ = event
        if kind == BIRTH:
            births[number] = event
            alive.add(number)
        if kind == DEATH:
            alive.discard(number)
        else:
            categories[number] = category
    return births, alive, categories


def by_category(traced: Trace) -> np.ndarray:
    """Return the bytes alive after each event by category, (n, categories)."""
    events, rows = traced.events, np.arange(len(traced.events))
    order = np.lexsort((rows, events[:, 1]))  # the life of one storage after the other
    kind, number, size, category = events[order, :4].T
    begins = np.r_[True, number[1:] != number[:-1]] if len(number) else np.zeros(0, bool)
    size = size[np.maximum.accumulate(np.where(begins, rows, 0))]  # that of its birth
    changes = np.zeros((len(events), len(traced.categories)), np.int64)
    later = np.flatnonzero(~begins)
    np.add.at(changes, (order[later], category[later - 1]), -size[later])
    present = np.flatnonzero(kind != DEATH)
    np.add.at(changes, (order[present], category[present]), size[present])
    return np.cumsum(changes, axis=0)


def phases(events: np.ndarray) -> np.ndarray:
    """Return each event's phase; what dies between phases belongs to the one before, (n,)."""
    phase = events[:, 5].copy()
    last = np.maximum.accumulate(np.where(phase > 0, np.arange(len(phase)), 0))
    return phase[last]


def requests(traced: Trace) -> list[tuple[int, int]]:
    """Return what the allocator is asked for: (number, bytes), and minus the bytes when freed.

    The rehearsal's first optimizer steps have no forward and backward before them; here each has a
    copy of its phase's, so that states are born among the blocks which that leaves behind.
    """
    first = {
        traced.phases.index(name + FIRST): traced.phases.index(name)
        for name in traced.turns
        if name + FIRST in traced.phases
    }
    events = traced.events[traced.events[:, 0] != 0]
    turns = {turn: events[events[:, 5] == turn][:, :3].tolist() for turn in first.values()}
    found: list[tuple[int, int]] = []
    extra = int(events[:, 1].max()) + 1
    for kind, number, size, _, _, phase in events.tolist():
        if phase in first:
            copied: dict[int, tuple[int, int]] = {}
            for one, old, bytes_ in turns[first.pop(phase)]:
                if one == BIRTH:
                    copied[old] = extra, bytes_
                    found.append(copied[old])
                    extra += 1
                elif old in copied:
                    again, bytes_ = copied.pop(old)
                    found.append((again, -bytes_))
            found += [(again, -bytes_) for again, bytes_ in copied.values()]
        found.append((number, kind * size))
    return found
