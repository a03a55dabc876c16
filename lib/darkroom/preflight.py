"""What is checked and said before anything expensive starts."""

from __future__ import annotations


def check_sizes(config, samples) -> None:
    """Raise ValueError when a training image cannot give the configured crop.

    `samples` is `index.samples(frame, "train")` with width and height.
    """
    section = config.data
    if section.crop == "none":
        sizes = sorted(set(samples.select("width", "height").iter_rows()))
        if len(sizes) > 1 and (config.train.micro_batch or config.train.effective_batch) > 1:
            raise ValueError(
                f"data.crop none needs images of one size, and there are {len(sizes)} sizes from "
                f"{sizes[0]} to {sizes[-1]} (width, height): set data.crop to random or center, or "
                "train.micro_batch to 1"
            )
        return
    import polars as pl

    size = section.crop_size
    small = samples.filter(pl.min_horizontal("width", "height") < size)
    if len(small):
        names = ", ".join(
            f"{r['gt_path']} ({r['width']}x{r['height']})" for r in small.head(3).to_dicts()
        )
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        largest = samples.select(pl.min_horizontal("width", "height").min()).item()
        raise ValueError(
            f"data.crop_size {size} is larger than {len(small)} of {len(samples)} training images: "
            f"{names}{more}. Set data.crop_size to at most {largest}, or leave these images out"
        )


def check_weights(config) -> None:
    """Raise ValueError naming every weight file that this run needs and does not find.

    Nothing is read into memory. A base or a trunk may still have to come from the hub.
    """
    from . import perceptual
    from .networks import stable_diffusion, trunk

    model, checks = config.model, []
    if model.recipe == "one_step_gan" and model.size == "full":
        if model.base is not None:
            checks.append(lambda: stable_diffusion.find(model.base, config.paths.models))
        if model.trunk != "tiny":
            checks.append(
                lambda: trunk.locate(model.trunk, model.trunk_weights, config.paths.models)
            )
    stages = [s.changes for s in config.stages.values()]
    for name in ("lpips", "vgg"):
        if getattr(config.loss, name) or any(c.get(f"loss.{name}") for c in stages):
            checks.append(lambda name=name: perceptual.require(f"loss.{name}", name == "lpips"))
    problems = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("weights are missing:\n" + "\n".join(f"- {p}" for p in problems))


