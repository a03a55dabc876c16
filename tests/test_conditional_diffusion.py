"""Conditional diffusion against diffusers' own parts, in small; adapters on a frozen base."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import small_runs
import torch
from darkroom import diffusion, load_config, recipes, trainer
from darkroom.batch import Batch
from darkroom.config import ConfigError
from darkroom.networks import denoiser

SMALL = {
    "model.recipe": "conditional_diffusion",
    "loss.l2": 1.0,
    "loss.psnr": 0.0,
    "loss.ssim": 0.0,
    "loss.gan": 0.0,
    "optim.denoiser.lr": 1e-3,
    "restore.num_steps": 3,
    "restore.tile": None,
}


def config(root, **override):
    run = override.pop("run", "small")
    return load_config(**(small_runs.sections(root, **(SMALL | override)) | {"run": run}))


@pytest.fixture
def root(tmp_path):
    small_runs.write_pictures(tmp_path / "pictures")
    return tmp_path


def batch(recipe, count=2, side=32):
    images = torch.rand(2, count, 3, side, side)
    generator = torch.Generator().manual_seed(1)
    draws = [recipe.draw(_sample(x, y), generator) for x, y in images.transpose(0, 1)]
    stacked = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    return Batch(images[0], images[1], [""] * count, [], [], list(range(count)), stacked)


def _sample(lq, gt):
    from darkroom.batch import Sample

    return Sample(lq, gt, "", "Blur", "", 0)


def test_the_full_network_has_the_parameters_of_linefuse():
    with torch.device("meta"):
        network = denoiser.Denoiser("full", 3)
    count = sum(p.numel() for p in network.parameters())
    assert count == 253_764_739 and f"{count / 1e6:.2f} M" == "253.76 M"


def test_the_adapters_of_linefuse_are_as_many_as_counted_by_hand():
    from types import SimpleNamespace

    from darkroom.networks import adapters

    with torch.device("meta"):
        network = denoiser.Denoiser("full", 3)
        blocks = ["unet.mid_block", "unet.up_blocks.2", "unet.up_blocks.3"]
        model = SimpleNamespace(
            lora_rank=16, lora_alpha=None, lora_dropout=0.0, lora_modules=None, lora_blocks=blocks
        )
        paths = adapters.add(network, model, denoiser.LORA_MODULES)
    # one attention of 1024 channels and three of 256, four square layers each, two factors
    assert len(paths) == 16
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == 4 * 2 * 16 * (1024 + 3 * 256) == 229_376


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_the_noise_schedules_are_those_of_diffusers(kind):
    from diffusers import DDPMScheduler

    names = {"cosine": "squaredcos_cap_v2"}
    reference = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=names.get(kind, kind))
    ours = diffusion.alpha_bars(1000, 1e-4, 0.02, kind)
    torch.testing.assert_close(ours.float(), reference.alphas_cumprod, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_target_and_estimate_are_inverse(prediction):
    x0, epsilon = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    for bar in (0.01, 0.5, 0.99):
        noisy = bar**0.5 * x0 + (1 - bar) ** 0.5 * epsilon
        output = diffusion.target(x0, epsilon, bar, prediction)
        torch.testing.assert_close(diffusion.estimate(noisy, output, bar, prediction), x0)


@pytest.mark.parametrize("num_steps", [5, 20, 25, 50])  # divisors: diffusers rounds its last step
def test_ddim_is_that_of_diffusers_with_trailing_steps(num_steps):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="sample",
    )
    scheduler.set_timesteps(num_steps)
    assert diffusion.trailing(num_steps) == scheduler.timesteps.tolist()
    bars = diffusion.alpha_bars(1000, 1e-4, 0.02, "linear").tolist()
    noise = torch.randn(1, 3, 8, 8, dtype=torch.float64)

    def predict(x, timestep, bar):
        return 1.5 * torch.tanh(x) + timestep / 2000

    reference = noise
    for t in scheduler.timesteps:
        output = predict(reference, int(t), None)
        reference = scheduler.step(output, t, reference, use_clipped_model_output=True).prev_sample
    ours = diffusion.ddim(predict, noise, bars, num_steps, 1.0)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_more_steps_than_the_schedule_has_are_refused():
    with pytest.raises(ValueError, match="num_steps is 1001: a schedule of 1000 has 1 to 1000"):
        diffusion.trailing(1001)


def test_the_loss_is_the_error_of_what_is_predicted(root):
    for prediction in ("epsilon", "v", "x0"):
        recipe = recipes.build(config(root, **{"model.prediction": prediction}))
        (phase,) = recipe.phases(config(root, **{"model.prediction": prediction}))
        given = batch(recipe)
        recipe.begin(phase)
        found = recipe.losses(given, phase).terms["l2"]
        clean, condition = recipe.codec.encode(given.gt), recipe.codec.encode(given.lq)
        bar = given.draws["alpha_bar"].view(-1, 1, 1, 1)
        wanted = diffusion.target(clean, given.draws["noise"], bar, prediction)
        start = condition if prediction == "x0" else torch.zeros_like(condition)
        expected = (start - wanted).square().mean((1, 2, 3))  # the last layer begins at zero
        torch.testing.assert_close(found, expected)


def test_an_untrained_x0_network_returns_its_input(root):
    recipe = recipes.build(config(root, **{"model.prediction": "x0"}))
    given = batch(recipe)
    restored = recipe.restore(given, seed=0, num_steps=4).image
    torch.testing.assert_close(restored, given.lq)


def test_a_restored_image_depends_on_the_seed_and_not_on_its_company(root):
    recipe = recipes.build(config(root, **{"model.prediction": "epsilon"}))
    torch.nn.init.normal_(recipe.network.unet.conv_out.weight, std=0.02)
    given = batch(recipe, 3)
    together = recipe.restore(given, seed=5, num_steps=2).image
    alone = recipe.restore(next(given.parts(1)), seed=5, num_steps=2).image
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=0)
    other = recipe.restore(next(given.parts(1)), seed=6, num_steps=2).image
    assert (other - alone).abs().max() > 1e-3


def test_adapters_without_a_base_are_refused(root):
    with pytest.raises(ConfigError, match=r"model.base` is null: adapters on random weights"):
        config(root, **{"model.lora_rank": 4})


def test_latents_and_other_samplers_are_refused_where_they_do_not_work(root):
    with pytest.raises(ConfigError, match="model.space` is latent and model.size tiny"):
        config(root, **{"model.space": "latent"})
    with pytest.raises(ConfigError, match="restore.sampler` is euler"):
        config(root, **{"restore.sampler": "euler"})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained base: its folder."""
    root = tmp_path_factory.mktemp("base")
    small_runs.write_pictures(root / "pictures")
    trainer.train(config(root, run="base", **{"model.prediction": "x0", "train.steps": 3}))
    return root


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


