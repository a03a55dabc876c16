"""What no single value shows: values that do not fit together, numbers that follow."""

from __future__ import annotations

import typing
from fnmatch import fnmatch

from . import effects, names
from .effects import HORIZONS, KINDS, PHASES, SIZES, TERMS

# what a stage may change: weights, rates, how samples are cut and degraded; never structure
STAGE_KEYS = (
    "loss.*",
    "optim.*.lr",
    "model.unfreeze",
    "data.crop",
    "data.crop_size",
    "data.hflip",
    "data.rotate",
    "data.prompt",
    "data.p_empty_prompt",
    "degradation.kind",
    "degradation.types",
    "degradation.severity",
)


def problems(config) -> list[str]:
    """Return a line for everything that makes the config unusable."""
    lines = effects.not_yet(config, refused=True)
    lines += [*_batch(config), *_source_problems(config), *_types(config)]
    lines += [*_rates(config), *_choosing(config)]
    if all(getattr(config.train, name) is None for name in HORIZONS):
        lines.append(
            "`train` has no horizon: set train.steps, train.hours, train.images or train.epochs"
        )
    terms = TERMS[config.model.recipe]
    if not any(getattr(config.loss, term) for term in terms):
        lines.append(
            f"every loss weight that {config.model.recipe} uses is 0: set one of "
            + ", ".join(f"loss.{term}" for term in terms)
        )
    sizes = SIZES[config.model.recipe]
    if config.model.size not in sizes:
        lines.append(
            f"model.size {config.model.size} is no size of {config.model.recipe}: it can be "
            + " or ".join(sizes)
        )
    lines += [*_diffusion(config), *_stages(config)]
    return lines + _ablation(config)


def _diffusion(config) -> list[str]:
    model, lines = config.model, []
    if model.recipe != "conditional_diffusion":
        return []
    if model.lora_rank is not None and model.base is None:
        lines.append(
            f"`model.lora_rank` is {model.lora_rank} and `model.base` is null: adapters on random "
            "weights learn nothing. Train the base first (model.lora_rank: null), then name its "
            "run in model.base"
        )
    if model.space == "latent" and model.size != "full":
        lines.append(
            f"`model.space` is latent and model.size {model.size}: the tiny network diffuses "
            "pixels; take model.space pixel or model.size full"
        )
    if config.restore.sampler != "ddim":
        lines.append(
            f"`restore.sampler` is {config.restore.sampler}, and conditional_diffusion is sampled "
            "by ddim"
        )
    return lines


def notes(config) -> list[str]:
    """Return the derived numbers of this config, each with its reason."""
    train = config.train
    micro = train.micro_batch or train.effective_batch
    why = (
        f"train.effective_batch {train.effective_batch} / train.micro_batch {micro} on one process"
        if train.micro_batch
        else f"train.micro_batch is null, so the whole effective batch of {micro} at once, or what "
        "fits the budget"
    )
    lines = [f"accumulation {train.accumulation}: {why}"]
    horizon = next(name for name in HORIZONS if getattr(train, name) is not None)
    length = f"{getattr(train, horizon)} {horizon}"
    more = f", and {train.extend} steps more" if train.extend else ""
    lines.append(f"horizon {length}{more}: train.{horizon} comes first of {', '.join(HORIZONS)}")
    lines += [f"{what} is step {step} of {train.steps}" for what, step in _shares(config)]
    return lines


def warnings(config) -> list[str]:
    """Return a line for every option that is set and idle in this run, and for likely slips."""
    lines = [*effects.not_yet(config, refused=False), *effects.idle(config)]
    model = config.model
    if model.recipe == "one_step_gan":
        if model.model_t != model.coeff_t:
            lines.append(
                f"model.model_t {model.model_t} differs from model.coeff_t {model.coeff_t}: the "
                "network is told another noise level than the one its epsilon is converted with"
            )
        if not config.loss.gan and not any(
            s.changes.get("loss.gan") for s in config.stages.values()
        ):
            lines.append("loss.gan is 0: there is no discriminator phase")
    if config.validation.weights == "ema" and not config.train.ema_decay:
        lines.append("validation.weights is ema and train.ema_decay is off: raw weights are scored")
    return lines


