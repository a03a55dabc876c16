"""Ablations: the same run with one thing changed, one after another, compared on the same images.

Every variant is a run of its own in `runs/<run>/ablation/<variant>`, made by `python -m
darkroom.train` from a params file that is left beside it, so each can be repeated alone.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .bootstrap import bootstrap_interval

BASELINE = "baseline"
EXAMPLE_STEPS = 40
PAIRING = ["image", "degradation", "draw"]


@dataclass(frozen=True)
class Variant:
    """One run of an ablation: its folder's name, the dotted keys it changes, and its seed."""

    name: str
    changes: dict = field(default_factory=dict)
    seed: int | None = None

    @property
    def folder(self) -> str:
        return self.name if self.seed is None else f"{self.name}_seed{self.seed}"


def variants(config) -> list[Variant]:
    """Return the runs of this config's ablation: baseline, named variants, then the grid's product.

    A grid point without any change is the baseline and is not run twice. With several
    `ablation.seeds` each variant runs once a seed. With neither a grid nor variants it is a short
    example, so that the notebook shows something on any config.
    """
    section = config.ablation
    chosen = {BASELINE: {}, **(section.variants or {})}
    grid = section.grid or {}
    for point in itertools.product(*grid.values()):
        changes = dict(zip(grid, point, strict=True))
        changes = {k: v for k, v in changes.items() if v != _value(config, k)}
        if changes:
            chosen[_name(changes)] = changes
    if len(chosen) == 1:
        chosen = _example(config)
    seeds = section.seeds or [None]
    return [Variant(n, dict(c), s) for n, c in chosen.items() for s in seeds]


def _example(config) -> dict[str, dict]:
    """Return baseline and two variants at a short horizon and with few validation images."""
    short = _example_horizon()
    slower = {"optim." + p + ".lr": lr / 4 for p, lr in _rates(config).items()}
    return {
        BASELINE: short,
        "quarter_rate": {**short, **slower},
        "half_batch": {**short, **_half_batch(config)},
    }


