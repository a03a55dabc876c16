"""Time what a run does, each thing once, in the running state: what its forecast is made of.

Weights, moments, positions, rows and scores stay as they are. What is written goes to a folder
beside the checkpoints, which is deleted.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import numpy as np

from . import (
    autocast,
    checkpoint,
    data,
    degradations,
    preview,
    schedule,
    selection,
    tracking,
    turn,
    validate,
)
from .plan import counts
from .stopwatch import Stopwatch

STAGE_STEPS = 5  # timed in each later stage, after one that is not: its optimizer allocates
SIZES = 3  # picture sizes that a validation is timed at


class Probe:
    """The costs of a run in progress, taken at its present step.

    `accelerator` and `dtype` are the trainer's, `samples` the validation samples. Every process
    takes part, for a step needs all of them; pictures, scores and files are the main one's.
    """

    def __init__(self, state, run, accelerator, dtype, samples) -> None:
        self.state, self.path, self.accelerator, self.dtype = state, run.path, accelerator, dtype
        self.samples, self.config = samples, state.config

    def costs(self, watch: Stopwatch, horizon: int) -> counts.Costs:
        """Return the costs of the run; `watch` has timed steps of the stage in force."""
        here = counts.cost_key(self.config, self.state.changes)
        parts, spread = counts.step_costs(watch.rows)
        steps, saves, events = {here: parts}, {}, {}
        if "gradient norms" in watch.events:
            events["gradient norms"] = watch.events["gradient norms"].value
        main = self.accelerator.is_main_process
        folder = self.path / ".forecast"
        try:
            if main:
                shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed in it
                folder.mkdir()
                saves[here] = self._save(folder)
                events |= self._pictures(folder) | self._validation(folder)
            self._stages(horizon, steps, saves, events, folder if main else None)
        finally:
            if main:
                shutil.rmtree(folder, ignore_errors=True)
        return counts.Costs(steps, events, saves, spread)

    # --- steps ------------------------------------------------------------------------------------

    def first_steps(self) -> Stopwatch:
        """Time the first steps of the run and take them back."""
        watch = Stopwatch(self.state.device)
        with self.state.aside():
            watch.restart()
            for n in range(schedule.PROBE_STEPS):
                self._step(watch, schedule.PROBE_STEPS - n)
        return watch

    def _step(self, watch: Stopwatch, left: int) -> None:
        turn.all_phases(self.state, None, self.accelerator, self.dtype, watch, left)
        self.state.step += 1
        watch.stepped()

    def _stages(self, horizon: int, steps: dict, saves: dict, events: dict, folder) -> None:
        """Time the stages to come that cost otherwise, and gradient norms not met so far."""
        every = self.config.train.grad_norm_every
        ahead = counts.segments(self.config, horizon, self.state.step, horizon)
        ahead = [(first, key) for first, _, key in ahead if key not in steps]
        if not ahead and (not every or "gradient norms" in events):
            return
        here = next(iter(steps.values()))
        known = {k: v for k, v in here.items() if k in ("rest", "logging")}  # not timed below
        with self.state.aside():
            self.state.horizon = horizon
            if every and "gradient norms" not in events:
                watch = self._timed(every * math.ceil((self.state.step + 1) / every) - 1, 1)
                if "gradient norms" in watch.events:
                    events["gradient norms"] = watch.events["gradient norms"].value
            for first, key in ahead:
                if key in steps:
                    continue
                watch = self._timed(first, 1 + STAGE_STEPS)
                parts, _ = counts.step_costs(watch.rows[1:])
                steps[key] = self._with_loader(parts | known, steps)
                if folder is not None:
                    saves[key] = self._save(folder)

    def _timed(self, step: int, number: int) -> Stopwatch:
        """Take so many turns of all phases in the stage of `step`."""
        self.state.step = step
        self.state.follow_stages(step)
        self.state.feed.close()  # its loader was opened for the steps timed before
        watch = Stopwatch(self.state.device)
        watch.restart()
        for n in range(number):
            self._step(watch, number - n)
        return watch

    def _with_loader(self, parts: dict, steps: dict) -> dict:
        """Put the waiting for loader processes, which have only just started, in proportion.

        Where the trainer's own process loads, what was timed is what it takes.
        """
        from . import loader

        if loader.num_workers(self.config) == 0:
            return parts
        before = next(iter(steps.values())).get("loader", 0.0)
        own = [p for p in self.state.phases if not p.samples_of]
        return parts | {"loader": before * len(own)}

    # --- what is not a step -----------------------------------------------------------------------

    def _save(self, folder: Path) -> float:
        """Write a checkpoint and delete it, as a save does with an older one."""
        started = time.perf_counter()
        checkpoint.save(folder, self.state.step, self.state.tensors(), self.state.document())
        shutil.rmtree(checkpoint.folder(folder))
        return time.perf_counter() - started

    def _pictures(self, folder: Path) -> dict[str, float]:
        if self.config.train.image_every is None:
            return {}
        state = self.state
        with autocast.on(state.device, self.dtype):
            preview.restored(state.recipe, state.feed.dataset)  # the first call chooses kernels
        started = time.perf_counter()
        raw = bool(tracking.started(self.config))
        preview.log_state(state, self.dtype, folder, raw=raw, main=True)
        return {"pictures": time.perf_counter() - started}

    def _validation(self, folder: Path) -> dict[str, float]:
        """Time a validation of a few pictures and scale it to the items of a real one.

        One picture of up to SIZES sizes is scored in each of its degradations; other sizes lie
        between these, by their pixels. What a validation costs whatever it scores is added once.
        """
        section = self.config.validation
        items = data.validation_items(self.config, self.samples) if len(self.samples) else []
        if section.every is None or not items:
            return {}
        pixels = {
            row["image"]: row["width"] * row["height"]
            for row in self.samples.select("image", "width", "height").to_dicts()
        }
        of_items = np.array([pixels[item.image] for item in items], np.float64)
        sizes = np.unique(np.quantile(of_items, np.linspace(0, 1, SIZES), method="nearest"))
        seconds, frame = [], None
        started = time.perf_counter()
        with self.state.shown(section.weights == "ema"):
            swapping = time.perf_counter() - started
            for size in sizes:
                samples = self._alike(size, next(i.image for i in items if pixels[i.image] == size))
                self._score(samples[:1], one=True)  # the first at a size chooses kernels
                frame, taken = self._score(samples)
                seconds.append(taken / len(frame))
        started = time.perf_counter()
        validate.record(folder, frame)
        selection.means(frame)
        selection.judge(validate.read(folder), self.config, self.state.step)
        overhead = swapping + time.perf_counter() - started
        return {"validation": overhead + float(np.interp(of_items, sizes, seconds).sum())}

    def _alike(self, pixels: float, image: str):
        """Return the samples of a picture of this size: one for each degradation that has any."""
        import polars as pl

        same = self.samples.filter(pl.col("width") * pl.col("height") == int(pixels))
        if same["degradation"].null_count() == len(same):
            return same.filter(pl.col("image") == image)
        return same.unique("degradation", keep="first", maintain_order=True)

    def _score(self, samples, one: bool = False) -> tuple[object, float]:
        """Score each of these samples in each of its degradations, or in a single one."""
        config = self.config.with_changes({"validation.samples_per_type": 1})
        if one:
            kinds = degradations.types_of(config.degradation)
            if kinds[0] in degradations.DEGRADATIONS:
                config = config.with_changes({"degradation.types": list(kinds[:1])})
        started = time.perf_counter()
        frame = validate.score(
            self.state.recipe, config, step=self.state.step, weights="raw", samples=samples
        )
        return frame, time.perf_counter() - started
