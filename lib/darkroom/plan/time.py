"""How long a run takes: what each of its parts costs, times how often it happens.

Everything here is arithmetic on seconds that `darkroom.probe` measures in the first steps of the
real run; `forecast` starts such a run in a process of its own and stops it there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass

from .. import schedule
from ..stopwatch import clock
from .counts import ALONE, ONCE, Costs, counted

DRIFT = 0.05  # a machine's speed over hours, which 15 steps cannot see: the least uncertainty
STEP = "step"  # the part of a cost that is not split


@dataclass(frozen=True)
class Forecast:
    """Seconds of a whole run, from the start of its first process to its end.

    `rows` have part, count, seconds (of all), low and high; `step` says after how many steps it was
    made, `end` how many there will be. What has passed is known. Steps are uncertain by the
    observed variation of the timed ones (2 standard errors of their mean), but never
    by less than DRIFT; what was timed once by ONCE. The uncertainties of the parts are added, for a
    machine that is slow is slow in all of them. `low_seconds` counts the saves of the best
    checkpoint not at all, `middle_seconds` as if every validation were the best.
    """

    step: int
    end: int
    rows: list[dict]
    costs: Costs

    @property
    def middle_seconds(self) -> float:
        """The forecast."""
        return sum(row["seconds"] for row in self.rows)

    @property
    def low_seconds(self) -> float:
        """The lower end of the interval."""
        return sum(row["low"] for row in self.rows)

    @property
    def high_seconds(self) -> float:
        """The upper end of the interval."""
        return sum(row["high"] for row in self.rows)

    @property
    def frame(self):
        """A polars frame: part, count, seconds_each, seconds, low, high and share of the total."""
        import polars as pl

        total = max(self.middle_seconds, 1e-9)
        return pl.DataFrame(
            [
                {
                    "part": row["part"],
                    "count": row["count"],
                    "seconds_each": row["seconds"] / max(1, row["count"]),
                    **{name: row[name] for name in ("seconds", "low", "high")},
                    "share": row["seconds"] / total,
                }
                for row in self.rows
            ]
        )

    def share(self, part: str) -> float:
        """Return a part's share of the whole, in 0..1."""
        seconds = sum(row["seconds"] for row in self.rows if row["part"] == part)
        return seconds / max(self.middle_seconds, 1e-9)

    def line(self) -> str:
        """Return the forecast as one line for people, its largest parts first."""
        largest = sorted(self.rows, key=lambda row: -row["seconds"])[:4]
        parts = ", ".join(f"{row['part']} {self.share(row['part']):.0%}" for row in largest)
        return (
            f"forecast: {self.end:,} steps take {clock(self.middle_seconds)} "
            f"({clock(self.low_seconds)} to {clock(self.high_seconds)}): {parts}"
        )

    def to_json(self) -> dict:
        """Return the forecast as plain JSON; `from_json` gives it back."""
        numbers = ("middle_seconds", "low_seconds", "high_seconds")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in numbers}

    @classmethod
    def from_json(cls, values: dict) -> Forecast:
        """Return what `to_json` wrote."""
        costs = Costs(**values["costs"])
        return cls(values["step"], values["end"], values["rows"], costs)


def read(path) -> Forecast | None:
    """Return the forecast in a run's forecast.json; None where it is of another version."""
    try:
        return Forecast.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError):
        return None


def calculate(
    config,
    costs: Costs,
    *,
    horizon: int,
    end: int | None = None,
    step: int = 0,
    passed: dict[str, tuple[int, float]] | None = None,
    decision=None,
) -> Forecast:
    """Return the forecast of a run from costs; nothing is measured here.

    `passed` holds what is known already, part to (count, seconds); `end` is the last step, by
    default `horizon` + train.extend.
    """
    end = horizon + (config.train.extend or 0) if end is None else end
    options = {"horizon": horizon, "start": step, "end": end, "decision": decision}
    fewer = {row[0]: row[2] for row in counted(config, costs, **options, best=False)}
    rows = [
        {"part": part, "count": count, "seconds": seconds, "low": seconds, "high": seconds}
        for part, (count, seconds) in (passed or {}).items()
    ]
    for part, count, seconds in counted(config, costs, **options):
        doubt = ONCE if part in ALONE else max(DRIFT, costs.spread)
        least = fewer.get(part, 0.0) * (1 - min(doubt, 1.0))
        row = {"part": part, "count": count, "seconds": seconds}
        rows.append(row | {"low": least, "high": seconds * (1 + doubt)})
    return Forecast(step, end, rows, costs)


