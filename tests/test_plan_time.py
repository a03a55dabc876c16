"""The time plan: counts times costs, a forecast that changes nothing, and a budget that stops."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import polars as pl
import pytest
import small_runs
import test_distributed
import torch
from darkroom import checkpoint, pace, rhythm, stopwatch, trainer
from darkroom.config import difference, load_config
from darkroom.plan import cautions, counts
from darkroom.plan import time as plan_time
from darkroom.plan.counts import Costs

STAGED = {  # the discriminator comes late: its steps cost more, its checkpoints are larger
    "loss.gan": 0.0,
    "stages.late.start": "70%",
    "stages.late.changes": {"loss.gan": 0.01},
}
LONG = STAGED | {
    "loss.l1": 0.1,
    "stages.early.start": "60%",  # another cost with the same phases
    "stages.early.changes": {"loss.l1": 0},
    "train.steps": 44,
    "train.save_every": 20,
    "train.image_every": 30,
    "train.grad_norm_every": 25,
    "validation.every": 22,
}


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    small_runs.write_pictures(tmp_path / "pictures")
    return tmp_path


def config_of(**override):
    values = {"model.recipe": "one_step_gan", "model.size": "tiny", "train.image_every": None}
    values |= {"train.grad_norm_every": None, "train.save_every": None, "validation.every": None}
    return load_config(base=None, override=values | override)


def config_in(root, run="small", **override):
    return load_config(**small_runs.sections(root, **override) | {"run": run})


# --- counts -----------------------------------------------------------------------------------


def test_a_run_costs_its_counts_times_the_seconds_of_each():
    config = config_of(
        **STAGED,
        **{"train.save_every": 300, "train.image_every": 400, "train.grad_norm_every": 100},
        **{"validation.every": 250},
    )
    steps = {"": {"loader": 0.1, "generator": 0.4}, "loss.gan on": {"generator": 0.5, "heads": 1.0}}
    events = {"validation": 20.0, "pictures": 3.0, "gradient norms": 1.0}
    costs = Costs(steps, events, {"": 2.0, "loss.gan on": 5.0})
    rows = counts.counted(config, costs, horizon=1000, start=20, end=1000)
    assert {part: (n, round(s, 9)) for part, n, s in rows} == {
        "loader": (680, 68.0),
        "generator": (980, 680 * 0.4 + 300 * 0.5),
        "heads": (300, 300.0),
        "gradient norms": (10, 10.0),
        "pictures": (3, 9.0),  # 400, 800 and the end
        "validation": (4, 80.0),
        # 250, 300, 500, 600 before the discriminator comes at 700; 750, 900 and the end after
        "save": (7, 4 * 2.0 + 3 * 5.0),
    }


@pytest.mark.parametrize("save_every", [None, 7, 30])
@pytest.mark.parametrize("every", [5, 9])
@pytest.mark.parametrize("decision", [None, (9, 18), (45, 45)])
@pytest.mark.parametrize(("start", "end"), [(0, 100), (20, 90), (40, 41)])
def test_validations_and_saves_are_as_many_as_the_loop_makes(
    save_every, every, decision, start, end
):
    config = config_of(**{"train.save_every": save_every, "validation.every": every})
    section = SimpleNamespace(every=every, max_time_share=0.5)
    paces = rhythm.Rhythm(SimpleNamespace(validation=section), SimpleNamespace(made=[]))
    paces.decision = decision
    after = range(start + 1, end + 1)
    validated = [n for n in after if paces.due(n, end)]
    saved = {n for n in after if (save_every and n % save_every == 0) or n == end} | set(validated)
    rows = counts.counted(
        config, Costs({"": {}}), horizon=end, start=start, end=end, decision=decision
    )
    found = {part: n for part, n, _ in rows}
    assert found.get("validation", 0) == len(validated)
    assert found.get("save", 0) == len(saved)


def test_only_what_changes_the_work_of_a_step_makes_another_cost():
    config = config_of(
        **{
            "loss.gan": 0.0,
            "loss.l1": 1.0,
            "stages.a.start": 10,
            "stages.a.changes": {"loss.l1": 0.5, "optim.generator.lr": 1e-4},
            "stages.b.start": 20,
            "stages.b.ramp": 5,
            "stages.b.changes": {"loss.l1": 0},
            "stages.c.start": "50%",
            "stages.c.changes": {"loss.gan": 0.1, "data.crop_size": 64},
        }
    )
    assert counts.segments(config, 100, 0, 100) == [
        (0, 24, ""),  # a weight that falls to 0 is worked for until it is 0
        (24, 50, "loss.l1 off"),
        (50, 100, "data.crop_size 64, loss.gan on, loss.l1 off"),
    ]
    assert counts.segments(config, 100, 30, 40) == [(30, 40, "loss.l1 off")]


def test_a_stretch_of_the_validations_is_foreseen():
    options = {"validation.every": 10, "validation.max_time_share": 0.2}
    costs = Costs({"": {"network": 1.0}}, {"validation": 10.0})
    rows = counts.counted(config_of(**options), costs, horizon=400, start=0, end=400)
    # after 10 steps the interval becomes 40: 10 s of 50
    assert {part: n for part, n, _ in rows}["validation"] == 11


# --- the forecast -----------------------------------------------------------------------------


def test_steps_that_are_still_warming_up_do_not_count():
    falling, steady = [0.9, 0.36, 0.35, 0.36, 0.35], [0.12, 0.13, 0.125, 0.12, 0.13, 0.125, 0.12]
    assert counts.settled(falling + steady) == 5
    assert counts.settled(steady) == 0
    assert counts.settled([0.3] * 8) == 0 and counts.settled([1.0]) == 0
    assert counts.settled([0.5] * 9 + [0.1] * counts.LEAST) == 9
    assert counts.settled([0.1, 0.1, 0.1, 0.1, 0.5, 0.5]) == 0  # growing slower is no warm-up
    rows = [{"network": s} for s in [9.0] * 5 + falling + steady]  # the first five never count
    parts, _ = counts.step_costs(rows)
    assert parts["network"] == pytest.approx(sum(steady) / len(steady))


def test_the_interval_follows_the_variation_of_the_steps_down_to_a_floor():
    rows = [{"network": 9.0}] * 5 + [{"network": 1.0}] * 15
    parts, spread = counts.step_costs(rows)
    assert (parts, spread) == ({"network": 1.0}, 0.0)  # warm-up is left out
    config = config_of()
    calm = plan_time.calculate(config, Costs({"": parts}, spread=spread), horizon=100)
    assert calm.middle_seconds == pytest.approx(100)
    assert (calm.low_seconds, calm.high_seconds) == pytest.approx((95, 105))
    parts, spread = counts.step_costs(rows[:5] + [{"network": 0.5}, {"network": 1.5}] * 8)
    assert spread == pytest.approx(2 * 0.5 * math.sqrt(16 / 15) / 4)
    restless = plan_time.calculate(config, Costs({"": parts}, spread=spread), horizon=100)
    assert restless.high_seconds == pytest.approx(100 * (1 + spread))


def test_what_has_passed_is_known_and_part_of_the_whole():
    passed = {"set-up": (1, 4.0), "first 20 steps": (20, 30.0)}
    made = plan_time.calculate(
        config_of(), Costs({"": {"network": 1.0}}), horizon=100, step=20, passed=passed
    )
    assert made.middle_seconds == pytest.approx(4 + 30 + 80)
    assert made.low_seconds == pytest.approx(34 + 76)
    assert made.frame["share"].sum() == pytest.approx(1)
    assert "100 steps take 1:54" in made.line()
    again = plan_time.Forecast.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made


def test_hours_are_filled_with_the_validations_saves_and_pictures():
    config = config_of(
        **STAGED,
        **{"train.save_every": 70, "train.image_every": 90, "validation.every": 100},
    )
    steps = {"": {"generator": 1.0}, "loss.gan on": {"generator": 1.0, "discriminator": 2.0}}
    costs = Costs(steps, {"validation": 60.0, "pictures": 5.0}, {"": 3.0})
    passed = {"set-up": (1, 100.0)}

    def seconds(horizon):
        return plan_time.calculate(config, costs, horizon=horizon, passed=passed).middle_seconds

    horizon = plan_time.fill(config, costs, 7200, passed)
    assert seconds(horizon) <= 7200 < seconds(horizon + 1)
    assert horizon < 7200 / 1.6  # what a step costs on average, were there nothing else


def test_the_time_left_follows_what_was_measured_since():
    config = config_of(**STAGED, **{"validation.every": 50})
    steps = {"": {"generator": 1.0}, "loss.gan on": {"generator": 1.5, "discriminator": 1.5}}
    costs = Costs(steps, {"validation": 10.0})
    watch = stopwatch.Stopwatch()

    def left(step):
        return plan_time.remaining(config, costs, watch, horizon=100, step=step, end=100)

    assert left(20) == pytest.approx(50 + 90 + 20)
    for name, seconds in (("", 2.0), ("", 2.0)):  # twice as slow as forecast
        watch.steps.setdefault(name, stopwatch.Mean()).add(seconds)
    assert left(60) == pytest.approx(2 * (10 + 90) + 10)
    watch.events["validation"] = stopwatch.Mean()
    watch.events["validation"].add(7.0)
    watch.steps["loss.gan on"] = stopwatch.Mean()
    watch.steps["loss.gan on"].add(5.0)
    assert left(90) == pytest.approx(50 + 7)
    alone = plan_time.remaining(config, None, watch, horizon=100, step=90, end=100)
    assert alone == pytest.approx(50 + 7)


def test_parts_nest_without_counting_twice_and_nothing_is_lost(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(now)))
    watch = stopwatch.Stopwatch()  # 0
    with watch.part("generator"):  # 1
        with watch.part("loader"):  # 2, 3
            pass
        with watch.part("gradient norms"):  # 4, 5
            pass
    # 6; the step ends at 7
    watch.stepped()
    assert watch.rows == [{"loader": 1.0, "generator": 3.0, "rest": 2.0}]
    assert watch.events["gradient norms"].value == 1.0


# --- the horizon's slips ----------------------------------------------------------------------


def test_horizons_say_which_one_wins_and_what_each_would_be():
    config = config_of(
        **{
            "train.steps": None,
            "train.images": 14080,
            "train.epochs": 10,
            "train.effective_batch": 64,
            "optim.schedule.warmup": 200,
        }
    )
    rows = {row["way"]: row for row in plan_time.horizons(config, 1400).to_dicts()}
    assert [rows[w]["wins"] for w in ("steps", "hours", "images", "epochs")] == [0, 0, 1, 0]
    assert rows["images"]["steps"] == 220 and rows["images"]["warmup_share"] > 0.9
    assert rows["epochs"]["steps"] == math.ceil(14000 / 64)
    assert "train.images comes first" in rows["epochs"]["reason"]
    assert rows["hours"]["steps"] is None
    timed = config_of(**{"train.steps": None, "train.hours": 1.0})
    costs = Costs({"": {"network": 2.0}})
    hours = plan_time.horizons(timed, 1400, costs).filter(pl.col("way") == "hours")
    assert hours["steps"].item() == 1800 and hours["wins"].item()


def test_likely_slips_are_named_with_their_numbers_and_the_way_out():
    slips = "\n".join(
        cautions.cautions(
            config_of(
                **{
                    "train.steps": None,
                    "train.epochs": 10,
                    "train.effective_batch": 64,
                    "data.sample_ratio": 0.05,
                    "optim.schedule.warmup": 200,
                }
            ),
            220,
            1400,
        )
    )
    assert "200 of 220 steps (91%)" in slips and "optim.schedule.warmup" in slips
    assert "220 optimizer steps are few" in slips and "effective batch 64" in slips
    assert "data.sample_ratio 0.05 leaves 1,400 images" in slips
    calm = config_of(**{"train.steps": 5000, "optim.schedule.warmup": "5%"})
    assert cautions.cautions(calm, 5000, 1400) == []
    given = config_of(**{"model.size": "full", "model.base": "somewhere"})
    assert cautions.cautions(given, 200, 1400) == []


def test_a_forecast_beyond_the_budget_says_by_how_much():
    config = config_of(**{"budget.hours": 1.0, "validation.every": 10})
    costs = Costs({"": {"network": 1.0}}, {"validation": 10.0})
    lines = cautions.excesses(config, plan_time.calculate(config, costs, horizon=3600))
    assert "2 h, 1 h more than budget.hours 1" in lines[0]
    assert "50% of the time: raise validation.every" in lines[1]
    assert cautions.excesses(config, plan_time.calculate(config, costs, horizon=10)) == lines[1:]


# --- real runs --------------------------------------------------------------------------------


def test_the_forecast_is_written_and_changes_nothing(root, monkeypatch):
    made = trainer.train(config_in(root, "forecast", **LONG)).run_dir
    monkeypatch.setattr(pace, "SHORTEST", 10**9)
    plain = trainer.train(config_in(root, "plain", **LONG)).run_dir
    assert not (plain / "forecast.json").exists()
    assert small_runs.losses(made) == small_runs.losses(plain)
    assert small_runs.final_weights(made) == small_runs.final_weights(plain)
    scores = [pl.read_parquet(p / "validation.parquet") for p in (made, plain)]
    scores = [s.select(pl.exclude("config_hash")) for s in scores]
    assert scores[0].equals(scores[1])
    names = [sorted(p.name for p in run.iterdir()) for run in (made, plain)]
    assert set(names[0]) - set(names[1]) == {"forecast.json"}
    found = plan_time.read(made / "forecast.json")
    assert (found.step, found.end) == (20, 44)
    late = "loss.gan on, loss.l1 off"
    assert set(found.costs.steps) == {"", "loss.l1 off", late}
    assert "discriminator" in found.costs.steps[late]
    rows = {row["part"]: row["count"] for row in found.rows}
    assert (rows["validation"], rows["pictures"], rows["gradient norms"]) == (2, 2, 1)
    assert (rows["first 20 steps"], rows["generator"], rows["discriminator"]) == (20, 24, 13)
    assert found.low_seconds < found.middle_seconds < found.high_seconds
    assert (made / "train.log").read_text().count("step 20: forecast: 44 steps take") == 1


def test_steps_taken_aside_leave_nothing_behind(root):
    from darkroom import turn
    from darkroom.interrupts import StopSignals
    from darkroom.progress import Quiet
    from darkroom.run import RunDirectory

    config = config_in(root, **LONG)
    with StopSignals() as signals:
        made = trainer.Trainer(config, RunDirectory(config), signals, Quiet())
    state = made.state

    def step():
        turn.all_phases(state, None, made.accelerator, torch.float32, made.pace.watch, 9)
        state.step += 1

    step()
    modules = state.recipe.modules.values()
    values = lambda: [t.clone() for m in modules for t in m.state_dict().values()]  # noqa: E731
    before = values(), state.tensors(), dict(state.feed.positions), torch.get_rng_state()
    before[1]["optimizer"] = {k: v.clone() for k, v in before[1]["optimizer"].items()}
    before[1]["ema"] = {k: v.clone() for k, v in before[1]["ema"].items()}
    feed = state.feed
    with state.aside():
        state.step = 40
        state.follow_stages(40)
        step()
        torch.rand(3)
        assert len(state.phases) == 2 and state.feed is not feed
        assert not all(map(torch.equal, values(), before[0]))
    assert state.step == 1 and [p.name for p in state.phases] == ["generator"]
    assert state.feed is feed and feed.positions == before[2]
    assert all(map(torch.equal, values(), before[0]))
    assert set(state.optimizers) == set(state.met) == {"generator"}
    for part, tensors in state.tensors().items():
        assert set(tensors) == set(before[1][part])
        assert all(torch.equal(t, before[1][part][name]) for name, t in tensors.items())
    assert torch.equal(torch.get_rng_state(), before[3])
    state.feed.close()


@pytest.mark.slow
def test_two_processes_make_one_forecast(root):
    test_distributed.launch(root, 2, "two", **LONG)
    found = plan_time.read(root / "runs" / "two" / "forecast.json")
    assert len(found.costs.steps) == 3 and found.costs.saves


def test_the_horizon_of_hours_leaves_room_for_validations_and_saves(root):
    options = {"train.steps": None, "train.hours": 0.003, "validation.every": 10}
    config = config_in(root, **STAGED, **options, **{"train.save_every": 20})
    result = trainer.train(config)
    row = json.loads((result.run_dir / "decisions.jsonl").read_text().splitlines()[0])
    found = plan_time.read(result.run_dir / "forecast.json")
    assert row["decision"] == "horizon" and row["value"] == result.step == found.end
    passed = {
        r["part"]: (r["count"], r["seconds"])
        for r in found.rows
        if r["part"] in ("set-up", "forecast")
    }
    assert set(passed) == {"set-up", "forecast"}
    longer = plan_time.calculate(config, found.costs, horizon=result.step + 1, passed=passed)
    assert found.costs.events["validation"] > 0 and min(found.costs.saves.values()) > 0
    if result.step > 1:  # on a machine so slow that set-up alone fills the time, one step is taken
        assert found.middle_seconds <= 0.003 * 3600
    assert longer.middle_seconds > 0.003 * 3600
    assert found.share("validation") > 0


def test_a_spent_budget_stops_with_a_checkpoint_and_a_larger_one_goes_on(root):
    straight = trainer.train(config_in(root, "straight")).run_dir
    short = config_in(root, "again", **{"budget.hours": 1e-6})
    stopped = trainer.train(short)
    assert (stopped.status, stopped.step) == ("stopped", 1)
    assert "budget.hours 1e-06" in stopped.reason and "raise budget.hours" in stopped.reason
    assert checkpoint.steps(stopped.run_dir) == [1]
    status = json.loads((stopped.run_dir / "status.json").read_text())
    assert status["status"] == "stopped"
    again = trainer.train(short)  # without another step: the budget is that of all processes
    assert (again.status, again.step) == ("stopped", 1)
    done = trainer.train(config_in(root, "again", **{"budget.hours": 10.0}))
    assert done.status == "completed"
    assert small_runs.losses(done.run_dir) == small_runs.losses(straight)
    assert small_runs.final_weights(done.run_dir) == small_runs.final_weights(straight)
    elapsed = [
        checkpoint.read(done.run_dir, s).state["elapsed"] for s in checkpoint.steps(done.run_dir)
    ]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] > checkpoint.read_named(straight, "latest").state["seconds"]


def test_a_checkpoint_from_before_budgets_is_continued(root):
    result = trainer.train(config_in(root, **{"train.steps": 3}))
    path = result.run_dir / "checkpoints" / "latest" / "state.json"
    document = json.loads(path.read_text())
    del document["elapsed"]
    path.write_text(json.dumps(document))
    extended = config_in(root, **{"train.steps": 3, "train.extend": 2, "budget.hours": 5.0})
    assert trainer.train(extended).step == 5


def test_another_budget_is_the_same_run():
    before = config_of()
    assert difference(before.to_dict(), config_of(**{"budget.hours": 3.0})) == []
    assert difference(before.to_dict(), config_of(**{"train.clip": 3.0})) != []


def test_a_run_that_will_exceed_its_budget_says_so_when_it_is_forecast(root, monkeypatch):
    monkeypatch.setattr(pace.Pace, "spent", lambda self: None)  # or it would never come so far
    result = trainer.train(config_in(root, **LONG, **{"budget.hours": 1e-5}))
    assert result.status == "completed"  # it is a warning: the schedule is not bent
    log = (result.run_dir / "train.log").read_text()
    assert log.count("more than budget.hours 1e-05: it will stop there with a checkpoint") == 1


def test_a_forecast_before_the_run_leaves_nothing_behind(root):
    config = config_in(root, **LONG)
    said = []
    made = plan_time.forecast(config, said.append)
    assert made.end == 44 and made.costs.events["validation"] > 0
    assert any("forecast: 44 steps take" in line for line in said)
    assert [p.name for p in (root / "runs").iterdir()] == [".index-cache"]  # of all runs
    shutil.rmtree(root / "pictures")
    with pytest.raises(ValueError, match="pictures"):
        plan_time.forecast(config)
    assert [p.name for p in (root / "runs").iterdir()] == [".index-cache"]
