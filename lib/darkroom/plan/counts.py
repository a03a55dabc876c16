"""What a run does and what each of it costs: steps by stage, validations, pictures, saves."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field

from .. import rhythm, schedule

ONCE = 0.2  # relative uncertainty of what was timed a single time
STANDARD_ERRORS = 2.0  # of the mean step: about 95 %
LEAST = 4  # steps that a mean is taken over, however long the others took
WARMER = 0.9  # of all steps' mean: only what remains below this is taken for settled
ALONE = ("gradient norms", "pictures", "validation", "save")  # parts that not every step has


@dataclass(frozen=True)
class Costs:
    """Seconds of what a run does.

    `steps` holds, by cost key (`cost_key`), the seconds of a step by part; `saves` those of a
    checkpoint by the same keys; `events` those of one validation, picture and gradient-norm
    measurement. `spread` is the relative uncertainty of the mean step.
    """

    steps: dict[str, dict[str, float]]
    events: dict[str, float] = field(default_factory=dict)
    saves: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0

    def step(self, key: str) -> dict[str, float]:
        """Return a step's seconds by part; a stage that was not timed costs what the first does."""
        return self.steps[key] if key in self.steps else next(iter(self.steps.values()), {})

    def save(self, key: str) -> float:
        """Return the seconds of a checkpoint in this stage."""
        return self.saves[key] if key in self.saves else next(iter(self.saves.values()), 0.0)


def step_costs(rows: list[dict[str, float]]) -> tuple[dict[str, float], float]:
    """Return the mean seconds of a step by part, and the relative uncertainty of their sum.

    `rows` are `Stopwatch.rows`; the first PROBE_WARMUP are left out where others remain, and what
    `settled` leaves out. The uncertainty is STANDARD_ERRORS standard errors of the mean.
    """
    rows = rows[schedule.PROBE_WARMUP :] or rows
    rows = rows[settled([sum(row.values()) for row in rows]) :]
    names = dict.fromkeys(name for row in rows for name in row)
    parts = {name: sum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}
    totals = [sum(row.values()) for row in rows]
    if len(rows) < 2 or not sum(totals):
        return parts, ONCE
    error = statistics.stdev(totals) / math.sqrt(len(totals)) / statistics.mean(totals)
    return parts, STANDARD_ERRORS * error


def settled(seconds: list[float]) -> int:
    """Return from which step on the steps take alike: those before are still being warmed up.

    MSER (White 1997, doi 10.1177/003754979706900601): the start at which the standard error of the
    mean of what remains is smallest; at least LEAST steps remain. 0 where that mean is not clearly
    below that of all, for then more steps tell more.
    """
    if len(seconds) <= LEAST:
        return 0
    errors = []
    for start in range(len(seconds) - LEAST + 1):
        rest = seconds[start:]
        errors.append(statistics.pvariance(rest) / len(rest))
    start = errors.index(min(errors))
    return start if statistics.mean(seconds[start:]) < WARMER * statistics.mean(seconds) else 0


# --- what a position costs --------------------------------------------------------------------


def cost_key(config, changes: dict) -> str:
    """Return what a stage's changes mean for a step's cost, in words; "" where they mean nothing.

    Learning rates and the size of a loss weight cost nothing; whether it is 0 does.
    """
    words = []
    for key, value in sorted(changes.items()):
        before = schedule.value_of(config, key)
        if key.startswith("optim.") or value == before:
            continue
        if not key.startswith("loss."):
            words.append(f"{key} {json.dumps(value)}")
        elif bool(value) != bool(before):
            words.append(f"{key} {'on' if value else 'off'}")
    return ", ".join(words)


def segments(config, horizon: int, start: int, end: int) -> list[tuple[int, int, str]]:
    """Return (first, end, cost key) of the pieces of start <= step < end that cost alike."""
    if start >= end:
        return []
    points = {start}
    for stage in config.stages.values():
        begin = schedule.resolve(stage.start, horizon)
        points |= {begin, begin + max(0, schedule.resolve(stage.ramp or 0, horizon) - 1)}
    points = sorted(p for p in points if start <= p < end)
    found: list[tuple[int, int, str]] = []
    for first, last in zip(points, [*points[1:], end], strict=True):
        key = cost_key(config, schedule.stage_changes(config, first, horizon))
        if found and found[-1][2] == key:
            found[-1] = (found[-1][0], last, key)
        else:
            found.append((first, last, key))
    return found


def _decision(config, costs: Costs, horizon: int, decision):
    """Return when and to what validation.max_time_share will stretch the interval, or has."""
    section = config.validation
    if decision or section.max_time_share is None or not costs.events.get("validation"):
        return decision
    key = cost_key(config, schedule.stage_changes(config, section.every - 1, horizon))
    seconds = max(sum(costs.step(key).values()), 1e-9)
    longer = rhythm.stretched(
        section.every, section.max_time_share, costs.events["validation"], seconds
    )
    return section.every, longer


def _saves(config, since: int, until: int, end: int, spans, best: bool) -> int:
    """Count the steps in since < n <= until with a save: due, perhaps the best, or the last."""
    every, count = config.train.save_every, rhythm.multiples
    number = count(every, since, until)
    for after, last, interval in spans if best else []:
        after, last = max(after, since), min(last, until)
        both = math.lcm(every, interval) if every else None
        number += count(interval, after, last) - count(both, after, last)
    at_end = since < end <= until
    intervals = [every, *[i for _, last, i in spans[-1:] if best and last == end]]
    return number + (at_end and all(not i or end % i for i in intervals))


def counted(
    config, costs: Costs, *, horizon: int, start: int, end: int, decision=None, best: bool = True
) -> list[tuple[str, int, float]]:
    """Return (part, count, seconds) of what is still to do after `start` steps, up to `end`.

    `decision` is the rhythm's (step, interval) where it has been made; without it the one that
    validation.max_time_share will make is foreseen. `best`: every validation is the best so far,
    and therefore saved.
    """
    section, train, count = config.validation, config.train, rhythm.multiples
    decision = _decision(config, costs, horizon, decision) if section.every else None
    spans = rhythm.spans(section.every, decision, start, end) if section.every else []
    found: dict[str, list] = {}
    saves, save_seconds = 0, 0.0
    for first, last, key in segments(config, horizon, start, end):
        for part, seconds in costs.step(key).items():
            row = found.setdefault(part, [0, 0.0])
            row[0] += last - first
            row[1] += (last - first) * seconds
        number = _saves(config, first, last, end, spans, best)
        saves, save_seconds = saves + number, save_seconds + number * costs.save(key)
    validations = sum(count(interval, after, last) for after, last, interval in spans)
    validations += bool(spans) and end % spans[-1][2] != 0
    pictures = count(train.image_every, start, end)
    pictures += bool(train.image_every) and end > start and end % train.image_every != 0
    numbers = {
        "gradient norms": count(train.grad_norm_every, start, end),
        "pictures": pictures,
        "validation": validations,
    }
    rows = [(part, number, seconds) for part, (number, seconds) in found.items()]
    rows += [(k, n, n * costs.events.get(k, 0.0)) for k, n in numbers.items() if n]
    return rows + ([("save", saves, save_seconds)] if saves else [])
