"""Train LineFuse small, as its params files say, and score what comes out on held-out charts.

    python benchmarks/linefuse.py [--runs FOLDER] [--write]

The base and a regression trained equally long, then an adapter for each of two domains that the
base never saw. Runs that are there are not trained again, and have no time then. `--write` replaces
benchmarks/results/linefuse.md. About 25 minutes on two cores. Exit status 1 where a domain got
worse, the mean gain of the base is below 3 dB, an adapter does not improve its domain, or the
base's files changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from darkroom import adapters, inference, load_config, validate

RESULT = Path(__file__).resolve().parent / "results" / "linefuse.md"
BASE, REGRESSION = "linefuse_tiny", "linefuse_tiny_regression"
ADAPTERS = {"print": "linefuse_tiny_print", "motion": "linefuse_tiny_motion"}
STEPS = (1, 5, 25, 50)
LEAST_GAIN = 3.0  # dB


def train(name: str, runs: str) -> float | None:
    """Train a params file's run; returns seconds from start to end, None if it was there."""
    status = Path(runs) / name / "status.json"
    if status.exists() and json.loads(status.read_text())["status"] == "completed":
        return None
    started = time.perf_counter()
    command = [sys.executable, "-m", "darkroom.train", name, "--override", f"paths.runs={runs}"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def digests(runs: str) -> dict[str, str]:
    """Return the hash of every checkpoint file of the base."""
    files = sorted((Path(runs) / BASE / "checkpoints").rglob("*.safetensors"))
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def gains(name: str, runs: str, num_steps: int) -> tuple[pl.DataFrame, float]:
    """Score a run; returns `validate.summary` and the seconds of a picture."""
    override = {"paths.runs": runs, "restore.num_steps": num_steps}
    trained = inference.load_run(load_config(base=name, override=override))
    started = time.perf_counter()
    frame = validate.score(
        trained.recipe, trained.config, step=trained.step, weights=trained.weights
    )
    return validate.summary(frame), (time.perf_counter() - started) / len(frame)


def by_steps(runs: str) -> tuple[dict[int, tuple[pl.DataFrame, float]], list[str]]:
    """Score the base at every number of steps; returns that and lines that compare them."""
    scored = {n: gains(BASE, runs, n) for n in STEPS}
    lines = ["", "| steps | PSNR-Y (dB) | gain (dB) | s a picture |", "|---:|---:|---:|---:|"]
    for n, (table, seconds) in scored.items():
        psnr, gain = table["psnr_y"].mean(), table["gain"].mean()
        lines.append(f"| {n} | {psnr:.2f} | {gain:+.2f} | {seconds:.3f} |")
    return scored, lines


def domains_and_adapters(runs: str) -> tuple[pl.DataFrame, list[str]]:
    """Score every adapter on every domain; returns that and it as lines."""
    config = load_config(base=BASE, override={"paths.runs": runs})
    table = adapters.by_domain(adapters.Bank(config, ADAPTERS))
    names = ["input", "none", *ADAPTERS]
    lines = ["", f"| domain | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in table.to_dicts():
        best = max(("none", *ADAPTERS), key=lambda name: row[name])
        cells = (f"**{row[n]:.2f}**" if n == best else f"{row[n]:.2f}" for n in names)
        lines.append(f"| {row['domain']} | {' | '.join(cells)} |")
    return table, lines


def main() -> None:
    """Train, score, print or write, and say what was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", help="folder of the runs; a temporary one by default")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        lines, missed = report(arguments.runs or temporary)
    print(text := "\n".join(lines) + "\n")
    if arguments.write:
        RESULT.write_text(text)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(bool(missed))


def report(runs: str) -> tuple[list[str], list[str]]:
    """Return the lines of the result, and what it misses."""
    seconds = {name: train(name, runs) for name in (BASE, REGRESSION)}
    before = digests(runs)
    seconds |= {name: train(name, runs) for name in ADAPTERS.values()}
    missed = [] if digests(runs) == before else ["the base's files changed"]
    scored, steps_lines = by_steps(runs)
    base, other = scored[25][0], gains(REGRESSION, runs, 1)[0]
    lines = [
        "# LineFuse small, on held-out charts",
        "",
        "`python benchmarks/linefuse.py --write` on two cores. Training, from start to end: "
        + ", ".join(f"{n} {s:.0f} s" for n, s in seconds.items() if s is not None)
        + ".",
        "",
        "| domain | untouched | base, 25 steps | gain | 95 % | regression's gain |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for row, theirs in zip(base.to_dicts(), other.to_dicts(), strict=True):
        lines.append(
            f"| {row['degradation']} | {row['psnr_y_input']:.2f} | {row['psnr_y']:.2f} "
            f"| {row['gain']:+.2f} | {row['gain_low']:+.2f} … {row['gain_high']:+.2f} "
            f"| {theirs['gain']:+.2f} |"
        )
        if row["gain"] <= 0:
            missed.append(f"{row['degradation']} got worse: {row['gain']:+.2f} dB")
    mean = base["gain"].mean()
    lines.append(f"| mean | | | {mean:+.2f} | | {other['gain'].mean():+.2f} |")
    if mean < LEAST_GAIN:
        missed.append(f"the mean gain is {mean:+.2f} dB, below {LEAST_GAIN:g}")
    table, table_lines = domains_and_adapters(runs)
    for name, run in ADAPTERS.items():
        domain = load_config(base=run).degradation.types[0]
        (row,) = table.filter(pl.col("domain") == domain).to_dicts()
        if row[name] <= max(row["none"], row["input"]):
            missed.append(f"adapter {name} does not improve {domain}: {row}")
    return [*lines, *steps_lines, *table_lines], missed


if __name__ == "__main__":
    main()