def fill(config, costs: Costs, seconds: float, passed=None) -> int:
    """Return the largest horizon at which the whole run takes at most `seconds`; at least 1."""

    def fits(horizon: int) -> bool:
        found = calculate(config, costs, horizon=horizon, end=horizon, passed=passed)
        return found.middle_seconds <= seconds

    low, high = 1, 2
    while fits(high) and high < 2**40:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def remaining(config, costs: Costs | None, watch, *, horizon, step, end, decision=None) -> float:
    """Return the seconds that are left, by the forecast's costs and what was measured since.

    `watch` is the run's `Stopwatch`. A stage not reached yet is scaled by how much slower or faster
    the timed ones turned out; without costs every step counts like those up to now.
    """
    steps, known = {}, {k: m.value for k, m in watch.steps.items() if m.count}
    costs = costs or Costs({})
    ratios = [
        known[key] / max(sum(costs.steps[key].values()), 1e-9)
        for key in known
        if key in costs.steps
    ]
    ratio = ratios[-1] if ratios else 1.0
    for key, parts in costs.steps.items():
        steps[key] = {STEP: known.get(key, ratio * sum(parts.values()))}
    steps = {key: {STEP: value} for key, value in reversed(known.items())} | steps
    events = dict(costs.events) | {k: m.value for k, m in watch.events.items()}
    saves = costs.saves
    if "save" in watch.events:
        measured = watch.events["save"].value
        least = min(saves.values(), default=measured) or measured
        saves = {k: max(v / least, 1.0) * measured for k, v in saves.items()} or {"": measured}
    updated = Costs(steps, events, saves)
    rows = counted(config, updated, horizon=horizon, start=step, end=end, decision=decision)
    return sum(seconds for _, _, seconds in rows)


# --- the horizon ------------------------------------------------------------------------------


def horizons(config, num_images: int, costs: Costs | None = None):
    """Return a polars frame of the four ways to say the horizon, by precedence.

    Columns: way, set (its value), wins, reason, steps, samples, epochs, warmup_steps and
    warmup_share. A way that is not set is null throughout; hours have steps only with `costs`, by
    which the whole run fills them. `num_images` are the training images that are left after
    data.sample_ratio.
    """
    import polars as pl

    train, rows = config.train, []
    batch, winner = train.effective_batch, None
    for way in ("steps", "hours", "images", "epochs"):
        value, steps, reason = getattr(train, way), None, "not set"
        if value is not None:
            alone = {w: None for w in ("steps", "hours", "images", "epochs") if w != way}
            only = config.with_changes({f"train.{w}": None for w in alone})
            steps, reason = schedule.horizon(only, num_images)
            if way == "hours" and costs is not None:
                steps = fill(only, costs, value * 3600)
                reason = f"train.hours {value:g}: what the whole run fills at the measured costs"
            if winner:
                reason += f"; train.{winner} comes first"
            winner = winner or way
        row = {"way": way, "set": value, "wins": value is not None and winner == way}
        row |= {"reason": reason, "steps": steps, "samples": None, "epochs": None}
        row |= {"warmup_steps": None, "warmup_share": None}
        if steps is not None:
            warmup = schedule.resolve(config.optim.schedule.warmup, steps)
            row |= {"samples": steps * batch, "epochs": steps * batch / num_images}
            row |= {"warmup_steps": warmup, "warmup_share": warmup / max(1, steps)}
        rows.append(row)
    whole = ("steps", "samples", "warmup_steps")
    types = {"set": pl.Float64, "epochs": pl.Float64, "warmup_share": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=types | dict.fromkeys(whole, pl.Int64))


# --- before the run ---------------------------------------------------------------------------


def forecast(config, progress=None) -> Forecast:
    """Start the run in a process and a folder of its own, for the first steps; return its forecast.

    Takes what the run's set-up, its first 20 steps, a short validation and a save take, and leaves
    nothing behind. `progress` is called with every line that the run says. ValueError, with the
    run's own message, where it is refused or is too short to forecast.
    """
    run = f"forecast-{uuid.uuid4().hex[:12]}"
    values = {"tracking.report_to": ["jsonl"], "run": run, "train.log_every": 1}
    values |= {"budget.hours": None}  # it may be spent in the run itself, not here
    folder = config.paths.runs / run
    folder.mkdir(parents=True)
    try:
        path = folder / "ask.json"
        path.write_text(json.dumps(config.with_changes(values).to_dict()))
        command = [sys.executable, "-m", "darkroom.forecast", "--config", str(path)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = []
        for line in process.stdout:
            said.append(line)
            if progress is not None:
                progress(line.rstrip())
        found = folder / "forecast.json"
        if process.wait() or not found.exists():
            raise ValueError("no forecast could be made; the run said:\n" + "".join(said[-12:]))
        return read(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
