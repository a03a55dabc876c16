"""Two real processes (gloo) give what one gives at the same effective batch, whole or split."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small_runs
import torch
from darkroom import checkpoint, launch, load_config, sharding, trainer, validate
from safetensors.torch import load_file

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as accelerate's launcher sets them
DIFFUSION = {
    "model.recipe": "conditional_diffusion",
    "restore.num_steps": 2,
    "loss.gan": 0.0,
    "loss.ssim": 0.0,
    "loss.psnr": 0.0,
    "loss.l2": 1.0,
}
OFTEN = {"train.image_every": 6, "validation.every": 6, "train.ema_decay": 0.9, "train.clip": 0.1}
ADAPTERS = {"model.base": "base", "model.lora_rank": 4, "model.unfreeze": ["conv_out"]}
RUNS = {  # what two processes train, and how
    "one_step_gan": ({}, {}),
    "conditional_diffusion": ({}, DIFFUSION),
    "split": (FSDP2, DIFFUSION | OFTEN),
    "adapters_split": (FSDP2, DIFFUSION | ADAPTERS),
}


def job(root, run: str, override: dict, environment: dict) -> list[str]:
    steps = {"train.steps": 6, "train.save_every": 3, "train.micro_batch": 2}
    faults = {"environment": environment}
    return small_runs.command(root, run=run, faults=faults, **(steps | override))


def train_alone(job: list[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer.train(load_config(**json.loads(Path(job[2]).read_text())["job"]))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder in which one process and two have trained the same runs."""
    root = tmp_path_factory.mktemp("distributed")
    small_runs.write_pictures(root / "pictures")
    train_alone(job(root, "base", DIFFUSION | {"validation.every": None}, {}))
    for name, (_, override) in RUNS.items():
        train_alone(job(root, f"{name}_one", override, {}))
    # the plain ones first, for the environment stays
    jobs = [job(root, f"{name}_two", more, env) for name, (env, more) in RUNS.items()]
    small_runs.train_in_two(*jobs)
    return root / "runs"


def assert_equal_runs(one, two) -> None:
    """Hold losses and whole weights of two runs' last checkpoints against each other."""
    for a, b in zip(small_runs.losses(one), small_runs.losses(two), strict=True):
        assert a.keys() == b.keys()
        assert all(abs(a[k] - b[k]) <= 1e-6 * max(1.0, abs(a[k])) for k in a), (a, b)
    for part in ("weights", "ema"):
        first = load_file(one / "checkpoints" / "latest" / f"{part}.safetensors")
        second = load_file(two / "checkpoints" / "latest" / f"{part}.safetensors")
        assert first.keys() == second.keys()
        worst = max((first[k] - second[k]).abs().max().item() for k in first)
        assert worst <= 1e-6, (part, worst)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_like_one(runs, name):
    """Whole in each, or split over both (FSDP2)."""
    log = (runs / f"{name}_two" / "train.log").read_text()
    words = ", 2 processes (FSDP2 splits it)\n" if RUNS[name][0] else ", 2 processes\n"
    assert words in log
    assert_equal_runs(runs / f"{name}_one", runs / f"{name}_two")


def test_a_split_run_scores_and_shows(runs):
    one, two = runs / "split_one", runs / "split_two"
    assert (two / "figures" / "images_00000006.png").is_file()
    scores = [validate.read(run)["psnr_y"] for run in (one, two)]
    assert (scores[0] - scores[1]).abs().max() <= 1e-3


@pytest.mark.slow
def test_a_split_run_continues_from_a_checkpoint_that_is_whole(runs):
    one, two = runs / "split_one", runs / "split_two"
    shutil.rmtree(two / "checkpoints" / "step_00000006")
    small_runs.train_in_two(job(runs.parent, "split_two", RUNS["split"][1], FSDP2))
    assert "steps 3 to 6" in (two / "train.log").read_text()
    assert_equal_runs(one, two)


