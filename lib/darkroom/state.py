"""What a training consists of between two steps: networks, optimizers, averages and positions.

Everything that a step changes is here, and all of it is what a checkpoint holds.
"""

from __future__ import annotations

import torch

from . import checkpoint, data, optim, recipes, schedule
from .feed import Feed
from .recipes.protocol import buffers


class TrainingState:
    """Recipe, phases of the stage in force, their optimizers, the EMA and the sample feed."""

    def __init__(
        self, config, samples, device, dtype, scaler, *, process: int, processes: int
    ) -> None:
        self.config, self.device, self.scaler = config, device, scaler
        self.recipe = recipes.build(config)
        recipes.place(self.recipe, device, dtype, data.prompts(config, samples))
        self.feed = Feed(config, self.recipe.draw, samples, process=process, processes=processes)
        self.step, self.seconds = 0, 0.0
        self.horizon: int | None = None
        self.stage, self.changes = config, {}  # the config in force, and what stages changed in it
        self.phases: list = []
        self.met: dict = {}  # every phase so far, by name
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.ema: optim.EMA | None = None
        self._cover()

    def follow_stages(self, step: int) -> None:
        """Take over what the stages change at this step."""
        changes = schedule.stage_changes(self.config, step, self.horizon)
        if changes == self.changes:
            return
        keys = {k for k in {*changes, *self.changes} if changes.get(k) != self.changes.get(k)}
        self.changes, self.stage = changes, self.config.with_changes(changes)
        if any(k.startswith(("data.", "degradation.")) for k in keys):
            self.feed.use(self.stage)
        self._cover()

    def _cover(self) -> None:
        """Ask for the phases; give new ones an optimizer, a position and, the first, an average."""
        before = [phase.name for phase in self.phases]
        self.phases = self.recipe.phases(self.stage)
        if before != [phase.name for phase in self.phases]:
            self.feed.close()
        for phase in self.phases:
            self.met[phase.name] = phase
            if phase.name not in self.optimizers:
                section = self.stage.optim.for_phase(phase.name)
                self.optimizers[phase.name] = optim.build(section, phase)
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
        self._cover()

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return what a checkpoint holds, by part and name."""
        weights: dict[str, torch.Tensor] = {}
        moments: dict[str, torch.Tensor] = {}
        for phase in self.met.values():
            weights |= {name: p.detach() for name, p in phase.parameters.items()}
            moments |= optim.state_by_name(self.optimizers[phase.name], phase)
        weights |= buffers(self.recipe)
        parts = {"weights": weights, "optimizer": moments}
        return parts | ({"ema": self.ema.shadow} if self.ema else {})

    def document(self) -> dict:
        """Return the plain part of a checkpoint."""
        return {
            "positions": dict(self.feed.positions),
            "micro_batch": {p.name: self.feed.micro_batch(p) for p in self.phases},
            "horizon": self.horizon,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "config": self.config.to_dict(),
            "config_hash": self.config.hash,
        }

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: phases of every stage passed come back with their state."""
        self.step, self.seconds = saved.step, saved.state["seconds"]
        if self.horizon is not None:
            passed = [b for b in schedule.boundaries(self.config, self.horizon) if b <= self.step]
            for step in [*passed, self.step]:
                self.follow_stages(step)
        checkpoint.load_weights(self.recipe, saved.tensors["weights"])
        for phase in self.met.values():
            optimizer = self.optimizers[phase.name]
            optimizer.state.clear()
            optim.load_state_by_name(optimizer, phase, saved.tensors["optimizer"])
        if self.ema:
            for name, value in saved.tensors["ema"].items():
                # into the tensor that is there: its memory layout decides which kernels restore
                self.ema.shadow[name].copy_(value)
        self.feed.positions.update(saved.state["positions"])
        self.feed.close()
        if self.scaler:
            self.scaler.load_state_dict(saved.state["scaler"])

    def snapshot(self) -> checkpoint.Checkpoint:
        """Return a copy in memory of what a checkpoint would hold."""
        parts = {
            part: {name: value.clone() for name, value in values.items()}
            for part, values in self.tensors().items()
        }
        return checkpoint.Checkpoint(self.step, parts, self.document())
