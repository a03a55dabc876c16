"""Score a model on the held-out images at native size, and keep every number with its protocol.

A frame has a row an image and draw, with the untouched input's scores beside the restored ones.
Validation draws and model noise derive from `validation.seed` and the item alone.
"""
# B batch, H height, W width

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from . import data, metrics
from .bar import bar as progress_bar
from .baseline import best_affine
from .bootstrap import bootstrap_interval
from .inference import load_run, restore_batch
from .paths import write_atomically

FILE = "validation.parquet"
PROTOCOL_COLUMNS = (*metrics.PROTOCOL, "image_set")
_found: dict[tuple[str, str], metrics.Metric] = {}  # networks are loaded once


def score(recipe, config, *, step: int, weights: str, samples=None, progress: bool = False):
    """Score every validation item with the recipe's present weights; returns a polars frame.

    `samples` is `index.samples(frame, "val")`, by default of the run's own index; `weights` ("ema"
    or "raw") says what the recipe carries. A metric without its files has no column; `absences`
    says why. final_score exists where psnr_y, ssim_y and lpips do.
    """
    import polars as pl

    if samples is None:
        samples = _samples(config)
    items = data.validation_items(config, samples)
    if not items:
        raise ValueError(
            "there is nothing to validate on: the index holds no usable validation image. Give "
            "validation.data, or a data.source with a held-out part"
        )
    device = next(recipe.network.parameters()).device
    wanted, _ = _metrics(config, device)
    rows, identities = [], []
    bar = progress_bar(len(items), "validation", "image", show=progress)
    for item in items:
        sample = data.load_item(item, config)
        identities.append(_identity(item, sample, config))
        restored, lq, gt = _restore(recipe, config, item, sample)
        row = {"image": item.image, "degradation": item.degradation, "draw": item.draw}
        for metric in wanted:
            row[metric.name] = float(metric(restored, gt))
        if "lpips" in row:
            row["final_score"] = metrics.final_score(row["psnr_y"], row["ssim_y"], row["lpips"])
        for name in ("psnr_y", "ssim_y"):
            row[f"{name}_input"] = float(metrics.METRICS[name](lq, gt))
        rows.append(row)
        bar.update()
    bar.close()
    image_set = hashlib.blake2b(b"".join(sorted(identities)), digest_size=8).hexdigest()
    origin = {**metrics.PROTOCOL, "image_set": image_set, "config_hash": config.hash}
    frame = pl.DataFrame(rows, infer_schema_length=None)
    before = [pl.lit(step, pl.Int64).alias("step"), pl.lit(weights).alias("weights")]
    after = [pl.lit(value).alias(name) for name, value in origin.items()]
    return frame.select(*before, pl.all(), *after)


def _restore(recipe, config, item, sample) -> tuple[torch.Tensor, ...]:
    """Return restored, lq and gt of an item, (1, 3, H, W) float32 in [0, 1] on the CPU."""
    batch = data.collate([sample])
    key = (config.validation.seed, item.image, item.degradation, item.draw, "restore")
    seed = int(data.rng(*key).integers(2**31))
    return restore_batch(recipe, config, batch, seed), batch.lq, batch.gt


def _identity(item, sample, config) -> bytes:
    """Return a digest of what an item is scored on, the same on every machine.

    A drawn degradation is named by its settings: its pixels may differ in the last bit elsewhere.
    """
    settings = (config.validation.seed, config.to_dict()["degradation"])
    about = (item.image, item.degradation, item.draw, None if item.lq_path else settings)
    digest = hashlib.blake2b(repr(about).encode(), digest_size=8)
    for image in (sample.gt, sample.lq) if item.lq_path else (sample.gt,):
        digest.update(str(tuple(image.shape)).encode())
        digest.update((image * 255).round().to(torch.uint8).numpy().tobytes())
    return digest.digest()


def _metrics(config, device) -> tuple[list[metrics.Metric], list[metrics.Absent]]:
    """Return the metrics that can be computed (always psnr_y and ssim_y), and the others."""
    usable, absent = [], []
    for name in dict.fromkeys(["psnr_y", "ssim_y", *config.validation.metrics]):
        found = _found.get((name, str(device))) or metrics.find(name, device)
        if isinstance(found, metrics.Absent):
            absent.append(found)
        else:
            _found[name, str(device)] = found
            usable.append(found)
    return usable, absent


def absences(config) -> list[metrics.Absent]:
    """Return the configured metrics that cannot be computed here; each names its file."""
    return _metrics(config, torch.device("cpu"))[1]


# --- what is kept -------------------------------------------------------------------------------


def record(run_dir: Path, frame) -> None:
    """Add a validation to the run's table, atomically, in place of the same one made before.

    The same one has the same step, weights and image set.
    """
    import polars as pl

    path, same = Path(run_dir) / FILE, ["step", "weights", "image_set"]
    if path.exists():
        kept = pl.read_parquet(path).join(frame.select(same).unique(), on=same, how="anti")
        frame = pl.concat([kept, frame], how="diagonal_relaxed")
    write_atomically(path, frame.write_parquet)


