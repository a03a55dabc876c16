"""What a training consists of between two steps: networks, optimizers, averages and positions.

Everything that a step changes is here, and all of it is what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from . import checkpoint, data, optim, recipes, schedule, sharding
from .feed import Feed
from .recipes.protocol import buffers


class TrainingState:
    """Recipe, phases of the stage in force, their optimizers, the EMA and the sample feed."""

    def __init__(
        self, config, samples, device, dtype, scaler, *, process: int, processes: int, began=None
    ) -> None:
        self.began = time.perf_counter() if began is None else began
        self.before = 0.0  # wall seconds of the processes before this one, up to their last save
        self.config, self.device, self.scaler = config, device, scaler
        self.recipe = recipes.build(config)
        recipes.place(self.recipe, device, dtype, data.prompts(config, samples))
        self.sharded = processes > 1 and sharding.requested() is not None
        if self.sharded:
            self.recipe.sharded(sharding.split)
        self.feed = Feed(config, self.recipe.draw, samples, process=process, processes=processes)
        self.step, self.seconds = 0, 0.0
        self.horizon: int | None = None
        self.stage, self.changes = config, {}  # the config in force, and what stages changed in it
        self.phases: list = []
        self.met: dict = {}  # every phase so far, by name
        self.trained: dict[str, torch.nn.Parameter] = {}  # whatever was trained so far, by name
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.ema: optim.EMA | None = None
        self.untouched: dict[str, torch.Tensor] | None = None  # see `aside`
        self._cover(0)

    @property
    def elapsed(self) -> float:
        """Wall seconds of the run so far, over all its processes."""
        return self.before + time.perf_counter() - self.began

    def follow_stages(self, step: int) -> None:
        """Take over what the stages change at this step."""
        changes = schedule.stage_changes(self.config, step, self.horizon)
        if changes == self.changes:
            return
        keys = {k for k in {*changes, *self.changes} if changes.get(k) != self.changes.get(k)}
        self.changes, self.stage = changes, self.config.with_changes(changes)
        if any(k.startswith(("data.", "degradation.")) for k in keys):
            self.feed.use(self.stage)
        self._cover(step)

    def _cover(self, step: int) -> None:
        """Ask for the phases; give new ones an optimizer, a position and, the first, an average.

        Parameters that a phase trains from this step on join its optimizer.
        """
        before = [phase.name for phase in self.phases]
        self.phases = self.recipe.phases(self.stage)
        if before != [phase.name for phase in self.phases]:
            self.feed.close()
        for phase in self.phases:
            new = {n: p for n, p in phase.parameters.items() if n not in self.trained}
            if self.untouched is not None:
                self.untouched |= {n: _copy(p) for n, p in new.items()}
            self.trained |= new
            self.met[phase.name] = phase
            section = self.stage.optim.for_phase(phase.name)
            if phase.name not in self.optimizers:
                self.optimizers[phase.name] = optim.build(section, phase)
            optim.join(self.optimizers[phase.name], section, phase, step)
            self.feed.positions.setdefault(phase.name, 0)
        if self.config.train.ema_decay:
            if self.ema is None:
                where = self.config.train.ema_device
                device = None if where == "auto" else torch.device(where)
                self.ema = optim.EMA({}, self.config.train.ema_decay, device)
            self.ema.join(self.phases[0].parameters)

    def restart_average(self) -> None:
        """Let the EMA begin anew at the current weights."""
        self.ema = None
        self._cover(self.step)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return what a checkpoint holds, by part and name; where it is split, all have to ask."""
        weights = {name: sharding.whole(p.detach()) for name, p in self.trained.items()}
        weights |= buffers(self.recipe)
        moments: dict[str, torch.Tensor] = {}
        for phase in self.met.values():
            moments |= optim.state_by_name(self.optimizers[phase.name], phase)
        parts = {"weights": weights, "optimizer": moments}
        if self.ema:
            parts["ema"] = {name: sharding.whole(t) for name, t in self.ema.shadow.items()}
        return parts

    @contextmanager
    def shown(self, averaged: bool = True) -> Iterator[None]:
        """Have the whole network, with averaged weights where there are any, for a `with` block.

        Where it is split over processes all have to enter; one may run it then.
        """
        average = self.ema.applied() if averaged and self.ema else nullcontext()
        with average, sharding.gathered(self.recipe):
            yield

    @property
    def base(self) -> str | None:
        """Digest of the weights on which adapters stand, where a recipe reads such."""
        return getattr(self.recipe, "base_digest", None)

    def document(self) -> dict:
        """Return the plain part of a checkpoint."""
        return {
            "positions": dict(self.feed.positions),
            "micro_batch": {p.name: self.feed.micro_batch(p) for p in self.phases},
            "horizon": self.horizon,
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "config": self.config.to_dict(),
            "config_hash": self.config.hash,
            "base": self.base,
        }

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: phases of every stage passed come back with their state.

        Raises CheckpointError where it stands on another base.
        """
        if saved.state.get("base") != self.base:
            raise checkpoint.CheckpointError(
                f"this run's adapters stand on the base {saved.state.get('base')}, and model.base "
                f"{self.config.model.base!r} is {self.base} now: it was trained on or replaced. "
                "Bring that base back, or start a run of another name on the new one"
            )
        self.step, self.seconds = saved.step, saved.state["seconds"]
        self.before = saved.state.get("elapsed", self.seconds)  # older checkpoints know steps alone
        if self.horizon is not None:
            passed = [b for b in schedule.boundaries(self.config, self.horizon) if b <= self.step]
            for step in [*passed, self.step]:
                self.follow_stages(step)
        self._load(saved)
        self.feed.positions.update(saved.state["positions"])
        self.feed.close()

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        checkpoint.load_weights(self.recipe, saved.tensors["weights"])
        for phase in self.met.values():
            optimizer = self.optimizers[phase.name]
            optimizer.state.clear()
            optim.load_state_by_name(optimizer, phase, saved.tensors["optimizer"])
        if self.ema:
            for name, value in saved.tensors["ema"].items():
                # into the tensor that is there: its memory layout decides which kernels restore
                shadow = self.ema.shadow[name]
                shadow.copy_(sharding.like(value, shadow))
        if self.scaler:
            self.scaler.load_state_dict(saved.state["scaler"])

    def snapshot(self) -> checkpoint.Checkpoint:
        """Return a copy in the CPU's memory of what a checkpoint would hold."""
        parts = {
            part: {name: _copy(value) for name, value in values.items()}
            for part, values in self.tensors().items()
        }
        return checkpoint.Checkpoint(self.step, parts, self.document())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let a `with` block take steps, in any stage, on a feed of its own; nothing of it stays.

        Weights, moments, averages, positions, the stage and the global random state are put back
        bit for bit, those of phases that first appear in the block included. The copies lie in the
        CPU's memory. The training's own loader keeps its place.
        """
        saved, self.untouched = self.snapshot(), {}
        fields = ("step", "seconds", "horizon", "stage", "changes", "phases", "feed")
        kept = {name: getattr(self, name) for name in fields}
        met, optimizers, trained = dict(self.met), dict(self.optimizers), dict(self.trained)
        groups = {name: len(o.param_groups) for name, o in optimizers.items()}
        averaged = set(self.ema.shadow) if self.ema else set()
        self.feed = _another(self.feed)
        cards = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(cards):
                yield
        finally:
            self.feed.close()
            for name, value in kept.items():
                setattr(self, name, value)
            for parameter in self.trained.values():
                parameter.grad = None
            self.met, self.optimizers, self.trained = met, optimizers, trained
            for name, optimizer in optimizers.items():
                del optimizer.param_groups[groups[name] :]
            checkpoint.load_weights(self.recipe, self.untouched)
            self.untouched = None
            if self.ema:
                self.ema.shadow = {n: t for n, t in self.ema.shadow.items() if n in averaged}
                self.ema.parameters = {n: trained[n] for n in averaged}
            self._load(saved)


def _another(feed: Feed) -> Feed:
    """Return a feed at the same place, with a loader of its own."""
    other = Feed(
        feed.config, feed.draw, feed.samples, process=feed.process, processes=feed.processes
    )
    other.positions, other.micro = dict(feed.positions), dict(feed.micro)
    other.dataset.decoded = feed.dataset.decoded
    return other


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