ADAPTER = {
    "model.prediction": "x0",
    "model.base": "base",
    "model.lora_rank": 2,
    "train.steps": 4,
    "degradation.types": ["Blur"],
}


def test_an_adapter_trains_alone_and_leaves_its_base_as_it_was(base):
    from safetensors.torch import load_file

    before = digests(base / "runs" / "base")
    asked = config(base, run="adapter", **ADAPTER)
    trainer.train(asked)
    assert digests(base / "runs" / "base") == before
    weights = load_file(asked.run_dir / "checkpoints" / "latest" / "weights.safetensors")
    assert weights and all(".lora_" in name for name in weights)
    assert all(".to_" in name for name in weights)
    assert any(value.abs().max() > 0 for name, value in weights.items() if ".lora_B." in name)
    recipe = recipes.build(asked)
    frozen = {n: p for n, p in recipe.network.named_parameters() if ".lora_" not in n}
    kept = load_file(base / "runs" / "base" / "checkpoints" / "best" / "ema.safetensors")
    for name, value in frozen.items():
        assert torch.equal(value, kept["denoiser." + name.replace(".base_layer", "")]), name


@pytest.mark.slow
def test_an_adapter_that_was_stopped_continues_bit_for_bit(base):
    from safetensors.torch import load_file

    keys = ADAPTER | {"train.save_every": 2}
    whole = config(base, run="whole", **keys)
    trainer.train(whole)
    killed = small_runs.train_process(
        base, run="parts", faults={"kill_at_sample": 13}, **(SMALL | keys)
    )
    assert killed.returncode == -9, killed.stderr
    parts = config(base, run="parts", **keys)
    assert not (parts.run_dir / "checkpoints" / "step_00000004").exists()
    trainer.train(parts)
    for part in ("weights", "ema"):
        ours, theirs = (
            load_file(c.run_dir / "checkpoints" / "latest" / f"{part}.safetensors")
            for c in (parts, whole)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nothing", "model.base 'nothing' is neither a run with a checkpoint"),
        ("adapter", "is an adapter; name the run of the base it stands on"),
        ("broken.safetensors", "cannot be read"),
        ("other.safetensors", "is no base of this network"),
    ],
)
def test_a_base_that_is_none_is_refused_with_the_reason(base, named, message):
    from safetensors.torch import save_file

    models = base / "models"
    models.mkdir(exist_ok=True)
    (models / "broken.safetensors").write_bytes(b"no tensors")
    save_file({"x": torch.zeros(2)}, models / "other.safetensors")
    if named == "adapter" and not (base / "runs" / "adapter").exists():
        trainer.train(config(base, run="adapter", **ADAPTER))
    keys = ADAPTER | {"model.base": named, "paths.models": str(models)}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recipes.build(config(base, run="refused", **keys))


def test_adapters_are_chosen_by_block_and_name(base):
    keys = ADAPTER | {"model.lora_blocks": ["unet.mid_block"], "model.lora_modules": ["conv1"]}
    recipe = recipes.build(config(base, run="chosen", **keys))
    assert recipe.adapted == ["unet.mid_block.resnets.0.conv1", "unet.mid_block.resnets.1.conv1"]
    assert all("mid_block" in name for name in recipe._parameters)


