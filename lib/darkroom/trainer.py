"""The one training loop, for every recipe: read `Trainer.loop` from top to bottom.

A step is one turn of every phase. What a step does depends on the seed, the config and the
position alone; whatever the clock or the memory decides is recorded in `decisions.jsonl`.
"""
# B micro batch, E effective batch (samples of one phase's turn over all processes)

from __future__ import annotations

import copy
import math
import os
import time
from contextlib import nullcontext

import torch

from . import (
    checkpoint,
    interrupts,
    optim,
    precision,
    recipes,
    schedule,
    selection,
    step,
    tracking,
    validate,
)
from .feed import Feed
from .paths import RunLock
from .preflight import check_sizes
from .preview import log_images
from .progress import Quiet
from .recipes.protocol import buffers, grad_norm_modules
from .run import Result, RunDirectory

PROBE_STEPS, PROBE_WARMUP = 20, 5  # timed steps that turn hours into a horizon


class NonFinite(RuntimeError):
    """A loss or a gradient is not finite; the message names the samples."""


def train(config, progress=None) -> Result:
    """Train a run to its horizon, or continue it; returns how it ended.

    Raises Interrupted after SIGINT and Terminated after SIGTERM, both once the step is finished and
    saved. RunMismatch, RunLocked, ValueError and SampleError say what to change.
    """
    run, trainer = RunDirectory(config), None
    main = int(os.environ.get("RANK", "0")) == 0
    with RunLock(run.path) if main else nullcontext(), interrupts.StopSignals() as signals:
        try:
            trainer = Trainer(config, run, signals, progress or Quiet())
            result = trainer.loop()
        except BaseException as error:
            if main:
                where, reason = trainer.step if trainer else 0, f"{type(error).__name__}: {error}"
                run.status("failed", where, reason)
                run.note(f"step {where}: failed: {reason}")
            if trainer:
                trainer.progress.close("failed")
            raise
    if result.status == "interrupted":
        raise interrupts.Interrupted(result.reason)
    if result.status == "terminated":
        raise interrupts.Terminated(result.reason)
    return result


