"""The model families, one file each, and the one table of them."""

from __future__ import annotations

from .conditional_diffusion import ConditionalDiffusion
from .one_step_gan import OneStepGAN
from .protocol import Losses, Phase, Recipe, Restored, place
from .regression import Regression

RECIPES = {
    "one_step_gan": OneStepGAN,
    "regression": Regression,
    "conditional_diffusion": ConditionalDiffusion,
}

__all__ = ["RECIPES", "Losses", "Phase", "Recipe", "Restored", "build", "place"]


def build(config) -> Recipe:
    """Build the configured recipe; its weights are a function of the seed alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return RECIPES[config.model.recipe](config)
