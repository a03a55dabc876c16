"""Real runs of the full-size recipe on a small base: killed, resumed, staged, shared."""

from __future__ import annotations

import json

import pytest
import small_runs
import small_sd
from darkroom import checkpoint
from darkroom.config import load_config
from darkroom.paths import repo_root

PARAMS = repo_root() / "params"
STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hypir")
    small_runs.write_pictures(root / "pictures", count=6, size=48)
    small_sd.write(root / "models" / "small")
    return root


def keys(root, **more):
    return {
        **small_sd.override(root / "models" / "small"),
        "loss.psnr": 0.0,
        "loss.l2": 1.0,
        "train.steps": STEPS,
        "train.save_every": 2,
        "validation.every": None,
        **more,
    }


def train(root, run, faults=None, **more):
    done = small_runs.train_process(root, run=run, faults=faults, **keys(root, **more))
    return done, root / "runs" / run


@pytest.mark.parametrize(
    "lever",
    [
        {},
        pytest.param(
            {"train.tail_micro_batch": 1, "train.grad_norm_every": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"train.share_step": True, "train.checkpointing.decoder": "on"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_run_continues_bit_for_bit(root, lever):
    name = "_".join(k.rsplit(".")[-1] for k in lever) or "plain"
    done, whole = train(root, f"{name}_whole", **lever)
    assert done.returncode == 0, done.stderr
    samples = 4 if "share" in name else 8  # of a step
    killed, path = train(root, f"{name}_killed", {"kill_at_sample": 3 * samples + 1}, **lever)
    assert killed.returncode == -9
    again, path = train(root, f"{name}_killed", **lever)
    assert again.returncode == 0, again.stderr
    assert small_runs.losses(path) == small_runs.losses(whole)
    assert small_runs.final_weights(path) == small_runs.final_weights(whole)


def test_a_checkpoint_holds_adapters_and_heads_only(root):
    done, path = train(root, "contents", **{"train.steps": 2})
    assert done.returncode == 0, done.stderr
    names = checkpoint.read_named(path, "latest").tensors["weights"]
    assert {n.split(".")[0] for n in names} == {"generator", "discriminator"}
    assert all(".lora_" in n for n in names if n.startswith("generator."))
    assert not any(".trunk." in n for n in names)


def test_staged_weights_switch_at_their_step_and_stay_switched_after_a_resume(root):
    stage = {"start": 3, "changes": {"loss.l2": 3.0, "loss.gan": 0.3}}
    more = {"stages.balanced": stage, "loss.gan": 0.2, "train.save_every": 1}
    done, whole = train(root, "staged", **more)
    assert done.returncode == 0, done.stderr
    killed, path = train(root, "staged_killed", {"kill_at_sample": 4 * 8 + 1}, **more)
    assert killed.returncode == -9
    again, path = train(root, "staged_killed", **more)
    assert again.returncode == 0, again.stderr
    assert small_runs.losses(path) == small_runs.losses(whole)
    _, plain = train(root, "unstaged", **{"loss.gan": 0.2})
    rows, others = small_runs.losses(whole), small_runs.losses(plain)
    for row, other in zip(rows[:3], others[:3], strict=True):
        assert row["loss/generator_l2"] == other["loss/generator_l2"]
    ratio = rows[3]["loss/generator_l2"] / others[3]["loss/generator_l2"]
    assert ratio == pytest.approx(3.0, rel=1e-6)  # the weights before this step are the same


def test_an_undecided_judge_reads_as_four_times_two_logarithms_of_two():
    import torch
    from darkroom import losses

    logits = [torch.zeros(2, 1, side, side) for side in (32, 16, 8)] + [torch.zeros(2, 1)]
    assert losses.gan_discriminator(logits, logits).tolist() == pytest.approx([5.545] * 2, abs=1e-3)
    assert losses.gan_generator(logits).tolist() == pytest.approx([2.7726] * 2, abs=1e-4)


def test_a_step_that_is_shared_draws_half_the_samples(root):
    done, path = train(root, "shared", **{"train.share_step": True, "train.steps": 2})
    assert done.returncode == 0, done.stderr
    state = json.loads((path / "checkpoints" / "latest" / "state.json").read_text())
    assert state["positions"] == {"generator": 8, "discriminator": 8}
    rows = small_runs.losses(path)
    assert all("loss/discriminator_total" in row for row in rows)


@pytest.mark.parametrize("name", sorted(p.stem for p in PARAMS.glob("*hypir*.yaml")))
def test_every_card_trains_the_same_trunk_rank_and_batch_as_the_original(name):
    original = load_config(base="hypir", run="hypir")
    config = load_config(base=name, run=name)
    for section, key in (
        ("model", "trunk"),
        ("model", "lora_rank"),
        ("train", "effective_batch"),
        ("data", "crop_size"),
    ):
        assert getattr(getattr(config, section), key) == getattr(getattr(original, section), key)
    assert config.loss == original.loss
    assert config.warnings == original.warnings


def test_the_improved_recipe_is_the_seeds_second_column():
    config = load_config(base="a100_improved", run="a100_improved")
    weights = {k: getattr(config.loss, k) for k in ("gan", "lpips", "l2", "l1", "ssim")}
    assert weights == {"gan": 0.3, "lpips": 3.0, "l2": 2.0, "l1": 2.0, "ssim": 1.0}
    assert (config.optim.generator.lr, config.optim.discriminator.lr) == (2e-5, 5e-6)
    assert config.optim.generator.weight_decay == 1e-4 < type(config.optim.network)().weight_decay


def test_the_staged_recipe_ends_at_the_improved_weights():
    from darkroom import schedule

    staged, improved = (load_config(base=n, run=n) for n in ("a100_staged", "a100_improved"))
    assert schedule.stage_changes(staged, 9_999, 50_000) == {}
    at_end = staged.with_changes(schedule.stage_changes(staged, 11_000, 50_000))
    assert at_end.loss == improved.loss
    between = staged.with_changes(schedule.stage_changes(staged, 10_499, 50_000)).loss
    assert between.l2 == pytest.approx(2.5)
