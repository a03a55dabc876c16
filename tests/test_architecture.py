"""The order of the house: imports point leftwards; files and functions stay readable."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# docs/architecture.md shows this table, too. A unit is a file or a folder of lib/darkroom. It may
# import what stands in an earlier row, or in its own row as long as no cycle comes of it.
TIERS = (
    "config paths images photographs charts tar bar",
    "degradations augment losses perceptual measurement metrics pyiqa_metrics torchvision_ops"
    " diffusion batch autocast tail tracking monitor colour tiling sharding",
    "index data loader networks bootstrap",
    "recipes optim schedule",
    "step",
    "precision selection rhythm interrupts feed run preview progress stopwatch baseline",
    "validate inference checkpoint exchange adapters",
    "plan",
    "preflight rerun state turn probe pace",
    "trainer",
    "train launch forecast restore export serve ablation shards",
    "report",
)
TIER = {unit: number for number, row in enumerate(TIERS) for unit in row.split()}

# Long on purpose, with the reason:
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def modules(package: Path) -> dict[str, Path]:
    """Return dotted name below the package -> file; the package itself is ''."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of ours that a file imports anywhere in it, inside functions included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "darkroom"}
        elif isinstance(node, ast.ImportFrom):
            base = ["darkroom", *filter(None, package.split("."))]
            base = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                module = f"{source}.{alias.name}"
                found.add(module if module.removeprefix("darkroom.") in known else source)
    ours = {module.partition(".")[2] for module in found if module.split(".")[0] == "darkroom"}
    return (ours & set(known)) - {name, ""}


@pytest.fixture(scope="module")
def graph(repo) -> dict[str, set[str]]:
    """Return module -> modules it imports, for everything in lib/darkroom but its __init__."""
    known = modules(repo / "lib" / "darkroom")
    return {name: imports(name, path, known) for name, path in known.items() if name}


def unit(module: str) -> str:
    return module.split(".")[0]


def cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """Return one cycle of a graph, or None."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_every_module_has_its_place_in_the_table(graph):
    unplaced = {unit(module) for module in graph} - set(TIER)
    assert not unplaced, f"say in TIERS where {sorted(unplaced)} belong"


def test_the_table_is_the_one_that_the_architecture_page_shows(repo):
    page = (repo / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[2].split() for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == [row.split() for row in TIERS]  # the first row is the table's head


def test_imports_point_only_leftwards(graph):
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if TIER.get(unit(target), 0) > TIER.get(unit(module), 99)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycle_between_files_or_folders(graph):
    between: dict[str, set[str]] = {}
    for module, targets in graph.items():
        others = {unit(target) for target in targets} - {unit(module)}
        between.setdefault(unit(module), set()).update(others)
    assert cycle(between) is None, cycle(between)


def test_no_cycle_inside_a_folder(graph):
    # a folder's own __init__ gathers its files, so what they share is imported from them
    inside = {
        module: {target for target in targets if unit(target) == unit(module)}
        for module, targets in graph.items()
    }
    assert cycle(inside) is None, cycle(inside)


def test_the_finder_of_imports_sees_every_spelling(tmp_path):
    (tmp_path / "far").mkdir()
    source = (
        "import darkroom.config\nfrom darkroom import paths\nfrom .near import name\n"
        "from . import images\nfrom .. import step\nimport torch\n"
        "def late():\n    from ..trainer import train\n    from ..far import near\n"
    )
    known = {"": tmp_path / "__init__.py", "far.here": tmp_path / "far" / "here.py"}
    known["far.here"].write_text(source)
    for name in ("config", "paths", "far.near", "far.images", "step", "trainer", "far"):
        known[name] = tmp_path
    expected = {"config", "paths", "far.near", "far.images", "step", "trainer"}
    assert imports("far.here", known["far.here"], known) == expected


def test_files_are_no_longer_than_a_reader_holds(repo):
    long = {}
    for path in [*repo.glob("lib/**/*.py"), *repo.glob("benchmarks/*.py")]:
        lines = len(path.read_text().splitlines())
        if lines > 300 and path.stem not in LONG_FILES:
            long[str(path.relative_to(repo))] = lines
    assert not long, f"split by subject, or give the reason in LONG_FILES: {long}"


def test_functions_are_no_longer_than_a_screen(repo):
    long = {}
    for path in [*repo.glob("lib/**/*.py"), *repo.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60 and node.name not in LONG_FUNCTIONS:
                    long[f"{path.relative_to(repo)}:{node.name}"] = lines
    assert not long, f"split, or give the reason in LONG_FUNCTIONS: {long}"


def test_every_file_says_what_it_is_for(repo):
    for path in repo.glob("lib/**/*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
