"""Packaging: what is declared, what is pinned, what is shipped, and how fast it imports."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

# Declared because a person or a program uses them, although no file of ours imports them:
UNIMPORTED = {
    "ipykernel": "the notebooks' kernel",
    "jupyterlab": "make lab",
    "papermill": "make demo",
    "torchvision": "diffusers, open_clip and pyiqa import it",
    "lpips": "its wheel holds the heads that LPIPS needs",
    "scikit-learn": "two of the embedded photographs lie in its wheel",
    "diffusers": "the full-size recipes",
    "open-clip-torch": "the full-size discriminator trunk",
    "peft": "the adapters of full-size recipes",
    "tqdm": "progress bars",
    "nvidia-ml-py": "torch.cuda.utilization",
}
IMPORT_NAMES = {"PIL": "pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image"}
IMPORT_NAMES |= {"yaml": "pyyaml", "open_clip": "open-clip-torch", "IPython": "ipython"}
# Imported by name, and certain to be there because a declared package stands on it:
IMPLIED = {"huggingface_hub": "diffusers", "IPython": "ipykernel", "transformers": "peft"}
IMPLIED |= {"traitlets": "ipywidgets", "starlette": "fastapi"}


@pytest.fixture(scope="module")
def project(repo) -> dict:
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def declared(project) -> dict[str, Requirement]:
    """Return name -> requirement of everything that `make install` must bring."""
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


@pytest.fixture(scope="module")
def lock(repo) -> str:
    return (repo / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def tracked(repo) -> list:
    """Return every file that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [repo / name for name in listed.stdout.split("\0") if name and (repo / name).is_file()]


def pins(lock: str) -> dict[str, set[str]]:
    """Return name -> versions pinned in the lock (more than one where they depend on Python's)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", lock, re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def test_import_darkroom_is_fast_and_brings_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import darkroom; darkroom.__version__;"
        "seconds = time.perf_counter() - start;"
        "heavy = {'torch', 'numpy', 'polars', 'diffusers', 'pydantic', 'matplotlib'};"
        "print(seconds, *sorted(heavy & set(sys.modules)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, *heavy = min((run.stdout.split() for run in runs), key=lambda row: float(row[0]))
    assert not heavy, f"import darkroom loads {heavy}"
    assert float(seconds) < 0.5


def test_load_config_needs_no_torch():
    code = (
        "import sys; from darkroom import load_config; load_config(base='tiny');"
        "raise SystemExit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_installed_package_is_this_checkout(repo, project):
    import darkroom

    assert darkroom.__version__ == project["version"] == metadata.version("darkroom")
    assert (repo / "lib" / "darkroom" / "__init__.py").samefile(darkroom.__file__)


def test_the_lock_holds_exact_versions_with_hashes_and_no_address(lock):
    assert not re.search(r"://|--(extra-)?index|--find-links|@ ", lock)
    entries = re.split(r"\n(?=[a-z0-9])", lock.strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+ ", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]


def test_every_declared_dependency_is_pinned_inside_its_range(declared, lock):
    pinned = pins(lock)
    for name, requirement in declared.items():
        assert name in pinned, f"{name} is not in requirements.lock: run make lock"
        for version in pinned[name]:
            assert requirement.specifier.contains(version), f"{name}=={version}: run make lock"


def test_the_lock_brings_no_accelerator_packages_and_one_opencv(lock):
    names = set(pins(lock))
    assert not {
        name for name in names if re.match(r"nvidia(?!-ml-py$)|cuda|triton|pytorch-triton", name)
    }
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}


def test_what_is_installed_is_what_the_lock_pins(declared, lock):
    pinned = pins(lock)
    for name in declared:
        installed = metadata.version(name).split("+")[0]  # a local build label: 2.13.0+cpu
        assert installed in pinned[name], f"{name} {installed} is installed: run make install"


def test_environment_yml_agrees_with_pyproject(repo, project):
    environment = yaml.safe_load((repo / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert environment["name"] == project["name"]
    assert pip == ["-e ."]  # so that pyproject.toml stays the only list
    versions = dict(entry.partition("=")[::2] for entry in conda)
    assert set(versions) == {"python", "pip"}
    assert SpecifierSet(project["requires-python"]).contains(versions["python"])


def imported(path) -> set[str]:
    """Return the top-level names that a Python file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_dependencies_are_declared_exactly_where_they_are_used(repo, project):
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    names = set().union(*(imported(path) for path in (repo / "lib").rglob("*.py")))
    third_party = names - set(sys.stdlib_module_names) - {"darkroom"} - set(IMPLIED)
    extras = project["optional-dependencies"]
    optional = {Requirement(line).name for line in (*extras["trackers"], *extras["serve"])}
    used = {canonicalize_name(IMPORT_NAMES.get(name, name)) for name in third_party}
    assert used - optional <= declared, f"undeclared: {sorted(used - optional - declared)}"
    idle = declared - used - set(UNIMPORTED)
    assert not idle, f"declared but not used: {sorted(idle)}"


def test_every_tracked_python_file_parses_for_the_oldest_python(tracked):
    for path in tracked:
        if path.suffix == ".py":
            ast.parse(path.read_text(), feature_version=(3, 11))


def test_nothing_tracked_names_a_machine_or_a_registry(tracked):
    foreign = re.compile(
        r"(?<![\w.])/(?:work|root|home|Users|mnt|scratch)/\w|(?:pypi|pythonhosted|npmjs)\.org|[a-z]+\.debian\.org"
    )
    for path in tracked:
        if path.suffix in {".png", ".jpg", ".parquet", ".safetensors"}:
            continue
        found = foreign.search(path.read_text())
        assert not found or path.samefile(__file__), f"{path}: {found.group()}"


def test_gitignore_keeps_runs_out_and_the_library_in(repo):
    def ignored(name: str) -> bool:
        return not subprocess.run(["git", "check-ignore", "-q", name], cwd=repo).returncode

    if subprocess.run(["git", "rev-parse"], cwd=repo, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    assert not ignored("lib/darkroom/new.py") and not ignored("params/new.yaml")
    assert all(map(ignored, ["runs/tiny/config.json", "params/local.yaml", ".venv/x", "models/x"]))


def cells(path) -> list[dict]:
    """Return a notebook's cells, each with its source as one string."""
    notebook = json.loads(path.read_text())
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]


def test_committed_notebooks_hold_no_outputs_and_no_logic(repo):
    notebooks = sorted((repo / "notebooks").glob("*.ipynb"))
    assert [path.stem[:2] for path in notebooks] == ["01", "02", "03", "04", "05"]
    for path in notebooks:
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        for cell in code:
            assert not cell["outputs"], f"{path.name} has outputs: clear them before committing"
            assert cell["execution_count"] is None, path.name
            for line in cell["source"].splitlines():
                assert not re.match(r"\s*(def|class|async def)\s|\s*[!%]", line), (path.name, line)
                assert "sys.path" not in line, (path.name, line)
        tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1, f"{path.name} needs one cell tagged parameters"
        assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


def test_params_files_name_their_base_and_themselves(repo):
    files = [path for path in (repo / "params").glob("*.yaml") if not path.name.startswith("local")]
    assert files
    for path in files:
        values = yaml.safe_load(path.read_text())
        assert "base" in values, f"{path.name} would inherit the notebook's tiny"
        assert values["run"] == path.stem