class Trainer:
    """The state of one training: set up once, then `loop`."""

    def __init__(self, config, run: RunDirectory, signals, progress) -> None:
        from accelerate import Accelerator

        self.config, self.run, self.signals = config, run, signals
        names = [n for n in config.tracking.report_to if n != "jsonl"]
        self.accelerator = Accelerator(log_with=names or None, project_dir=str(run.path))
        self.main = self.accelerator.is_main_process
        self.progress = progress if self.main else Quiet(open(os.devnull, "w"))
        self.device = self.accelerator.device
        self.precision = precision.choose(config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision.scaled else None
        with self.accelerator.main_process_first():  # the others read what it writes
            torch.set_num_threads(run.open(torch.get_num_threads(), write=self.main))
            samples, self.validation_samples = run.samples("train"), run.samples("val")
        check_sizes(config, samples)
        self.recipe = recipes.build(config)
        for module in self.recipe.modules.values():
            module.to(self.device)
        self.feed = Feed(
            config,
            self.recipe.draw,
            samples,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        self.step, self.seconds, self.saved = 0, 0.0, None
        self.stage, self.changes = config, {}
        self.phases, self.optimizers, self.trained, self.ema = [], {}, {}, None
        self.trackers = tracking.Trackers(self.accelerator, config)
        saved, problems = checkpoint.read_latest(run.path)
        for problem in problems:
            run.note(f"passed over a damaged checkpoint: {problem}")
        self.horizon = self._horizon(len(samples))
        self._enter_stage()
        if saved is not None:
            self._restore(saved)
        elif config.model.init_from:
            used = checkpoint.start_from(self.recipe, config)
            self.run.note(f"weights from {used}")
            self.ema = None
            self._cover(self.phases)
        if self.main:
            run.rewind(self.step)

    def loop(self) -> Result:
        """Train from the current step to the horizon."""
        if self.horizon is None:
            self.horizon = self._probe()
        self.end = self.horizon + (self.config.train.extend or 0)
        self._announce()
        while self.step < self.end:
            started = time.perf_counter()
            self._follow_stages()
            row = {"step": self.step + 1}
            for phase in self.phases:
                row |= self._turn(phase)
            self.step += 1
            self.seconds += time.perf_counter() - started
            self._log(row)
            if self._due(self.config.train.image_every):
                self._log_images()
            best, stop = (
                self._validate() if self._due(self.config.validation.every, True) else (0, None)
            )
            stop = stop or self._requests()
            if best or stop or self._due(self.config.train.save_every, True):
                self._save(best)
            if stop:
                return self._finish(*stop)
        return self._finish("completed", f"all {self.end} steps are done")

    def _turn(self, phase) -> dict[str, float]:
        """Run one phase's turn: E samples, one optimizer step; returns its part of the row."""
        self.recipe.begin(phase)
        kept = {name: b.clone() for name, b in buffers(self.recipe).items()}
        while True:
            try:
                seen, norms, logs = self._accumulate(phase)
                break
            except torch.OutOfMemoryError as error:
                self._shrink(phase, error)
                checkpoint.load_weights(self.recipe, kept)
        step.synchronise(phase)
        optimizer = self.optimizers[phase.name]
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        norm = step.gradient_norm(phase)
        logs, seen = self._gather(logs, seen)
        self._check_finite(phase, logs, seen, norm)
        lr = phase.lr * schedule.lr_factor(
            self.stage.optim.schedule, phase.lr, self.step, self.horizon or PROBE_STEPS
        )
        step.apply(
            phase,
            optimizer,
            lr=lr,
            norm=norm,
            clip=self.config.train.clip,
            ema=self.ema if phase is self.phases[0] else None,
            scaler=self.scaler,
        )
        self.feed.taken(phase)
        row = _means(phase.name, logs)
        if phase is self.phases[0]:
            row |= _by_degradation(logs["total"], seen)
        skipped = norm.isfinite().logical_not().item() if self.scaler is not None else None
        row |= {f"lr/{phase.name}": lr, f"grad_norm/{phase.name}": norm.item(), **norms}
        return row if skipped is None else {**row, f"scaler/{phase.name}_skipped": float(skipped)}

    def _accumulate(self, phase):
        seen: list[dict] = []
        norms: dict[str, float] = {}

        def batches():
            for batch in self.feed.take(phase, self.phases, self.end - self.step):
                seen.extend(
                    {"phase": phase.name, "position": p, "degradation": d, "image": i}
                    for p, d, i in zip(
                        batch.positions, batch.degradations, batch.images, strict=True
                    )
                )
                batch = batch.to(self.device)
                if not norms and self._norms_due(phase):
                    norms.update(self._term_norms(phase, batch))
                yield batch

        logs = step.accumulate(
            self.recipe,
            phase,
            batches(),
            effective_batch=self.config.train.effective_batch,
            dtype=self.precision.dtype,
            scaler=self.scaler,
        )
        return seen, norms, logs

    def _norms_due(self, phase) -> bool:
        every = self.config.train.grad_norm_every
        return bool(every) and phase is self.phases[0] and (self.step + 1) % every == 0

    def _term_norms(self, phase, batch) -> dict[str, float]:
        parameters = grad_norm_modules(self.recipe, self.config.train.grad_norm_modules)
        norms = step.term_gradient_norms(
            self.recipe, phase, batch, parameters, self.precision.dtype
        )
        return {f"grad_norm/{name}": value.item() for name, value in norms.items()}

    def _shrink(self, phase, error: Exception) -> None:
        """Take the next smaller divisor as micro batch; the effective batch and the samples stay."""
        micro, smaller = self.feed.micro_batch(phase), self.feed.smaller(phase)
        advice = None
        if smaller is None:
            advice = "no smaller one is left: lower data.crop_size or turn on train.checkpointing"
        elif self.feed.processes > 1:
            advice = f"set train.micro_batch to {smaller} and start all processes again"
        if advice:
            raise RuntimeError(
                f"out of memory in the {phase.name} phase at micro batch {micro}; {advice}"
            ) from error
        sizes = {**self.feed.micro, phase.name: smaller}
        self.run.decide(self.step, "micro_batch", sizes, f"out of memory at {micro}")
        self.feed.micro = sizes
        self.feed.close()
        for parameter in phase.parameters.values():
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gather(self, logs: dict, seen: list[dict]) -> tuple[dict, list[dict]]:
        """Join per-sample results of all processes, so that each logs and decides the same."""
        if self.feed.processes == 1:
            return logs, seen
        from accelerate.utils import gather_object

        joined = {k: self.accelerator.gather(v.contiguous()) for k, v in logs.items()}
        return joined, gather_object(seen)

    def _check_finite(self, phase, logs: dict, seen: list[dict], norm: torch.Tensor) -> None:
        finite = logs["total"].isfinite()
        skips = self.scaler is not None  # the fp16 scaler skips a step whose gradient overflows
        if bool(finite.all()) and (skips or bool(norm.isfinite())):
            return
        bad = [s for s, good in zip(seen, finite.tolist(), strict=True) if not good]
        files = "; ".join(
            f"position {s['position']} ({s['degradation']}) "
            f"{self.feed.dataset.row(s['phase'], s['position'])['gt_path']}"
            for s in (bad or seen)
        )
        what = "the loss" if bad else f"the gradient (its norm is {norm.item()})"
        raise NonFinite(
            f"{what} of the {phase.name} phase is not finite in step {self.step + 1}, before its "
            f"optimizer step; samples: {files}. Terms: "
            + ", ".join(f"{k} {v.float().mean().item():.4g}" for k, v in logs.items())
            + ". The last checkpoint is untouched; look at these files, or lower the learning rate."
        )

    def _horizon(self, num_images: int) -> int | None:
        """Return the horizon in steps by precedence steps > hours > images > epochs; None: probe first."""
        section, batch = self.config.train, self.config.train.effective_batch
        if section.steps is not None:
            return section.steps
        if section.hours is not None:
            return self.run.decided("horizon")
        if section.images is not None:
            return math.ceil(section.images / batch)
        return math.ceil(section.epochs * num_images / batch)

    def _probe(self) -> int:
        """Time some steps, put everything back, and fix the horizon that fills `train.hours`."""
        tensors, kept = self._tensors(), copy.deepcopy(self._state())
        tensors = {part: {k: v.clone() for k, v in t.items()} for part, t in tensors.items()}
        self.end, started = PROBE_STEPS, 0.0
        for n in range(PROBE_STEPS):
            if n == PROBE_WARMUP:
                started = time.perf_counter()
            for phase in self.phases:
                self._turn(phase)
            self.step += 1
        seconds = (time.perf_counter() - started) / (PROBE_STEPS - PROBE_WARMUP)
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        self._restore(checkpoint.Checkpoint(0, tensors, kept))
        self.feed.close()
        horizon = max(1, int(self.config.train.hours * 3600 / seconds))
        if self.feed.processes > 1:
            from accelerate.utils import broadcast_object_list

            horizon = broadcast_object_list([horizon])[0]
        if self.main:
            reason = f"{self.config.train.hours} h at {seconds:.3f} s a step"
            self.run.decide(0, "horizon", horizon, reason)
        return horizon

    # --- stages -------------------------------------------------------------------------------

    def _follow_stages(self) -> None:
        """Take over what stages and recorded decisions change at this step."""
        micro = self.run.decided("micro_batch", {}, at=self.step)
        if micro != self.feed.micro:
            self.feed.micro = micro
            self.feed.close()
        changes = schedule.stage_changes(self.config, self.step, self.horizon)
        if changes != self.changes:
            others = {k for k in {*changes, *self.changes} if changes.get(k) != self.changes.get(k)}
            self.changes = changes
            self._enter_stage(new_data=any(k.startswith(("data.", "degradation.")) for k in others))

    def _enter_stage(self, new_data: bool = False) -> None:
        if self.horizon is not None and self.config.stages:
            self.changes = schedule.stage_changes(self.config, self.step, self.horizon)
            self.stage = self.config.with_changes(self.changes)
        if new_data:
            self.feed.use(self.stage)
        before = [p.name for p in self.phases]
        self.phases = self.recipe.phases(self.stage)
        if before and before != [p.name for p in self.phases]:
            self.feed.close()
        self._cover(self.phases)

    def _cover(self, phases: list) -> None:
        """Give new phases an optimizer, a position and, the first one, an average."""
        for phase in phases:
            section = self.stage.optim.for_phase(phase.name)
            if phase.name not in self.optimizers:
                self.optimizers[phase.name] = optim.build(section, phase)
            self.feed.positions.setdefault(phase.name, 0)
            self.trained |= phase.parameters
        if self.config.train.ema_decay:
            device = self.config.train.ema_device
            device = None if device == "auto" else torch.device(device)
            if self.ema is None:
                self.ema = optim.EMA(phases[0].parameters, self.config.train.ema_decay, device)
            self.ema.join(phases[0].parameters)

    # --- what is saved ------------------------------------------------------------------------

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        weights = {**self.trained, **buffers(self.recipe)}
        moments: dict[str, torch.Tensor] = {}
        for phase in self.phases:
            moments |= optim.state_by_name(self.optimizers[phase.name], phase)
        parts = {"weights": {k: v.detach() for k, v in weights.items()}, "optimizer": moments}
        return parts | ({"ema": self.ema.shadow} if self.ema else {})

    def _state(self) -> dict:
        return {
            "positions": self.feed.positions,
            "micro_batch": {p.name: self.feed.micro_batch(p) for p in self.phases},
            "horizon": self.horizon,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "config": self.config.to_dict(),
            "config_hash": self.config.hash,
        }

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        self.step, self.seconds = saved.step, saved.state["seconds"]
        self._enter_stage(new_data=bool(self.config.stages))
        checkpoint.load_weights(self.recipe, saved.tensors["weights"])
        for phase in self.phases:
            optimizer = self.optimizers[phase.name]
            optim.load_state_by_name(optimizer, phase, saved.tensors["optimizer"])
        if self.ema:
            for name, value in saved.tensors["ema"].items():
                self.ema.shadow[name] = value.to(self.ema.shadow[name].device).clone()
        self.feed.positions.update(saved.state["positions"])
        if self.scaler:
            self.scaler.load_state_dict(saved.state["scaler"])
        self.saved = saved.step or None

    def _save(self, best: bool) -> None:
        if self.main:
            if self.saved != self.step:
                size = checkpoint.save(self.run.path, self.step, self._tensors(), self._state())
                self.run.note(f"step {self.step}: checkpoint of {size:,} bytes")
                self.saved = self.step
            if best:
                checkpoint.link(self.run.path, "best", self.step)
            checkpoint.prune(self.run.path, self.config.train.keep_last)

    # --- what is shown ------------------------------------------------------------------------

    def _due(self, every: int | None, at_end: bool = False) -> bool:
        return bool(every and self.step % every == 0) or (
            at_end and every is not None and self.step == self.end
        )

    def _announce(self) -> None:
        if self.main:
            self.run.status("running", self.step)
            where = f"{self.device}, {self.precision.dtype}: {self.precision.reason}"
            self.run.note(f"steps {self.step} to {self.end} on {where}")
            for line in [*self.config.notes, *self.config.warnings]:
                self.run.note(line)
        self.progress.start(self.end, self.step)

    def _log(self, row: dict) -> None:
        if self.main and self._due(self.config.train.log_every, True):
            row["images"] = self.feed.positions[self.phases[0].name]
            row["seconds"] = round(self.seconds, 3)
            row |= tracking.memory_row(self.device)
            self.run.rows.append(row)
            self.trackers.log({k: v for k, v in row.items() if "/" in k}, self.step)
            self.progress.update(row)

    def _log_images(self) -> None:
        if self.main:
            with self.ema.applied() if self.ema else nullcontext():
                pictures = log_images(self.recipe, self.feed.dataset, self.run.path, self.step)
            self.progress.images(self.step, pictures)

    def _validate(self) -> tuple[bool, tuple[str, str] | None]:
        """Score the validation set; returns whether it is the best yet, and a reason to stop early."""
        verdict = (False, None)
        if self.main and len(self.validation_samples):
            with self.ema.applied() if self.ema else nullcontext():
                frame = validate.score(
                    self.recipe,
                    self.config,
                    step=self.step,
                    weights="ema" if self.ema else "raw",
                    samples=self.validation_samples,
                )
            validate.record(self.run.path, frame)
            means = selection.means(frame)
            self.run.note(f"step {self.step}: {means}")
            self.trackers.log(means, self.step)
            self.progress.validated(self.step, frame)
            scores = validate.read(self.run.path)
            verdict = selection.judge(scores, self.config, self.step)
        if self.feed.processes > 1:
            from accelerate.utils import broadcast_object_list

            verdict = broadcast_object_list([verdict])[0]
        return verdict

    def _requests(self) -> tuple[str, str] | None:
        """Return why to stop now: a signal or a word in the control file; pausing waits here."""
        request = self._asked() if self.main else None
        if self.feed.processes > 1:
            from accelerate.utils import broadcast_object_list

            request = broadcast_object_list([request])[0]
        if request == ("validate", ""):
            best, stop = self._validate()
            self._save(best)
            return stop
        if request == ("save", ""):
            self._save(False)
            return None
        return request

    def _asked(self) -> tuple[str, str] | None:
        again = f"step {self.step} is finished and saved; run the same again to continue"
        word = self.run.control()
        if word == "pause":
            self.run.status("paused", self.step)
            while not (self.signals.received or (word := self.run.control())):
                time.sleep(0.2)
            self.run.status("running", self.step)
        if self.signals.received:
            terminated = self.signals.received == interrupts.signal.SIGTERM
            name = "terminated" if terminated else "interrupted"
            return name, f"{name} by {'SIGTERM' if terminated else 'an interrupt'}: {again}"
        if word == "stop":
            return "stopped", f"stopped by request: {again}"
        return (word, "") if word in ("validate", "save") else None

    def _finish(self, status: str, reason: str) -> Result:
        if self.main:
            self.run.status(status, self.step, reason)
            self.run.note(f"step {self.step}: {status}: {reason}")
        self.trackers.close()
        self.progress.close(status)
        return Result(self.run.path, self.step, status, reason)


def _means(phase: str, logs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the row's `loss/<phase>_<term>` (and logs under their own names), means over samples."""
    return {
        (k if "/" in k else f"loss/{phase}_{k}"): v.float().mean().item() for k, v in logs.items()
    }


def _by_degradation(total: torch.Tensor, seen: list[dict]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for sample, value in zip(seen, total.tolist(), strict=True):
        groups.setdefault(sample["degradation"], []).append(value)
    return {f"loss_by_degradation/{k}": sum(v) / len(v) for k, v in sorted(groups.items())}
