"""What a model family has to define: networks, phases, per-sample draws, losses and restoration.

The trainer, the memory planner and the time planner read the same `losses`, so a recipe must run on
fake tensors: no `.item()`, no `.cuda()`, no branch on a value, no boolean mask.
"""
# B batch, C channels, H height, W width

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from ..batch import Batch, Sample
from ..networks.prompts import Prompts


@dataclass
class Phase:
    """One optimizer's turn in a step.

    `parameters` are what it trains, by name, the name unique in the recipe; `weights` are the loss
    weights in force; `lr` is the base learning rate, before the schedule.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    lr: float
    weights: dict[str, float] = field(default_factory=dict)
    samples_of: str | None = None  # takes this phase's samples of the step, not its own
    unfrozen: frozenset[str] = frozenset()  # names with a learning rate and a warm-up of their own
    separate: bool = False  # each term needs a gradient of its own: norms are being measured


@dataclass
class Losses:
    """Unreduced results of one micro batch: every value has shape (B,).

    `terms` are weighted and make the loss; `logs` are detached and only recorded.
    """

    terms: dict[str, torch.Tensor]
    logs: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Restored:
    """What restoration returns: images (B, 3, H, W) in [0, 1]; text where the family makes it."""

    image: torch.Tensor
    text: list[str] | None = None


class Recipe(Protocol):
    """A model family.

    One with a single phase may define `sharded(split)`, which has its network split over processes
    by `split(module, is_block)` (`sharding.split`) and looks up anew what it trains.
    """

    network: nn.Module  # what EMA averages and `restore` uses
    modules: dict[str, nn.Module]  # all networks by name; their parameters' names start with it
    multiple: int  # height and width that `restore` takes are multiples of it
    prompts: Prompts | None  # text embeddings, where text conditions the network

    def phases(self, config) -> list[Phase]:
        """Return the phases under this (stage's) config; asked again at a stage boundary."""

    def draw(self, sample: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw a sample's randomness (noise, timestep, drops) on the CPU, in the loader."""

    def begin(self, phase: Phase) -> None:
        """Prepare an optimizer step: train or eval mode, requires_grad, the power iteration."""

    def losses(self, batch: Batch, phase: Phase) -> Losses:
        """Return the loss terms of one micro batch."""

    def restore(self, batch: Batch, *, seed: int, num_steps: int | None = None) -> Restored:
        """Restore the batch's `lq`."""


def place(recipe: Recipe, device, dtype: torch.dtype, prompts: Iterable[str] = ()) -> None:
    """Move a recipe to a device: what is trained stays float32, what is frozen takes `dtype`.

    Prompts are encoded first, so that the text encoder is gone before the others arrive. float64
    stays float64, and `dtype` float32 leaves all as it is.
    """
    if recipe.prompts is not None:
        recipe.prompts.place(device, dtype)
        recipe.prompts.prepare(prompts)
    for module in recipe.modules.values():
        if dtype != torch.float32:
            for parameter in module.parameters():
                if not parameter.requires_grad and parameter.dtype == torch.float32:
                    parameter.data = parameter.data.to(dtype)
        module.to(device)


def trainable(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """Return the parameters of a module that may be trained, named `prefix.name`.

    Asked at construction, while `requires_grad` still says what is frozen for good.
    """
    return {f"{prefix}.{n}": p for n, p in module.named_parameters() if p.requires_grad}


def buffers(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return the persistent buffers that training changes (spectral-norm vectors), by name."""
    return {
        f"{name}.{key}": value
        for name, module in recipe.modules.items()
        for key, value in module.named_buffers()
        if key.endswith(("weight_u", "weight_v"))
    }


def grad_norm_modules(recipe: Recipe, names: list[str]) -> dict[str, list[nn.Parameter]]:
    """Return, for each name, the network's parameters in modules whose path ends with it."""
    found = {}
    for name in names:
        parameters = [
            p
            for path, module in recipe.network.named_modules()
            if path == name or path.endswith("." + name)
            for p in module.parameters()
            if p.requires_grad
        ]
        if not parameters:
            trained = [n for n, p in recipe.network.named_parameters() if p.requires_grad]
            paths = dict.fromkeys(n.rpartition(".")[0] for n in trained)
            raise ValueError(
                f"train.grad_norm_modules names {name!r}, which no trained module ends with; "
                f"trained are {', '.join(list(paths)[:12])} … Name some of them, or set "
                "train.grad_norm_every: null"
            )
        found[name] = parameters
    return found