def read(run_dir: Path, which: str = "last"):
    """Return validations of a run that can be compared with each other.

    `which` is "last": those on the same images and protocol as the last one recorded; "training":
    those of the images that were scored at the most steps, which training does; or "all", which
    `check_comparable` may refuse. A validation on other images stays in the file, but must not
    enter a curve or the choice of the best checkpoint.
    """
    import polars as pl

    frame = pl.read_parquet(Path(run_dir) / FILE)
    if which == "all" or frame.is_empty():
        return frame
    keys = list(PROTOCOL_COLUMNS)
    if which == "last":
        chosen = frame[-1]
    elif which == "training":
        steps = frame.group_by(keys, maintain_order=True).agg(pl.col("step").n_unique())
        chosen = steps.sort("step", descending=True, maintain_order=True)[0]
    else:
        raise ValueError(f"which is {which!r}; it can be 'last', 'training' or 'all'")
    return frame.join(chosen.select(keys), on=keys, how="semi", maintain_order="left")


def check_comparable(frame) -> None:
    """Raise ValueError, naming the columns, when rows of a frame follow different protocols."""
    columns = [c for c in PROTOCOL_COLUMNS if c in frame.columns]
    mixed = {c: sorted(map(str, frame[c].unique())) for c in columns if frame[c].n_unique() > 1}
    if mixed:
        listing = "; ".join(f"{c}: {', '.join(values)}" for c, values in mixed.items())
        raise ValueError(
            f"these scores cannot be averaged or compared, they differ in {listing}. Filter one "
            "value of each, or validate again"
        )


def summary(frame):
    """Return, for the last validation in a frame, each degradation's means and the gain's interval.

    Columns: degradation, n, photographs, psnr_y, psnr_y_input, ssim_y, ssim_y_input (and lpips,
    final_score where scored), gain (psnr_y over the input), gain_low and gain_high: the 95 %
    bootstrap interval over photographs, for the draws of one photograph are not independent.
    """
    import polars as pl

    check_comparable(frame)
    frame = frame.filter(pl.col("step") == pl.col("step").max())
    if frame["weights"].n_unique() > 1:
        raise ValueError("the frame holds ema and raw weights of one step: filter one of them")
    names = ["psnr_y", "psnr_y_input", "ssim_y", "ssim_y_input", "lpips", "final_score"]
    names = [n for n in names if n in frame.columns and frame[n].null_count() == 0]
    rows = []
    for (degradation,), part in frame.group_by("degradation", maintain_order=True):
        gains = (part["psnr_y"] - part["psnr_y_input"]).to_numpy()
        gain, low, high = bootstrap_interval(gains, part["image"].to_list())
        rows.append(
            {"degradation": degradation, "n": len(part), "photographs": part["image"].n_unique()}
            | {n: part[n].mean() for n in names}
            | {"gain": gain, "gain_low": low, "gain_high": high}
        )
    return pl.DataFrame(rows).sort("degradation")


# --- a finished run -----------------------------------------------------------------------------


def validate(config, *, step: int | None = None, baseline: bool = True, progress: bool = True):
    """Score a checkpoint of a run, record it and return its frame.

    The checkpoint of `inference.chosen` by default; `step` names another. The model is the run's
    own (`runs/<run>/config.json`); of the given config only `validation` and `restore` count. With
    `baseline` psnr_y_affine and ssim_y_affine stand beside: the best colour correction's scores.
    """
    trained = load_run(config, step)
    config, samples = trained.config, _samples(trained.config)
    frame = score(
        trained.recipe,
        config,
        step=trained.step,
        weights=trained.weights,
        samples=samples,
        progress=progress,
    )
    if baseline:
        affine = best_affine(config, data.validation_items(config, samples))
        keys = ["image", "degradation", "draw"]
        affine = affine.select(*keys, "psnr_y_affine", "ssim_y_affine")
        frame = frame.join(affine, on=keys, how="left", maintain_order="left")
    record(config.run_dir, frame)
    return frame


def restore_items(config, keys, *, step: int | None = None) -> list[tuple]:
    """Restore validation items again, as `validate` does.

    `keys` are (image, degradation, draw); returns (lq, restored, gt), each (H, W, 3) in [0, 1].
    """
    trained = load_run(config, step)
    config = trained.config
    items = data.validation_items(config, _samples(config))
    known = {(i.image, i.degradation, i.draw): i for i in items}
    pictures = []
    for key in map(tuple, keys):
        if key not in known:
            raise ValueError(
                f"{key} is not a validation item (image, degradation, draw) of this run"
            )
        sample = data.load_item(known[key], config)
        restored, lq, gt = _restore(trained.recipe, config, known[key], sample)
        pictures.append(tuple(x[0].permute(1, 2, 0).numpy() for x in (lq, restored, gt)))
    return pictures


def _samples(config):
    """Return the validation samples: the run's own, or those of another `validation.data`."""
    from . import index
    from .run import RunDirectory, read_config

    run_dir = config.run_dir
    if (run_dir / "config.json").exists():
        stored = read_config(run_dir)
        if stored.validation.data == config.validation.data:
            return RunDirectory(config).samples("val")
    return index.samples(index.build_index(config), "val")
