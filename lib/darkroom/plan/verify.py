"""Plans held against a real CUDA card: real steps, a process a config, side by side with the trace.

    frame = verify([load_config(base=name, run=name) for name in (…)])

Half of the configs calibrate what a trace cannot see (`overhead`), the error is stated on the other
half. Run as a script this file takes one config from stdin and prints what it measured.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from ..paths import write_atomically
from . import gpus, overhead

GIB = 2**30
WARM_UP = 2  # steps before the timed ones
LEAST_MARGIN = 0.01  # share of a card
# what is measured is an optimizer step alone, on weights that need no file
TURNS = {"train.image_every": None, "train.grad_norm_every": None, "validation.every": None}
RANDOM_WEIGHTS = {"model.base": None, "model.trunk_weights": None, "model.init_from": None}


def verify(configs, steps: int = 3, *, runs: Path | str | None = None, said=print):
    """Train every config for some steps on the CUDA card; return planned against measured.

    A polars frame, a row a config: planned and measured `allocated_gib` and `reserved_gib`, errors
    as shares before and after calibration, `context_gib`, `seconds_a_step`, and `half` (calibration
    or held out). Writes `<runs>/planner/<card>.json` (runs: paths.runs of the first config).
    Nothing else may run on the card. Raises ValueError without a card, or with fewer than two
    configs that could be measured.
    """
    import polars as pl

    from . import memory

    card = gpus.here()
    if card is None:
        raise ValueError(
            "verify measures on a CUDA card, and torch finds none here (torch "
            f"{torch.__version__}, CUDA {torch.version.cuda}): run it on a machine with one, with "
            "a CUDA build of torch"
        )
    rows = []
    with memory.Worker() as worker:
        for config in configs:
            config = config.with_changes(_random(config) | TURNS)
            precision = card.precision(config.train.precision)
            plan = memory.trace(config, precision=precision, worker=worker, keep=True)
            row = {"config": config.run, "planned_allocated_gib": plan.peak_gib}
            row["planned_reserved_gib"] = (
                plan.reserved_expandable_gib
                if overhead.allocates_expandable()
                else plan.reserved_gib
            )
            row |= _in_a_process(config, precision, steps)
            said(row)
            rows.append(row)
    rows = judge(rows, card.memory_gib)
    place = overhead.path(card, runs or configs[0].paths.runs)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(document(rows, card), indent=1).encode())
    return pl.DataFrame(rows, infer_schema_length=None)


# --- the arithmetic -----------------------------------------------------------------------------


def calibrate(rows: list[dict], memory_gib: float) -> dict[str, float]:
    """Return the constants that follow from measured rows, on a card of so much memory.

    `workspace_gib` is the median of what was allocated beyond the plan, `context_gib` that of the
    memory in use beside PyTorch's; `margin`, a share of the card, covers the largest excess of
    reserved memory over the plan and the workspaces.
    """
    beyond = [r["allocated_gib"] - r["planned_allocated_gib"] for r in rows]
    workspace = max(0.0, statistics.median(beyond))
    excess = max(r["reserved_gib"] - r["planned_reserved_gib"] - workspace for r in rows)
    return {
        "workspace_gib": workspace,
        "context_gib": statistics.median(r["context_gib"] for r in rows),
        "margin": max(LEAST_MARGIN, excess / memory_gib),
    }


def judge(rows: list[dict], memory_gib: float) -> list[dict]:
    """Return the rows with their errors; every other one calibrates, the rest is held out.

    `allocated_error` and `reserved_error` are planned over measured less 1, `calibrated_…` the same
    with the workspaces of the calibration added to the plan. A config that ran out of memory has
    none of them.
    """
    good = [r for r in rows if r.get("allocated_gib") is not None]
    if len(good) < 2:
        raise ValueError(
            f"{len(good)} of {len(rows)} configs could be measured: at least 2 are needed, one to "
            "calibrate and one to state the error on. Take smaller ones"
        )
    found = calibrate(good[::2], memory_gib)
    judged = []
    for row in rows:
        row = dict(row)
        if row in good:
            row["half"] = "calibration" if good.index(row) % 2 == 0 else "held out"
            for kind in ("allocated", "reserved"):
                planned, real = row[f"planned_{kind}_gib"], row[f"{kind}_gib"]
                row[f"{kind}_error"] = planned / real - 1
                row[f"calibrated_{kind}_error"] = (planned + found["workspace_gib"]) / real - 1
        judged.append(row)
    return judged


def document(rows: list[dict], card) -> dict:
    """Return what the calibration file holds: constants, versions, and the held-out errors."""
    good = [r for r in rows if r.get("half")]
    used = [r for r in good if r["half"] == "calibration"]
    held = [r for r in good if r["half"] == "held out"]
    errors = {}
    for kind in ("calibrated_allocated_error", "calibrated_reserved_error"):
        values = [abs(r[kind]) for r in held]
        errors[kind] = {"median": statistics.median(values), "worst": max(values)}
    return {
        "card": card.name,
        "torch": importlib.metadata.version("torch"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "expandable_segments": overhead.allocates_expandable(),
        "configs": len(used),
        **calibrate(used, card.memory_gib),
        "held_out": {"configs": len(held), **errors},
        "rows": rows,
    }


# --- on the card --------------------------------------------------------------------------------


def run_steps(config, steps: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """Take the recipe's own steps on the CUDA card after WARM_UP; returns memory and seconds.

    `config` may be the typed one, or its plain values as attributes. LPIPS and VGG have random
    weights from here on: this is for a process of its own.
    """
    from .. import losses

    for loss in (losses.lpips, losses.vgg):
        loss.build = functools.partial(_without_weights, loss.build)
    one_step, _ = stepper(config, torch.device("cuda"), dtype)
    for _ in range(WARM_UP):
        one_step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        one_step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / steps
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "context_gib": (total - free - torch.cuda.memory_reserved()) / GIB,
        "seconds_a_step": seconds,
    }


def _without_weights(build, pretrained: bool):
    return build(False)


def stepper(config, device: torch.device, dtype: torch.dtype):
    """Build recipe, optimizers and average; return a function that takes a step, and the phases.

    The pictures are random; memory's peaks begin here.
    """
    from .. import optim, recipes, step

    with device:
        recipe = recipes.build(config)
    recipes.place(recipe, device, dtype, [config.data.prompt])
    phases = recipe.phases(config)
    optimizers = {p.name: optim.build(config.optim.for_phase(p.name), p) for p in phases}
    where = None if config.train.ema_device == "auto" else torch.device(config.train.ema_device)
    decay, count = config.train.ema_decay, config.train.effective_batch
    ema = optim.EMA(phases[0].parameters, decay, where) if decay else None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    whole = random_batch(recipe, config, count)

    def one_step() -> None:
        for phase in phases:
            recipe.begin(phase)
            batches = (b.to(device) for b in whole.parts(config.train.micro_batch or count))
            step.accumulate(recipe, phase, batches, effective_batch=count, dtype=dtype)
            norm = step.gradient_norm(phase)
            average = ema if phase is phases[0] else None
            lr, clip = phase.lr, config.train.clip
            step.apply(phase, optimizers[phase.name], lr=lr, norm=norm, clip=clip, ema=average)

    return one_step, phases


def random_batch(recipe, config, count: int):
    """Return a batch of random pictures, with the recipe's own draws, on the CPU."""
    from ..batch import Batch, Sample

    side = config.data.crop_size
    generator = torch.Generator().manual_seed(0)
    lq, gt = torch.rand(2, count, 3, side, side, generator=generator)
    draws = [
        recipe.draw(Sample(a, b, "", "Blur", "", n), generator)
        for n, (a, b) in enumerate(zip(lq, gt, strict=True))
    ]
    stacked = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    names, prompts = [""] * count, [config.data.prompt] * count
    return Batch(lq, gt, prompts, names, names, list(range(count)), stacked)


def _random(config) -> dict:
    return RANDOM_WEIGHTS if config.model.size == "full" else {"model.init_from": None}


def _in_a_process(config, precision: str, steps: int) -> dict:
    """Measure a config in a process of its own, whose peaks are its own; {} if out of memory."""
    asked = json.dumps({"config": config.to_dict(), "precision": precision, "steps": steps})
    command = [sys.executable, "-m", "darkroom.plan.verify"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "OutOfMemoryError" in done.stderr:
        return {}
    raise ValueError(f"{config.run} could not be measured; its process said: {done.stderr[-2000:]}")


def main() -> None:
    """Measure the config on stdin and print a JSON line."""
    from ..config import Config
    from ..precision import DTYPES

    asked = json.loads(sys.stdin.read())
    config = Config.from_dict(asked["config"])
    print(json.dumps(run_steps(config, asked["steps"], DTYPES[asked["precision"]])))


if __name__ == "__main__":
    main()
