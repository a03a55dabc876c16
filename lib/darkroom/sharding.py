"""One network's parameters, gradients and moments split over the processes: FSDP2.

`accelerate launch --config_file params/accelerate/fsdp2.yaml -m darkroom.train …` asks for it; the
splitting is PyTorch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277). A launch with DeepSpeed's
stage 2 (Rajbhandari et al. 2020, arXiv 1910.02054) gets that stage's partition from the same code:
gradients and moments are split, parameters gathered once a step. The engine itself is not used, so
checkpoints, averages and resuming are those of every run. Elsewhere everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

WHOLE = (
    "the processes hold parts of every parameter, and only one-phase recipes can be split so; "
    "launch with params/accelerate/several_gpus.yaml instead, where each process holds them all"
)

# what accelerate's launcher sets, the one value of a second variable that is taken, and the way out
LAUNCHERS = {
    "FSDP2": (
        *("ACCELERATE_USE_FSDP", "FSDP_VERSION", "2"),
        "fsdp_version {}: only version 2 is supported; set it in the launcher's configuration, as "
        "params/accelerate/fsdp2.yaml does",
    ),
    "DeepSpeed": (
        *("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"),
        "zero_stage {}: of DeepSpeed's stages only 2 is supported; for parameters split, too, "
        "launch with params/accelerate/fsdp2.yaml",
    ),
}


def requested() -> str | None:
    """Return "FSDP2" or "DeepSpeed" when the launcher's configuration asks for it, else None.

    ValueError for FSDP 1 and for other stages of DeepSpeed.
    """
    for name, (wanted, variable, only, message) in LAUNCHERS.items():
        if os.environ.get(wanted, "").lower() == "true":
            value = os.environ.get(variable, only)
            if value != only:
                raise ValueError(message.format(value))
            return name
    return None


def check(config, scaled: bool = False) -> None:
    """Raise ValueError naming what a launch with sharding cannot do, and the way out.

    `scaled` says that the precision chosen is fp16, which "auto" takes on some cards.
    """
    kind = requested()
    if kind is None:
        return
    optimizers = {config.optim.for_phase(name).name for name in ("network", "denoiser")}
    problem = None
    if config.model.recipe == "one_step_gan":
        problem = f"model.recipe one_step_gan has two phases: {WHOLE}"
    elif "adamw8bit" in optimizers:
        problem = "optim name adamw8bit takes whole tensors: take adamw"
    elif config.train.grad_norm_every is not None:
        problem = "the gradient norms of single terms need whole ones: train.grad_norm_every: null"
    elif config.train.hours is not None:
        problem = "train.hours times steps and takes them back: give train.steps, images or epochs"
    elif config.train.ema_device != "auto":
        problem = "averages are split as the network is, on its devices: train.ema_device: auto"
    elif scaled or config.train.precision == "fp16":
        problem = "train.precision fp16 scales the loss, which was not tried: take bf16 or fp32"
    if problem:
        raise ValueError(f"{kind} was asked for by the launcher, and {problem}")


def split(module: nn.Module, is_block: Callable[[nn.Module], bool]) -> None:
    """Shard a network in place: each block for which `is_block` is true, then the rest.

    Gradients are summed over the processes in the backward pass; the loss has the effective batch
    as its divisor already. Parameters are replaced: ask the module for them anew.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    blocks = [child for child in module.modules() if child is not module and is_block(child)]
    for unit in [*blocks, module]:
        fully_shard(unit, mesh=mesh)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    _free_after_forward(module, _as_asked())


def _free_after_forward(module: nn.Module, free: bool) -> None:
    """Let blocks drop what they gathered after their forward, or keep it; the rest keeps it."""
    module.set_reshard_after_forward(free)
    module.set_reshard_after_forward(False, recurse=False)


def _as_asked() -> bool:
    asked = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return requested() == "FSDP2" and asked in ("true", "1", "full_shard")


def is_split(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is one process's part of a larger one."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor; of a split one every process has to ask."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole `value`, the same in every process, split as the parameter is."""
    if not is_split(parameter) or is_split(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed = value.to(parameter.device)
    return distribute_tensor(
        placed, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@contextmanager
def gathered(recipe) -> Iterator[None]:
    """Give every process the whole network for a `with` block, in which one may run it alone."""
    networks = [m for m in recipe.modules.values() if _is_unit(m)]
    units = [unit for network in networks for unit in network.modules() if _is_unit(unit)]
    for unit in units:
        unit.unshard()
    for network in networks:
        _free_after_forward(network, False)
    try:
        yield
    finally:
        for network in networks:
            _free_after_forward(network, _as_asked())
        for unit in units:
            unit.reshard()


def _is_unit(module: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
