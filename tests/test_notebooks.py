"""The notebooks: their form, and what they leave behind when papermill runs them for real."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import polars as pl
import pytest
import yaml
from darkroom.config.load import SECTIONS

NAMES = ("01_data_index", "02_memory_plan", "03_train", "04_validate", "05_ablations")
ROOT = Path(__file__).resolve().parent.parent
# two photographs to validate on, two types, a few steps: the whole path in seconds
SHORT = {
    "train.steps": 6,
    "train.effective_batch": 2,
    "train.image_every": 3,
    "train.save_every": 3,
    "train.grad_norm_every": 2,
    "data.crop_size": 48,
    "data.workers": 0,
    "degradation.types": ["Blur", "Lowlight"],
    "validation.every": 3,
    "validation.samples_per_type": 1,
}


def read(name: str):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook) -> list[str]:
    return [c.source for c in notebook.cells if c.cell_type == "code"]


# --- form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_stripped_and_for_the_plain_python_kernel(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_a_title_one_sentence_the_parameters_and_the_config(name):
    head, parameters, _, config = read(name).cells[:4]
    title, sentence = head.source.split("\n\n")
    assert title.startswith("# ") and sentence.count(". ") == 0 and sentence.endswith(".")
    assert "writes" in sentence and "takes" in sentence
    assert parameters.metadata.tags == ["parameters"]
    assert "config = load_config(globals())" in config.source


def test_the_parameters_cell_is_the_same_everywhere_and_names_every_section_with_a_comment():
    sources = {read(name).cells[1].source for name in NAMES}
    assert len(sources) == 1
    lines = sources.pop().splitlines()
    found = [re.fullmatch(r"(\w+) = (.+?)  # \S.*", line) for line in lines]
    assert all(found), "every parameter has a one-line comment"
    values = {m[1]: ast.literal_eval(m[2]) for m in found}
    assert list(values) == ["base", "run", *SECTIONS, "override"]
    assert values == dict.fromkeys(values, {}) | {"base": "tiny", "run": "tiny"}


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_define_nothing_and_show_something(name):
    cells = code_cells(read(name))[1:]  # the parameters are a table, not code
    for source in cells:
        assert not re.search(r"^\s*(def|class)\s|sys\.path|^[!%]", source, re.MULTILINE), source
        assert isinstance(ast.parse(source).body[-1], ast.Expr), f"shows nothing: {source}"
    lines = [sum(bool(line.strip()) for line in source.splitlines()) for source in cells]
    assert 1 <= statistics.median(lines) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_rebinds_a_section_so_that_the_config_cell_can_run_again(name):
    taken = {*SECTIONS, "base", "run", "seed", "override"}
    for source in code_cells(read(name))[1:]:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                bound = {(a.asname or a.name).split(".")[0] for a in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound = {node.id}
            else:
                continue
            assert not bound & taken, f"{bound & taken} in: {source}"


# --- for real -----------------------------------------------------------------------------------


def papermill(name: str, out: Path, parameters: dict, cwd: Path = ROOT, notebook=None):
    """Run a notebook as a person does in a shell; returns the finished process."""
    command = [sys.executable, "-m", "papermill", str(notebook or f"notebooks/{name}.ipynb")]
    command += [
        str(out),
        "-f",
        str(ROOT / "params" / "tiny.yaml"),
        "-y",
        yaml.safe_dump(parameters),
    ]
    command += ["--log-output", "--no-progress-bar"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Run 01, 03 and 04 one after another into one run directory; returns it and their outputs."""
    home = tmp_path_factory.mktemp("notebooks")
    parameters = {"run": "short", "paths": {"runs": str(home)}, "override": SHORT}
    notebooks, logs = {}, {}
    for name in ("01_data_index", "03_train", "04_validate"):
        (home / "short").mkdir(exist_ok=True)
        out = home / "short" / f"{name}.ipynb"
        # 03 is started from another folder, as Lab does
        elsewhere = name == "03_train"
        process = papermill(
            name,
            out,
            parameters,
            cwd=ROOT / "notebooks" if elsewhere else ROOT,
            notebook=f"{name}.ipynb" if elsewhere else None,
        )
        assert process.returncode == 0, process.stderr[-4000:]
        notebooks[name], logs[name] = nbformat.read(out, as_version=4), process.stderr
    return home / "short", notebooks, logs


