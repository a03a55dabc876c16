"""The middle-size restorer: where it starts, what it takes, how its blocks are recomputed."""

from __future__ import annotations

import pytest
import torch
from darkroom import batch, recipes, step
from darkroom.config import ConfigError, load_config
from darkroom.networks.restorer import Restorer
from darkroom.networks.tiny import PixelUnshuffleCodec
from darkroom.plan.memory import build_on_meta


def config(**more):
    keys = {"model.recipe": "regression", "model.size": "middle", "loss.psnr": 1.0, "loss.l2": 0}
    return load_config(base=None, run="x", override=keys | more)


def pictures(count=2, side=32):
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(count, 3, side, side, generator=generator)
    names = [str(n) for n in range(count)]
    return batch.Batch(0.1 + gt * 0.6, gt, names, names, names, list(range(count)))


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Restorer(PixelUnshuffleCodec(), width=8, depths=(1, 1), middle=1, embedding=16)


def test_it_has_tens_of_millions_of_parameters_all_trained():
    recipe = build_on_meta(config())
    [phase] = recipe.phases(config())
    count = sum(p.numel() for p in phase.parameters.values())
    assert count == sum(p.numel() for p in recipe.network.parameters())
    assert 20e6 < count < 40e6


def test_the_first_output_is_the_untouched_input():
    recipe = recipes.build(config())
    given = pictures()
    restored = recipe.restore(given, seed=0).image
    assert (restored - given.lq).abs().max() < 1e-6


def test_a_gradient_reaches_every_parameter_once_the_branches_are_open():
    network = small()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    z = torch.rand(2, 12, 16, 24, generator=generator) * 2 - 1
    network(z).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_recomputing_its_blocks_leaves_the_gradient_unchanged():
    gradients = []
    for setting in ("off", "on", ["mid_blocks", "up_blocks.0"]):
        settings = config(**{"train.checkpointing.network": setting})
        recipe = recipes.build(settings)
        recipe.network.double()
        generator = torch.Generator().manual_seed(1)
        for parameter in recipe.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.01 * noise
        [phase] = recipe.phases(settings)
        recipe.begin(phase)
        given = pictures(1)
        given.lq, given.gt = given.lq.double(), given.gt.double()
        step.accumulate(recipe, phase, [given], effective_batch=1)
        gradients.append({n: p.grad for n, p in phase.parameters.items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert (other[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


def test_a_size_that_the_recipe_does_not_have_is_refused_by_name():
    with pytest.raises(ConfigError, match="size full is no size of regression.*tiny or middle"):
        load_config(base=None, override={"model.recipe": "regression", "model.size": "full"})
