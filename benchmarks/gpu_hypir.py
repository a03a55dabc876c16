"""Measure memory and speed of full-size HYPIR training on this GPU, with random weights.

Every row is a process of its own: peak allocated and reserved memory, seconds a step (a turn of the
generator and one of the discriminator, each on the effective batch) and samples a second. It needs
torch, diffusers, peft and open_clip_torch only: the configs are read from gpu_hypir.json, which
`--resolve` writes anew on a machine that has all of Darkroom. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
CONFIGS, RESULTS = HERE / "gpu_hypir.json", HERE / "results"
RANDOM_WEIGHTS = {"model.base": None, "model.trunk_weights": None}
TAIL = {"train.tail_micro_batch": 1}
ROWS = {  # name: params file and what differs from it
    "hypir": ("hypir", {}),
    "hypir, tail 1": ("hypir", TAIL),
    "hypir, tail 1, nothing recomputed": ("hypir", TAIL | {"train.checkpointing.network": "off"}),
    "hypir, tail 2": ("hypir", {"train.tail_micro_batch": 2}),
    "hypir, tail 1, LPIPS in bf16": ("hypir", TAIL | {"train.lpips_autocast": True}),
    "hypir, tail 1, shared step": ("hypir", TAIL | {"train.share_step": True}),
    "hypir, decoder and judge recomputed": (
        "hypir",
        {"train.checkpointing.decoder": "on", "train.checkpointing.discriminator": "on"},
    ),
    "hypir_24gb": ("hypir_24gb", {}),
    "hypir_16gb": ("hypir_16gb", {}),
    "hypir_12gb": ("hypir_12gb", {}),
    "a100": ("a100", {}),
    "a100_improved": ("a100_improved", {}),
}
LIBRARIES = ("torch", "diffusers", "peft", "open_clip_torch", "timm", "transformers")


def resolve() -> dict[str, dict]:
    """Return every row's resolved config as plain values."""
    from darkroom import load_config

    return {
        name: load_config(base=base, run=base, override=changes | RANDOM_WEIGHTS).to_dict()
        for name, (base, changes) in ROWS.items()
    }


def plain(values: dict) -> SimpleNamespace:
    """Return a resolved config as attributes, without the typed classes and what they need."""

    def nested(value):
        if not isinstance(value, dict):
            return value
        return SimpleNamespace(**{k: nested(v) for k, v in value.items()})

    config = nested(values)
    phases = {k: v for k, v in vars(config.optim).items() if k != "schedule"}
    config.optim.for_phase = phases.__getitem__
    config.paths.models = Path("models")
    return config


def measure(name: str, steps: int) -> dict:
    """Train `steps` steps of a row on the GPU, after two to warm up; returns its numbers."""
    import torch
    from darkroom.plan import verify

    config = plain(json.loads(CONFIGS.read_text())[name])
    found = verify.run_steps(config, steps)
    return {
        "config": name,
        "allocated_gib": round(found["allocated_gib"], 2),
        "reserved_gib": round(found["reserved_gib"], 2),
        "context_gib": round(found["context_gib"], 2),
        "seconds_a_step": round(found["seconds_a_step"], 3),
        "samples_a_second": round(config.train.effective_batch / found["seconds_a_step"], 3),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", "native"),
        "device": torch.cuda.get_device_name(),
    }


def write(rows: list[dict]) -> Path:
    """Write the measured rows as JSON and as a table; returns the table's path."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    RESULTS.mkdir(exist_ok=True)
    document = {"versions": versions, "rows": rows}
    (RESULTS / "gpu_hypir.json").write_text(json.dumps(document, indent=1) + "\n")
    keys = ("allocated_gib", "reserved_gib", "seconds_a_step", "samples_a_second", "allocator")
    lines = [
        f"# Full-size HYPIR on {rows[0]['device']}",
        "",
        "Random weights, 512 px, bf16. " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "",
        "| config | " + " | ".join(k.replace("_", " ") for k in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    lines += [
        "| " + " | ".join([row["config"], *(str(row.get(k, "out of memory")) for k in keys)]) + " |"
        for row in rows
    ]
    path = RESULTS / "gpu_hypir.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolve", action="store_true", help="write gpu_hypir.json anew and end")
    parser.add_argument("--steps", type=int, default=5, help="timed, of every config")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), help="these configs")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.resolve:
        CONFIGS.write_text(json.dumps(resolve(), indent=1) + "\n")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no GPU here: nothing is measured, nothing is written")
        return 0
    if asked.row:
        print(json.dumps(measure(asked.row, asked.steps)))
        return 0
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "lib")}
    rows = []
    for name in asked.only or ROWS:
        words = [sys.executable, __file__, "--row", name, "--steps", str(asked.steps)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
            if "OutOfMemoryError" not in done.stderr:
                return 1
            rows.append({"config": name, "device": torch.cuda.get_device_name()})
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    print(write(rows).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
