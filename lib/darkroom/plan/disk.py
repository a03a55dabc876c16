"""How much disk a run needs: a checkpoint counted tensor by tensor, times how many lie there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import checkpoint, optim, schedule
from ..recipes.protocol import buffers
from .shapes import build_on_meta

GIB = 2**30
ANY_HORIZON = 1_000_000  # steps; where stages begin as a share, only which there are counts
STATE_BYTES = 8192  # about what state.json takes: positions, digests, the config
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",)}
QMAP = 256  # float32 values of bitsandbytes' tables, which a checkpoint holds for every parameter


@dataclass(frozen=True)
class Disk:
    """What a run's checkpoints take: `count` of them at most, `needed_gib` in all.

    `count` counts those kept, the best and the one being written. `held_gib` lies there already,
    `free_gib` is free where the run lies.
    """

    checkpoint_bytes: int
    count: int
    held_gib: float
    free_gib: float
    warnings: tuple[str, ...] = ()

    @property
    def needed_gib(self) -> float:
        """What all of them take, in GiB."""
        return self.count * self.checkpoint_bytes / GIB

    def __str__(self) -> str:
        each = _size(self.checkpoint_bytes / GIB)
        return f"{_size(self.needed_gib)}: {self.count} checkpoints of {each}"


def disk(config, recipe=None) -> Disk:
    """Hold what the checkpoints take against budget.disk_gib and what is free.

    Without a recipe it is built on the meta device. Raises ValueError where the budget is too
    small, or where not even two checkpoints (one kept, one being written) fit.
    """
    folder = checkpoint.folder(config.run_dir)
    held = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    free = shutil.disk_usage(_existing(folder)).free
    return held_against(config, checkpoint_bytes(config, recipe), held=held, free=free)


def plenty(config, recipe) -> bool:
    """Tell whether more is free than all checkpoints could take with every weight trained."""
    count = sum(p.numel() for module in recipe.modules.values() for p in module.parameters())
    most = 20 * count + STATE_BYTES  # weight, two moments, an average, and names
    return shutil.disk_usage(_existing(config.run_dir)).free > 2 * most * checkpoints(config)


def held_against(config, checkpoint_bytes: int, *, held: int, free: int) -> Disk:
    """Return `disk`'s result for a checkpoint of so many bytes, those held and those free."""
    count, budget = checkpoints(config), config.budget.disk_gib
    found = Disk(checkpoint_bytes, count, held / GIB, free / GIB)
    each = _size(checkpoint_bytes / GIB)
    what = f"{_count(config, count)} of {each} take {_size(found.needed_gib)}"
    ways = "lower train.keep_last" + (" (null keeps all)" if config.train.keep_last is None else "")
    if budget is not None and found.needed_gib > budget:
        raise ValueError(
            f"{what}, more than budget.disk_gib {budget:g}: {ways}, or raise budget.disk_gib"
        )
    where = f"{_size(found.free_gib)} are free at {config.run_dir}"
    if 2 * checkpoint_bytes > free + held:
        raise ValueError(
            f"{where}, and a checkpoint takes {each}, of which one is kept while the next is "
            "written: make room, or set paths.runs to another disk"
        )
    if found.needed_gib > found.free_gib + found.held_gib:
        line = f"{what}, but {where}: {ways}, or make room before a save fails"
        return replace(found, warnings=(line,))
    return found


def checkpoints(config) -> int:
    """Return how many checkpoints lie on the disk at most, the one being written included.

    `train.keep_last` null keeps all; their number is known where the horizon is given in steps.
    """
    train = config.train
    best = 1 if config.validation.every else 0
    if train.keep_last is not None:
        return train.keep_last + best + 1
    if train.steps is None or train.save_every is None:
        return best + 2
    return -(-(train.steps + (train.extend or 0)) // train.save_every) + 1


def checkpoint_bytes(config, recipe=None) -> int:
    """Return the bytes of a checkpoint at the end of the run, every stage passed."""
    recipe = recipe or build_on_meta(config)
    weights = {k: v.to("meta") for k, v in buffers(recipe).items()}
    averaged, moments, met = {}, {}, set()
    for stage in _stages(config):
        phases = recipe.phases(stage)
        for phase in phases:
            held = {n: torch.empty_like(p, device="meta") for n, p in phase.parameters.items()}
            weights |= held
            if phase is phases[0]:
                averaged |= {n: v.float() for n, v in held.items()}
            if phase.name not in met:
                moments |= _moments(stage.optim.for_phase(phase.name), held)
                met.add(phase.name)
    parts = [weights, moments] + ([averaged] if config.train.ema_decay else [])
    return sum(_file_bytes(part) for part in parts) + STATE_BYTES


def _stages(config) -> list:
    starts = schedule.boundaries(config, ANY_HORIZON)
    changes = [schedule.stage_changes(config, s + ANY_HORIZON, ANY_HORIZON) for s in starts]
    return [config, *(config.with_changes(c) for c in changes if c)]


def _moments(section, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what an optimizer keeps, by parameter and key, as `optim.state_by_name` does."""
    kept = {}
    for name, value in held.items():
        if section.name == "adamw8bit":
            state = _eight_bit(value)
        else:
            state = {key: torch.empty_like(value) for key in MOMENTS[section.name]}
            state["step"] = torch.empty((), device="meta")
        kept |= {f"{name}/{key}": tensor for key, tensor in state.items()}
    return kept


def _eight_bit(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return bitsandbytes' state of a tensor, by count: two moments, their tables and scales."""
    from .fakes import SMALLEST_EIGHT_BIT  # a second of imports, which only this needs

    step = {"step": torch.empty((), dtype=torch.int64, device="meta")}
    if parameter.numel() < SMALLEST_EIGHT_BIT:
        return step | {k: torch.empty_like(parameter) for k in ("state1", "state2")}
    blocks = -(-parameter.numel() // optim.BITSANDBYTES_BLOCK)
    for n in ("1", "2"):
        step["state" + n] = torch.empty_like(parameter, dtype=torch.uint8)
        step["qmap" + n] = torch.empty(QMAP, device="meta")
        step["absmax" + n] = torch.empty(blocks, device="meta")
    return step


def _file_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Return the size of a safetensors file: its numbers, and the JSON that names them."""
    at, header = 0, {}
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        header[name] = {"dtype": "F32", "shape": [*value.shape], "data_offsets": [at, at + size]}
        at += size
    return 8 + len(json.dumps(header, separators=(",", ":"))) + at


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _count(config, count: int) -> str:
    kept = config.train.keep_last
    if kept is None:
        return f"{count} checkpoints (train.keep_last is null: none is deleted)"
    best = ", the best" if config.validation.every else ""
    return f"{count} checkpoints (train.keep_last {kept}{best} and the one being written)"


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.2f} MiB"
