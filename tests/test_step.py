"""One turn of a phase: accumulation, several phases, spectral norms and gradient norms."""

from __future__ import annotations

import copy

import pytest
import torch
from darkroom import data, optim, recipes, step
from darkroom.config import load_config
from darkroom.networks.discriminator import BinomialBlur, MultiLevelHeads, SpectralNorm
from darkroom.recipes.protocol import buffers


def small_config(recipe: str = "one_step_gan"):
    return load_config(
        base="tiny",
        override={"model.recipe": recipe, "train.effective_batch": 8, "loss.gan": 0.05}
        if recipe == "one_step_gan"
        else {"model.recipe": recipe, "train.effective_batch": 8, "loss.gan": 0.0},
    )


def batch_of(count: int, dtype=torch.float64) -> data.Batch:
    generator = torch.Generator().manual_seed(3)
    gt = torch.rand(count, 3, 32, 32, generator=generator, dtype=dtype)
    lq = (gt * 0.7 + 0.1 * torch.rand(gt.shape, generator=generator, dtype=dtype)).clamp(0, 1)
    names = [str(n) for n in range(count)]
    return data.Batch(lq, gt, names, names, names, list(range(count)))


def parts(batch: data.Batch, micro: int) -> list[data.Batch]:
    return [
        data.Batch(
            batch.lq[n : n + micro],
            batch.gt[n : n + micro],
            batch.prompts[n : n + micro],
            batch.degradations[n : n + micro],
            batch.images[n : n + micro],
            batch.positions[n : n + micro],
        )
        for n in range(0, len(batch), micro)
    ]


def perturbed(recipe):
    """Move every weight a little, so that zero-initialised layers pass gradients on."""
    generator = torch.Generator().manual_seed(5)
    for module in recipe.modules.values():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.05 * noise
    return recipe


def train_steps(micro: int, recipe_name: str, dtype, steps: int = 6) -> dict[str, torch.Tensor]:
    config = small_config(recipe_name)
    recipe = recipes.build(config)
    for module in recipe.modules.values():
        module.to(dtype)
    perturbed(recipe)
    phases = recipe.phases(config)
    optimizers = {p.name: optim.build(config.optim.for_phase(p.name), p) for p in phases}
    batch = batch_of(8, dtype)
    for _ in range(steps):
        for phase in phases:
            recipe.begin(phase)
            step.accumulate(recipe, phase, parts(batch, micro), effective_batch=8)
            norm = step.gradient_norm(phase)
            step.apply(phase, optimizers[phase.name], lr=1e-3, norm=norm, clip=1.0)
    weights = {n: p.detach().clone() for ph in phases for n, p in ph.parameters.items()}
    return {**weights, **{k: v.clone() for k, v in buffers(recipe).items()}}


@pytest.mark.parametrize("recipe", ["one_step_gan", "regression"])
def test_accumulated_micro_batches_train_like_one_big_batch(recipe):
    big = train_steps(8, recipe, torch.float64)
    for micro in (1, 2, 4):
        small = train_steps(micro, recipe, torch.float64)
        assert big.keys() == small.keys()
        worst = max((big[k] - small[k]).abs().max().item() for k in big)
        assert worst < 1e-9, (micro, worst)


def test_the_spectral_norm_moves_only_once_an_optimizer_step():
    layer = SpectralNorm(torch.nn.Linear(6, 4))
    before = layer.weight_u.clone()
    layer(torch.randn(2, 6))
    assert torch.equal(before, layer.weight_u)
    layer.iterate()
    assert not torch.equal(before, layer.weight_u)


def test_a_fresh_spectral_norm_is_near_the_largest_singular_value():
    layer = SpectralNorm(torch.nn.Linear(40, 30))
    sigma = layer.weight_u @ layer.weight_orig @ layer.weight_v
    largest = torch.linalg.matrix_norm(layer.weight_orig.detach(), 2)
    assert 0.9 * largest < sigma <= 1.0001 * largest


