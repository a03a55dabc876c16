"""Optimizers whose state is kept by parameter name, and the moving average of weights.

Moments in 8 bit are bitsandbytes': it runs on a CPU, too, where a killed run continues bit for bit.
It takes no fake tensors, so the memory planner counts these moments instead of tracing them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from . import sharding

OPTIMIZERS = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
BITSANDBYTES_BLOCK = 256  # values that share a scale; tensors below 4096 values stay float32


def build(section, phase) -> torch.optim.Optimizer:
    """Build a phase's optimizer from its `optim.<phase>` section: one group, in name order.

    What is unfrozen beside it (`phase.unfrozen`) has a group of its own: see `join`.
    """
    names = sorted(phase.parameters.keys() - phase.unfrozen)
    optimizer = _build(section, phase, [phase.parameters[name] for name in names])
    join(optimizer, section, phase, 0)
    return optimizer


def join(optimizer: torch.optim.Optimizer, section, phase, step: int) -> None:
    """Give parameters that the phase trains from this step on a group of their own.

    It has the section's `unfrozen_lr` and warms up linearly over `unfrozen_warmup` steps.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [phase.parameters[n] for n in sorted(phase.parameters)]
    new = [parameter for parameter in new if id(parameter) not in known]
    if new:
        share = 1.0 if section.unfrozen_lr is None else section.unfrozen_lr / section.lr
        group = {"params": new, "share": share, "warmup": section.unfrozen_warmup, "joined": step}
        optimizer.add_param_group(group)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
    """Set the learning rate of every group for this step, from the phase's."""
    for group in optimizer.param_groups:
        warmup = group.get("warmup", 0)
        ramp = min(1.0, (step - group["joined"] + 1) / warmup) if warmup else 1.0
        group["lr"] = lr * group.get("share", 1.0) * ramp


def _build(section, phase, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    options = {"lr": phase.lr, "eps": section.eps, "weight_decay": section.weight_decay}
    if section.name.startswith("adamw"):
        options["betas"] = tuple(section.betas)
    if section.name == "adamw8bit":
        for parameter in parameters:  # its step does so, too: a resumed run must start with that
            parameter.data = parameter.data.contiguous()
        return _eight_bit()(parameters, **options)
    options |= _implementation(section, parameters[0].device)
    return OPTIMIZERS[section.name](parameters, **options)


def _eight_bit() -> type[torch.optim.Optimizer]:
    """Return bitsandbytes' AdamW with moments in 8 bit (Dettmers et al. 2021, arXiv 2110.02861)."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"optim name adamw8bit needs bitsandbytes, which cannot be imported here ({error}): "
            "pip install bitsandbytes, or take adamw"
        ) from error
    return AdamW8bit


def _implementation(section, device: torch.device) -> dict[str, bool]:
    """Return PyTorch's switches; given always, for its own choice depends on the device's name."""
    wanted = section.implementation
    if wanted == "auto":
        wanted = "fused" if device.type == "cuda" and section.name == "adamw" else "loop"
    if section.name != "adamw":
        return {"foreach": wanted == "foreach"}
    return {"foreach": wanted == "foreach", "fused": wanted == "fused"}


def state_by_name(optimizer: torch.optim.Optimizer, phase) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as `parameter/key` -> tensor."""
    state = {}
    for name, parameter in phase.parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            value = sharding.whole(torch.as_tensor(value))
            # bitsandbytes' tables of 256 numbers are one tensor for all; no file holds shared ones
            state[f"{name}/{key}"] = value.clone() if key.startswith("qmap") else value
    return state


def load_state_by_name(optimizer: torch.optim.Optimizer, phase, state: dict) -> None:
    """Put state saved by `state_by_name` back; parameters without any stay fresh."""
    for path, value in state.items():
        name, key = path.rsplit("/", 1)
        if name not in phase.parameters:
            continue
        parameter = phase.parameters[name]
        if value.ndim == 0 and not value.is_floating_point():
            value = int(value)  # bitsandbytes counts in plain integers
        elif value.shape == parameter.shape:  # moments lie in memory as their parameter does
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(
                sharding.like(value, parameter)
            )
        else:  # a count of steps is read on the CPU, by a fused step on the parameter's device
            on_cpu = value.ndim == 0 and not optimizer.defaults.get("fused")
            value = value.to("cpu" if on_cpu else parameter.device, copy=True)
        optimizer.state[parameter][key] = value


class EMA:
    """Shadow weights: shadow = decay shadow + (1 - decay) weight after every step of a phase.

    Covers what is trained; a parameter that joins later enters at its current value.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float, device=None) -> None:
        self.decay, self.device = decay, device
        self.parameters: dict[str, nn.Parameter] = {}
        self.shadow: dict[str, torch.Tensor] = {}
        self.join(parameters)

    def join(self, parameters: dict[str, nn.Parameter]) -> None:
        """Add parameters that are not covered yet, at their current values."""
        self.parameters |= parameters
        for name, parameter in parameters.items():
            if name not in self.shadow:
                device = self.device or parameter.device
                self.shadow[name] = parameter.detach().to(device, torch.float32, copy=True)

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the current weights."""
        for name, parameter in self.parameters.items():
            shadow = self.shadow[name]
            shadow.lerp_(parameter.detach().to(shadow.device, shadow.dtype), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the shadow into the network for a `with` block; the weights come back bit for bit."""
        kept: dict[str, torch.Tensor] = {}
        try:
            for name, p in self.parameters.items():
                kept[name] = _exchange(p, self.shadow[name].to(p.device, p.dtype))
            yield
        finally:
            for name, before in kept.items():
                _exchange(self.parameters[name], before)


def _exchange(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Give a parameter other values; returns those it had."""
    if sharding.is_split(parameter):  # its memory is known elsewhere, too
        before = parameter.detach().clone()
        parameter.detach().copy_(value)
        return before
    before, parameter.data = parameter.data, value
    return before
