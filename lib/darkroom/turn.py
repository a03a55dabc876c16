"""A phase's turn on real tensors: samples, out-of-memory fallback, finite check, log row."""
# E effective batch (samples of one phase's turn over all processes)

from __future__ import annotations

import torch

from . import checkpoint, schedule, step
from .recipes.protocol import buffers, grad_norm_modules
from .stopwatch import Stopwatch


class NonFinite(RuntimeError):
    """A loss or a gradient is not finite; the message names the samples."""


def all_phases(state, run, accelerator, dtype: torch.dtype, watch, steps_left: int) -> dict:
    """Take the turn of every phase: one step. Returns its row; `steps_left` includes this one."""
    row: dict[str, float] = {}
    for phase in state.phases:
        row |= Turn(state, run, accelerator, dtype, phase, watch).take(steps_left)
    return row


class Turn:
    """The turn of one phase in the step that `state` is in.

    `run` records a smaller micro batch after an out-of-memory error; None: the error is raised.
    """

    def __init__(self, state, run, accelerator, dtype: torch.dtype, phase, watch=None) -> None:
        self.state, self.run, self.accelerator = state, run, accelerator
        self.dtype, self.phase = dtype, phase
        self.first = phase is state.phases[0]
        self.watch = watch or Stopwatch()

    def take(self, steps_left: int) -> dict[str, float]:
        """Draw E samples, take one optimizer step; returns the turn's part of the row."""
        with self.watch.part(self.phase.name):
            return self._take(steps_left)

    def _take(self, steps_left: int) -> dict[str, float]:
        state, phase, train = self.state, self.phase, self.state.config.train
        state.recipe.begin(phase)
        kept = {name: b.clone() for name, b in buffers(state.recipe).items()}
        while True:
            self.seen: list[dict] = []
            self.norms: dict[str, float] = {}
            try:
                logs = self._accumulate(steps_left)
                break
            except torch.OutOfMemoryError as error:
                self._shrink(error)
                checkpoint.load_weights(state.recipe, kept)
        step.synchronise(phase)
        optimizer = state.optimizers[phase.name]
        if state.scaler is not None:
            state.scaler.unscale_(optimizer)
        norm = step.gradient_norm(phase)
        logs, seen = self._gather(logs)
        self._check_finite(logs, seen, norm)
        # while the steps that fix the horizon are timed, there is none yet
        factor = schedule.lr_factor(
            state.stage.optim.schedule, phase.lr, state.step, state.horizon or steps_left
        )
        with self.watch.part("optimizer and EMA"):
            step.apply(
                phase,
                optimizer,
                lr=phase.lr * factor,
                at=state.step,
                norm=norm,
                clip=train.clip,
                ema=state.ema if self.first else None,
                scaler=state.scaler,
            )
        state.feed.taken(phase)
        row = _means(phase.name, logs) | (_by_degradation(logs, seen) if self.first else {})
        if state.scaler is not None:
            row[f"scaler/{phase.name}_skipped"] = float(not norm.isfinite().item())
        lr = {f"lr/{phase.name}": phase.lr * factor, f"grad_norm/{phase.name}": norm.item()}
        return row | lr | self.norms

    def _accumulate(self, steps_left: int) -> dict[str, torch.Tensor]:
        return step.accumulate(
            self.state.recipe,
            self.phase,
            self._batches(steps_left),
            effective_batch=self.state.config.train.effective_batch,
            dtype=self.dtype,
            scaler=self.state.scaler,
        )

    def _batches(self, steps_left: int):
        """Yield the micro batches on the device; notes their samples and, when due, term norms."""
        every, now = self.state.config.train.grad_norm_every, self.state.step + 1
        due = bool(every) and self.first and now % every == 0
        batches = iter(self.state.feed.take(self.phase, self.state.phases, steps_left))
        while True:
            with self.watch.part("loader"):
                batch = next(batches, None)
            if batch is None:
                return
            self.seen += [
                {"position": p, "degradation": d}
                for p, d in zip(batch.positions, batch.degradations, strict=True)
            ]
            batch = batch.to(self.state.device)
            if due and not self.norms:
                with self.watch.part("gradient norms"):
                    self.norms = self._term_norms(batch)
            yield batch

    def _term_norms(self, batch) -> dict[str, float]:
        names = self.state.config.train.grad_norm_modules
        parameters = grad_norm_modules(self.state.recipe, names)
        norms = step.term_gradient_norms(
            self.state.recipe, self.phase, batch, parameters, self.dtype
        )
        return {f"grad_norm/{name}": value.item() for name, value in norms.items()}

    def _shrink(self, error: Exception) -> None:
        """Take the next smaller divisor as micro batch; effective batch and samples stay."""
        if self.run is None:
            raise error
        feed, phase = self.state.feed, self.phase
        micro, smaller = feed.micro_batch(phase), feed.smaller(phase)
        advice = None
        if smaller is None:
            advice = "no smaller one is left: lower data.crop_size or turn on train.checkpointing"
        elif feed.processes > 1:
            advice = f"set train.micro_batch to {smaller} and start all processes again"
        if advice:
            raise RuntimeError(
                f"out of memory in the {phase.name} phase at micro batch {micro}; {advice}"
            ) from error
        sizes = {**feed.micro, phase.name: smaller}
        self.run.decide(self.state.step, "micro_batch", sizes, f"out of memory at {micro}")
        feed.resize(sizes)
        for parameter in phase.parameters.values():
            parameter.grad = None
        if self.state.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gather(self, logs: dict) -> tuple[dict, list[dict]]:
        """Join per-sample results of all processes, so that each logs and decides the same."""
        if self.state.feed.processes == 1:
            return logs, self.seen
        from accelerate.utils import gather_object

        joined = {k: self.accelerator.gather(v.contiguous()) for k, v in logs.items()}
        return joined, gather_object(self.seen)

    def _check_finite(self, logs: dict, seen: list[dict], norm: torch.Tensor) -> None:
        finite = logs["total"].isfinite()
        skips = self.state.scaler is not None  # the fp16 scaler skips an overflowing step
        if bool(finite.all()) and (skips or bool(norm.isfinite())):
            return
        bad = [s for s, good in zip(seen, finite.tolist(), strict=True) if not good]
        dataset, name = self.state.feed.dataset, self.phase.name
        files = "; ".join(
            f"position {s['position']} ({s['degradation']}) "
            f"{dataset.row(name, s['position'])['gt_path']}"
            for s in (bad or seen)
        )
        what = "the loss" if bad else f"the gradient (its norm is {norm.item()})"
        terms = ", ".join(f"{k} {v.float().mean().item():.4g}" for k, v in logs.items())
        raise NonFinite(
            f"{what} of the {name} phase is not finite in step {self.state.step + 1}, before its "
            f"optimizer step; samples: {files}. Terms: {terms}. The last checkpoint is untouched; "
            "look at these files, or lower the learning rate."
        )


def _means(phase: str, logs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return `loss/<phase>_<term>` (logs under their own names), means over samples."""
    return {
        (k if "/" in k else f"loss/{phase}_{k}"): v.float().mean().item() for k, v in logs.items()
    }


def _by_degradation(logs: dict, seen: list[dict]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for sample, value in zip(seen, logs["total"].tolist(), strict=True):
        groups.setdefault(sample["degradation"], []).append(value)
    return {f"loss_by_degradation/{k}": sum(v) / len(v) for k, v in sorted(groups.items())}
