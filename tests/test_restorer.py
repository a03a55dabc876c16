"""The middle-size restorer: where it starts, what it takes, how its blocks are recomputed."""

from __future__ import annotations

import pytest
import torch
from darkroom import batch, recipes, step
from darkroom.config import ConfigError, load_config
from darkroom.networks.restorer import ChannelNorm, Restorer
from darkroom.networks.tiny import PixelUnshuffleCodec
from darkroom.plan.memory import build_on_meta
from darkroom.tiling import restore_native
from torch.utils.flop_counter import FlopCounterMode


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


def test_its_forward_costs_what_its_docstring_says():
    network = build_on_meta(config()).network
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 12, 128, 128, device="meta"))  # 256 x 256 pixels
    assert round(counter.get_total_flops() / 1e9) == 24
    assert "23.7 million parameters, 24 GFLOP forward at 256 x 256" in Restorer.__doc__
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 23.7


def opened(network, noise=0.05):
    """Move a network off the identity, so that its branches count."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return network


def test_its_norms_keep_their_precision_under_bf16():
    norm = ChannelNorm(64)
    generator = torch.Generator().manual_seed(0)
    # a large mean beside a small spread: sums in bf16 would lose the spread
    x = (100 + torch.randn(1, 64, 8, 8, generator=generator)).bfloat16()
    exact = norm(x.double().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert (found.float() - exact).abs().max() <= 2**-7 * exact.abs().max()


def test_bf16_moves_the_restored_image_by_no_more_than_its_rounding():
    network, codec = opened(small()), PixelUnshuffleCodec()
    z = codec.encode(pictures().lq)
    with torch.no_grad():
        exact = network(z)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(z)
    moved = (exact - z).abs().mean()
    assert moved > 0.05
    assert (found.float() - exact).abs().mean() < 0.05 * moved


def test_any_size_of_image_is_restored_whole():
    recipe = recipes.build(config())
    given = pictures(1, side=48)
    given.lq = given.lq[:, :, :37, :45]
    settings = config().restore

    def restore(batch):
        return recipe.restore(batch, seed=0).image

    image = restore_native(restore, given, recipe.multiple, settings, recipe.multiple * 8, 1)
    assert image.shape == given.lq.shape
    assert (image - given.lq).abs().max() < 1e-5


def test_it_learns_to_undo_a_darkening():
    network, codec = small(), PixelUnshuffleCodec()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    found = []
    for _ in range(40):
        given = pictures()
        image = codec.decode(network(codec.encode(given.lq)))
        loss = (image - given.gt).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.05 * found[0]


def test_a_gradient_reaches_every_parameter_once_the_branches_are_open():
    network = opened(small())
    z = torch.rand(2, 12, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
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
