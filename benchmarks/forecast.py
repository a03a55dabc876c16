"""Hold the forecast made at step 20 against the wall time that the training really took.

    python benchmarks/forecast.py [--only NAME …] [--scale 1.0] [--write]

Trains params/tiny.yaml with other settings, through `darkroom.trainer.train`, a process and a
temporary runs folder each, one after the other: three to six minutes a config on two idle cores. It
means something only on a machine that does nothing else. `--scale` shortens the runs; `--write`
replaces benchmarks/results/forecast.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "forecast.md"

# name: (steps at scale 1, what differs from params/tiny.yaml)
CONFIGS = {
    "tiny": (1300, {"train.save_every": 325, "validation.every": 325}),
    "GAN from the start": (
        700,
        {
            "stages.exposed.start": 0,
            "stages.adversarial.start": 0,
            "train.save_every": 100,
            "train.image_every": 50,
            "train.grad_norm_every": 25,
            "validation.every": 175,
        },
    ),
    "regression, accumulated": (
        1300,
        {
            "model.recipe": "regression",
            "train.micro_batch": 4,
            "train.ema_decay": None,
            "train.save_every": 200,
            "validation.every": 260,
            "validation.samples_per_type": 6,
        },
    ),
    "dear validation": (
        1000,
        {
            "stages.adversarial.start": "50%",
            "data.crop_size": 96,
            "train.save_every": 50,
            "validation.every": 125,
            "validation.samples_per_type": None,
        },
    ),
}

CHILD = """
import json, sys, time
from darkroom.config import load_config
from darkroom import trainer
from darkroom.plan import time as plan_time
config = load_config(base="tiny", run="forecast-benchmark", override=json.loads(sys.argv[1]))
started = time.perf_counter()
result = trainer.train(config)
seconds = time.perf_counter() - started
made = plan_time.read(result.run_dir / "forecast.json")
frame = made.frame.to_dicts()
print("RESULT " + json.dumps([seconds, result.status, made.low_seconds, made.middle_seconds,
    made.high_seconds, made.line(), frame]))
"""


def measure(name: str, scale: float) -> dict:
    """Train one config; return its forecast and its real seconds."""
    steps, keys = CONFIGS[name]
    every = ("train.save_every", "train.image_every", "train.grad_norm_every", "validation.every")
    keys = {
        k: max(1, round(v * scale)) if k in every and v else v
        for k, v in ({"train.image_every": 650, "train.grad_norm_every": 100} | keys).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        keys |= {"train.steps": round(steps * scale), "paths.runs": folder}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(keys)], capture_output=True, text=True
        )
        line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
        if line is None:
            sys.exit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        log = (Path(folder) / "forecast-benchmark" / "train.log").read_text().splitlines()
    seconds, status, low, middle, high, said, rows = json.loads(line.removeprefix("RESULT "))
    if status != "completed" or not any(f"step 20: {said}" == x for x in log):
        sys.exit(f"{name}: {status}; the forecast was not logged at step 20")
    spent = next(x for x in log if "seconds by part: " in x).partition("by part: ")[2]
    real = {part: float(s) for part, _, s in (p.rpartition(" ") for p in spent.split(", "))}
    found = {"low": low, "middle": middle, "high": high, "rows": rows, "real": real}
    return found | {"name": name, "steps": keys["train.steps"], "seconds": seconds}


def table(results: list[dict]) -> str:
    """Return the table of forecasts against real times, and the parts of each."""
    lines = [
        "| config | steps | validations | saves | forecast, s | interval, s | real, s | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        counts = {row["part"]: row["count"] for row in r["rows"]}
        error = r["middle"] / r["seconds"] - 1
        lines.append(
            f"| {r['name']} | {r['steps']} | {counts.get('validation', 0)} | "
            f"{counts.get('save', 0)} | {r['middle']:.1f} | {r['low']:.1f} to {r['high']:.1f} | "
            f"{r['seconds']:.1f} | {error:+.1%} |"
        )
    for r in results:
        head = "| part | count | s each | forecast, s | share | real, first 20 steps included, s |"
        lines += ["", f"**{r['name']}**", "", head, "|---|---|---|---|---|---|"]
        lines += [
            f"| {row['part']} | {row['count']} | {row['seconds_each']:.4f} | "
            f"{row['seconds']:.1f} | {row['share']:.1%} | {r['real'].get(row['part'], '')} |"
            for row in r["rows"]
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure the configs named, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    results, load = [], os.getloadavg()[0]
    for name in options.only:
        results.append(measure(name, options.scale))
        r = results[-1]
        error = r["middle"] / r["seconds"] - 1
        print(
            f"{name}: forecast {r['middle']:.1f} s ({r['low']:.1f} to {r['high']:.1f}), "
            f"real {r['seconds']:.1f} s, {error:+.1%}",
            flush=True,
        )
    text = table(results)
    print("\n" + text)
    if options.write:
        import torch

        where = f"{len(os.sched_getaffinity(0))} CPU cores, torch {torch.__version__}"
        RESULT.write_text(
            "# The forecast made at step 20 against the real wall time\n\n"
            "`python benchmarks/forecast.py --write`: params/tiny.yaml with other settings, set-up "
            f"included; {where}, load {load:.1f} before the start.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
