"""Hold the memory planner against real CPU runs: configs drawn by a seed, predicted and real peaks.

    python benchmarks/plan.py [--count 12] [--seed 231] [--write]

Real is what the CPU allocator's own events say of two steps of the trainer; `--write` replaces
benchmarks/results/plan.md. Takes about half a minute a config on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import plan_truth  # noqa: E402
import small_runs  # noqa: E402
import small_sd  # noqa: E402
import torch  # noqa: E402
from darkroom.config import load_config  # noqa: E402
from darkroom.plan import memory  # noqa: E402

MIB = 2**20
KINDS = ("tiny GAN", "regression", "SD with LoRA", "SD in full", "diffusion")


def draw(generator: np.random.Generator, kind: str, folder: Path) -> tuple[str, dict]:
    """Draw a small config of a kind; returns its levers as text, and its keys."""
    pick = lambda *values: values[int(generator.integers(len(values)))]  # noqa: E731
    effective = pick(2, 4)
    keys = {
        "train.effective_batch": effective,
        "train.micro_batch": pick(effective, effective // 2),
        "data.crop_size": pick(96, 128, 160),
        "train.ema_decay": pick(None, 0.999),
        "train.grad_norm_every": pick(None, 1),
        "loss.ssim": pick(0.0, 0.2),
        "loss.lpips": pick(0.0, 0.0, 1.0),
        "train.image_every": 1000,
    }
    if kind == "regression":
        keys |= {"model.recipe": "regression", "loss.gan": 0.0}
    elif kind == "diffusion":
        keys |= {"model.recipe": "conditional_diffusion", "loss.gan": 0.0, "restore.num_steps": 2}
        keys |= {"loss.l1": 0.7, "model.prediction": pick("epsilon", "v", "x0")}
        keys["train.checkpointing.network"] = pick("on", "off")
    else:
        keys["train.tail_micro_batch"] = pick(None, 1)
        keys["train.checkpointing.network"] = pick("on", "off")
        keys["train.share_step"] = pick(False, False, True)
    if kind.startswith("SD"):
        keys["train.checkpointing.decoder"] = pick("on", "off")
        keys["model.lora_rank"] = pick(4, 16) if "LoRA" in kind else None
        keys["model.trunk"] = pick("tiny", "convnext_tiny")
        keys = small_sd.override(folder) | keys
    said = {k.split(".", 1)[1]: v for k, v in keys.items() if "base" not in k and "image" not in k}
    said = {k: v for k, v in said.items() if v not in (None, False, "off", 0.0, "one_step_gan")}
    shown = [k if v == "on" else f"{k} {v}" for k, v in said.items() if k not in ("size", "recipe")]
    return ", ".join(shown), keys


def compare(root: Path, keys: dict, worker: memory.Worker) -> dict[str, float]:
    """Return the real peak in MiB and each plan's error in per cent."""
    real = max(plan_truth.peaks(root, keys).values())
    config = load_config(**small_runs.sections(root, **keys))
    options = {"precision": "fp32", "validation_size": (32, 32), "worker": worker}
    plans = {
        "cpu": memory.trace(config, device="cpu", **options),
        "accelerator": memory.trace(config, cpu_kernels=True, **options),
        "without_kernels": memory.trace(config, **options),
    }
    errors = {k: 100 * (p.peak_gib * memory.GIB / real - 1) for k, p in plans.items()}
    return {"real_mib": real / MIB, **errors}


def table(rows: list[tuple[str, str, dict]]) -> str:
    """Return the results as a Markdown table with their medians and worst."""
    lines = [
        "| run | levers | real MiB | fake CPU | accelerator, CPU kernels | accelerator alone |",
        "|---|---|---|---|---|---|",
    ]
    for kind, levers, found in rows:
        errors = " | ".join(f"{found[k]:+.2f} %" for k in list(found)[1:])
        lines.append(f"| {kind} | {levers} | {found['real_mib']:.1f} | {errors} |")
    absolute = np.abs([list(found.values())[1:] for *_, found in rows])
    for name, values in (("median", np.median(absolute, 0)), ("worst", absolute.max(0))):
        lines.append(f"| {name} | | | " + " | ".join(f"{v:.2f} %" for v in values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=231)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    generator, rows = np.random.default_rng(options.seed), []
    with tempfile.TemporaryDirectory() as place, memory.Worker() as worker:
        folder = small_sd.write(Path(place) / "sd")
        for number in range(options.count):
            kind = KINDS[number % len(KINDS)]
            levers, keys = draw(generator, kind, folder)
            started = time.perf_counter()
            found = compare(Path(place) / str(number), keys, worker)
            rows.append((kind, levers, found))
            seconds = time.perf_counter() - started
            print(f"{number + 1}/{options.count} {kind}: {levers}: {found} ({seconds:.0f} s)")
    text = table(rows)
    print(text)
    if options.write:
        about = (
            "Predicted peak of live memory against the CPU allocator's own events (two steps of "
            f"the trainer, float32), torch {torch.__version__}, "
            f"{torch.backends.cpu.get_cpu_capability()}. `python benchmarks/plan.py "
            f"--count {options.count} --seed {options.seed}`.\n\n"
        )
        (HERE / "results" / "plan.md").write_text(
            "# The planner on the CPU\n\n" + about + text + "\n"
        )


if __name__ == "__main__":
    main()