def report(config, samples, recipe, verdict=None) -> list[tuple[str, str, str]]:
    """Return rows (what, value, reason) that notebook 03 shows before it starts.

    `verdict` is what `plan.budget.check` returned. Raises ValueError as `plan.disk.disk` does.
    """
    import os

    import torch

    from . import loader, precision, tracking

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = precision.choose(config, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU was found"
    section = config.train
    micro, workers = section.micro_batch or section.effective_batch, loader.num_workers(config)
    ahead = f"; {loader.batches_ahead(config, micro, workers)} batches ready each" * bool(workers)
    rows = [
        ("device", str(device), name),
        ("precision", str(chosen.dtype).removeprefix("torch."), chosen.reason),
        ("attention", precision.attention_kernel(device, chosen.dtype), "chosen by PyTorch"),
        ("threads", str(torch.get_num_threads()), "pinned, so that a resume adds up alike"),
        (
            "loader workers",
            str(workers),
            f"{len(os.sched_getaffinity(0))} cores, one of them for the trainer{ahead}",
        ),
        (
            "batch",
            f"{section.effective_batch} = {section.effective_batch // micro} x {micro}",
            "effective = accumulation x micro; an out-of-memory error takes a smaller micro batch",
        ),
        ("training images", str(len(samples)), f"crop {config.data.crop} {config.data.crop_size}"),
    ]
    levers = [f"{k} {v}" for k, v in section.checkpointing if v != "off"]
    if section.tail_micro_batch is not None:
        levers.append(f"tail micro batch {section.tail_micro_batch}")
    if levers:
        rows.append(("memory levers", ", ".join(levers), "the same gradients from less memory"))
    rows += _planned(config, recipe, verdict)
    rows += [("tracker", c.tracker, c.detail) for c in tracking.check(config, network=False)]
    for phase in recipe.phases(config):
        count = sum(p.numel() for p in phase.parameters.values())
        terms = ", ".join(f"{k} {v:g}" for k, v in phase.weights.items() if v)
        why = f"lr {phase.lr:g}" + (f"; {terms}" if terms else "")
        rows.append((f"{phase.name} trains", f"{count:,} parameters", why))
    return rows


def _planned(config, recipe, verdict) -> list[tuple[str, str, str]]:
    """Return rows on planned memory against its limit, and on the disk."""
    from .plan import budget, disk

    rows = []
    if verdict is not None and verdict.card is not None:
        plan, over = verdict.plan, verdict.over
        beside = f" and {budget.size(over.gib)} beside them" if over else ""
        held = f"tensors {budget.size(plan.peak_gib)}{beside}, in the phase {plan.peak_phase}"
        rows.append(("planned peak", budget.size(verdict.needed_gib), held))
        alarm = f"; {verdict.warnings[0]}" if verdict.warnings else ""
        rows.append(("memory", budget.size(verdict.card.memory_gib), verdict.reason + alarm))
    space = disk.disk(config, recipe)
    free = f"{space.free_gib:.1f} GiB are free where the run lies"
    return [*rows, ("checkpoints", str(space), "; ".join([free, *space.warnings]))]


def planned(config, run, device, validation_samples=None, *, precision=None, processes: int = 1):
    """Hold a run's plan against its budget of memory; notes what it finds.

    Returns `plan.budget.Verdict`, without a plan where nothing limits memory. A micro batch that
    the config leaves open is fitted once, recorded at step 0, and replayed; a run that has begun
    is not refused any more. `run` is the RunDirectory; `validation_samples` have width and height;
    `precision` is bf16, fp16 or fp32. Raises ValueError where the run does not fit.
    """
    from .config.effects import PHASES
    from .plan import budget

    options = {"precision": precision}
    if validation_samples is not None and len(validation_samples):
        options["validation_size"] = _largest(config, validation_samples)
    begun = run.begun()
    sizes = run.decided("micro_batch")
    if not begun:
        found = budget.fitting_micro(config, device, processes=processes, **options)
        fitted = dict.fromkeys(PHASES[config.model.recipe], found[0]) if found else sizes
        if fitted != sizes:
            sizes = fitted
            run.decide(0, "micro_batch", sizes, found[1])
    if sizes:
        config = config.with_changes({"train.micro_batch": max(sizes.values())})
    verdict = (budget.examine if begun else budget.check)(config, device, **options)
    for line in filter(None, [verdict.line, *verdict.warnings]):
        run.note(line)
    return verdict


def held(config, run, accelerator, dtype, validation_samples):
    """Return `planned`'s verdict on the main process; the others (None) read what it decided."""
    from .precision import DTYPES

    if not accelerator.is_main_process:
        run.made = run.decisions.read()
        return None
    kind = next(name for name, value in DTYPES.items() if value == dtype)
    processes = accelerator.num_processes
    return planned(
        config,
        run,
        accelerator.device,
        validation_samples,
        precision=kind,
        processes=processes,
    )


def compared(config, run, verdict) -> list[str]:
    """Return what there is to say of predicted against measured memory, at a run's end."""
    from .plan import budget

    if verdict is None or verdict.plan is None:
        return []
    rows = run.rows.read()
    return budget.measured(config, verdict.plan, rows[-1], verdict.card) if rows else []


def check_disk(config, run, recipe, *, note: bool = True) -> None:
    """Hold the run's checkpoints against budget.disk_gib and what is free; may note a warning.

    Raises ValueError as `plan.disk.disk` does.
    """
    from .plan import disk

    if config.budget.disk_gib is None and disk.plenty(config, recipe):
        return
    found = disk.disk(config, recipe)
    for line in found.warnings if note else ():
        run.note(line)


def _largest(config, samples) -> tuple[int, int]:
    """Return height and width of the largest picture that is restored at once."""
    import polars as pl

    from .tiling import AUTO_TILE

    row = samples.sort(pl.col("width").cast(pl.Int64) * pl.col("height")).row(-1, named=True)
    tile = config.restore.tile
    side = {"auto": AUTO_TILE, None: max(row["height"], row["width"])}.get(tile, tile)
    return min(row["height"], side), min(row["width"], side)