def shown(notebook, kind: str) -> list:
    return [
        output.data[kind]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("execute_result", "display_data") and kind in output.data
    ]


def test_a_run_through_papermill_leaves_index_log_checkpoints_scores_and_plots(executed):
    run_dir, _, _ = executed
    assert json.loads((run_dir / "status.json").read_text())["status"] == "completed"
    for name in ("config.json", "index.parquet", "train.jsonl", "train.log", "validation.parquet"):
        assert (run_dir / name).stat().st_size > 0, name
    images = pl.read_parquet(run_dir / "images.parquet")
    assert images.columns == ["image_path", "prompt"] and len(images) > 0
    assert (run_dir / "checkpoints" / "latest").resolve().name == "step_00000006"
    plots = {p.stem for p in (run_dir / "figures").glob("*.png")}
    assert {"counts", "contact_sheet", "losses", "scores", "best_and_worst"} <= plots
    rows = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_every_figure_is_in_the_executed_notebook_as_a_png(executed):
    _, notebooks, _ = executed
    for name, notebook in notebooks.items():
        pictures = len(shown(notebook, "image/png"))
        kept = sum(c.count(".keep(config") for c in code_cells(notebook))
        assert pictures >= kept > 0, (name, pictures)


def test_validation_scores_every_held_out_image_beside_its_untouched_input(executed):
    import polars as pl
    from darkroom.photographs import HELD_OUT

    run_dir, notebooks, _ = executed
    frame = pl.read_parquet(run_dir / "validation.parquet")
    last = frame.group_by("image_set").len().sort("len")[-1]
    assert last["len"][0] == len(HELD_OUT) * 2 * 4  # photographs x types x draws
    table = "".join(shown(notebooks["04_validate"], "text/plain"))
    assert "best affine" in table and "mean of types" in table
    # a number or the reason for none; never both, never neither
    assert ("lpips" in frame.columns) != ("final score without LPIPS" in table)


def test_the_log_of_a_headless_training_is_a_line_now_and_then_and_no_bar(executed):
    _, notebooks, logs = executed
    assert "\r" not in logs["03_train"] and "%|" not in logs["03_train"]
    assert "training completed" in logs["03_train"]
    assert "darkroom-bar" not in json.dumps(notebooks["03_train"])


def test_a_misspelt_section_stops_the_notebook_with_the_right_name(tmp_path):
    out = tmp_path / "out.ipynb"
    process = papermill("02_memory_plan", out, {"losss": {"gan": 0.3}})
    assert process.returncode != 0
    assert "unknown section or key `losss`" in process.stderr and "loss" in process.stderr


def test_the_memory_plan_runs_and_counts_the_parameters(tmp_path):
    out = tmp_path / "out.ipynb"
    smaller = {"model.recipe": "regression", "loss.gan": 0.0}  # two structures instead of twelve
    parameters = {"run": "plan", "paths": {"runs": str(tmp_path)}, "override": smaller}
    process = papermill("02_memory_plan", out, parameters)
    assert process.returncode == 0, process.stderr[-4000:]
    text = "".join(shown(nbformat.read(out, as_version=4), "text/plain"))
    assert re.search(r"[\d,]+ parameters, [\d.]+% of them trained", text)


def test_the_ablation_notebook_trains_its_variants_and_compares_them(tmp_path):
    out = tmp_path / "out.ipynb"
    parameters = {
        "run": "grid",
        "paths": {"runs": str(tmp_path)},
        "ablation": {"variants": {"faster": {"optim.generator.lr": 0.01}}},
        "override": SHORT | {"train.image_every": None, "validation.every": 6, "train.steps": 3},
    }
    process = papermill("05_ablations", out, parameters)
    assert process.returncode == 0, process.stderr[-4000:]
    text = "".join(shown(nbformat.read(out, as_version=4), "text/plain"))
    assert "baseline" in text and "faster" in text
    for variant in ("baseline", "faster"):
        status = json.loads((tmp_path / "grid" / "ablation" / variant / "status.json").read_text())
        assert (status["status"], status["step"]) == ("completed", 3)
