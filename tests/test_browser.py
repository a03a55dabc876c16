"""The notebooks as a person uses them: JupyterLab in a real browser. Runs where chromium is."""

from __future__ import annotations

import json
import shutil

import lab
import nbformat
import pytest

pytestmark = [
    pytest.mark.skipif(
        not (lab.CHROMIUM and lab.CHROMEDRIVER),
        reason="no chromium and chromedriver here (Debian: chromium, chromium-driver)",
    ),
]

# What makes a run short; everything else is params/tiny.yaml.
SHORT = {
    "train.steps": 6,
    "train.image_every": 3,
    "train.grad_norm_every": 2,
    "train.save_every": 3,
    "validation.every": 6,
    "validation.samples_per_type": 1,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def root(repo, tmp_path_factory):
    """Return a copy of what the notebooks need, its runs folder empty."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(repo / "pyproject.toml", root)
    for folder in ("params", "notebooks"):
        shutil.copytree(repo / folder, root / folder, ignore=shutil.ignore_patterns("local.yaml"))
    return root


@pytest.fixture(scope="module")
def browser(root, home):
    """Yield open(name), which opens notebooks/<name> in the browser."""
    with lab.serve(root, home) as (address, token), lab.browse(home) as driver:
        yield lambda name: lab.Notebook(driver, address, token, f"notebooks/{name}")


def edit(root, name: str, run: str, override: dict) -> str:
    """Give a notebook other parameters, as a person would in its cell; return the copy's name."""
    notebook = nbformat.read(root / "notebooks" / name, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += f"\nrun = {run!r}\noverride = {override!r}"
    copy = f"{run}_{name}"
    nbformat.write(notebook, root / "notebooks" / copy)
    return copy


def status(root, run: str) -> dict:
    file = root / "runs" / run / "status.json"
    return json.loads(file.read_text()) if file.exists() else {}


def test_run_all_in_lab_indexes_trains_and_validates_and_shows_it(browser, root):
    for name, seconds in (("01_data_index", 90), ("03_train", 120), ("04_validate", 120)):
        notebook = browser(edit(root, f"{name}.ipynb", "short", SHORT))
        notebook.run_all()
        lab.wait(notebook.finished, seconds, f"the end of {name}")
        lab.wait(notebook.pictures, 10, f"a picture in {name}")
        if name == "03_train":
            bar = "const bar = document.querySelector('.darkroom-bar');"
            width = notebook.driver.execute_script(bar + "return bar && bar.style.width")
            assert width == "100%", width
            assert f"{SHORT['train.steps']} of {SHORT['train.steps']}" in notebook.text()
    assert status(root, "short")["status"] == "completed"
    assert (root / "runs" / "short" / "validation.parquet").exists()


def test_a_button_and_an_interrupt_in_lab_leave_a_checkpoint_and_a_living_kernel(browser, root):
    long = SHORT | {"train.steps": 5000, "train.save_every": 5000, "validation.every": 5000}
    notebook = browser(edit(root, "03_train.ipynb", "long", long))
    kernel = notebook.kernel()["id"]
    run = root / "runs" / "long"
    notebook.run_all()
    lab.wait(lambda: notebook.finished() or (run / "train.jsonl").exists(), 60, "the first step")

    notebook.click("//button[contains(@class,'darkroom-save')]")  # while the cell is running
    saved = lab.wait(lambda: sorted(run.glob("checkpoints/step_*")), 20, "the saved checkpoint")
    assert status(root, "long")["status"] == "running"

    notebook.interrupt()
    lab.wait(lambda: status(root, "long").get("status") == "interrupted", 20, "the end of the step")
    lab.wait(lambda: notebook.errors() and not notebook.running(), 20, "the end of the cell")
    assert len(notebook.errors()) == 1 and "same again to continue" in notebook.text()
    step = status(root, "long")["step"]
    assert 0 < step < 5000
    assert (run / "checkpoints" / "latest").resolve().name == f"step_{step:08d}"
    assert saved[0].name <= f"step_{step:08d}"
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == step  # the step was finished, and nothing was begun after it

    last = notebook.select_last()
    notebook.menu("Run", "Run Selected Cell")
    lab.wait(lambda: notebook.cells()[last]["execution_count"], 30, "one more cell")
    assert len(notebook.errors()) == 1
    assert notebook.kernel()["id"] == kernel


@pytest.mark.slow
def test_a_slider_of_the_memory_plan_answers_in_lab(browser, root, tmp_path):
    override = {"model.recipe": "regression", "loss.gan": 0.0, "budget.gpu": "RTX 4090"}
    notebook = browser(edit(root, "02_memory_plan.ipynb", "sliders", override))
    notebook.run_all()
    lab.wait(notebook.finished, 240, "the end of 02_memory_plan")
    said = "return document.querySelector('.darkroom-planner .widget-html-content').innerText"
    before = lab.wait(lambda: notebook.driver.execute_script(said), 20, "the planner's answer")
    assert "GiB" in before or "MiB" in before
    handle = notebook.driver.find_element("css selector", ".darkroom-planner .noUi-handle")
    notebook.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    notebook.driver.save_screenshot(str(tmp_path / "before.png"))
    handle.send_keys("\ue012" * 3)  # three times left: a smaller micro batch
    after = lab.wait(
        lambda: (now := notebook.driver.execute_script(said)) != before and now, 10, "a new answer"
    )
    notebook.driver.save_screenshot(str(tmp_path / "after.png"))
    assert after != before
