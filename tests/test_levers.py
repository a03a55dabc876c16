"""Memory levers, each through its config field: the same gradients, less kept for the backward."""

from __future__ import annotations

import pytest
import small_sd
import torch
from darkroom import batch as batches
from darkroom import losses, perceptual, recipes, step
from darkroom.config import load_config

EFFECTIVE, MICRO = 4, 2
LEVERS = {
    "network checkpointing": {"train.checkpointing.network": "on"},
    "a list of network blocks": {"train.checkpointing.network": ["mid_block", "up_blocks.1"]},
    "decoder checkpointing": {"train.checkpointing.decoder": "on"},
    "discriminator checkpointing": {
        "model.trunk": "convnext_tiny",
        "data.crop_size": 64,
        "train.checkpointing.discriminator": "on",
    },
    "tail micro batch 1": {"train.tail_micro_batch": 1},
    "tail micro batch 2: split losses": {"train.tail_micro_batch": 2},
    "all together": {
        "train.checkpointing.network": "on",
        "train.checkpointing.decoder": "on",
        "train.checkpointing.discriminator": "on",
        "train.tail_micro_batch": 1,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_sd.write(tmp_path_factory.mktemp("sd") / "small")


def config(folder, size="full", **more):
    keys = {"train.effective_batch": EFFECTIVE, "train.micro_batch": MICRO, "data.crop_size": 32}
    keys |= {"loss.l2": 1.0, "loss.l1": 2.0, "loss.ssim": 1.0, "loss.gan": 0.5}
    keys |= small_sd.override(folder) if size == "full" else {"model.recipe": "one_step_gan"}
    return load_config(base=None, run="x", override=keys | more)


def build(settings):
    """Build a float64 recipe whose adapters and heads are not at their start."""
    recipe = recipes.build(settings)
    generator = torch.Generator().manual_seed(5)
    for module in recipe.modules.values():
        module.double()
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data += 0.02 * noise
    if recipe.prompts is not None:
        recipe.prompts.place("cpu", torch.float64)
    return recipe


def micro_batches(side=32):
    generator = torch.Generator().manual_seed(1)
    for start in range(0, EFFECTIVE, MICRO):
        lq, gt = torch.rand(2, MICRO, 3, side, side, generator=generator, dtype=torch.float64)
        noise = torch.randn(MICRO, 4, side // 2, side // 2, generator=generator)
        numbers = list(range(start, start + MICRO))
        names = [str(n) for n in numbers]
        yield batches.Batch(lq, gt, names, names, names, numbers, {"posterior": noise.double()})


def gradients(settings, side=32):
    """Return (gradients by name, per-sample values) of a whole turn of each phase."""
    recipe = build(settings)
    found, logs = {}, {}
    for phase in recipe.phases(settings):
        recipe.begin(phase)
        rows = step.accumulate(recipe, phase, micro_batches(side), effective_batch=EFFECTIVE)
        logs |= {f"{phase.name}/{k}": v for k, v in rows.items()}
        for name, parameter in phase.parameters.items():
            found[name] = parameter.grad
            parameter.grad = None
    return found, logs


@pytest.mark.parametrize("lever", LEVERS)
def test_a_lever_leaves_the_gradients_of_both_phases_unchanged(folder, lever):
    changes = LEVERS[lever]
    same = {k: v for k, v in changes.items() if not k.startswith("train.")}
    side = 64 if same else 32  # what the real trunk's heads take
    want, values = gradients(config(folder, **same), side)
    have, others = gradients(config(folder, **changes), side)
    assert want.keys() == have.keys()
    for name, gradient in want.items():
        assert gradient.abs().max() > 0, name
        assert (have[name] - gradient).norm() <= 1e-12 * gradient.norm(), name
    for name, value in values.items():
        assert torch.allclose(others[name], value, rtol=1e-12, atol=0), name


@pytest.mark.parametrize("lever", ["network", "discriminator"])
def test_the_tiny_size_has_the_same_levers(folder, lever):
    want, _ = gradients(config(folder, "tiny"))
    changes = {f"train.checkpointing.{lever}": "on", "train.tail_micro_batch": 1}
    have, _ = gradients(config(folder, "tiny", **changes))
    for name, gradient in want.items():
        assert (have[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


def kept_bytes(settings) -> tuple[int, int]:
    """Return the bytes that autograd keeps at most at once, and after the generator's forward."""
    recipe = build(settings)
    phase = recipe.phases(settings)[0]
    recipe.begin(phase)
    alive, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            alive[0] += self.size
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        terms = recipe.losses(next(micro_batches(64)), phase).terms
        held = alive[0]
        sum(t.sum() for t in terms.values()).backward()
    return most[0], held


@pytest.mark.parametrize(
    ("lever", "share"),
    [
        ({"train.checkpointing.network": "on"}, 0.95),
        ({"train.checkpointing.decoder": "on"}, 0.9),
        (LEVERS["all together"], 0.4),
    ],
)
def test_checkpointing_keeps_less_for_the_backward(folder, lever, share):
    assert kept_bytes(config(folder, **lever))[0] < share * kept_bytes(config(folder))[0]


def test_the_tail_keeps_the_pixels_of_one_part_and_one_loss_at_a_time(folder):
    most, held = kept_bytes(config(folder))
    assert most == held  # plain: all of it waits for the backward
    split, unet = kept_bytes(config(folder, **{"train.tail_micro_batch": 2}))
    parts, same = kept_bytes(config(folder, **{"train.tail_micro_batch": 1}))
    assert unet == same
    pixels = most - unet
    assert split - unet < 0.98 * pixels
    assert parts - unet < 0.6 * pixels


def test_the_tail_gives_the_norms_of_every_term_at_the_image_for_nothing(folder):
    _, values = gradients(config(folder, **{"train.tail_micro_batch": 1}))
    settings = config(folder)
    recipe = build(settings)
    phase = recipe.phases(settings)[0]
    recipe.begin(phase)
    given = next(micro_batches())
    image = recipe._forward(given).detach().requires_grad_()
    loss = phase.weights["ssim"] * losses.ssim(image, given.gt)
    (gradient,) = torch.autograd.grad(loss.sum(), image)
    want = gradient.flatten(1).norm(dim=1)
    have = values["generator/grad_norm/image_ssim"][:MICRO]
    assert torch.allclose(have, want, rtol=1e-10)


@pytest.mark.parametrize("tail", [1, 2])
def test_term_norms_in_the_network_are_the_same_with_and_without_the_tail(folder, tail):
    norms = []
    for settings in (config(folder), config(folder, **{"train.tail_micro_batch": tail})):
        recipe = build(settings)
        phase = recipe.phases(settings)[0]
        recipe.begin(phase)
        group = recipes.protocol.grad_norm_modules(recipe, ["conv_out"])
        norms.append(step.term_gradient_norms(recipe, phase, next(micro_batches()), group))
    assert norms[0].keys() == {f"conv_out_{t}" for t in ("l2", "l1", "ssim", "gan")}
    for name, value in norms[0].items():
        assert value > 0
        assert torch.allclose(norms[1][name], value, rtol=1e-10), name


def test_the_ssim_loss_alone_moves_the_weights(folder):
    settings = config(folder, **{"loss.l2": 0, "loss.l1": 0, "loss.gan": 0})
    found, _ = gradients(settings)
    assert all(g.abs().max() > 0 for g in found.values())


def test_lpips_sees_the_same_with_the_tail_and_under_autocast(folder, monkeypatch):
    random = losses.Perceptual(lambda pretrained: perceptual.LPIPS(False).double())
    monkeypatch.setitem(losses.LOSSES, "lpips", random)
    keys = {"loss.lpips": 5.0}
    want, _ = gradients(config(folder, **keys))
    have, _ = gradients(config(folder, **keys, **{"train.tail_micro_batch": 1}))
    for name, gradient in want.items():
        assert (have[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


def test_lpips_under_autocast_computes_in_the_runs_precision(monkeypatch):
    seen = []

    class Judge(torch.nn.Module):
        def forward(self, x, y):
            seen.append(torch.nn.functional.conv2d(x, x[:1, :, :1, :1]).dtype)
            return (x - y).flatten(1).mean(1)

    monkeypatch.setitem(losses.LOSSES, "lpips", losses.Perceptual(lambda pretrained: Judge()))
    pictures = torch.rand(2, 1, 3, 16, 16)
    for lever in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            recipes.pixel_losses.image_term("lpips", 1.0, *pictures, lever)
    assert seen == [torch.float32, torch.bfloat16]


def test_sharing_a_step_takes_the_generators_samples_and_images(folder):
    settings = config(folder, **{"train.share_step": True})
    recipe = build(settings)
    generator, discriminator = recipe.phases(settings)
    assert discriminator.samples_of == "generator"
    recipe.begin(generator)
    seen = []
    decode = recipe.codec.decode
    recipe.codec.decode = lambda z: seen.append(len(z)) or decode(z)
    step.accumulate(recipe, generator, micro_batches(), effective_batch=EFFECTIVE)
    assert sum(seen) == EFFECTIVE
    recipe.begin(discriminator)
    rows = step.accumulate(recipe, discriminator, micro_batches(), effective_batch=EFFECTIVE)
    assert sum(seen) == EFFECTIVE  # no second forward
    plain = build(config(folder))
    plain.begin(plain.phases(settings)[1])
    other = step.accumulate(plain, discriminator, micro_batches(), effective_batch=EFFECTIVE)
    assert torch.allclose(rows["total"], other["total"], rtol=1e-12)


def test_the_tail_is_refused_in_fp16_where_its_gradients_would_vanish(folder):
    from darkroom import precision

    settings = config(folder, **{"train.tail_micro_batch": 1, "train.precision": "fp16"})
    with pytest.raises(ValueError, match="train.tail_micro_batch 1 and fp16.*bf16"):
        precision.choose(settings, torch.device("cuda"))
