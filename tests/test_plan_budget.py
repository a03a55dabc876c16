"""Cards, what a trace cannot see, and a run's plan against its budget of memory and disk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_runs
import torch
from darkroom import load_config, preflight, recipes
from darkroom.plan import budget, disk, gpus, levers, memory, overhead, verify
from darkroom.run import RunDirectory

CPU = torch.device("cpu")
QUICK = {"validation.every": None, "validation.metrics": ["psnr_y"]}


def small(root, **keys):
    return load_config(**small_runs.sections(root, **(QUICK | keys)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("budget")


@pytest.fixture(scope="module")
def worker():
    with memory.Worker() as process:
        yield process


@pytest.fixture(scope="module")
def plan(root, worker):
    return memory.trace(small(root), worker=worker, keep=True)


# --- cards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("A100-40G", "A100-40G"),
        ("a100 40GB", "A100-40G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G PCIe"),
        ("rtx 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("H100", "H100 SXM"),
    ],
)
def test_a_card_is_found_under_the_names_people_and_drivers_give_it(said, name):
    assert gpus.card(said).name == name


def test_a_size_is_a_card_with_memory_and_no_peaks():
    exact, sold = gpus.card("12 GiB"), gpus.card("12 GB")
    assert exact.memory_gib == gpus.card(12).memory_gib == gpus.card("12").memory_gib == 12
    assert (sold.sold_gib, sold.memory_gib) == (12, 12 * gpus.USABLE)
    assert (exact.tflops, exact.bandwidth_gbs, exact.native_bf16) == ({}, None, None)
    assert gpus.card("L4").with_memory(10).memory_gib == 10


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("RTX 4091", "no card 'RTX 4091' is known: the nearest is 'RTX 409?0'.*L40S.*'24 GiB'"),
        ("A100", "'A100' comes with different memory: write A100-40G or A100-80G"),
        (0, "memory must be more than 0"),
    ],
)
def test_a_card_that_is_unknown_or_several_is_refused_with_the_names(said, message):
    with pytest.raises(ValueError, match=message):
        gpus.card(said)


def test_every_card_has_its_source_and_figures_that_hang_together():
    assert len(gpus.table()) >= 27
    for card in gpus.table():
        peaks = card.tflops
        assert set(peaks) == {"bf16", "fp16", "tf32", "fp32"}, card.name
        assert "https://" in card.source, card.name
        assert 0.9 * card.sold_gib < card.memory_gib < card.sold_gib, card.name
        assert (peaks["bf16"] is not None) == card.native_bf16, card.name
        assert peaks["fp16"] >= 1.9 * peaks["fp32"], card.name  # dense, accumulated in float32
        if peaks["tf32"]:
            assert peaks["bf16"] == pytest.approx(2 * peaks["tf32"], rel=0.03), card.name
        assert gpus.card(card.name) == card


def test_a_card_here_takes_the_memory_that_cuda_reports():
    twelve = gpus._present("NVIDIA GeForce RTX 3080", 11.75, 8.6)
    assert (twelve.name, twelve.memory_gib) == ("RTX 3080 12G", 11.75)
    unknown = gpus._present("NVIDIA GeForce RTX 3050", 7.75, 8.6)
    assert (unknown.tflops, unknown.memory_gib, unknown.native_bf16) == ({}, 7.75, True)


def test_the_table_of_cards_is_shipped_in_the_wheel(repo, tmp_path):
    shutil.copytree(repo / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / name, tmp_path / name)
    code = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", code, "-q", "build_py", "--build-lib", "built"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "built" / "darkroom" / "plan" / "gpus.yaml").exists()


# --- what a trace cannot see --------------------------------------------------------------------


def test_overhead_is_named_part_by_part_and_none_of_it_claims_to_be_measured(tmp_path):
    over = overhead.overhead(gpus.card("RTX 4090"), tmp_path)
    assert over.gib == pytest.approx(over.frame["gib"].sum())
    assert not over.frame["measured"].any() and over.frame["provenance"].str.len_chars().min() > 20
    assert 1.0 < over.gib < 2.0
    hopper, before = (overhead.overhead(gpus.card(n)).frame for n in ("H200", "A100-40G"))
    cublas = [f.filter(name="cuBLAS workspaces")["gib"][0] * 2**20 for f in (hopper, before)]
    assert cublas == [2 * 32 * 2**10, 2 * 8320]  # KiB


def test_what_was_measured_replaces_the_constants_while_torch_is_the_same(tmp_path):
    card = gpus.card("RTX 4090")
    path = overhead.path(card, tmp_path)
    path.parent.mkdir()
    found = {"context_gib": 0.5, "workspace_gib": 0.1, "margin": 0.02, "configs": 4}
    path.write_text(json.dumps(found | {"torch": overhead.importlib.metadata.version("torch")}))
    over = overhead.overhead(card, tmp_path)
    assert over.gib == pytest.approx(0.6 + 0.02 * card.memory_gib)
    assert over.allocated_gib == pytest.approx(0.1) and over.frame["measured"].all()
    for broken in (json.dumps(found | {"torch": "1.0"}), "{", json.dumps([1])):
        path.write_text(broken)
        assert not overhead.overhead(card, tmp_path).frame["measured"].any()


# --- memory -------------------------------------------------------------------------------------


def test_without_budget_and_gpu_nothing_is_planned(root):
    assert budget.limit(small(root), CPU) is None
    verdict = budget.check(small(root), CPU)
    assert (verdict.plan, verdict.line, verdict.warnings, verdict.fits) == (None, "", [], True)


def test_the_limit_is_the_memory_given_then_the_card_named(root):
    card, reason = budget.limit(small(root, **{"budget.gpu": "RTX 4090"}), CPU)
    assert (card, reason) == (gpus.card("RTX 4090"), "budget.gpu RTX 4090")
    both = small(root, **{"budget.gpu": "RTX 4090", "budget.memory_gib": 10})
    card, reason = budget.limit(both, CPU)
    assert (card.name, card.memory_gib, reason) == ("RTX 4090", 10, "budget.memory_gib 10")
    with pytest.raises(ValueError, match="no card 'GTX 9' is known: the nearest is"):
        budget.check(small(root, **{"budget.gpu": "GTX 9"}), CPU)


def test_a_run_on_a_card_needs_its_reserved_memory_and_the_overhead(root, plan):
    config = small(root, **{"budget.gpu": "RTX 4090"})
    verdict = budget.check(config, CPU, plan=plan)
    over = overhead.overhead(gpus.card("RTX 4090")).gib
    assert verdict.needed_gib == pytest.approx(plan.reserved_expandable_gib + over)
    assert verdict.line.startswith("planned peak ") and "budget.gpu RTX 4090" in verdict.line
    assert verdict.warnings == []
    tight = config.with_changes({"budget.alarm": 0.01})
    (warning,) = budget.check(tight, CPU, plan=plan).warnings
    assert "above budget.alarm 0.01" in warning


def test_what_does_not_fit_is_refused_with_what_holds_it_and_the_ways_out(root, worker):
    config = small(root, **{"budget.memory_gib": 0.01})
    with pytest.raises(ValueError) as caught:
        budget.check(config, CPU, worker=worker)
    said = str(caught.value)
    verdict = budget.examine(config, CPU, worker=worker)
    assert verdict.plan.device == "cpu" and verdict.needed_gib == verdict.plan.peak_gib
    assert f"needs {budget.size(verdict.needed_gib)}" in said
    assert "(budget.memory_gib 0.01)" in said and "'generator: accumulating'" in said
    assert f"held by {next(iter(verdict.plan.categories))} (" in said
    assert re.search(r"of the networks by generator\.\w+ \(", said)
    for way in ("tail_micro_batch 1", "checkpointing.network on", "micro_batch 1"):
        assert f"train.{way}" in said
    assert "decoder" not in said  # the tiny autoencoder keeps nothing
    assert "CUDA" not in said and "ema_device" not in said  # on a CPU


def test_only_levers_that_are_there_and_not_on_are_ways_out(root, plan):
    on = {
        "train.tail_micro_batch": 1,
        "train.checkpointing.network": "on",
        "train.checkpointing.discriminator": "on",
        "train.micro_batch": 1,
        "train.ema_device": "cpu",
    }
    assert budget.ways_out(small(root, **on), plan) == []
    off = budget.ways_out(small(root), plan)
    assert {way.split()[0] for way in off} == set(on)
    regression = {"model.recipe": "regression", "loss.gan": 0.0}
    keys = {way.split()[0] for way in budget.ways_out(small(root, **regression), plan)}
    assert keys == {"train.checkpointing.network", "train.micro_batch", "train.ema_device"}


def test_a_card_without_bfloat16_computes_fp16_and_is_offered_no_tail(root, plan):
    assert gpus.card("T4").precision("auto") == "fp16"
    assert gpus.card("A100-40G").precision("auto") == gpus.card("24 GiB").precision("auto")
    assert gpus.card("T4").precision("fp32") == "fp32"
    config = small(root)
    tails = {dict(s)["train.tail_micro_batch"] for s in levers.structures(config, None, "fp16")}
    assert tails == {None}
    assert "train.tail_micro_batch 1" in budget.ways_out(config, plan)
    assert not [w for w in budget.ways_out(config, replace(plan, precision="fp16")) if "tail" in w]


def test_the_micro_batch_that_fits_is_the_largest_divisor_whose_plan_does(root, worker):
    keys = {"train.micro_batch": None, "train.effective_batch": 6, "data.crop_size": 64}
    config = small(root, **keys)
    assert budget.fitting_micro(config, CPU) is None
    peaks = {}
    for micro in (1, 2, 3, 6):
        changed = config.with_changes({"train.micro_batch": micro})
        peaks[micro] = memory.trace(changed, device="cpu", worker=worker, keep=True).peak_gib
    assert peaks[1] < peaks[2] < peaks[3] < peaks[6]
    for micro, limit in ((6, 1.01 * peaks[6]), (3, 0.99 * peaks[6]), (1, 0.99 * peaks[2])):
        tight = config.with_changes({"budget.memory_gib": limit})
        found, reason = budget.fitting_micro(tight, CPU, worker=worker)
        assert found == micro and "train.micro_batch is null: planned peak" in reason
        assert ("would need" in reason) == (micro < 6)
    tight = config.with_changes({"budget.memory_gib": 0.99 * peaks[1]})
    with pytest.raises(ValueError, match="Ways out: train.checkpointing.network on"):
        budget.fitting_micro(tight, CPU, worker=worker)


# --- after the run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocated", "reserved", "message"),
    [
        (1.0, 1.0, None),
        (1.1, 1.1, "allocated memory is 10% above the plan. Likely: workspaces"),
        (0.8, 0.8, "did not come yet"),
        (1.0, 1.3, "fragmentation: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
    ],
)
def test_drift_from_the_plan_is_a_warning_with_its_likely_cause(
    root, plan, allocated, reserved, message, monkeypatch
):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    row = {
        "memory/allocated_gib": allocated * plan.peak_gib,
        "memory/reserved_gib": reserved * plan.reserved_gib,
    }
    first, *drift = budget.measured(small(root), plan, row)
    assert f"({allocated - 1:+.1%})" in first and f"({reserved - 1:+.1%})" in first
    assert (message is None) == (drift == [])
    assert message is None or message in drift[0]
    assert budget.measured(small(root), plan, {"memory/rss_gib": 1.0}) == []


# --- the disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        pytest.param(
            {"train.ema_decay": None, "optim.generator.name": "rmsprop"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"optim.generator.name": "adamw8bit", "optim.discriminator.name": "adamw8bit"},
            marks=pytest.mark.slow,
        ),
        {"stages": {"late": {"start": 2, "changes": {"loss.gan": 0.01}}}, "loss.gan": 0.0},
    ],
    ids=["a GAN", "rmsprop without EMA", "8 bit", "a phase that a stage brings"],
)
def test_a_checkpoint_is_as_large_as_it_was_counted(keys, tmp_path):
    small_runs.write_pictures(tmp_path / "pictures")
    keys = QUICK | {"train.steps": 3} | keys
    stages = keys.pop("stages", {})
    run = small_runs.sections(tmp_path, **keys)
    config = load_config(**run, stages=stages)
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"job": run | {"stages": stages}, "faults": {}}))
    command = [sys.executable, small_runs.__file__, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    latest = config.run_dir / "checkpoints" / "latest"
    real = sum(p.stat().st_size for p in latest.iterdir())
    assert disk.checkpoint_bytes(config) == pytest.approx(real, rel=0.02)
    recipe = recipes.build(config)  # the real one counts alike, and no gradient is left on it
    assert disk.checkpoint_bytes(config, recipe) == disk.checkpoint_bytes(config)
    assert all(p.grad is None for m in recipe.modules.values() for p in m.parameters())
    held = disk.disk(config).held_gib * 2**30
    assert held >= real


def test_what_may_lie_there_is_what_is_kept_the_best_and_the_one_being_written(root):
    assert disk.checkpoints(small(root, **{"train.keep_last": 2})) == 3
    assert disk.checkpoints(small(root, **{"train.keep_last": 2, "validation.every": 4})) == 4
    keys = {"train.keep_last": None, "train.steps": 10, "train.save_every": 3}
    assert disk.checkpoints(small(root, **keys)) == 5  # steps 3, 6, 9, 10 and one that is replaced


def test_too_small_a_disk_is_refused_with_the_numbers_and_the_key(root):
    with pytest.raises(ValueError, match="MiB, more than budget.disk_gib 0.001.*train.keep_last"):
        disk.disk(small(root, **{"budget.disk_gib": 0.001}))
    found = disk.disk(small(root, **{"budget.disk_gib": 1.0}))
    assert found.needed_gib == found.count * found.checkpoint_bytes / 2**30 < 1.0
    assert found.warnings == () and "3 checkpoints of" in str(found)


def test_a_full_disk_is_a_warning_or_the_end(root):
    config = small(root)
    size = disk.checkpoint_bytes(config)
    found = disk.held_against(config, size, held=0, free=int(2.5 * size))
    (warning,) = found.warnings
    assert "3 checkpoints" in warning and "are free at" in warning
    assert disk.held_against(config, size, held=size, free=2 * size).warnings == ()
    with pytest.raises(ValueError, match="of which one is kept while the next is written"):
        disk.held_against(config, size, held=0, free=int(1.5 * size))


# --- what is said before the start --------------------------------------------------------------


def test_the_report_before_the_start_shows_plan_budget_and_disk(root, plan):
    import polars as pl

    config = small(root, **{"budget.gpu": "RTX 4090"})
    samples = pl.DataFrame({"width": [48], "height": [48]})
    recipe = recipes.build(config)
    verdict = budget.check(config, CPU, plan=plan)
    rows = {
        what: (value, why)
        for what, value, why in preflight.report(config, samples, recipe, verdict)
    }
    assert rows["planned peak"][0] == budget.size(verdict.needed_gib)
    assert rows["memory"] == ("23.6 GiB", "budget.gpu RTX 4090")
    assert "3 checkpoints of" in rows["checkpoints"][0]
    without = [what for what, _, _ in preflight.report(config, samples, recipe)]
    assert "planned peak" not in without and "checkpoints" in without


@pytest.mark.slow
def test_an_open_micro_batch_is_fitted_once_and_replayed(root, worker):
    keys = {"train.micro_batch": None, "train.effective_batch": 6, "data.crop_size": 64}
    options = {"device": "cpu", "keep": True, "worker": worker}
    two = small(root, **(keys | {"train.micro_batch": 2}))
    limit = 1.01 * memory.trace(two, **options).peak_gib
    config = small(root, **(keys | {"budget.memory_gib": limit}))
    verdict = preflight.planned(config, run := RunDirectory(config), CPU)
    assert verdict.plan.peak_gib == pytest.approx(limit / 1.01)
    assert run.decided("micro_batch") == {"generator": 2, "discriminator": 2}
    assert verdict.line in (run.path / "train.log").read_text()
    run.rows.append({"step": 1})
    smaller = config.with_changes({"budget.memory_gib": limit / 2})
    assert not preflight.planned(smaller, again := RunDirectory(smaller), CPU).fits
    assert again.made == run.made  # it has begun: it goes on as it was decided
    fresh = smaller.with_changes({"run": "fresh"})
    with pytest.raises(ValueError, match="Ways out"):
        preflight.planned(fresh, RunDirectory(fresh), CPU)


# --- on a card ----------------------------------------------------------------------------------


def made_up(*excess: tuple[float, float]) -> list[dict]:
    """Return rows of a card that allocates 0.3 GiB beyond every plan, and some more."""
    return [
        {
            "config": f"run {n}",
            "planned_allocated_gib": 10.0 + n,
            "planned_reserved_gib": 11.0 + n,
            "allocated_gib": 10.3 + n + more,
            "reserved_gib": 11.3 + n + wider,
            "context_gib": 0.5,
        }
        for n, (more, wider) in enumerate(excess)
    ]


def test_half_of_the_configs_calibrate_and_the_other_half_judges():
    rows = made_up((0, 0), (0.113, 0), (0, 0.48), (0, 0))
    found = verify.calibrate(rows[::2], 24.0)
    assert found == pytest.approx({"workspace_gib": 0.3, "context_gib": 0.5, "margin": 0.02})
    judged = verify.judge([*rows, {"config": "too large"}], 24.0)
    assert [r.get("half") for r in judged] == ["calibration", "held out"] * 2 + [None]
    assert judged[0]["allocated_error"] == pytest.approx(10 / 10.3 - 1)
    assert judged[0]["calibrated_allocated_error"] == pytest.approx(0)
    assert judged[1]["calibrated_allocated_error"] == pytest.approx(11.3 / 11.413 - 1)
    document = verify.document(judged, gpus.card(24))
    assert document["held_out"]["configs"] == document["configs"] == 2
    worst = document["held_out"]["calibrated_allocated_error"]["worst"]
    assert worst == pytest.approx(1 - 11.3 / 11.413)
    with pytest.raises(ValueError, match="1 of 2 configs could be measured"):
        verify.judge([rows[0], {"config": "too large"}], 24.0)


def test_what_verify_writes_is_what_overhead_takes(tmp_path):
    card = gpus.card("RTX 4090")
    rows = verify.judge(made_up((0, 0), (0, 0)), card.memory_gib)
    path = overhead.path(card, tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps(verify.document(rows, card)))
    over = overhead.overhead(card, tmp_path)
    assert over.gib == pytest.approx(0.8 + verify.LEAST_MARGIN * card.memory_gib)


def test_the_steps_that_are_measured_are_the_recipes_own(root):
    one_step, phases = verify.stepper(small(root), CPU, torch.float32)
    before = [p.detach().clone() for phase in phases for p in phase.parameters.values()]
    for _ in range(4):  # layers that begin at zero let gradients through one after the other
        one_step()
    after = [p.detach() for phase in phases for p in phase.parameters.values()]
    assert all(p.isfinite().all() for p in after)
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would measure")
def test_verify_without_a_card_says_what_it_needs(root):
    with pytest.raises(ValueError, match="verify measures on a CUDA card, and torch finds none"):
        verify.verify([small(root)])
    assert not (Path(small(root).paths.runs) / overhead.FOLDER).exists()