def _half_batch(config) -> dict:
    half = {"train.effective_batch": max(1, config.train.effective_batch // 2)}
    return half if config.train.micro_batch is None else {**half, "train.micro_batch": None}


def is_example(config) -> bool:
    """Say whether this config asks for nothing itself and so gets the short example."""
    return not config.ablation.grid and not config.ablation.variants


def describe(config, variant: Variant) -> str:
    """Return what a variant changes in words; what the example shortens everywhere is left out."""
    common = _example_horizon() if is_example(config) else {}
    changes = {k: v for k, v in variant.changes.items() if k not in common or common[k] != v}
    return ", ".join(f"{k} = {v}" for k, v in changes.items()) or "–"


def _example_horizon() -> dict:
    # an average over ten steps: a longer one would still hold the untrained network
    return {
        "train.steps": EXAMPLE_STEPS,
        "train.ema_decay": 0.9,
        "validation.samples_per_type": 4,
    }


def _rates(config) -> dict[str, float]:
    from .plan.memory import build_on_meta

    return {p.name: p.lr for p in build_on_meta(config).phases(config)}


def _value(config, key: str):
    value = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def _name(changes: dict) -> str:
    """Return a folder name that says what is changed: `loss.gan=0.3` becomes `gan_0.3`."""
    parts = [f"{key.rsplit('.', 1)[-1]}_{value}" for key, value in changes.items()]
    return "-".join("".join(c if c.isalnum() or c in "_.-" else "_" for c in p) for p in parts)


def folder(config) -> Path:
    """Return the folder that holds this run's ablation."""
    return Path(config.run_dir) / "ablation"


def _write_params(config, variant: Variant) -> Path:
    """Write a variant's params file, its changes as `override`; returns its path."""
    import yaml

    from .paths import write_atomically

    document = config.to_dict()
    document.pop("ablation", None)
    override = {**(document.get("override") or {}), **variant.changes}
    document |= {"base": None, "override": override}
    document["run"] = f"{config.run}/ablation/{variant.folder}"
    if variant.seed is not None:
        document["seed"] = variant.seed
    path = folder(config) / f"{variant.folder}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(document, sort_keys=False).encode())
    return path


def run(config, say=print):
    """Train every variant in a process of its own, one after another; returns `results(config)`.

    The same call again continues where it was cut. A variant that fails stays in the table with
    its reason and does not stop the others. `say` gets a line a variant.
    """
    todo = variants(config)
    for variant in todo:  # a wrong one is refused before the first has run
        config.with_changes(variant.changes)
    for number, variant in enumerate(todo, start=1):
        path = _write_params(config, variant)
        say(f"{number}/{len(todo)} {variant.folder}")
        log = path.with_suffix(".log")
        with log.open("ab") as file:
            command = [sys.executable, "-m", "darkroom.train", str(path)]
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode in (130, 143):
            raise KeyboardInterrupt(f"{variant.folder} was stopped; call again to continue")
        if done.returncode:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            say(f"    failed: {''.join(last)}; all of it in {log}")
    return results(config)


def results(config):
    """Return a row a variant and seed: status, step, minutes, and means of its last scores."""
    import polars as pl

    from .run import read_train_rows

    rows = []
    for variant in variants(config):
        path = folder(config) / variant.folder
        status = {"status": "not run", "step": None}
        if (path / "status.json").exists():
            status = json.loads((path / "status.json").read_text())
        row = {
            "variant": variant.name,
            "seed": variant.seed if variant.seed is not None else config.seed,
            "changes": describe(config, variant),
            "status": status["status"],
            "step": status["step"],
        }
        scores = _last_scores(path)
        if scores is not None and len(scores):
            row["minutes"] = float(read_train_rows(path)["seconds"][-1]) / 60
            row["psnr_y"] = _mean_of_types(scores, "psnr_y")
            row["gain"] = row["psnr_y"] - _mean_of_types(scores, "psnr_y_input")
            row["ssim_y"] = _mean_of_types(scores, "ssim_y")
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _last_scores(path: Path):
    """Return the last validation of a variant's run, or None."""
    import polars as pl

    if not (path / "validation.parquet").exists():
        return None
    frame = pl.read_parquet(path / "validation.parquet")
    return frame.filter(pl.col("step") == pl.col("step").max())


def _mean_of_types(scores, metric: str) -> float:
    import polars as pl

    return scores.group_by("degradation").agg(pl.col(metric).mean())[metric].mean()


def compare(config, baseline: str = BASELINE, metric: str = "psnr_y"):
    """Return every variant's paired difference to the baseline on the same images and draws.

    Columns: `variant`, `mean`, `difference` (variant − baseline, mean over scored images and
    seeds; null for the baseline itself), `low`, `high` (95 % bootstrap over photographs),
    `images`. Raises ValueError when the numbers' protocols or images differ.
    """
    import polars as pl

    from .validate import check_comparable

    frames: dict[str, list] = {}
    for variant in variants(config):
        scores = _last_scores(folder(config) / variant.folder)
        if scores is not None:
            frames.setdefault(variant.name, []).append(scores)
    if baseline not in frames:
        raise ValueError(
            f"the baseline {baseline!r} has no scores; there are scores of "
            f"{sorted(frames) or 'no variant'}: run the ablation first"
        )
    averaged = {n: pl.concat(f, how="diagonal").group_by(PAIRING).agg(pl.col(metric).mean())
                for n, f in frames.items()}  # fmt: skip
    check_comparable(pl.concat([f for parts in frames.values() for f in parts], how="diagonal"))
    reference, rows = averaged[baseline], []
    for name, scores in averaged.items():
        row = {"variant": name, "mean": scores[metric].mean(), "images": len(scores)}
        if name != baseline:
            pairs = scores.join(reference, on=PAIRING, suffix="_baseline").sort(PAIRING)
            if len(pairs) != len(reference) or len(pairs) != len(scores):
                raise ValueError(f"{name} and {baseline} were scored on different images or draws")
            values = (pairs[metric] - pairs[f"{metric}_baseline"]).to_numpy()
            mean, low, high = bootstrap_interval(values, pairs["image"].to_list())
            row |= {"difference": mean, "low": low, "high": high}
        rows.append(row)
    columns = ["variant", "mean", "difference", "low", "high", "images"]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    missing = [pl.lit(None, pl.Float64).alias(c) for c in columns if c not in frame.columns]
    return frame.with_columns(missing).select(columns)
