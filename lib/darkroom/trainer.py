"""The one training loop, for every recipe: read `Trainer.loop` from top to bottom.

A step is one turn of every phase. What a step does depends on the seed, the config and the
position alone; whatever the clock or the memory decides is recorded in `decisions.jsonl`.
"""

from __future__ import annotations

import io
import os
import time
from contextlib import nullcontext

import torch

from . import (
    checkpoint,
    exchange,
    interrupts,
    precision,
    preflight,
    rerun,
    schedule,
    selection,
    sharding,
    tracking,
    turn,
    validate,
)
from .monitor import Monitor
from .pace import Pace
from .paths import RunLock
from .preview import log_state
from .probe import Probe
from .progress import Quiet
from .rhythm import Rhythm
from .run import Result, RunDirectory
from .state import TrainingState
from .turn import NonFinite

__all__ = ["NonFinite", "Result", "Trainer", "train"]


def train(config, progress=None) -> Result:
    """Train a run to its horizon, or continue it; returns how it ended.

    Raises Interrupted after SIGINT and Terminated after SIGTERM, both once the step is finished and
    saved. RunMismatch, RunLocked, ValueError and SampleError say what to change.
    """
    began, main = time.perf_counter(), int(os.environ.get("RANK", "0")) == 0
    tracking.require(config, network=main)
    sharding.check(config)
    exchange.check_start(config)
    preflight.check_weights(config)
    run, trainer = RunDirectory(config), None
    with RunLock(run.path) if main else nullcontext(), interrupts.StopSignals() as signals:
        try:
            trainer = Trainer(config, run, signals, progress or Quiet(), began)
            result = trainer.loop()
        except BaseException as error:
            if main:
                where = trainer.state.step if trainer else 0
                reason = f"{type(error).__name__}: {error}"
                run.status("failed", where, reason)
                run.note(f"step {where}: failed: {reason}")
            if trainer:
                trainer.progress.close("failed")
            raise
        finally:
            if trainer:
                trainer.state.feed.close()
    if result.status == "interrupted":
        raise interrupts.Interrupted(result.reason)
    if result.status == "terminated":
        raise interrupts.Terminated(result.reason)
    return result


