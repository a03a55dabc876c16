"""Validation's share of the time: the interval is stretched once, recorded, and replayed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import polars as pl
import pytest
import small_runs
import torch
from darkroom import checkpoint, metrics, rhythm, selection, trainer, validate
from darkroom.config import load_config
from darkroom.interrupts import Interrupted

DEAR = {  # validation of six pictures takes far longer than two steps
    "train.steps": 60,
    "train.save_every": 20,
    "train.effective_batch": 1,
    "train.micro_batch": 1,
    "validation.every": 2,
}


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    small_runs.write_pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture
def slow_validation(monkeypatch):
    """Let a validation take a quarter of a second longer than it does."""
    score = validate.score

    def slow(*args, **kwargs):
        time.sleep(0.25)
        return score(*args, **kwargs)

    monkeypatch.setattr(validate, "score", slow)


def decisions(run_dir) -> list[dict]:
    path = run_dir / "decisions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["decision"] == "validation_every"]


def validated_steps(run_dir) -> list[int]:
    return pl.read_parquet(run_dir / "validation.parquet")["step"].unique().sort().to_list()


def decide(run_dir, step: int, every: int, longer: int) -> None:
    """Write a decision as the trainer would have, so that the clock of this machine has no say."""
    run_dir.mkdir(parents=True, exist_ok=True)
    value = {"from": every, "to": longer}
    row = {"step": step, "decision": "validation_every", "value": value, "reason": "a test"}
    (run_dir / "decisions.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(
    ("every", "share", "validation", "step", "expected"),
    [
        (500, 0.1, 5.0, 1.0, 500),  # 1 % of the time
        (500, 0.1, 300.0, 0.5, 5500),  # 300 / (300 + 0.1 * 27000): 5400 steps of training
        (10, 0.5, 30.0, 1.0, 30),  # exactly half at 30 steps
        (10, 0.5, 30.001, 1.0, 40),
        (4, 1.0, 1e9, 1.0, 4),
    ],
)
def test_the_new_interval_is_the_smallest_multiple_that_respects_the_share(
    every, share, validation, step, expected
):
    longer = rhythm.stretched(every, share, validation, step)
    assert longer == expected
    assert rhythm.share_of_time(longer, validation, step) <= share + 1e-12
    if longer > every:
        assert rhythm.share_of_time(longer - every, validation, step) > share


def test_warm_up_steps_do_not_count_where_enough_others_were_timed():
    made = []
    run = SimpleNamespace(made=[], decide=lambda *row: made.append(row))
    section = SimpleNamespace(every=10, max_time_share=0.5)
    paces = rhythm.Rhythm(SimpleNamespace(validation=section), run)
    for n in range(10):
        paces.stepped(100.0 if n < rhythm.WARMUP_STEPS else 1.0)
    paces.validated(10, 20.0, average_seconds=50.5)
    assert made[0][:3] == (10, "validation_every", {"from": 10, "to": 20})
    again = rhythm.Rhythm(SimpleNamespace(validation=section), run)  # a process that took two
    again.stepped(1.0)
    again.stepped(1.0)
    again.validated(10, 20.0, average_seconds=0.1)
    assert made[1][2] == {"from": 10, "to": 200}


def test_a_dear_validation_stretches_the_interval_once_and_says_so(root, slow_validation):
    config = load_config(**small_runs.sections(root, **DEAR, **{"validation.max_time_share": 0.2}))
    result = trainer.train(config)
    (made,) = decisions(result.run_dir)
    longer = made["value"]["to"]
    assert made["step"] == made["value"]["from"] == 2
    assert longer % 2 == 0 and longer > 2
    later = [s for s in range(longer, 61, longer) if s > 2]
    assert validated_steps(result.run_dir) == sorted({2, *later, 60})
    log = (result.run_dir / "train.log").read_text()
    assert log.count("validation_every") == 1 and "at most 20.0%" in log
    best = checkpoint.linked(result.run_dir, "best")
    assert best == selection.best_step(validate.read(result.run_dir), config)
    # the clock must not decide a second time when the finished run is asked for again
    assert trainer.train(config).step == 60
    assert len(decisions(result.run_dir)) == 1


def test_a_cheap_validation_keeps_its_interval_and_that_is_recorded_too(root):
    options = {"validation.max_time_share": 0.999999, "train.steps": 6, "validation.every": 2}
    result = trainer.train(load_config(**small_runs.sections(root, **options)))
    (made,) = decisions(result.run_dir)
    assert made["value"] == {"from": 2, "to": 2}
    assert validated_steps(result.run_dir) == [2, 4, 6]


@pytest.fixture
def pyiqa():
    """Skip where pyiqa is left out; importing it here would come before torchvision is mended."""
    if importlib.util.find_spec("pyiqa") is None:
        pytest.skip("pyiqa is not installed")


class Interrupt:
    """A progress display that interrupts once at a step, or writes a word to the control file."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def update(self, row):
        if row["step"] == self.step:
            self.action()

    def start(self, *_):
        pass

    validated = images = close = start


