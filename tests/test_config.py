"""The config: its keys and types, the layers it comes from, and a notebook's namespace."""

import copy
import math
import os
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import yaml
from darkroom.config import Config, ConfigError, load_config, names
from darkroom.config.load import SECTIONS

PARAMS = Path(__file__).parents[1] / "params"
FILES = [p for p in sorted(PARAMS.glob("*.yaml")) if not p.stem.startswith("local")]

# every key of the specification's table
TABLE = """
base run seed paths.data paths.models paths.runs
data.source data.train data.image_key data.lq_key data.gt_key data.prompt_key data.prefix data.types
data.sample_ratio data.crop data.crop_size data.hflip data.rotate data.prompt data.p_empty_prompt
data.workers data.prefetch degradation.kind degradation.types degradation.severity model.recipe
model.size model.base model.init_from model.model_t model.coeff_t model.lora_rank model.lora_alpha
model.lora_dropout model.lora_modules model.lora_blocks model.trunk model.trunk_weights
model.condition_channels model.width model.depth model.heads model.kv_heads model.grid
model.max_seq_length loss.l2 loss.l1 loss.charbonnier loss.ssim loss.lpips loss.vgg loss.gan
loss.velocity loss.cross_entropy train.effective_batch train.micro_batch train.tail_micro_batch
train.steps train.hours train.images train.epochs train.extend train.precision
train.checkpointing.network train.checkpointing.decoder train.checkpointing.discriminator train.clip
train.ema_decay train.ema_device train.share_step train.log_every train.image_every
train.grad_norm_every train.grad_norm_modules train.save_every train.keep_last train.best
train.early_stopping.metric train.early_stopping.patience train.early_stopping.min_delta
optim.generator.name optim.generator.lr optim.generator.betas optim.generator.eps
optim.generator.weight_decay optim.schedule.kind optim.schedule.warmup optim.schedule.min_lr
stages.<name>.start stages.<name>.ramp stages.<name>.changes budget.gpu budget.memory_gib
budget.hours budget.disk_gib budget.alarm validation.data validation.every
validation.samples_per_type validation.metrics validation.weights validation.seed
validation.max_time_share restore.num_steps restore.sampler restore.guidance restore.tile
restore.overlap restore.upscale restore.colour_fix tracking.report_to tracking.project tracking.mode
ablation.grid ablation.variants ablation.seeds ablation.executor override
"""
KEYS = TABLE.split()


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


# --- keys and types


def test_every_key_of_the_table_exists():
    assert set(KEYS) <= set(names.keys(Config))


def test_every_value_below_a_section_says_what_it_means():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            below = names.sections_of(field.annotation)
            if below is None:
                yield from () if field.description else [prefix + name]
            else:
                yield from undescribed(below, f"{prefix}{name}.")

    assert list(undescribed(Config)) == []


def test_a_number_that_yaml_reads_as_text_becomes_a_number(root):
    assert yaml.safe_load("1e-5") == "1e-5"  # YAML 1.1, which papermill and we read
    config = load_config(optim={"generator": {"lr": "1e-5"}}, train={"steps": "6e2"})
    assert config.optim.generator.lr == 1e-5
    assert config.train.steps == 600 and isinstance(config.train.steps, int)


def test_off_and_on_survive_yaml(root):
    assert yaml.safe_load("off") is False
    config = load_config(restore={"colour_fix": False})
    assert config.restore.colour_fix == "off"
    config = load_config(train={"checkpointing": {"network": True, "decoder": ["up_blocks"]}})
    assert config.train.checkpointing.network == "on"
    assert config.train.checkpointing.decoder == ["up_blocks"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("easy", (0, 0.33)),
        ("medium", (0.33, 0.67)),
        ("hard", (0.67, 1)),
        ([0.2, "0.4"], (0.2, 0.4)),
    ],
)
def test_a_severity_is_a_word_or_a_range(root, given, expected):
    assert load_config(degradation={"severity": given}).degradation.severity == expected