def test_the_spectral_norm_converges_to_the_largest_singular_value():
    torch.manual_seed(0)
    layer = SpectralNorm(torch.nn.Conv2d(3, 8, 3))
    for _ in range(200):
        layer.iterate()
    weight = layer.weight_orig.detach()
    largest = torch.linalg.matrix_norm(weight.flatten(1), 2)
    image = torch.randn(1, 3, 9, 9)
    expected = torch.nn.functional.conv2d(image, weight / largest, layer.bias)
    assert torch.allclose(layer(image), expected, atol=1e-5)


def test_heads_have_the_logit_sizes_of_the_original_at_512_pixels():
    with torch.device("meta"):
        heads = MultiLevelHeads([192, 384, 768], 768)
        maps = [torch.empty(1, c, s, s) for c, s in ((192, 128), (384, 64), (768, 32))]
        logits = heads(maps, torch.empty(1, 768))
    convolutions = sum(9 * c * 512 + 512 + 512 + 1 for c in (192, 384, 768))
    linears = 768 * 512 + 512 + 512 + 1
    assert sum(p.numel() for p in heads.parameters()) == convolutions + linears
    assert [tuple(x.shape[-2:]) for x in logits[:3]] == [(32, 32), (16, 16), (8, 8)]
    assert logits[3].shape == (1, 1)


def test_the_blur_is_the_normalised_binomial_kernel():
    impulse = torch.zeros(1, 2, 9, 9)
    impulse[:, :, 4, 4] = 1
    blurred = BinomialBlur(2)(impulse)
    assert torch.allclose(blurred.sum((2, 3)), torch.ones(1, 2))
    assert blurred.max() == 9 / 64


@pytest.mark.parametrize("recipe", ["one_step_gan", "regression"])
def test_an_untrained_model_returns_its_input(recipe):
    built = recipes.build(small_config(recipe))
    batch = batch_of(2, torch.float32)
    assert torch.allclose(built.restore(batch, seed=0).image, batch.lq, atol=1e-5)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = recipes.build(small_config()).network.state_dict()
    assert torch.equal(torch.rand(1), expected)
    second = recipes.build(small_config()).network.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_term_norms_of_one_term_equal_the_whole_gradient():
    config = small_config("regression").with_changes(
        {"loss.l1": 1.0, "loss.ssim": 0.0, "loss.psnr": 0.0, "stages": {}}
    )
    recipe = perturbed(recipes.build(config))
    (phase,) = recipe.phases(config)
    batch = batch_of(4, torch.float32)
    modules = {"conv_out": list(recipe.network.conv_out.parameters())}
    norms = step.term_gradient_norms(recipe, phase, batch, modules)
    step.accumulate(recipe, phase, [batch], effective_batch=4)
    gradients = [p.grad for p in recipe.network.conv_out.parameters()]
    assert norms.keys() == {"conv_out_l1"}
    assert torch.allclose(norms["conv_out_l1"], torch.nn.utils.get_total_norm(gradients))


def test_ema_follows_its_definition_and_gives_the_weights_back_bit_for_bit():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = optim.EMA({"w": parameter}, decay=0.9)
    parameter.data += 1
    ema.update()
    assert torch.allclose(ema.shadow["w"], torch.tensor([1.1, 2.1]))
    kept = copy.deepcopy(parameter.data)
    with ema.applied():
        assert torch.allclose(parameter.data, torch.tensor([1.1, 2.1]))
    assert torch.equal(parameter.data, kept)


def test_both_terms_of_the_gan_reach_their_networks():
    config = small_config()
    recipe = perturbed(recipes.build(config))
    for phase in recipe.phases(config):
        recipe.begin(phase)
        logs = step.accumulate(recipe, phase, [batch_of(4, torch.float32)], effective_batch=4)
        assert logs["gan"].shape == (4,)
        assert all(p.grad is not None for p in phase.parameters.values()), phase.name
        assert step.gradient_norm(phase) > 0
        for parameter in phase.parameters.values():
            parameter.grad = None
    trained = {id(p) for ph in recipe.phases(config) for p in ph.parameters.values()}
    frozen = [p for m in recipe.modules.values() for p in m.parameters() if id(p) not in trained]
    assert frozen and all(p.grad is None for p in frozen)
