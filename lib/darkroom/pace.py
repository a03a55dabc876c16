"""How fast a run goes: its stopwatch, its forecast, the time that is left, and its budget of hours.

All of it is information but two things: the horizon that fills `train.hours`, which is decided once
and recorded, and the stop when `budget.hours` are spent.
"""

from __future__ import annotations

import json
import time

from . import schedule
from .paths import write_atomically
from .plan import cautions, counts
from .plan import time as plan_time
from .probe import Probe
from .stopwatch import Stopwatch

FILE = "forecast.json"
SHORTEST = 2 * schedule.PROBE_STEPS  # steps; a run of no more is over before a forecast helps


class Pace:
    """The timing of a run in this process; `main` says whether it writes, or only keeps step."""

    def __init__(self, config, run, state, rhythm, main: bool, num_images: int) -> None:
        self.num_images = num_images
        self.config, self.run, self.state = config, run, state
        self.rhythm, self.main = rhythm, main
        self.watch = Stopwatch(state.device)
        self.forecast: plan_time.Forecast | None = None
        self.probe_seconds = self.setup_seconds = 0.0
        self.news: str | None = None  # the forecast's line, until it has been shown

    def fill(self, probe: Probe) -> int:
        """Return the horizon that fills train.hours, from steps that are taken back.

        What a stage costs is timed at the horizon that the first steps alone would fill.
        """
        started, seconds = time.perf_counter(), self.config.train.hours * 3600
        setup = started - self.state.began
        watch = probe.first_steps()
        each = sum(counts.step_costs(watch.rows)[0].values())
        costs = probe.costs(watch, max(1, int(seconds / max(each, 1e-9))))
        self.probe_seconds = time.perf_counter() - started
        passed = {"set-up": (1, setup), "forecast": (1, self.probe_seconds)}
        horizon = plan_time.fill(self.config, costs, seconds, passed)
        self.forecast = plan_time.calculate(self.config, costs, horizon=horizon, passed=passed)
        return horizon

    def begin(self, end: int) -> bool:
        """Take note that the first step begins; returns whether a forecast is to be made."""
        self.setup_seconds = time.perf_counter() - self.state.began - self.probe_seconds
        self.end = end
        if self.main:
            for line in cautions.cautions(self.config, self.state.horizon, self.num_images):
                self.run.note(f"warning: {line}")
        if self.forecast is not None:
            self._tell()
        elif (self.run.path / FILE).exists():
            stored = plan_time.read(self.run.path / FILE)
            self.forecast = stored if stored is not None and stored.end == end else None
            self._warn()
        wanted = self.forecast is None and end - self.state.step > SHORTEST
        self.watch.restart()
        return wanted

    def stepped(self) -> bool:
        """End a step; returns whether the first ones are over, the time for the forecast."""
        precise = self.watch.precise
        self.watch.stepped(counts.cost_key(self.config, self.state.changes))
        return precise and not self.watch.precise

    def foresee(self, probe: Probe) -> None:
        """Make the forecast of the whole run, write it and say it; nothing else changes."""
        started, number = time.perf_counter(), self.watch.taken
        try:
            costs = probe.costs(self.watch, self.state.horizon)
        except (RuntimeError, ValueError, OSError) as error:
            if probe.accelerator.num_processes > 1:
                raise  # the others wait for this process's part of a step
            self.run.note(f"step {self.state.step}: no forecast: {type(error).__name__}: {error}")
            return
        finally:
            self.watch.restart()
        self.probe_seconds = time.perf_counter() - started
        passed = {"earlier processes": (1, self.state.before)} if self.state.before else {}
        steps = started - self.state.began - self.setup_seconds
        passed |= {
            "set-up": (1, self.setup_seconds),
            f"first {number} steps": (number, steps),
            "forecast": (1, self.probe_seconds),
        }
        self.forecast = plan_time.calculate(
            self.config,
            costs,
            horizon=self.state.horizon,
            end=self.end,
            step=self.state.step,
            passed=passed,
            decision=self.rhythm.decision,
        )
        self._tell()

    def _tell(self) -> None:
        if not self.main:
            return
        content = json.dumps(self.forecast.to_json(), indent=1).encode()
        write_atomically(self.run.path / FILE, content)
        self.news = self.forecast.line()
        self.run.note(f"step {self.state.step}: {self.news}")
        self._warn()

    def _warn(self) -> None:
        if not self.main or self.forecast is None:
            return
        for line in cautions.excesses(self.config, self.forecast):
            dear = "validation.max_time_share" in line
            if not (dear and self.rhythm.warned):  # the rhythm has said so after a validation
                self.run.note(f"step {self.state.step}: warning: {line}")
            self.rhythm.warned |= dear

    def left_seconds(self) -> float:
        """Return the seconds that are left, re-estimated from what was measured since."""
        return plan_time.remaining(
            self.config,
            self.forecast.costs if self.forecast else None,
            self.watch,
            horizon=self.state.horizon,
            step=self.state.step,
            end=self.end,
            decision=self.rhythm.decision,
        )

    def summary(self) -> str:
        """Return where the time of this process went, in seconds by part."""
        seconds = {"set-up": self.setup_seconds, "forecast": self.probe_seconds}
        seconds |= {name: value for name, value in self.watch.totals.items() if value >= 0.05}
        return "seconds by part: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())

    def asked(self, signals) -> tuple[str, str] | None:
        """Return what a signal, the control file or the budget asks for now; pausing waits here."""
        with self.watch.part("paused"):
            asked = self.run.asked(self.state.step, signals)
        if asked is None and (asked := self.spent()):
            self.run.decide(self.state.step, "stop", "budget.hours", asked[1])
        return asked

    def spent(self) -> tuple[str, str] | None:
        """Return ("stopped", reason) when the next step and a save would exceed budget.hours."""
        hours, state = self.config.budget.hours, self.state
        if hours is None or not state.step or state.step >= self.end:
            return None
        following = self._next_seconds()
        if state.elapsed + following <= hours * 3600:
            return None
        return "stopped", (
            f"budget.hours {hours:g} would be exceeded: {state.elapsed:.1f} s have passed in all "
            f"processes of the run, and the next step and its save take {following:.1f} s more; "
            f"step {state.step} is finished and saved; raise budget.hours and run the same again "
            "to continue"
        )

    def _next_seconds(self) -> float:
        """Return what the next step takes, with all that falls due after it, and a save."""
        state, watch = self.state, self.watch
        costs = self.forecast.costs if self.forecast else counts.Costs({})
        known = {k: m.value for k, m in watch.events.items()}
        key = counts.cost_key(self.config, state.changes)
        step = watch.steps[key].value if key in watch.steps else sum(costs.step(key).values())
        seconds = (step or state.seconds / state.step) + known.get("save", costs.save(key))
        due = {
            "validation": self.rhythm.due(state.step + 1, self.end),
            "pictures": self.config.train.image_every
            and (state.step + 1) % self.config.train.image_every == 0,
        }
        names = [name for name, now in due.items() if now]
        return seconds + sum(known.get(n, costs.events.get(n, 0.0)) for n in names)