def _batch(config) -> list[str]:
    effective, micro = config.train.effective_batch, config.train.micro_batch
    if micro is None or effective % micro == 0:
        return []
    divisors = [n for n in range(1, effective + 1) if effective % n == 0]
    near = sorted({max(d for d in divisors if d < micro), *[d for d in divisors if d > micro][:1]})
    return [
        f"`train.micro_batch` is {micro}, which does not divide train.effective_batch {effective}: "
        f"the nearest that do are {' and '.join(map(str, near))}"
    ]


def _source_problems(config) -> list[str]:
    if config.data.source in ("folder", "pairs", "parquet", "shards") and not config.data.train:
        places = {"parquet": "parquet file", "shards": "folder of shards"}
        what = places.get(config.data.source, "folder")
        return [f"`data.source` is {config.data.source}, and `data.train` names no {what}: set it"]
    data = config.data
    if data.source == "charts" and data.crop != "none" and data.crop_size > data.chart_size:
        return [
            f"`data.crop_size` is {data.crop_size}, larger than charts of data.chart_size "
            f"{data.chart_size}: lower the one or raise the other (up to 512)"
        ]
    return []


def _types(config) -> list[str]:
    """Check that the degradations named are those of the kind."""
    kind, named = config.degradation.kind, config.degradation.types or ()
    if kind not in KINDS:
        return []
    allowed = typing.get_args(KINDS[kind])
    wrong = [name for name in named if name not in allowed]
    if not wrong:
        return []
    return [
        f"`degradation.types` names {', '.join(wrong)}, and degradation.kind {kind} draws from "
        + ", ".join(allowed)
    ]


def _rates(config) -> list[str]:
    schedule = config.optim.schedule
    if schedule.kind != "cosine":
        return []
    return [
        f"`optim.schedule.min_lr` is {schedule.min_lr:g}, above optim.{name}.lr "
        f"{config.optim.for_phase(name).lr:g}: the cosine ends at or below the base rate"
        for name in PHASES[config.model.recipe]
        if schedule.min_lr > config.optim.for_phase(name).lr
    ]


def _choosing(config) -> list[str]:
    """Check that whatever chooses a checkpoint or stops the run is scored at all."""
    scored, rule = list(config.validation.metrics), config.train.early_stopping
    if {"psnr_y", "ssim_y", "lpips"} <= set(scored):
        scored.append("final_score")
    lines = [
        f"`{key}` is {metric}, which is not scored: validation scores {', '.join(scored)}"
        for key, metric in (
            ("train.best", config.train.best),
            ("train.early_stopping.metric", rule and rule.metric),
        )
        if metric and metric not in scored
    ]
    if rule and config.validation.every is None:
        lines.append("`train.early_stopping` needs validations: set validation.every")
    return lines


def _stages(config) -> list[str]:
    lines = []
    for name, stage in config.stages.items():
        bad = [k for k in stage.changes if not any(fnmatch(k, p) for p in STAGE_KEYS)]
        lines += [
            f"`stages.{name}.changes` names `{key}`, which a stage cannot change: it can change "
            f"{', '.join(STAGE_KEYS)}"
            for key in bad
        ]
        if bad:
            continue
        alone = {**config.to_dict(), "stages": {}}
        try:
            type(config).from_dict(alone).with_changes(stage.changes)
        except names.ConfigError as error:
            lines += [f"in `stages.{name}.changes`: {line}" for line in str(error).splitlines()]
    return lines


def _ablation(config) -> list[str]:
    allowed = names.keys(type(config))
    asked = [("ablation.grid", key) for key in config.ablation.grid]
    for variant, changes in config.ablation.variants.items():
        asked += [(f"ablation.variants.{variant}", key) for key in changes]
    return [
        f"`{where}` names `{key}`, which is no key: "
        + names.meant(key.rsplit(".", 1)[-1], (), list(allowed), allowed)
        for where, key in asked
        if key not in allowed and not key.startswith("stages.")
    ]


def _shares(config) -> list[tuple[str, int]]:
    """Return what is given in per cent of the horizon, in steps, where the horizon is in steps."""
    steps, found = config.train.steps, []
    amounts = [("optim.schedule.warmup", config.optim.schedule.warmup)]
    for name, stage in config.stages.items():
        amounts += [(f"stages.{name}.start", stage.start), (f"stages.{name}.ramp", stage.ramp)]
    for key, amount in amounts:
        if steps and isinstance(amount, str):
            found.append((f"{key} {amount}", round(float(amount[:-1]) / 100 * steps)))
    return found
