"""What a config says about its run: derived numbers, warnings, its hash, what may differ."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import darkroom
import pytest
from darkroom.config import Config, ConfigError, difference, load_config

PARAMS = Path(__file__).parents[1] / "params"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Give a repository of its own, with tiny.yaml and no local.yaml."""
    (tmp_path / "params").mkdir()
    shutil.copy(PARAMS / "tiny.yaml", tmp_path / "params")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setenv("DARKROOM_ROOT", str(tmp_path))
    return tmp_path


def write(root, name, text):
    path = root / "params" / f"{name}.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_accumulation_is_the_effective_over_the_micro_batch_and_says_why(root):
    config = load_config(train={"effective_batch": 12, "micro_batch": 4})
    assert config.train.accumulation == 3
    assert (
        "accumulation 3: train.effective_batch 12 / train.micro_batch 4 on one process"
        in config.notes
    )
    assert load_config().train.accumulation == 1


def test_shares_of_the_horizon_are_shown_in_steps(root):
    stages = {"late": {"start": "25%", "changes": {"loss.gan": 0}}}
    notes = load_config(train={"steps": 200}, stages=stages).notes
    assert "stages.late.start 25% is step 50 of 200" in notes
    assert "optim.schedule.warmup 2% is step 4 of 200" in notes


WARNINGS = {
    "gan in regression": (
        {"model.recipe": "regression", "loss.gan": 0.01},
        "without effect: loss.gan: 0.01 (the recipe is regression)",
    ),
    "discriminator in regression": (
        {"model.recipe": "regression"},
        "optim.discriminator.lr: 0.0002 (the recipe is regression, with the phases network)",
    ),
    "adapter on tiny": (
        {"model.lora_rank": 4},
        "without effect: model.lora_rank: 4 (model.size is tiny",
    ),
    "two timesteps": (
        {"model.coeff_t": 150},
        "model.model_t 200 differs from model.coeff_t 150",
    ),
    "second horizon": ({"train.hours": 2}, "train.hours: 2.0 (train.steps comes first)"),
    "folder of photographs": (
        {"data.train": "x"},
        'data.train: "x" (data.source is photographs)',
    ),
    "types of unpaired data": (
        {"data.types": ["Rain"]},
        "(data.source is photographs, degraded on the fly: set degradation.types)",
    ),
    "severity of nothing": (
        {"degradation.kind": "none", "degradation.severity": "hard"},
        "degradation.severity: [0.67, 1.0] (degradation.kind is none)",
    ),
    "degraded pairs": (
        {"data.source": "pairs", "data.train": "x", "degradation.severity": "hard"},
        "degradation.severity: [0.67, 1.0] (data.source is pairs, degraded already)",
    ),
    "size of no crop": (
        {"data.crop": "none", "data.crop_size": 96},
        "data.crop_size: 96 (data.crop is none)",
    ),
    "floor of a constant rate": (
        {"optim.schedule.kind": "constant"},
        "optim.schedule.min_lr: 1e-05 (optim.schedule.kind is constant)",
    ),
    "moments of rmsprop": (
        {"optim.generator.name": "rmsprop", "optim.generator.betas": [0.5, 0.9]},
        "optim.generator.betas: [0.5, 0.9] (rmsprop has no betas)",
    ),
    "sampler of one step": ({"restore.num_steps": 9}, "which restores without a sampler"),
    "project of no tracker": (
        {"tracking.project": "x"},
        'tracking.project: "x" (tracking.report_to names no tracker)',
    ),
    "no adversarial term": (
        {"loss.gan": 0, "stages.adversarial.changes": {"loss.gan": 0}},
        "loss.gan is 0: there is no discriminator phase",
    ),
    "no average to score": (
        {"train.ema_decay": None},
        "validation.weights is ema and train.ema_decay is off: raw weights are scored",
    ),
    "a decoder without weights": (
        {"train.checkpointing.decoder": "on"},
        'train.checkpointing.decoder: "on" (the tiny autoencoder keeps nothing)',
    ),
    "a lever of another recipe": (
        {"model.recipe": "regression", "train.tail_micro_batch": 1},
        "train.tail_micro_batch: 1 (the recipe is regression",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_an_option_without_effect_is_a_warning(root, case):
    override, message = WARNINGS[case]
    assert load_config().warnings == []
    assert message in "\n".join(load_config(override=override).warnings)


def test_the_config_shows_its_values_and_marks_what_differs(root):
    config = load_config(loss={"gan": 0.3})
    shown, page = str(config), config._repr_html_()
    assert "* gan            0.3   (default 0.0)" in shown
    assert "  charbonnier    0.0\n" in shown
    assert "loss.gan</td><td style='text-align:left'><b>0.3</b></td>" in page
    for text in (shown, page):
        assert config.hash in text and str(config.run_dir) in text
        assert "denoiser" not in text  # a phase this recipe does not have


# --- hash, round trip, difference


def test_a_config_survives_json(root):
    config = load_config(
        stages={"late": {"start": "50%", "ramp": 5, "changes": {"loss.gan": 0.1}}},
        train={"early_stopping": {"patience": 2}},
        degradation={"severity": "hard"},
        ablation={"grid": {"loss.gan": [0, 0.1]}, "seeds": [1, 2]},
        override={"loss.l1": 2},
    )
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert (again.hash, again.warnings, again.notes) == (config.hash, config.warnings, config.notes)


def test_the_hash_is_the_same_however_the_values_were_given(root):
    write(root, "x", "{base: tiny, run: x, loss: {gan: 0.3}}")
    reference = load_config(base="x").hash
    assert len(reference) == 16 and int(reference, 16)
    assert load_config(loss={"gan": 0.3}).hash == reference
    assert load_config(override={"loss.gan": "3e-1"}).hash == reference
    assert load_config(base="x", run="y", paths={"runs": "/elsewhere"}).hash == reference
    assert load_config(base="x", seed=1).hash != reference


def test_the_hash_is_the_same_in_another_process_and_place(root, monkeypatch):
    code = "import darkroom; print(darkroom.load_config().hash)"
    environment = {**os.environ, "PYTHONPATH": str(Path(darkroom.__file__).parents[1])}
    environment["PYTHONHASHSEED"] = "77"
    other = root / "other"
    shutil.copytree(root / "params", other / "params")
    environment["DARKROOM_ROOT"] = str(other)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == load_config().hash


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data.train": "x"},
        {"data.hflip": False},
        {"degradation.severity": "easy"},
        {"model.coeff_t": 150},
        {"loss.vgg": 1e-9},
        {"train.effective_batch": 4},
        {"optim.denoiser.lr": 1},
        {"stages.late.start": 3},
        {"validation.seed": 1},
        {"restore.overlap": 0.25},
    ],
    ids=str,
)
def test_what_can_change_a_number_changes_the_hash(root, change):
    assert load_config(override=change).hash != load_config().hash


