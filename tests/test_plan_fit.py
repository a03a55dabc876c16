"""Laws held against traces at other sizes, and what the search makes of a budget."""

from __future__ import annotations

import os

import numpy as np
import pytest
import small_runs
import small_sd
from darkroom.config import load_config
from darkroom.plan import cache, fit, gpus, history, law, laws, levers, memory, pool, roofline
from darkroom.plan.phase_names import LATER
from darkroom.plan.trace import Trace
from darkroom.report import planner

GIB = 2**30
CARD = gpus.card("A100-40G")
SMALL = {
    "data.crop_size": 96,
    "train.image_every": 5,
    "train.grad_norm_every": 1,
    "restore.tile": 96,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def config(root):
    keys = SMALL | {"train.effective_batch": 6, "train.tail_micro_batch": None}
    return load_config(**small_runs.sections(root, **keys))


@pytest.fixture(scope="module")
def lora(root):
    folder = small_sd.write(root / "sd")
    keys = small_sd.override(folder) | {"data.crop_size": 64, "model.lora_rank": 8}
    keys |= {"restore.tile": 64}
    keys |= {"train.effective_batch": 4, "train.grad_norm_every": None, "train.image_every": None}
    keys |= {"loss.gan": 0.0, "loss.l1": 1.0}
    return load_config(**small_runs.sections(root, **keys))


@pytest.fixture(scope="module")
def plain(root):
    keys = SMALL | {"train.effective_batch": 6, "model.recipe": "regression", "loss.gan": 0.0}
    keys |= {"data.crop_size": 512}
    return load_config(**small_runs.sections(root, **keys))


@pytest.fixture(scope="module")
def worker():
    with memory.Worker() as process:
        yield process


def exact(config, worker, **changes) -> memory.Plan:
    return memory.trace(config.with_changes(changes), precision="bf16", worker=worker, keep=True)


def held(outcome, plan, rel):
    for name, gib in plan.phases.items():
        if name in outcome.phases and name not in ("images", "validation"):
            gib = max(gib, plan.phases.get(name + LATER, 0))
            assert outcome.phases[name] / GIB == pytest.approx(gib, rel=rel), name
    if outcome.phase == plan.peak_phase:
        assert outcome.peak / GIB == pytest.approx(plan.peak_gib, rel=rel)


# --- laws ---------------------------------------------------------------------------------------


def test_two_sizes_tell_every_micro_batch_with_and_without_accumulation(config, worker):
    own = planner.Answers(config, CARD, "bf16").own()
    found = laws.trace(config, CARD, "bf16", [own.structure])
    for micro in (6, 3):
        choice = levers.Choice(own.structure, micro, False, False, True)
        plan = exact(config, worker, **{"train.micro_batch": micro})
        held(found.outcome(choice), plan, rel=2e-3)


@pytest.mark.slow
def test_the_law_of_a_tail_holds_for_other_batches(config, worker):
    structure = tuple(
        (k, 1 if k == "train.tail_micro_batch" else v)
        for k, v in planner.Answers(config, CARD, "bf16").own().structure
    )
    found = laws.trace(config, CARD, "bf16", [structure])
    changes = {"train.tail_micro_batch": 1, "train.micro_batch": 6}
    plan = exact(config, worker, **changes)
    held(found.outcome(levers.Choice(structure, 6, False, False, True)), plan, rel=2e-3)


@pytest.mark.slow
def test_rank_and_pixels_are_linear_too(lora):
    structure = planner.Answers(lora, CARD, "bf16").own().structure
    points = [(samples, rank, 64) for rank in (8, 4) for samples in (2, 3)]
    others = [(4, 12, 64), (4, 8, 96)]
    requests = []
    for samples, rank, crop in points + others:
        config = laws._at(lora, structure, samples, False, rank)
        config = config.with_changes({"data.crop_size": crop})
        requests.append((config, "bf16", {"only": ["generator"]}))
    traced = pool.traces(requests)
    sizes = [{"samples": s, "rank": r} for s, r, _ in points]
    found = law.fit(traced[:4], sizes, laws.RANK_TERMS)
    for (samples, rank, crop), whole in zip(others, traced[4:], strict=True):
        pixels = (crop / 64) ** 2
        peaks = found.peaks(found.at(samples=samples * pixels, rank=rank)[:, 0])
        live, phase = history.live(whole.events), history.phases(whole.events)
        peak = live[phase == whole.phases.index("generator")].max()
        assert peaks["generator"] == pytest.approx(peak, rel=5e-3 if crop == 64 else 0.02)


def test_an_average_on_the_cpu_and_8_bit_moments_are_arithmetic(config, worker):
    own = planner.Answers(config, CARD, "bf16").own()
    found = laws.trace(config, CARD, "bf16", [own.structure])
    plan = exact(config, worker, **{"train.micro_batch": 6, "train.ema_device": "cpu"})
    held(found.outcome(levers.Choice(own.structure, 6, True, False, True)), plan, rel=2e-3)
    eight = {f"optim.{p}.name": "adamw8bit" for p in ("generator", "discriminator")}
    plan = exact(config, worker, **{"train.micro_batch": 6} | eight)
    outcome = found.outcome(levers.Choice(own.structure, 6, False, True, True))
    assert outcome.peak / GIB == pytest.approx(plan.peak_gib, rel=0.01)


def _events(sizes: list[int]) -> np.ndarray:
    births = [(1, n, size, 0, 0, 1) for n, size in enumerate(sizes)]
    deaths = [(-1, n, size, 0, 0, 1) for n, size in enumerate(sizes)]
    return np.array(births + deaths, np.int64)


def _trace(events: np.ndarray) -> Trace:
    kernels = np.zeros((0, 5), np.int64)
    return Trace(events, kernels, ["weights"], [""], ["between", "turn"], ["turn"], 1, {}, 0.0)


def test_the_peak_may_move_to_another_event():
    # 100 + x, then 10 + 30 x: at 2 and 3 the first one is the larger, at 8 the second
    traces = [
        _trace(np.concatenate([_events([100 + x]), _again(_events([10 + 30 * x]))])) for x in (2, 3)
    ]
    found = law.fit(traces, [{"x": 2}, {"x": 3}], [(), ("x",)])
    assert found.peaks(found.at(x=2)[:, 0])["turn"] == pytest.approx(102)
    assert found.peaks(found.at(x=8)[:, 0])["turn"] == pytest.approx(250)


def _again(events: np.ndarray) -> np.ndarray:
    events = events.copy()
    events[:, 1] += 1000
    return events


def test_other_events_at_other_sizes_are_no_law():
    plain = _events(list(range(1, 100)))
    changed = plain.copy()
    changed[10:150, 3] = 7
    with pytest.raises(law.NoLaw, match="others at other sizes"):
        law.fit([_trace(plain), _trace(changed)], [{"x": 2}, {"x": 3}], [(), ("x",)])
    with pytest.raises(ValueError, match="do not tell the terms"):
        law.fit([_trace(_events([1]))] * 2, [{"x": 2}, {"x": 2}], [(), ("x",)])


# --- time ---------------------------------------------------------------------------------------


def test_a_kernel_takes_the_longer_of_computing_and_moving():
    kernels = np.array([[1, 0, 312 * 10**9, 10, 2], [1, 3, 0, 1555 * 10**6, 3]], np.int64)
    traced = _trace(_events([1]))
    traced.kernels = kernels
    bound = roofline.phases(traced, CARD)["turn"]
    assert bound.seconds == pytest.approx(2 * 1e-3 + 3 * 1e-3, rel=1e-3)
    assert (bound.launches, bound.tflop) == (5, pytest.approx(0.624))


def test_arithmetic_that_a_card_has_no_units_for_runs_in_another():
    old = gpus.card("T4")
    assert roofline.peak(old, "bf16") == roofline.peak(old, "fp16")
    assert roofline.peak(old, "tf32") == roofline.peak(old, "fp32")


@pytest.mark.slow
def test_accumulation_repeats_the_turn_and_not_the_optimizer(config, worker):
    def step(micro):
        plan = exact(config, worker, **{"train.micro_batch": micro})
        bounds = roofline.phases(plan.traced, CARD)
        return roofline.step(bounds, plan.traced.accumulation)

    assert step(1).tflop == pytest.approx(step(6).tflop, rel=0.01)
    assert step(1).launches > 4 * step(6).launches


# --- the search ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smallest(plain):
    """The smallest budget, in GiB, found by asking for next to nothing."""
    refused = fit.fit(plain, budget_gib=0.01)
    assert refused.recommended is None
    return refused


def test_what_cannot_fit_is_answered_with_the_smallest_budget_and_what_holds_it(smallest):
    assert "the smallest budget is" in smallest.verdict and "held by the phase" in smallest.verdict
    with pytest.raises(ValueError, match="the smallest budget is"):
        smallest.write("never.yaml")


def test_a_budget_gives_a_config_of_the_same_effective_batch_that_its_trace_proves(
    plain, smallest, root
):
    frame = smallest.frame
    middle = float((frame["needed_gib"].min() + frame["needed_gib"].max()) / 2)
    found = fit.fit(plain, budget_gib=middle)
    assert found.recommended.train.effective_batch == plain.train.effective_batch
    assert found.plan.peak_gib < middle
    fits = frame.filter((frame["needed_gib"] <= middle) & (frame["level"] == 0))
    chosen = list(found.proofs)[-1]
    best = frame.filter(frame["choice"] == chosen)["seconds_at_least"][0]
    assert best == pytest.approx(fits["seconds_at_least"].min())
    path = found.write(root / "fitted.yaml")
    again = load_config(base=str(path), run="fitted", paths=plain.to_dict()["paths"])
    same = {k: v for k, v in again.to_dict().items() if k not in ("base", "run", "override")}
    assert same == {k: v for k, v in found.recommended.to_dict().items() if k in same}
    with pytest.raises(ValueError, match="is there already"):
        smallest_path = root / "fitted.yaml"
        smallest_path.write_text("mine: 1\n")
        found.write(smallest_path)


def test_every_choice_keeps_the_batch_and_the_front_falls_in_memory_and_rises_in_time(smallest):
    frame, front = smallest.frame, smallest.pareto
    assert (frame["micro_batch"] * frame["accumulation"]).unique().to_list() == [6]
    assert front["needed_gib"].is_sorted(descending=True)
    for level in front.partition_by("level"):
        assert level["seconds_at_least"].is_sorted()
    assert front["step_down"][1:].str.len_chars().min() > 0


def test_hours_rule_out_what_is_slower_than_its_bound(plain):
    slow = plain.with_changes({"train.steps": 10**9})
    found = fit.fit(slow, gpu="A100-40G", hours=1)
    assert found.recommended is None and "takes at least" in found.verdict


def test_no_budget_is_an_error_that_says_what_to_give(plain):
    with pytest.raises(ValueError, match="budget_gib=24"):
        fit.fit(plain)


# --- what is kept -------------------------------------------------------------------------------


def test_a_trace_is_kept_by_what_it_reads_and_a_damaged_one_is_made_again(plain):
    config = plain
    other = config.with_changes({"seed": 5, "train.steps": 77, "data.workers": 3})
    assert cache.key(config, kind="x") == cache.key(other, kind="x")
    changed = config.with_changes({"loss.ssim": 0.3})
    assert cache.key(config, kind="x") != cache.key(changed, kind="x")
    options = {"only": ["between"]}
    first = pool.traces([(config, "bf16", options)])[0]
    name = cache.key(config, kind="part", precision="bf16", **options)
    path = cache._path(config, name)
    assert (pool.traces([(config, "bf16", options)])[0].events == first.events).all()
    path.write_bytes(path.read_bytes()[:100])
    assert cache.kept(config, name) is None
    assert (pool.traces([(config, "bf16", options)])[0].events[:, 2] == first.events[:, 2]).all()


def test_traces_not_used_for_longest_go_when_all_take_too_much(plain, tmp_path, monkeypatch):
    config = plain.with_changes({"paths.runs": str(tmp_path)})
    traced = pool.traces([(config, "bf16", {"only": ["between"]})])[0]
    for age, name in enumerate(("used", "newer", "older")):
        cache.keep(config, name, traced)
        os.utime(cache._path(config, name), (1e9 - age, 1e9 - age))
    os.utime(cache._path(config, "used"), (1, 1))
    assert cache.kept(config, "used") is not None  # which makes it the youngest
    size = cache._path(config, "used").stat().st_size
    monkeypatch.setattr(cache, "LIMIT", 3 * size)
    cache.keep(config, "new", traced)
    names = {path.stem for path in (tmp_path / cache.FOLDER).glob("*.npz")}
    assert "older" not in names and {"used", "new"} <= names


# --- sliders ------------------------------------------------------------------------------------


def test_sliders_answer_and_say_whether_it_fits(plain):
    panel = planner.Panel(planner.Answers(plain, gpus.card("24 GiB"), "bf16"))
    assert "fits" in panel.answer.value and "network" in panel.answer.value
    before = panel.answer.value
    panel.micro.value = 1
    assert panel.answer.value != before
    panel.card.value = "8 GiB"
    panel.crop.value = 1024
    assert "GiB of 8" in panel.answer.value


def test_without_lab_the_sliders_are_a_table_of_single_levers(plain):
    table = planner.panel(plain, "24 GiB")
    text = repr(table)
    assert "as configured" in text and "network recomputed" in text and "micro batch 1" in text
