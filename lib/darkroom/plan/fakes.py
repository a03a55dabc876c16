"""What stands in for the real thing in a rehearsal: weights without storage, 8-bit moments."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .. import optim

SMALLEST_EIGHT_BIT = 4096  # values of a tensor whose moments bitsandbytes keeps in 8 bit


class Mode(FakeTensorMode):
    # torch.tensor(…, device=…) makes its numbers on the CPU and moves a fake of them
    avoid_device_init = True


class EightBit:
    """Stand in for bitsandbytes' AdamW, whose kernels take real tensors: its states, by count.

    Two moments of a byte a value with a float32 scale for BITSANDBYTES_BLOCK values; small tensors
    keep float32 moments.
    """

    def __init__(self, phase) -> None:
        self.param_groups = [{"params": list(phase.parameters.values()), "lr": phase.lr}]
        self.state: dict[int, list[torch.Tensor]] = {}

    def add_param_group(self, group: dict) -> None:
        self.param_groups.append(group)

    def _all(self) -> list[torch.nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def step(self) -> None:
        for p in self._all():
            if id(p) in self.state:
                continue
            small = p.numel() < SMALLEST_EIGHT_BIT
            dtype = torch.float32 if small else torch.uint8
            scales = 0 if small else -(-p.numel() // optim.BITSANDBYTES_BLOCK)
            self.state[id(p)] = [
                *(torch.empty(p.shape, dtype=dtype, device=p.device) for _ in range(2)),
                *(torch.empty(scales, device=p.device) for _ in range(2)),
            ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self._all():
            p.grad = None


def to_device(recipe, networks, mode: FakeTensorMode, device: torch.device):
    """Replace every meta parameter and buffer by a fake one on the device, wherever it is named.

    Returns a function that names a network's tensors.
    """
    new: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in new:
            plain = FakeTensor(mode, tensor.detach().to("meta"), device)
            if isinstance(tensor, torch.nn.Parameter):
                plain = torch.nn.Parameter(plain, requires_grad=tensor.requires_grad)
            new[id(tensor)] = plain
            old.append(tensor)  # alive, or its id could be another's
        return new[id(tensor)]

    old: list[torch.Tensor] = []
    for network in networks:
        for module in network.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        table[name] = fake(tensor)
    for value in vars(recipe).values():
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, torch.Tensor) and id(item) in new:
                    value[key] = new[id(item)]

    def tensors(network: torch.nn.Module):
        yield from network.named_parameters()
        yield from network.named_buffers()

    return tensors