def test_the_example_for_this_machine_is_valid(root):
    shutil.copy(PARAMS / "local.example.yaml", root / "params" / "local.yaml")
    assert load_config().paths.data == Path("/data")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_params_file_loads_without_a_warning_and_is_named_as_its_run(path):
    document = yaml.safe_load(path.read_text())
    assert "base" in document and document["run"] == path.stem
    config = load_config(base=path)
    assert config.run == path.stem
    assert config.warnings == []


# --- layers


def test_each_layer_wins_over_the_one_below(root):
    write(root, "low", "{base: null, run: low, seed: 1, loss: {l1: 1, l2: 1, ssim: 1, gan: 1}}")
    write(root, "high", "{base: low, run: high, loss: {l2: 2, ssim: 2, gan: 2}}")
    write(root, "local", "{loss: {gan: 4}}")
    config = load_config(
        base="high", loss={"ssim": 3, "gan": 3, "vgg": 3}, override={"loss.vgg": 5}
    )
    loss = config.loss
    assert (loss.charbonnier, loss.l1, loss.l2, loss.ssim, loss.gan, loss.vgg) == (0, 1, 2, 3, 4, 5)
    assert (config.base, config.run, config.seed) == ("high", "high", 1)
    assert config.override == {"loss.vgg": 5}


def test_no_base_means_the_defaults_alone(root):
    config = load_config(base=None)
    assert (config.base, config.run, config.loss.l1) == (None, "untitled", 0)


def test_a_base_is_a_name_a_path_from_the_root_or_an_absolute_path(root, monkeypatch):
    monkeypatch.chdir(root / "params")  # the current folder plays no part
    for base in ("tiny", "params/tiny.yaml", root / "params" / "tiny.yaml"):
        assert load_config(base=base).hash == load_config(base="tiny").hash


def test_lists_and_values_are_replaced_and_dicts_merged(root):
    write(root, "x", "{base: tiny, run: x, train: {early_stopping: {patience: 3, min_delta: 1}}}")
    config = load_config(base="x", train={"early_stopping": {"patience": 4}})
    assert (config.train.early_stopping.patience, config.train.early_stopping.min_delta) == (4, 1)
    assert load_config(base="x", train={"early_stopping": None}).train.early_stopping is None
    assert load_config(validation={"metrics": ["ssim_y"]}).validation.metrics == ["ssim_y"]


def test_an_empty_section_sets_nothing(root):
    write(root, "x", "base: tiny\nrun: x\nloss:\n")
    assert load_config(base="x").hash == load_config().hash


def test_a_params_files_override_has_the_last_word_as_it_has_through_papermill(root):
    write(root, "x", "{base: tiny, run: x, override: {loss.gan: 5, paths.runs: there}}")
    write(root, "local", "paths: {runs: here}")
    config = load_config(base="x", loss={"gan": 1})
    assert config.loss.gan == 5 and config.run_dir == root / "there" / "x"
    injected = {**yaml.safe_load((root / "params" / "x.yaml").read_text()), "loss": {"gan": 1}}
    assert load_config(injected).hash == config.hash
    assert load_config(base="x", override={"loss.gan": 6}).loss.gan == 6


def test_override_reaches_a_stage(root):
    stages = {"late": {"start": "50%", "changes": {"loss.gan": 0.1}}}
    config = load_config(
        stages=stages, override={"stages.late.start": 9, "stages.late.changes.loss.gan": 0.2}
    )
    assert config.stages["late"].start == 9
    assert config.stages["late"].changes == {"loss.gan": 0.2}


def test_null_takes_an_inherited_stage_back_and_an_empty_section_does_not(root):
    stages = "{one: {start: 3, changes: {loss.gan: 1}}, two: {start: 5, changes: {loss.gan: 2}}}"
    write(root, "x", f"{{base: tiny, run: x, stages: {stages}}}")
    every = set(load_config(base="x", stages={}).stages)  # as every notebook says
    assert {"one", "two"} < every
    assert set(load_config(base="x", stages={"one": None}).stages) == every - {"one"}
    assert set(load_config(base="x", override={"stages.two": None}).stages) == every - {"two"}
    write(root, "y", yaml.safe_dump({"base": "x", "run": "y", "stages": dict.fromkeys(every)}))
    assert load_config(base="y").stages == {}