@pytest.mark.slow
def test_the_preflight_of_several_processes_says_what_that_of_one_does(tmp_path):
    from darkroom.report import figures

    small_runs.write_pictures(tmp_path / "pictures")
    tables = []
    for number in (1, 2):
        section = small_runs.sections(tmp_path, **{"budget.processes": number})
        tables.append(figures.preflight(load_config(**section)).frame.rows())
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_notebook_starts_the_processes_itself_and_an_interrupt_saves(tmp_path):
    small_runs.write_pictures(tmp_path / "pictures")
    override = DIFFUSION | {"train.steps": 400, "validation.every": None, "budget.processes": 2}
    options = {"start_new_session": True, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(job(tmp_path, "two", override, {}), **options)
    rows = tmp_path / "runs" / "two" / "train.jsonl"
    wait_for(lambda: rows.exists() and rows.read_text().count("\n") > 5, process)
    process.send_signal(signal.SIGINT)  # to the notebook's kernel alone
    error = process.communicate(timeout=60)[1]
    assert "is finished and saved; run the same again to continue" in error
    step = checkpoint.steps(tmp_path / "runs" / "two")[-1]
    assert 5 < step < 400

    process = subprocess.Popen(job(tmp_path, "two", override, {}), **options)
    wait_for(lambda: f"steps {step} to 400" in log_of(tmp_path, "two"), process)
    process.terminate()
    process.communicate(timeout=60)
    assert ", 2 processes" in log_of(tmp_path, "two")


def test_more_processes_than_gpus_and_a_kernel_that_uses_one_are_refused(monkeypatch, tmp_path):
    config = load_config(**small_runs.sections(tmp_path, **{"budget.processes": 3}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"budget.processes is 3, and there are 2 GPUs"):
        launch.train(config)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"already uses CUDA.*restart the kernel"):
        launch.train(config)


def wait_for(condition, process, seconds: int = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.1)


def log_of(root, run: str) -> str:
    return (root / "runs" / run / "train.log").read_text()


@pytest.mark.parametrize(
    ("environment", "override", "words"),
    [
        (FSDP2, {"model.recipe": "one_step_gan"}, ["one_step_gan", "several_gpus.yaml"]),
        (FSDP2, {"train.grad_norm_every": 10}, ["train.grad_norm_every: null"]),
        (FSDP2, {"optim.denoiser.name": "adamw8bit"}, ["adamw8bit", "take adamw"]),
        (FSDP2, {"train.ema_device": "cpu"}, ["train.ema_device: auto"]),
        (FSDP2, {"train.precision": "fp16"}, ["fp16", "bf16 or fp32"]),
        (FSDP2, {"train.hours": 1, "train.steps": None}, ["train.hours", "give train.steps"]),
        (FSDP2 | {"FSDP_VERSION": "1"}, {}, ["fsdp_version 1", "fsdp2.yaml"]),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {},
            ["zero_stage 3", "fsdp2.yaml"],
        ),
    ],
)
def test_what_cannot_be_split_is_refused(monkeypatch, environment, override, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    section = {"model.recipe": "conditional_diffusion", "train.grad_norm_every": None}
    config = load_config(base="linefuse_tiny", override=section | override)
    with pytest.raises(ValueError, match=words[0]) as caught:
        sharding.check(config)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["several_gpus", "fsdp2", "zero2"])
def test_the_launchers_files_say_what_accelerate_reads(repo, monkeypatch, name):
    """Accelerate's own parser reads them; zero2's was never run: it needs GPUs and DeepSpeed."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType

    read = load_config_from_file(str(repo / "params" / "accelerate" / f"{name}.yaml"))
    kinds = {"several_gpus": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}
    assert read.distributed_type == DistributedType(kinds[name])
    assert read.num_processes == 2 and read.mixed_precision == "no"
    if name == "fsdp2":
        assert read.fsdp_config["fsdp_version"] == 2
    if name == "zero2":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        stage = read.deepspeed_config["zero_stage"]
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
        assert sharding.requested() == "DeepSpeed"