@pytest.mark.parametrize("step", [3, 7])
def test_a_run_stopped_and_run_again_validates_where_an_uninterrupted_one_does(root, step):
    options = {"train.steps": 14, "validation.every": 2, "validation.max_time_share": 0.01}
    runs = root / "runs"
    for name in ("straight", "again"):
        decide(runs / name, 2, 2, 6)
    straight = trainer.train(
        load_config(**small_runs.sections(root, **options) | {"run": "straight"})
    )
    assert validated_steps(straight.run_dir) == [2, 6, 12, 14]
    config = load_config(**small_runs.sections(root, **options) | {"run": "again"})
    control = config.run_dir / "control"
    stopped = trainer.train(config, progress=Interrupt(step, lambda: control.write_text("stop")))
    assert (stopped.status, stopped.step) == ("stopped", step)
    with pytest.raises(Interrupted):
        trainer.train(config, progress=Interrupt(11, lambda: os.kill(os.getpid(), signal.SIGINT)))
    again = trainer.train(config)
    assert validated_steps(again.run_dir) == validated_steps(straight.run_dir)
    assert small_runs.final_weights(again.run_dir) == small_runs.final_weights(straight.run_dir)
    assert len(decisions(again.run_dir)) == 1


@pytest.mark.parametrize("back", [False, True], ids=["from its checkpoint", "from nothing"])
def test_a_killed_run_replays_the_decision_also_where_it_was_taken(root, back):
    options = {**DEAR, "train.steps": 8, "validation.max_time_share": 1e-6}
    killed = small_runs.train_process(root, faults={"kill_at_sample": 9}, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_dir = root / "runs" / "small"
    (made,) = decisions(run_dir)
    if back:
        shutil.rmtree(run_dir / "checkpoints")
    done = small_runs.train_process(root, **options)
    assert done.returncode == 0, done.stderr
    assert decisions(run_dir) == [made]
    assert made["value"]["to"] > 8 and validated_steps(run_dir) == [2, 8]


def test_early_stopping_counts_the_validations_of_the_longer_interval(root):
    decide(root / "runs" / "small", 2, 2, 6)
    options = {
        "train.steps": 40,
        "train.early_stopping": {"metric": "psnr_y", "patience": 2, "min_delta": 50.0},
        "validation.every": 2,
        "validation.max_time_share": 0.01,
    }
    result = trainer.train(load_config(**small_runs.sections(root, **options)))
    assert (result.status, result.step) == ("early-stopped", 12)  # after 2, 6 and 12


def test_another_interval_on_going_on_gets_a_decision_of_its_own(root):
    options = {"train.steps": 4, "validation.every": 2, "validation.max_time_share": 0.999999}
    first = trainer.train(load_config(**small_runs.sections(root, **options)))
    changed = options | {"validation.every": 3, "train.extend": 5}
    trainer.train(load_config(**small_runs.sections(root, **changed)))
    made = [(d["step"], d["value"]) for d in decisions(first.run_dir)]
    assert made == [(2, {"from": 2, "to": 2}), (6, {"from": 3, "to": 3})]
    assert validated_steps(first.run_dir) == [2, 4, 6, 9]


def test_without_a_limit_a_dear_validation_is_noted_once_and_nothing_changes(root, slow_validation):
    result = trainer.train(
        load_config(**small_runs.sections(root, **DEAR | {"train.steps": 6, "train.save_every": 6}))
    )
    log = (result.run_dir / "train.log").read_text()
    assert log.count("set validation.max_time_share") == 1
    assert validated_steps(result.run_dir) == [2, 4, 6]
    assert decisions(result.run_dir) == []


def test_two_processes_follow_the_main_ones_decision(root):
    """A process that did not know of it would wait at step 4 for a verdict that never comes."""
    options = {**DEAR, "train.effective_batch": 2, "train.steps": 8}
    options["validation.max_time_share"] = 1e-6
    small_runs.train_in_two(small_runs.command(root, run="two", **options))
    (made,) = decisions(root / "runs" / "two")
    assert made["value"]["to"] > 8
    assert validated_steps(root / "runs" / "two") == [2, 8]


def test_whether_less_of_our_metrics_is_better_needs_no_weights_and_no_pyiqa():
    found = [metrics.lower_better(n) for n in ("psnr_y", "ssim_y", "final_score", "lpips")]
    assert found == [False, False, False, True]


def test_whether_less_of_another_metric_is_better_comes_from_pyiqas_table(pyiqa):
    assert [metrics.lower_better(n) for n in ("lpips", "dists", "niqe", "pieapp")] == [True] * 4
    assert not metrics.lower_better("musiq")
    with pytest.raises(ValueError, match="no metric 'psnr_z'"):
        metrics.lower_better("psnr_z")


def test_the_best_step_of_a_metric_whose_less_is_better_is_the_lowest(pyiqa):
    frame = pl.DataFrame(
        {"step": [1, 2, 3], "degradation": ["Blur"] * 3, "pieapp": [3.0, 1.0, 2.0]}
    )
    config = SimpleNamespace(train=SimpleNamespace(best="pieapp"))
    assert selection.best_step(frame, config) == 2
