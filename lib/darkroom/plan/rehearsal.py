"""A run's turns on fake tensors: the recipe's own losses, optimizers, EMA, pictures, validation.

What a trainer does in a step, in its order, once each; nothing is computed and no weight is read.
"""
# B batch, H height, W width

from __future__ import annotations

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .. import autocast, losses, optim, recipes, schedule, step
from ..batch import Batch
from ..preview import NUM_PREVIEWS
from ..recipes.protocol import buffers, grad_norm_modules
from ..tiling import AUTO_TILE, GPU_TILES, restore_native
from . import shapes
from .device import follow_cpu
from .fakes import EightBit, Mode, to_device
from .phase_names import BETWEEN, FIRST, LATER, NORMS, OPTIMIZER
from .tracker import Tracker

ANY_HORIZON = 1_000_000  # steps; where stages begin as a share, only their order counts


class Rehearsal:
    """One run on one fake device; `tracker` holds what happened.

    `options`: `validation_size` (height, width) of a picture that is restored, by default the
    largest that the config restores in one piece; `cpu_kernels`, whether a CPU's kernels are
    followed; `only`, the parts to rehearse: phases by name and "between" (pictures, validation), by
    default all.
    """

    def __init__(self, config, device: torch.device, dtype: torch.dtype, options: dict) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.on_cpu = device.type == "cpu"
        self.recipe = shapes.build_on_meta(config)
        recipes.place(self.recipe, torch.device("meta"), dtype)
        self.mode = Mode(allow_non_fake_inputs=True)
        if self.recipe.prompts is not None:
            self._place_prompts(self.recipe.prompts)
        networks = dict(self.recipe.modules)
        for name in ("lpips", "vgg"):
            if any(getattr(c.loss, name) for c in self._stages()):
                networks[name] = self._perceptual(getattr(losses, name))
        parameters = to_device(self.recipe, networks.values(), self.mode, device)
        self.turns: list[str] = []
        self.hooked: set[str] = set()
        self.trained = {
            name for c in self._stages() for p in self.recipe.phases(c) for name in p.parameters
        }
        self.tensors = [(f"{n}.{k}", t) for n, m in networks.items() for k, t in parameters(m)]
        cpu_kernels = bool(options.get("cpu_kernels"))
        follow_cpu(cpu_kernels)
        self.tracker = Tracker(device.type, networks, cpu_kernels)
        self.only = options.get("only")
        self.accumulation = config.train.effective_batch // (
            config.train.micro_batch or config.train.effective_batch
        )
        self.validation_size = tuple(options.get("validation_size") or self._largest())

    def run(self) -> Tracker:
        """Rehearse everything that can hold the peak; returns the tracker."""
        with torch.autograd.set_multithreading_enabled(False), self.mode, self.tracker:
            self._start()
            for stage in self._stages():
                phases = self.recipe.phases(stage)
                if self.ema is not None:
                    with self.tracker.phase("start"), self.tracker.category("ema"):
                        self.ema.join(phases[0].parameters)
                for phase in phases:
                    self._first(stage, phase)
                for phase in phases:
                    if self._wanted(phase.name):
                        self._turn(stage, phase, phases)
            if not self._wanted(BETWEEN):
                return self.tracker
            if self.config.train.image_every:
                side = self.config.data.crop_size
                self._restore("images", NUM_PREVIEWS, (side, side), tiled=False)
            if self.config.validation.every:
                self._restore("validation", 1, self.validation_size, tiled=True)
        return self.tracker

    def _wanted(self, part: str) -> bool:
        return self.only is None or part in self.only

    def tflop(self) -> dict[str, float]:
        """Return the operations of a whole turn, by phase; a multiply-add is two."""
        flops = {phase: count / 1e12 for phase, count in self.tracker.flops.items()}
        for turn in self.turns:
            later = flops.pop(turn + LATER, 0)
            flops[turn] = flops.get(turn, 0) + (self.accumulation - 1) * later
        return flops

    # --- before the first step ------------------------------------------------------------------

    def _stages(self) -> list:
        """Return the configs in force over the run; those that take the same memory once."""
        changes = [{}]
        for start in schedule.boundaries(self.config, ANY_HORIZON):
            changes.append(schedule.stage_changes(self.config, start + ANY_HORIZON, ANY_HORIZON))
        found = {}
        for change in changes:
            stage = self.config.with_changes(change) if change else self.config
            terms = tuple(k for k, v in stage.loss.model_dump().items() if v)
            found.setdefault((terms, repr(stage.model), stage.data.crop_size), stage)
        return list(found.values())

    def _place_prompts(self, prompts) -> None:
        prompts.place(torch.device("cpu"), self.dtype)
        prompts.prepare({self.config.data.prompt, ""})
        prompts._table = FakeTensor(self.mode, prompts._table.to("meta"), self.device)
        prompts.device = self.device

    def _perceptual(self, loss) -> torch.nn.Module:
        """Build the loss's network on the meta device and make the loss use it."""
        with torch.device("meta"):
            loss._module = loss.build(False)
        loss._key = (self.mode, self.device)
        return loss._module

    def _largest(self) -> tuple[int, int]:
        auto, tile = getattr(self.recipe, "auto_tile", AUTO_TILE), self.config.restore.tile
        side = auto if tile in ("auto", None) else tile
        return side, side

    def _start(self) -> None:
        tracker, config = self.tracker, self.config
        with tracker.phase("start"):
            kinds = dict.fromkeys(self.trained, "trained weights")
            for path, tensor in self.tensors:
                tracker.own(kinds.get(path, "weights"), [(path, tensor)])
            if self.recipe.prompts is not None:
                tracker.own("weights", [("prompts", self.recipe.prompts._table)])
            self.ema, self.optimizers = None, {}
            if config.train.ema_decay:
                where = torch.device("cpu") if config.train.ema_device == "cpu" else self.device
                self.ema = optim.EMA({}, config.train.ema_decay, where)

    def _first(self, stage, phase) -> None:
        """Take the first optimizer step, in which states appear, at gradients out of nowhere."""
        section = stage.optim.for_phase(phase.name)
        if phase.name in self.optimizers:
            optim.join(self.optimizers[phase.name], section, phase, 0)
            self._hook(phase)
            return
        optimizer = self._optimizer(section, phase)
        self.optimizers[phase.name] = optimizer
        self._hook(phase)
        with self.tracker.phase(phase.name + FIRST):
            with self.tracker.category("gradients"):
                for parameter in phase.parameters.values():
                    parameter.grad = torch.empty_like(parameter)
            with self.tracker.category("optimizer"):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _hook(self, phase) -> None:
        """Book the gradients of the phase's parameters as such, of each once."""
        for name, parameter in phase.parameters.items():
            parameter.requires_grad_(True)  # another phase may have been at work before
            if name not in self.hooked:
                self.hooked.add(name)
                parameter.register_post_accumulate_grad_hook(
                    lambda p: self.tracker.relabel([p.grad], "gradients")
                )

    def _optimizer(self, section, phase):
        """Build what a CUDA device would get."""
        if section.name == "adamw8bit":
            return EightBit(phase)
        if section.name == "adamw" and section.implementation == "auto" and not self.on_cpu:
            section = section.model_copy(update={"implementation": "fused"})
        return optim.build(section, phase)

    # --- a turn ---------------------------------------------------------------------------------

    def _turn(self, stage, phase, phases) -> None:
        tracker, recipe, train = self.tracker, self.recipe, self.config.train
        first = phase is phases[0]
        if phase.name not in self.turns:
            self.turns.append(phase.name)
        micro = train.micro_batch or train.effective_batch
        with tracker.phase(phase.name):
            recipe.begin(phase)
            kept = {name: b.clone() for name, b in buffers(recipe).items()}
            logs = step.accumulate(
                recipe,
                phase,
                self._batches(stage, phase, micro, first),
                effective_batch=train.effective_batch,
                dtype=self.dtype,
            )
        with tracker.phase(phase.name + OPTIMIZER), tracker.category("optimizer"):
            norm = step.gradient_norm(phase)
            ema = _Labelled(self.ema, tracker) if first and self.ema is not None else None
            step.apply(
                phase, self.optimizers[phase.name], lr=phase.lr, norm=norm, clip=train.clip, ema=ema
            )
        del logs, kept

    def _batches(self, stage, phase, micro: int, first: bool):
        """Yield two micro batches: into the second one's backward the first's gradients reach."""
        train = self.config.train
        norms = first and train.grad_norm_every
        for n in range(min(2, train.effective_batch // micro)):
            batch = self._batch(micro, (stage.data.crop_size,) * 2, n * micro)
            if norms:
                parameters = grad_norm_modules(self.recipe, train.grad_norm_modules)
                with self.tracker.phase(phase.name + NORMS):
                    found = step.term_gradient_norms(
                        self.recipe, phase, batch, parameters, self.dtype
                    )
                del found
                norms = False
            if n:
                self.tracker.enter(phase.name + LATER)
            yield batch

    def _batch(self, count: int, size: tuple[int, int], start: int = 0) -> Batch:
        """Return a batch as the loader gives it, on the device; shapes only."""
        with self.tracker.category("batch"):
            found = shapes.batch(self.recipe, self.config, count, size, start)
            return found.to(self.device)

    # --- between steps --------------------------------------------------------------------------

    def _restore(self, name: str, count: int, size: tuple[int, int], *, tiled: bool) -> None:
        recipe, config = self.recipe, self.config

        def restore(batch: Batch) -> torch.Tensor:
            with autocast.on(self.device, self.dtype):
                return recipe.restore(batch, seed=0, num_steps=config.restore.num_steps).image

        averaged = self.ema is not None and config.validation.weights == "ema"
        weights = self.ema.applied() if averaged else contextlib.nullcontext()
        with self.tracker.phase(name), torch.no_grad(), weights:
            batch = self._batch(count, size)
            if not tiled:
                restore(batch).cpu()
                return
            auto = getattr(recipe, "auto_tile", AUTO_TILE)
            tiles = 1 if self.on_cpu else GPU_TILES
            restore_native(restore, batch, recipe.multiple, config.restore, auto, tiles)


class _Labelled:
    """The EMA with its update booked as a phase of its own."""

    def __init__(self, ema: optim.EMA, tracker: Tracker) -> None:
        self.ema, self.tracker = ema, tracker

    def update(self) -> None:
        with self.tracker.phase("ema"), self.tracker.category("ema"):
            self.ema.update()