# --- unfreezing the base late ---------------------------------------------------------------------

HYBRID = ADAPTER | {
    "stages.open.start": 2,
    "stages.open.changes": {"model.unfreeze": ["mid_block", "up_blocks.0"]},
    "optim.denoiser.unfrozen_lr": 1e-4,
    "optim.denoiser.unfrozen_warmup": 2,
    "train.save_every": 1,
    "train.keep_last": None,
}


@pytest.fixture(scope="module")
def hybrid(base):
    """A run that unfreezes two blocks at step 2: its config."""
    asked = config(base, run="hybrid", **HYBRID)
    trainer.train(asked)
    return asked


def saved(asked, step: int, part: str = "weights") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(asked.run_dir / "checkpoints" / f"step_{step:08d}" / f"{part}.safetensors")


def test_a_stage_unfreezes_blocks_of_the_base_and_nothing_else(hybrid):
    early, late = saved(hybrid, 2), saved(hybrid, 4)
    assert early and all(".lora_" in name for name in early)
    added = late.keys() - early.keys()
    assert added and {n.split(".")[2] for n in added} == {"mid_block", "up_blocks"}
    assert all("up_blocks.1" not in n and ".lora_" not in n for n in added)
    frozen = dict(
        recipes.build(config(hybrid.paths.runs.parent, **ADAPTER)).network.named_parameters()
    )
    moved = [n for n in added if not torch.equal(late[n], frozen[n.removeprefix("denoiser.")])]
    assert len(moved) > 0.9 * len(added)
    averaged = saved(hybrid, 4, "ema")
    assert added <= averaged.keys()


def test_a_run_that_is_killed_after_unfreezing_continues_bit_for_bit(base, hybrid):
    root, keys = base, SMALL | HYBRID
    killed = small_runs.train_process(
        root, run="hybrid_killed", faults={"kill_at_sample": 13}, **keys
    )
    assert killed.returncode == -9, killed.stderr
    again = small_runs.train_process(root, run="hybrid_killed", **keys)
    assert again.returncode == 0, again.stderr
    ours = base / "runs" / "hybrid_killed"
    assert small_runs.final_weights(ours) == small_runs.final_weights(hybrid.run_dir)
    assert small_runs.losses(ours) == small_runs.losses(hybrid.run_dir)


def test_what_is_unfrozen_has_its_own_rate_and_warms_up(hybrid):
    from darkroom import optim

    stage = hybrid.with_changes({"model.unfreeze": ["mid_block"]})
    recipe = recipes.build(hybrid)
    section = hybrid.optim.for_phase("denoiser")
    optimizer = optim.build(section, recipe.phases(hybrid)[0])
    assert len(optimizer.param_groups) == 1
    optim.join(optimizer, section, recipe.phases(stage)[0], 100)
    optim.join(optimizer, section, recipe.phases(stage)[0], 101)  # asked again: already there
    first, late = optimizer.param_groups
    rates = []
    for step in (100, 101, 102):
        optim.set_rates(optimizer, 1e-3, step)
        rates.append((first["lr"], late["lr"]))
    assert rates == [(1e-3, pytest.approx(5e-5)), *[(1e-3, pytest.approx(1e-4))] * 2]


def test_a_block_that_is_not_there_is_refused_with_those_that_are(base):
    with pytest.raises(ValueError, match=r"names 'middle', which is no block .* it has conv_in"):
        recipes.build(config(base, run="x", **(ADAPTER | {"model.unfreeze": ["middle"]})))


def test_the_planner_sees_what_a_stage_unfreezes(base):
    from darkroom.plan import memory

    asked = config(base, run="planned", **HYBRID)
    with memory.Worker() as worker:
        plan, plain = (
            memory.trace(c, device="cpu", validation_size=(32, 32), worker=worker)
            for c in (asked, config(base, run="plain", **ADAPTER))
        )
    more = plan.phases["denoiser: optimizer"] - plain.phases["denoiser: optimizer"]
    recipe = recipes.build(asked)
    late = sum(p.numel() for p in recipe._late.values())
    assert more * 2**30 >= 2 * 4 * late  # their moments


def test_a_run_on_a_base_that_was_trained_on_is_refused(base):
    import shutil

    from darkroom.checkpoint import CheckpointError

    runs = base / "runs"
    shutil.copytree(runs / "base", runs / "moving", symlinks=True)
    keys = ADAPTER | {"model.base": "moving"}
    trainer.train(config(base, run="standing", **keys))
    best = (runs / "moving" / "checkpoints" / "best").resolve()
    tensors = {n: t + 1e-3 for n, t in saved_file(best / "ema.safetensors").items()}
    from safetensors.torch import save_file

    save_file(tensors, best / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"adapters stand on the base .* is .* now"):
        trainer.train(config(base, run="standing", **(keys | {"train.extend": 2})))


def saved_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