def test_what_a_caller_gives_is_not_changed(root):
    given = {"loss": {"gan": 0.3}, "override": {"loss.l1": 2}}
    before = copy.deepcopy(given)
    load_config(**given).with_changes({"loss.gan": 0.9})
    assert given == before


def test_relative_locations_start_at_the_repo_root(root):
    config = load_config(paths={"runs": "elsewhere", "data": "/data"})
    assert config.run_dir == root / "elsewhere" / "tiny"
    assert config.paths.data == Path("/data")
    assert config.to_dict()["paths"] == {"data": "/data", "models": "models", "runs": "elsewhere"}


# --- the notebook's namespace


def notebook(**names):
    return {"base": "tiny", "run": "tiny", "override": {}, **dict.fromkeys(SECTIONS, {}), **names}


def test_a_namespace_gives_its_sections(root):
    config = load_config(notebook(loss={"gan": 0.3}, run="mine", seed=7))
    assert (config.loss.gan, config.run, config.seed) == (0.3, "mine", 7)
    assert load_config(notebook()).hash == load_config(base="tiny").hash


def test_a_run_of_null_takes_the_params_files_name(root):
    assert load_config(notebook(run=None)).run == "tiny"


def test_names_beside_a_namespace_win(root):
    assert load_config(notebook(loss={"gan": 0.3}), loss={"gan": 0.4}, run="b").loss.gan == 0.4


def test_a_misspelt_section_in_a_namespace_is_an_error(root):
    with pytest.raises(ConfigError, match="`losss` in the notebook: the nearest is `loss`"):
        load_config(notebook(losss={"gan": 0.3}))


@pytest.mark.parametrize("value", [1, 0.5, "x", None, True, [], [1, "a"], {}, {"a": [1]}])
def test_a_plain_value_under_an_unknown_name_is_an_error(root, value):
    with pytest.raises(ConfigError, match="`lambda_gan` in the notebook: it is called `loss.gan`"):
        load_config(notebook(lambda_gan=value))


def test_what_is_not_plain_or_belongs_to_ipython_is_ignored(root):
    mine = {
        "_step": 3,
        "__name__": "__main__",
        "In": ["", "load_config(globals())"],
        "Out": {},
        "math": math,
        "exit": print,
        "frame": object(),
        "Config": Config,
        "config": load_config(),
        "pictures": [object()],
        "by_number": {1: 2},
        "path": Path("x"),
        "module": types,
    }
    assert load_config(notebook(**mine)) == load_config(notebook())


def test_papermill_runs_a_good_file_and_refuses_a_misspelt_section(repo, tmp_path):
    import nbformat

    parameters = nbformat.v4.new_code_cell(
        'base = "tiny"\nrun = "tiny"\nloss = {}\noptim = {}\noverride = {}',
        metadata={"tags": ["parameters"]},
    )
    load = nbformat.v4.new_code_cell(
        "from darkroom import load_config\nconfig = load_config(globals())\n"
        "print(config.run, config.loss.gan, config.loss.l1, config.optim.generator.lr)\nconfig"
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = nbformat.v4.new_notebook(
        cells=[parameters, load],
        metadata={"kernelspec": kernel, "language_info": {"name": "python"}},
    )
    nbformat.write(document, tmp_path / "in.ipynb")
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("{base: tiny, run: good, loss: {l1: 2}, optim: {generator: {lr: 1e-5}}}")
    bad.write_text("{base: tiny, run: bad, losss: {gan: 0.3}}")

    def papermill(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repo / "lib")},
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = papermill("-f", str(good), "-y", "override: {loss.gan: 0.3}")
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    printed, shown = cells[-1].outputs
    assert "<b>0.3</b>" in "".join(shown.data["text/html"])
    assert printed.text == "good 0.3 2.0 1e-05\n"

    done = papermill("-f", str(bad))
    assert done.returncode != 0
    assert "unknown section or key `losss` in the notebook: the nearest is `loss`" in done.stderr