class Trainer:
    """A run in progress: set up once, then `loop`; `began` is when, by the performance counter."""

    def __init__(self, config, run: RunDirectory, signals, progress, began=None) -> None:
        from accelerate import Accelerator

        self.config, self.run, self.signals = config, run, signals
        names = tracking.started(config) or None
        self.accelerator = Accelerator(log_with=names, project_dir=str(tracking.folder(config)))
        self.main = self.accelerator.is_main_process
        self.progress = progress if self.main else Quiet(io.StringIO())
        self.device = self.accelerator.device
        self.precision = precision.choose(config, self.device)
        self.dtype = self.precision.dtype
        sharding.check(config, self.precision.scaled)
        with self.accelerator.main_process_first():  # the others read what it writes
            torch.set_num_threads(run.open(torch.get_num_threads(), write=self.main))
            samples, self.validation_samples = run.samples("train"), run.samples("val")
            preflight.check_sizes(config, samples)
            self.verdict = preflight.held(
                config, run, self.accelerator, self.dtype, self.validation_samples
            )
        self.state = TrainingState(
            config,
            samples,
            self.device,
            self.dtype,
            torch.amp.GradScaler(self.device.type) if self.precision.scaled else None,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            began=began,
        )
        preflight.check_disk(config, run, self.state.recipe, note=self.main)
        self.rhythm = Rhythm(config, run)
        self.pace = Pace(config, run, self.state, self.rhythm, self.main, len(samples))
        self.monitor = Monitor(config, run, self.device, len(samples))
        self.state.horizon = schedule.horizon(config, len(samples))[0] or run.decided("horizon")
        self._resume()
        self.trackers = tracking.Trackers(self.accelerator, config, self.state.step)

    def loop(self) -> Result:
        """Train from the current step to the horizon."""
        state, train = self.state, self.config.train
        if state.horizon is None:
            state.horizon = self._fill_hours()
        self.end = state.horizon + (train.extend or 0)
        over = rerun.stopped_early(self.run.path, self.config, self.saved) if self.main else None
        if stopped := self._agree(over):
            return self._finish(*stopped)
        self._announce()
        self.pace.watch.precise = self._agree(self.pace.begin(self.end)) and not state.sharded
        if stopped := self._agree(self.pace.spent()):
            return self._finish(*stopped)
        while state.step < self.end:
            started = time.perf_counter()
            state.feed.resize(self.run.decided("micro_batch", {}, at=state.step))
            state.follow_stages(state.step)
            left, watch = self.end - state.step, self.pace.watch
            turns = turn.all_phases(state, self.run, self.accelerator, self.dtype, watch, left)
            row = {"step": state.step + 1} | turns
            state.step += 1
            seconds = time.perf_counter() - started
            state.seconds += seconds
            self.rhythm.stepped(seconds)
            self._log(row)
            if self._due(train.image_every, at_end=True):
                self._log_images()
            best, stop = False, None
            if self.rhythm.due(state.step, self.end):
                best, stop = self._validate()
            stop = stop or self._requests()
            if best or stop or self._due(train.save_every) or state.step == self.end:
                self._save(best)
            if stop:
                return self._finish(*stop)
            if self.pace.stepped():
                self.pace.foresee(self._probe())
        return self._finish("completed", f"all {self.end} steps are done")

    # --- where it starts and ends -------------------------------------------------------------

    def _resume(self) -> None:
        saved, problems = checkpoint.read_latest(self.run.path)
        for problem in problems:
            self.run.note(f"passed over a damaged checkpoint: {problem}")
        if saved is not None:
            self.state.restore(saved)
        elif self.config.model.init_from:
            self.run.note(f"weights from {checkpoint.start_from(self.state.recipe, self.config)}")
            self.state.restart_average()
        self.saved = saved.step if saved else None
        if self.main:
            self.run.rewind(self.state.step)
            rerun.mend_links(self.run.path, self.config, self.saved)

    def _probe(self) -> Probe:
        return Probe(self.state, self.run, self.accelerator, self.dtype, self.validation_samples)

    def _fill_hours(self) -> int:
        """Fix the horizon at which the whole run fills `train.hours`; steps are timed for it."""
        horizon = self._agree(self.pace.fill(self._probe()))
        if self.main:
            reason = f"{self.config.train.hours} h: {self.pace.forecast.line()}"
            self.run.decide(0, "horizon", horizon, reason)
        return horizon

    def _agree(self, value):
        """Return the main process's value on every process."""
        if self.state.feed.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def _finish(self, status: str, reason: str) -> Result:
        if self.main:
            self.run.status(status, self.state.step, reason)
            self.run.rows.write_csv()
            compared = preflight.compared(self.config, self.run, self.verdict)
            for line in [f"{status}: {reason}", self.pace.summary(), *compared]:
                self.run.note(f"step {self.state.step}: {line}")
        self.trackers.close()
        self.progress.close(status)
        return Result(self.run.path, self.state.step, status, reason)

    # --- what is written and shown ------------------------------------------------------------

    def _due(self, every: int | None, at_end: bool = False) -> bool:
        step = self.state.step
        return every is not None and (step % every == 0 or (at_end and step == self.end))

    def _announce(self) -> None:
        if self.main:
            self.run.status("running", self.state.step)
            where = f"{self.device}, {self.precision.dtype}: {self.precision.reason}"
            together = f", {n} processes" if (n := self.accelerator.num_processes) > 1 else ""
            together += f" ({sharding.requested()} splits it)" if self.state.sharded else ""
            self.run.note(f"steps {self.state.step} to {self.end} on {where}{together}")
            for line in [*self.config.notes, *self.config.warnings, *self.trackers.lines]:
                self.run.note(line)
        self.progress.start(self.end, self.state.step)

    def _log(self, row: dict) -> None:
        if not (self.main and self._due(self.config.train.log_every, at_end=True)):
            return
        with self.pace.watch.part("logging"):
            row["images"] = self.state.feed.positions[self.state.phases[0].name]
            row["seconds"] = round(self.state.seconds, 3)
            row |= self.monitor.row(row)
            self.run.rows.append(row)
            self.trackers.log({k: v for k, v in row.items() if "/" in k}, self.state.step)
            news, self.pace.news = self.pace.news, None
            left = {"left_seconds": self.pace.left_seconds()}
            self.progress.update(row | left | ({"forecast": news} if news else {}))

    def _log_images(self) -> None:
        if not (self.main or self.state.sharded):
            return
        with self.pace.watch.part("pictures"):
            pictures = log_state(
                self.state, self.dtype, self.run.path, raw=bool(self.trackers.names), main=self.main
            )
            if self.main:
                self.progress.images(self.state.step, pictures)
                self.trackers.images(pictures, self.state.step)

    def _validate(self) -> tuple[bool, tuple[str, str] | None]:
        """Score the validation set; returns whether it is the best yet, and why to stop early."""
        with self.pace.watch.part("validation"):
            verdict = self._scored()
        verdict, self.rhythm.decision = self._agree((verdict, self.rhythm.decision))
        return verdict

    def _scored(self) -> tuple[bool, tuple[str, str] | None]:
        recipe, val, step = self.state.recipe, self.validation_samples, self.state.step
        verdict, started = (False, None), time.perf_counter()
        if not (self.main or self.state.sharded) or not len(val):
            return verdict
        weights = "ema" if self.state.ema and self.config.validation.weights == "ema" else "raw"
        with self.state.shown(weights == "ema"):
            if self.main:
                frame = validate.score(recipe, self.config, step=step, weights=weights, samples=val)
        if self.main:
            validate.record(self.run.path, frame)
            means = selection.means(frame)
            self.run.note(f"step {step}: {means}")
            self.trackers.log(means, step)
            self.progress.validated(step, frame)
            verdict = selection.judge(validate.read(self.run.path), self.config, step)
            seconds = time.perf_counter() - started
            self.rhythm.validated(step, seconds, self.state.seconds / step)
        return verdict

    def _save(self, best: bool) -> None:
        step, state = self.state.step, self.state
        if not (self.main or state.sharded):
            return
        with self.pace.watch.part("save"):
            if new := self.saved != step:
                tensors, self.saved = state.tensors(), step
            if not self.main:
                return
            if new:
                size = checkpoint.save(self.run.path, step, tensors, state.document())
                self.run.note(f"step {step}: checkpoint of {size:,} bytes")
            if best:
                checkpoint.link(self.run.path, "best", step)
            checkpoint.prune(self.run.path, self.config.train.keep_last)

    # --- what is asked of it ------------------------------------------------------------------

    def _requests(self) -> tuple[str, str] | None:
        """Return why to stop now: a signal or a word in the control file; pausing waits here."""
        request = self._agree(self.pace.asked(self.signals) if self.main else None)
        if request == ("validate", ""):
            best, stop = self._validate()
            self._save(best)
            return stop
        if request == ("save", ""):
            self._save(False)
            return None
        return request
