"""What the config refuses, and in which words; and what waits for a later version."""

import json
import math
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml
from darkroom.config import Config, ConfigError, effects, load_config, names
from darkroom.config.load import SECTIONS

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


ERRORS = {
    "misspelt section": (
        {"losss": {"gan": 0.3}},
        "unknown section or key `losss`: the nearest is `loss`",
    ),
    "misspelt key": (
        {"loss": {"gann": 0.3}},
        "unknown key `loss.gann`: the nearest is `loss.gan`",
    ),
    "misspelt nested key": (
        {"optim": {"generator": {"weigth_decay": 0}}},
        "unknown key `optim.generator.weigth_decay`: the nearest is `optim.generator.weight_decay`",
    ),
    "misspelt phase": (
        {"optim": {"generater": {"lr": 1}}},
        "unknown key `optim.generater`: the nearest is `optim.generator`",
    ),
    "key of another section": (
        {"train": {"crop_size": 64}},
        "unknown key `train.crop_size`: the nearest is `data.crop_size`",
    ),
    "key without its section": (
        {"crop_size": 64},
        "unknown section or key `crop_size`: the nearest is `data.crop_size`",
    ),
    "another trainer's name": (
        {"loss": {"lambda_gan": 0.3}},
        "unknown key `loss.lambda_gan`: it is called `loss.gan` here",
    ),
    "another trainer's flag": (
        {"--hybrid-unfreeze": True},
        "unknown section or key `--hybrid-unfreeze`: it is called `stages` here",
    ),
    "another trainer's batch": (
        {"train": {"batch_size": 4}},
        "it is called `train.effective_batch` (samples of one optimizer step) and "
        "`train.micro_batch` (samples computed at once) here",
    ),
    "dotted key as a section": (
        {"loss.gan": 0.3},
        "dotted keys go into `override`, such as override: {loss.gan: 0.3}",
    ),
    "misspelt override": (
        {"override": {"loss.gann": 0.3}},
        "unknown key `loss.gann` (in override): the nearest is `loss.gan`",
    ),
    "nested override": (
        {"override": {"loss": {"gan": 0.3}}},
        "`override` is flat: write `loss.gan`, not a dict under `loss`",
    ),
    "override below a value": (
        {"override": {"train.steps.x": 1}},
        "override `train.steps.x`: `train.steps` is a value, nothing lies below it",
    ),
    "override of a layer": ({"override": {"run": "x"}}, "`run` cannot be overridden"),
    "override that is no dict": ({"override": [1]}, "`override` is [1], and must be a dict"),
    "a section that is a number": (
        {"loss": 3},
        "`loss` is 3, and must be a dict of its keys: l2, l1, charbonnier",
    ),
    "text for a number": (
        {"train": {"steps": "many"}},
        "`train.steps` is 'many': this is text, not a number (Horizon in optimizer steps",
    ),
    "true for a number": (
        {"train": {"clip": True}},
        "`train.clip` is True: true and false are not numbers",
    ),
    "number for a text": ({"run": 7}, "`run` is 7: a run's name is made of letters"),
    "run outside of the runs": (
        {"run": "../x"},
        "`run` is '../x': a run's name is made of letters",
    ),
    "number below its range": (
        {"loss": {"l1": -1}},
        "`loss.l1` is -1: input should be greater than or equal to 0 (Absolute error)",
    ),
    "not a number": ({"loss": {"l1": math.nan}}, "`loss.l1` is nan: input should be a finite"),
    "share above one": ({"data": {"sample_ratio": 2}}, "`data.sample_ratio` is 2: input should be"),
    "word not in the list": (
        {"train": {"precision": "bf17"}},
        "`train.precision` is 'bf17': input should be 'auto', 'bf16', 'fp16' or 'fp32'",
    ),
    "degradation not in the list": (
        {"degradation": {"types": ["Fog"]}},
        "`degradation.types` is 'Fog': input should be 'Blur', 'Haze', 'Lowlight', 'Rain', 'Snow',",
    ),
    "severity upside down": (
        {"degradation": {"severity": [0.9, 0.1]}},
        "`degradation.severity` is [0.9, 0.1]: write easy, medium, hard, or [low, high]",
    ),
    "warm-up in words": (
        {"optim": {"schedule": {"warmup": "long"}}},
        "`optim.schedule.warmup` is 'long': write steps, such as 100, or a share of the horizon",
    ),
    "warm-up beyond the horizon": (
        {"optim": {"schedule": {"warmup": "120%"}}},
        "a share of the horizon is at most 100%",
    ),
    "warm-up in half steps": ({"optim": {"schedule": {"warmup": 1.5}}}, "write steps, such as 100"),
    "switch in words": (
        {"train": {"checkpointing": {"network": "yes"}}},
        "`train.checkpointing.network` is 'yes': write off, on, or a list of module names",
    ),
    "tile in words": ({"restore": {"tile": 3}}, "`restore.tile` is 3: write auto, null, or the"),
    "micro batch that does not divide": (
        {"train": {"effective_batch": 8, "micro_batch": 3}},
        "`train.micro_batch` is 3, which does not divide train.effective_batch 8: the nearest that "
        "do are 2 and 4",
    ),
    "micro batch above the effective one": (
        {"train": {"effective_batch": 8, "micro_batch": 9}},
        "does not divide train.effective_batch 8: the nearest that do are 8",
    ),
    "no horizon": (
        {"train": {"steps": None, "epochs": None}},
        "`train` has no horizon: set train.steps, train.hours, train.images or train.epochs",
    ),
    "no loss": (
        {"base": None, "model": {"recipe": "one_step_gan"}, "loss": {"l2": 0}},
        "every loss weight that one_step_gan uses is 0: set one of loss.l2, loss.l1",
    ),
    "no data": (
        {"data": {"source": "pairs"}},
        "`data.source` is pairs, and `data.train` names no folder: set it",
    ),
    "cosine that climbs": (
        {"optim": {"generator": {"lr": 1e-3}, "schedule": {"min_lr": 1e-2}}},
        "`optim.schedule.min_lr` is 0.01, above optim.generator.lr 0.001",
    ),
    "best by what is not scored": (
        {"train": {"best": "final_score"}},
        "`train.best` is final_score, which is not scored: validation scores psnr_y, ssim_y",
    ),
    "stopping by what is not scored": (
        {"train": {"early_stopping": {"metric": "lpips"}}},
        "`train.early_stopping.metric` is lpips, which is not scored",
    ),
    "stopping without validation": (
        {"train": {"early_stopping": {"patience": 3}}, "validation": {"every": None}},
        "`train.early_stopping` needs validations: set validation.every",
    ),
    "stage of a misspelt key": (
        {"stages": {"late": {"start": "50%", "changes": {"loss.gann": 1}}}},
        "in `stages.late.changes`: unknown key `loss.gann`: the nearest is `loss.gan`",
    ),
    "stage of a wrong value": (
        {"stages": {"late": {"start": 5, "changes": {"loss.gan": "much"}}}},
        "in `stages.late.changes`: `loss.gan` is 'much': this is text, not a number",
    ),
    "stage that changes the batch": (
        {"stages": {"late": {"start": 5, "changes": {"train.effective_batch": 2}}}},
        "`stages.late.changes` names `train.effective_batch`, which a stage cannot change",
    ),
    "stage with a misspelt start": (
        {"stages": {"late": {"begin": 5}}},
        "unknown key `stages.late.begin`: allowed here: start, ramp, changes",
    ),
    "ablation of a misspelt key": (
        {"ablation": {"grid": {"loss.gann": [0, 1]}}},
        "`ablation.grid` names `loss.gann`, which is no key: the nearest is `loss.gan`",
    ),
    "ablation of another trainer's name": (
        {"ablation": {"variants": {"a": {"lambda_l1": 1}}}},
        "`ablation.variants.a` names `lambda_l1`, which is no key: it is called `loss.l1` here",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_said_with_the_way_out(root, case):
    sections, message = ERRORS[case]
    with pytest.raises(ConfigError) as caught:
        load_config(**sections)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_all_problems_are_said_at_once(root):
    with pytest.raises(ConfigError) as caught:
        load_config(loss={"gann": 1}, train={"steps": "x"}, data={"hflip": 3})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", names.FAMILIAR)
def test_what_another_trainer_calls_a_key_leads_to_a_key_that_exists(root, name):
    known = {*names.keys(Config), *SECTIONS, "optim.<phase>"}
    known |= {k.rsplit(".", 1)[0] for k in known}
    ours = [part for part in names.FAMILIAR[name].split("`")[1::2] if not part.startswith(".")]
    for part in ours:
        key = part.split(":")[0].replace("<phase>", "generator")
        assert key in known or key.startswith("optim.generator")
    with pytest.raises(ConfigError, match="it is called"):
        load_config(override={name: 1})


@pytest.mark.parametrize("row", [r for r in effects.NOT_YET if r.refused], ids=lambda r: r.key)
def test_what_is_not_there_yet_is_refused_with_what_works_instead(root, row):
    values = {
        "data.source": "icons",
        "model.recipe": "flow_matching",
        "ablation.executor": "ray",
    }
    key, value = (
        row.key.replace("*", "generator"),
        values.get(row.key, 2.0),
    )
    with pytest.raises(ConfigError) as caught:
        load_config(override={key: value})
    assert f"`{key}: {json.dumps(value)}` is not there yet: {row.instead}" in str(caught.value)


def test_a_missing_base_is_named_with_the_nearest(root):
    with pytest.raises(FileNotFoundError, match="no params file 'tini' .* the nearest is tiny"):
        load_config(base="tini")


@pytest.mark.parametrize("key", ["base", "run"])
def test_a_params_file_must_say_base_and_run(root, key):
    document = {"base": None, "run": "x"}
    del document[key]
    write(root, "x", yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=f"params/x.yaml has no `{key}:`"):
        load_config(base="x")


def test_bases_that_go_round_in_a_circle_are_shown(root):
    write(root, "a", "{base: b, run: a}")
    write(root, "b", "{base: a, run: b}")
    with pytest.raises(ConfigError, match="params/a.yaml -> params/b.yaml -> params/a.yaml"):
        load_config(base="a")


def test_broken_yaml_names_its_file(root):
    write(root, "x", "base: [")
    with pytest.raises(ConfigError, match="params/x.yaml is not valid YAML"):
        load_config(base="x")


def test_an_error_names_the_file_it_comes_from(root):
    write(root, "x", "{base: tiny, run: x, loss: {l3: 1}}")
    with pytest.raises(ConfigError, match=r"unknown key `loss.l3` \(in params/x.yaml\)"):
        load_config(base="x")
    write(root, "local", "paths: {run: /tmp}")
    with pytest.raises(ConfigError, match=r"`paths.run` \(in params/local.yaml\).*`paths.runs`"):
        load_config()