def test_nothing_differs_from_a_stored_config_that_is_the_same(root):
    config = load_config()
    assert difference(json.loads(json.dumps(config.to_dict())), config) == []


def test_a_difference_names_both_values(root):
    stored = load_config(loss={"gan": 0.3}, data={"hflip": False}).to_dict()
    assert difference(stored, load_config(loss={"gan": 0.5})) == [
        "data.hflip: false in the run, true now",
        "loss.gan: 0.3 in the run, 0.5 now",
    ]
    stages = {"late": {"start": 5, "changes": {"loss.gan": 0.1}}}
    assert difference(load_config().to_dict(), load_config(stages=stages)) == [
        "stages.late.changes.loss.gan: absent in the run, 0.1 now",
        "stages.late.ramp: absent in the run, null now",
        "stages.late.start: absent in the run, 5 now",
    ]


def test_a_key_an_upgrade_added_refuses_nothing_at_its_default(root):
    stored = load_config().to_dict()
    del stored["loss"]["charbonnier"], stored["budget"], stored["train"]["checkpointing"]["decoder"]
    assert difference(stored, load_config()) == []
    assert difference(stored, load_config(loss={"charbonnier": 1})) == [
        "loss.charbonnier: 0.0 in the run, 1.0 now"
    ]


def test_a_key_of_another_version_is_a_difference(root):
    stored = load_config().to_dict()
    stored["loss"]["gone"] = 1
    assert difference(stored, load_config()) == ["loss.gone: 1 in the run, absent now"]


def test_what_does_not_change_the_past_may_differ(root):
    stored = load_config().to_dict()
    now = load_config(
        run="other",
        paths={"runs": "/elsewhere"},
        train={"extend": 100},
        validation={"every": 7, "seed": 3},
        restore={"tile": 64},
        tracking={"report_to": ["tensorboard"]},
        ablation={"seeds": [1]},
        data={"workers": 1},
    )
    assert difference(stored, now) == []


def test_a_longer_horizon_is_refused_with_the_way_to_train_longer(root):
    stored = load_config(train={"steps": 600}).to_dict()
    (line,) = difference(stored, load_config(train={"steps": 900}))
    assert line.startswith("train.steps: 600 in the run, 900 now (to train longer")
    assert "train.extend" in line


def test_changes_give_another_config_that_is_checked_too(root):
    config = load_config(loss={"gan": 0.01})
    changed = config.with_changes({"loss.gan": 0.5, "optim.generator.lr": "1e-4"})
    assert (changed.loss.gan, changed.optim.for_phase("generator").lr) == (0.5, 1e-4)
    assert config.loss.gan == 0.01
    with pytest.raises(ConfigError, match="the nearest is `loss.gan`"):
        config.with_changes({"loss.gann": 0.5})


def test_a_phase_without_a_section_gets_the_defaults(root):
    assert load_config().optim.for_phase("something").lr == 1e-5
    assert set(load_config().optim.phases) >= {"generator", "discriminator", "network"}


def test_a_config_cannot_be_changed_in_place(root):
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        load_config().loss.gan = 3


def test_the_config_needs_no_heavy_library():
    code = """
        import sys, darkroom
        assert "pydantic" not in sys.modules, "import darkroom alone is lighter still"
        darkroom.load_config()
        heavy = {"torch", "numpy", "polars", "diffusers", "matplotlib", "cv2", "pyiqa", "IPython"}
        print(heavy & set(sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(Path(darkroom.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "set()", done.stderr
