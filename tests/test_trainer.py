"""The loop: exact resume after a kill, stops, faults, stages and what the rows say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs
import torch
from darkroom import checkpoint, data, trainer
from darkroom.config import load_config
from darkroom.interrupts import Interrupted
from darkroom.paths import RunLock
from darkroom.run import RunMismatch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Return a folder that holds `pictures/`, shared by the runs of this module."""
    root = tmp_path_factory.mktemp("runs")
    small_runs.write_pictures(root / "pictures")
    return root


@pytest.fixture
def root(pictures, tmp_path) -> Path:
    """Return a fresh folder with the same pictures."""
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(pictures) -> Path:
    """Return the run directory of a run that nothing disturbed."""
    done = small_runs.train_process(pictures)
    assert done.returncode == 0, done.stderr
    return pictures / "runs" / "small"


def config_in(root: Path, **override):
    return load_config(**small_runs.sections(root, **override))


def same_result(run_dir: Path, expected: Path) -> None:
    scores, wanted = (p / "validation.parquet" for p in (run_dir, expected))
    if wanted.exists():
        import polars as pl

        keep = pl.exclude("config_hash", "image_set")  # they hold the folder's name
        assert pl.read_parquet(scores).select(keep).equals(pl.read_parquet(wanted).select(keep))
    assert small_runs.losses(run_dir) == small_runs.losses(expected)
    assert small_runs.final_weights(run_dir) == small_runs.final_weights(expected)


