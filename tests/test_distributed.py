"""Two real processes (gloo) give what one gives at the same effective batch, in both phases."""

from __future__ import annotations

import subprocess
import sys

import pytest
import small_runs
from safetensors.torch import load_file


def launch(root, processes: int, run: str, **override) -> None:
    arguments = small_runs.command(root, run=run, **override)[1:]
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process"),
        *("1", "--num_processes", str(processes), "--main_process_port", "0"),
    ]
    done = subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


RECIPES = {
    "one_step_gan": {},
    "conditional_diffusion": {"loss.gan": 0.0, "loss.ssim": 0.0, "loss.l2": 1.0, "loss.psnr": 0.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_like_one(tmp_path, recipe):
    small_runs.write_pictures(tmp_path / "pictures")
    override = {"train.steps": 6, "train.save_every": 6, "train.micro_batch": 2}
    override |= {"model.recipe": recipe, "restore.num_steps": 2} | RECIPES[recipe]
    launch(tmp_path, 2, "two", **override)
    alone = small_runs.train_process(tmp_path, run="one", **override)
    assert alone.returncode == 0, alone.stderr
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    for a, b in zip(small_runs.losses(one), small_runs.losses(two), strict=True):
        assert a.keys() == b.keys()
        assert all(abs(a[k] - b[k]) <= 1e-6 * max(1.0, abs(a[k])) for k in a), (a, b)
    for part in ("weights", "ema"):
        first = load_file(one / "checkpoints" / "latest" / f"{part}.safetensors")
        second = load_file(two / "checkpoints" / "latest" / f"{part}.safetensors")
        worst = max((first[k] - second[k]).abs().max().item() for k in first)
        assert worst <= 1e-6, (part, worst)
