"""Fit full-size HYPIR to 40, 24, 16 and 12 GiB without a GPU, and time the planner.

    python benchmarks/fit.py [--write]

Starts from an empty cache; needs no weights. Prints how long a trace, the first search, a later one
and a slider's move take, and every fitted config with the trace that proves it. `--write` replaces
benchmarks/results/fit.md. Takes about ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path

import torch
from darkroom.config import load_config
from darkroom.plan import fit, gpus, memory
from darkroom.report import planner

HERE = Path(__file__).resolve().parent
BUDGETS = (40, 24, 16, 12)
RANDOM = {"model.base": None, "model.trunk_weights": None}


def one_trace(config) -> tuple[float, float]:
    """Return the seconds of a trace in a fresh process, and that process's peak memory in GiB."""
    with memory.Worker() as worker:
        started = time.perf_counter()
        memory.trace(config, worker=worker)
        seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def slider(config) -> float:
    """Return the milliseconds of a move, the median of forty."""
    panel = planner.Panel(planner.Answers(config, gpus.card("24 GiB"), "bf16"))
    took = []
    for n in range(40):
        started = time.perf_counter()
        panel.micro.value, panel.crop.value = (1, 2, 3, 6)[n % 4], (256, 384, 512)[n % 3]
        took.append(1000 * (time.perf_counter() - started) / 2)
    return sorted(took)[len(took) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        config = load_config(base="hypir", run="hypir", override=RANDOM | {"paths.runs": runs})
        seconds, rss = one_trace(config)
        lines = [f"| one trace, process and imports included | {seconds:.1f} s, {rss:.2f} GiB |"]
        started = time.perf_counter()
        first = fit.fit(config, gpu="A100-40G", budget_gib=40)
        cold = time.perf_counter() - started
        count = len(first.frame)
        lines.append(f"| first search: {count} configs, with the proof | {cold:.0f} s |")
        rows = []
        for budget in BUDGETS:
            found = fit.fit(config, gpu="A100-40G", budget_gib=budget)
            plan, train = found.plan, found.recommended.train
            assert train.effective_batch == config.train.effective_batch
            assert plan.reserved_expandable_gib < budget
            tflop = sum(plan.tflop[phase] for phase in plan.traced.turns)
            rows.append(
                f"| {budget} | {train.accumulation} x {train.micro_batch} | {plan.peak_gib:.2f} | "
                f"{plan.reserved_expandable_gib:.2f} | {tflop:.1f} | "
                f"{found.verdict.split('; ', 1)[1]} |"
            )
            print(found.verdict, flush=True)
        started = time.perf_counter()
        fit.fit(config, gpu="A100-40G", budget_gib=40)
        lines.append(f"| a later search | {time.perf_counter() - started:.1f} s |")
        lines.append(f"| a slider's move, median | {slider(config):.1f} ms |")
    text = "\n".join(
        [
            "# Fitting full-size HYPIR without a GPU",
            "",
            f"`python benchmarks/fit.py`, torch {torch.__version__}, {platform.machine()}, "
            f"{torch.get_num_threads()} threads. Nothing here was measured on a GPU: peaks are "
            "planned, and the order of choices by time is a roofline's.",
            "",
            *("| what | took |", "|---|---|", *lines, ""),
            "| budget, GiB | batch 6 | planned peak, GiB | reserved | TFLOP a step | choice |",
            "|---:|---|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if options.write:
        (HERE / "results" / "fit.md").write_text(text)


if __name__ == "__main__":
    main()