def test_a_run_in_this_process_equals_one_in_another(root, uninterrupted):
    torch.set_num_threads(1)
    result = trainer.train(config_in(root))
    assert (result.status, result.step) == ("completed", 8)
    same_result(result.run_dir, uninterrupted)
    assert json.loads((result.run_dir / "status.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("sample", [5, 37, 50])
def test_a_run_killed_at_any_sample_continues_bit_for_bit(root, uninterrupted, sample):
    killed = small_runs.train_process(root, faults={"kill_at_sample": sample})
    assert killed.returncode == -signal.SIGKILL
    again = small_runs.train_process(root)
    assert again.returncode == 0, again.stderr
    same_result(root / "runs" / "small", uninterrupted)


def test_a_run_killed_at_writes_flushes_and_renames_continues_bit_for_bit(root, uninterrupted):
    kills = 0
    for number in range(7, 400, 11):  # each process gets further than the one before
        done = small_runs.train_process(root, faults={"kill_at_call": number})
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills >= 3
    same_result(root / "runs" / "small", uninterrupted)


def test_loader_processes_do_not_change_the_run(root, uninterrupted):
    done = small_runs.train_process(root, **{"data.workers": 2})
    assert done.returncode == 0, done.stderr
    assert small_runs.losses(root / "runs" / "small") == small_runs.losses(uninterrupted)


def test_a_checkpoint_holds_only_what_training_changed(uninterrupted):
    saved = checkpoint.read_named(uninterrupted, "latest")
    config = load_config(**small_runs.sections(uninterrupted.parent.parent))
    from darkroom import recipes

    recipe = recipes.build(config)
    trained = {n for phase in recipe.phases(config) for n in phase.parameters}
    vectors = set(saved.tensors["weights"]) - trained
    assert trained <= set(saved.tensors["weights"])
    assert vectors and all(n.endswith(("weight_u", "weight_v")) for n in vectors)
    assert not any("trunk" in n for n in saved.tensors["weights"])
    assert all(n.startswith("generator.") for n in saved.tensors["ema"])


def test_sigterm_finishes_the_step_saves_and_exits_with_143(root, uninterrupted):
    process = subprocess.Popen(
        small_runs.command(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _wait_for_rows(root / "runs" / "small", 2)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    assert process.returncode == 143
    status = json.loads((root / "runs" / "small" / "status.json").read_text())
    assert status["status"] == "terminated"
    assert checkpoint.steps(root / "runs" / "small")[-1] == status["step"]
    assert small_runs.train_process(root).returncode == 0
    same_result(root / "runs" / "small", uninterrupted)


def _wait_for_rows(run_dir: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    path = run_dir / "train.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never got {count} rows")


class Meddler:
    """A progress display that does something at a step."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def start(self, total, step):
        pass

    def update(self, row):
        if row["step"] == self.step:
            self.action()

    def validated(self, step, frame):
        pass

    def images(self, step, pictures):
        pass

    def close(self, status):
        self.status = status


def test_an_interrupt_finishes_the_step_and_says_how_to_continue(root, uninterrupted):
    torch.set_num_threads(1)
    meddler = Meddler(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="run the same again to continue"):
        trainer.train(config_in(root), progress=meddler)
    assert meddler.status == "interrupted"
    assert checkpoint.steps(root / "runs" / "small") == [2]
    assert trainer.train(config_in(root)).status == "completed"
    same_result(root / "runs" / "small", uninterrupted)


@pytest.mark.parametrize("word", ["stop", "save", "validate"])
def test_the_control_file_is_obeyed_within_a_step(root, word):
    control = root / "runs" / "small" / "control"
    result = trainer.train(config_in(root), progress=Meddler(2, lambda: control.write_text(word)))
    steps = checkpoint.steps(result.run_dir)
    if word == "stop":
        assert (result.status, result.step, steps) == ("stopped", 2, [2])
    elif word == "save":
        assert "step 2: checkpoint" in (result.run_dir / "train.log").read_text()
    else:
        import polars as pl

        frame = pl.read_parquet(result.run_dir / "validation.parquet")
        assert set(frame["step"]) == {2, 4, 8}
    assert not control.exists()


def test_a_second_writer_is_refused_with_the_first_ones_process_id(root):
    config = config_in(root)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from darkroom.paths import RunLock\n"
            "with RunLock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(config.run_dir),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    config.run_dir.mkdir(parents=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(Exception, match=str(holder.pid)):
            trainer.train(config)
    finally:
        holder.communicate("")
    with RunLock(config.run_dir):
        pass


def test_another_config_in_the_same_run_is_refused_and_shown(root):
    trainer.train(config_in(root, **{"train.steps": 2, "validation.every": None}))
    with pytest.raises(RunMismatch, match=r"loss\.gan: 0\.01 in the run, 0\.5 now"):
        trainer.train(config_in(root, **{"train.steps": 2, "loss.gan": 0.5}))


def test_an_extended_run_continues_from_its_end(root):
    short = {"train.steps": 3, "validation.every": None}
    trainer.train(config_in(root, **short))
    result = trainer.train(config_in(root, **short, **{"train.extend": 2}))
    assert result.step == 5
    assert [row["step"] for row in small_runs.losses(result.run_dir)] == [1, 2, 3, 4, 5]


def test_a_run_starts_from_another_runs_weights(root):
    first = trainer.train(config_in(root, **{"train.steps": 3, "validation.every": None}))
    options = {"train.steps": 1, "validation.every": None, "model.init_from": "small"}
    job = small_runs.sections(root, **options) | {"run": "second"}
    second = trainer.train(load_config(**job))
    assert "weights from" in (second.run_dir / "train.log").read_text()
    before = checkpoint.read_named(first.run_dir, "latest").tensors["ema"]
    after = checkpoint.read_named(second.run_dir, "latest").tensors["weights"]
    moved = max((after[k] - before[k]).abs().max().item() for k in before)
    assert 0 < moved < 3e-3  # one step from there, not from a fresh start


def test_a_nan_stops_before_the_optimizer_step_and_names_the_file(root, monkeypatch):
    original = data.TrainingSet.__getitem__

    def poisoned(self, key):
        sample = original(self, key)
        if key == ("generator", 9):
            sample.gt = sample.gt * float("nan")
        return sample

    monkeypatch.setattr(data.TrainingSet, "__getitem__", poisoned)
    config = config_in(root, **{"validation.every": None, "train.save_every": 1})
    with pytest.raises(trainer.NonFinite, match=r"position 9 .*picture_\d\.png"):
        trainer.train(config)
    assert checkpoint.steps(config.run_dir)[-1] == 2
    status = json.loads((config.run_dir / "status.json").read_text())
    assert status["status"] == "failed" and "position 9" in status["reason"]
    monkeypatch.undo()
    assert trainer.train(config).status == "completed"


def test_a_file_that_becomes_unreadable_stops_the_run_naming_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE_BYTES", 1)  # pictures are read again at every visit
    small_runs.write_pictures(tmp_path / "pictures")

    def truncate():
        for path in (tmp_path / "pictures").glob("*.png"):
            path.write_bytes(path.read_bytes()[:100])

    config = config_in(tmp_path, **{"validation.every": None, "train.save_every": 1})
    with pytest.raises(data.SampleError, match=r"picture_\d\.png was readable"):
        trainer.train(config, progress=Meddler(2, truncate))
    assert checkpoint.steps(config.run_dir)[-1] == 2


def test_out_of_memory_takes_a_smaller_micro_batch_and_keeps_the_samples(root, monkeypatch):
    from darkroom.recipes import OneStepGAN

    original = OneStepGAN.losses

    def limited(self, batch, phase):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("injected")
        return original(self, batch, phase)

    options = {"validation.every": None, "train.steps": 4}
    small = trainer.train(config_in(root, **options, **{"train.micro_batch": 2}))
    monkeypatch.setattr(OneStepGAN, "losses", limited)
    job = small_runs.sections(root, **options, **{"train.micro_batch": 4}) | {"run": "big"}
    big = trainer.train(load_config(**job))
    assert small_runs.losses(big.run_dir) == small_runs.losses(small.run_dir)
    assert small_runs.final_weights(big.run_dir) == small_runs.final_weights(small.run_dir)
    decisions = [
        json.loads(line) for line in (big.run_dir / "decisions.jsonl").read_text().splitlines()
    ]
    assert decisions[-1]["value"] == {"generator": 2, "discriminator": 2}


def test_nothing_smaller_than_one_sample_is_left_says_the_way_out(root, monkeypatch):
    from darkroom.recipes import OneStepGAN

    def never(self, batch, phase):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(OneStepGAN, "losses", never)
    with pytest.raises(RuntimeError, match=r"micro batch 1; no smaller one is left.*crop_size"):
        trainer.train(config_in(root))


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(root, monkeypatch):
    from safetensors import torch as safetensors_torch

    config = config_in(root, **{"validation.every": None})
    original = safetensors_torch.save_file

    def full(tensors, path):
        if "step_00000006" in str(path):
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(safetensors_torch, "save_file", full)
    with pytest.raises(checkpoint.CheckpointError, match="No space left.*last good.* step 3"):
        trainer.train(config)
    assert checkpoint.steps(config.run_dir) == [3]
    assert not list(checkpoint.folder(config.run_dir).glob(".tmp_*"))
    monkeypatch.undo()
    assert trainer.train(config).status == "completed"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(root, uninterrupted):
    torch.set_num_threads(1)
    trainer.train(config_in(root))
    path = checkpoint.folder(root / "runs" / "small") / "step_00000008" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert trainer.train(config_in(root)).step == 8
    assert "damaged" in (root / "runs" / "small" / "train.log").read_text()
    same_result(root / "runs" / "small", uninterrupted)


def test_a_crop_larger_than_an_image_is_refused_before_anything_starts(root):
    with pytest.raises(ValueError, match=r"data\.crop_size 64 is larger than .*picture_0.*48x48"):
        trainer.train(config_in(root, **{"data.crop_size": 64}))


def test_stages_change_weights_at_their_position_and_resume_inside_them(root):
    stages = {
        "stages.first.start": 0,
        "stages.first.changes": {"loss.gan": 0.0},
        "stages.second.start": "50%",
        "stages.second.ramp": 2,
        "stages.second.changes": {"loss.gan": 0.2, "optim.generator.lr": 5e-4},
        "train.save_every": 5,
        "validation.every": None,
    }
    straight = trainer.train(config_in(root, **stages))
    rows = small_runs.losses(straight.run_dir)
    assert not any("loss/discriminator_total" in row for row in rows[:4])
    assert all("loss/discriminator_total" in row for row in rows[4:])
    job = small_runs.sections(root, **stages) | {"run": "resumed"}
    stop = Meddler(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        trainer.train(load_config(**job), progress=stop)
    resumed = trainer.train(load_config(**job))
    same_result(resumed.run_dir, straight.run_dir)


def test_early_stopping_ends_a_run_that_does_not_improve(root):
    options = {
        "train.early_stopping": {"metric": "psnr_y", "patience": 2, "min_delta": 50.0},
        "validation.every": 1,
    }
    result = trainer.train(config_in(root, **options))
    assert (result.status, result.step) == ("early-stopped", 3)
    assert checkpoint.linked(result.run_dir, "best") is not None
    again = trainer.train(config_in(root, **options))
    assert (again.status, again.step) == ("early-stopped", 3)


def test_hours_become_a_horizon_once_and_are_replayed(root):
    options = {"train.steps": None, "train.hours": 0.0005, "validation.every": None}
    first = trainer.train(config_in(root, **options))
    decision = json.loads((first.run_dir / "decisions.jsonl").read_text().splitlines()[0])
    assert decision["decision"] == "horizon" and decision["value"] == first.step
    again = trainer.train(config_in(root, **options))
    assert again.step == first.step
    straight = {"train.steps": first.step, "validation.every": None}
    job = small_runs.sections(root, **straight) | {"run": "steps"}
    same_result(first.run_dir, trainer.train(load_config(**job)).run_dir)


def test_a_run_that_never_began_takes_a_corrected_config(tmp_path):
    small_runs.write_pictures(tmp_path / "pictures")
    wrong = load_config(**small_runs.sections(tmp_path, **{"data.crop_size": 480}))
    with pytest.raises(ValueError, match="data.crop_size 480 is larger"):
        trainer.train(wrong)
    right = load_config(**small_runs.sections(tmp_path, **{"train.steps": 2}))
    assert trainer.train(right).status == "completed"
    assert "never begun" in (right.run_dir / "train.log").read_text()
    with pytest.raises(RunMismatch):  # from now on there is something to lose
        trainer.train(wrong)
