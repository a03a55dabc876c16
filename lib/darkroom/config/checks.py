"""What no single value shows: values that do not fit together, have no effect, or are not there yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, NamedTuple

from . import names

PIXEL_TERMS = ("l2", "l1", "charbonnier", "ssim", "lpips", "vgg")
PHASES = {
    "regression": ("network",),
    "one_step_gan": ("generator", "discriminator"),
    "conditional_diffusion": ("denoiser",),
    "flow_matching": ("velocity",),
    "image_to_svg": ("language_model",),
}
TERMS = {
    "regression": PIXEL_TERMS,
    "one_step_gan": (*PIXEL_TERMS, "gan"),
    "conditional_diffusion": PIXEL_TERMS,
    "flow_matching": ("velocity",),
    "image_to_svg": ("cross_entropy",),
}
SAMPLED = ("conditional_diffusion", "flow_matching")
# what a stage may change: weights, rates, how samples are cut and degraded; never structure or batch
STAGE_KEYS = (
    "loss.*",
    "optim.*.lr",
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


class NotYet(NamedTuple):
    """A value whose effect a later version brings."""

    key: str  # may hold *
    waits: Callable[[Any], bool]
    instead: str
    refused: bool = True  # False: it changes no result, so a warning does


NOT_YET = (
    NotYet(
        "data.source",
        lambda v: v in ("shards", "charts", "vessels", "icons"),
        "use photographs, folder, pairs or parquet",
    ),
    NotYet("degradation.kind", lambda v: v == "document", "use five_types, real_esrgan or none"),
    NotYet(
        "model.recipe",
        lambda v: v in ("conditional_diffusion", "flow_matching", "image_to_svg"),
        "use regression or one_step_gan",
    ),
    NotYet("model.size", lambda v: v == "full", "use tiny"),
    NotYet("optim.*.name", lambda v: v == "adamw8bit", "use adamw or rmsprop"),
    NotYet("train.tail_micro_batch", lambda v: v is not None, "use a smaller train.micro_batch"),
    NotYet("train.share_step", bool, "leave it false: each phase makes its own forward"),
    NotYet("train.checkpointing.*", lambda v: v != "off", "all activations are kept", False),
    NotYet("budget.gpu", lambda v: v is not None, "the run takes the device it finds"),
    NotYet("budget.memory_gib", lambda v: v is not None, "set train.micro_batch to what fits"),
    NotYet("budget.hours", lambda v: v is not None, "set train.hours"),
    NotYet("budget.disk_gib", lambda v: v is not None, "set train.keep_last"),
    NotYet("budget.alarm", lambda v: v != 0.85, "memory is in every row of train.jsonl", False),
    NotYet("validation.max_time_share", lambda v: v is not None, "set validation.every"),
    NotYet("restore.upscale", lambda v: v != 1, "enlarge the input first"),
    NotYet("restore.colour_fix", lambda v: v != "off", "leave it off"),
    NotYet("ablation.executor", lambda v: v == "ray", "use local"),
)


class Idle(NamedTuple):
    """Keys that do nothing in some runs, and why."""

    keys: tuple[str, ...]  # may hold *
    when: Callable[[Any], bool]
    reason: Callable[[Any], str]


def _recipe(config) -> str:
    return f"the recipe is {config.model.recipe}"


def _source(config) -> str:
    return f"data.source is {config.data.source}"


IDLE = (
    Idle(("data.train",), lambda c: c.data.source == "photographs", _source),
    Idle(
        ("data.image_key", "data.lq_key", "data.gt_key", "data.prompt_key", "data.prefix"),
        lambda c: c.data.source not in ("parquet", "shards"),
        _source,
    ),
    Idle(
        ("data.types",),
        lambda c: c.data.source in ("photographs", "folder"),
        lambda c: f"{_source(c)}, degraded on the fly: set degradation.types",
    ),
    Idle(("data.crop_size",), lambda c: c.data.crop == "none", lambda c: "data.crop is none"),
    Idle(
        ("degradation.*",),
        lambda c: c.data.source == "pairs",
        lambda c: "data.source is pairs, degraded already",
    ),
    Idle(
        ("degradation.types", "degradation.severity"),
        lambda c: c.degradation.kind != "five_types" and c.data.source != "pairs",
        lambda c: f"degradation.kind is {c.degradation.kind}",
    ),
    Idle(
        ("model.model_t", "model.coeff_t", "model.trunk", "model.trunk_weights"),
        lambda c: c.model.recipe != "one_step_gan",
        _recipe,
    ),
    Idle(
        ("model.base", "model.lora_*", "model.trunk", "model.trunk_weights", "model.model_t"),
        lambda c: c.model.size == "tiny" and c.model.recipe in ("one_step_gan", "regression"),
        lambda c: "model.size is tiny, a small network trained whole from random weights",
    ),
    Idle(
        ("model.condition_channels", "model.width", "model.depth", "model.heads", "model.kv_heads"),
        lambda c: c.model.recipe != "flow_matching",
        _recipe,
    ),
    Idle(
        ("model.grid", "model.max_seq_length"), lambda c: c.model.recipe != "image_to_svg", _recipe
    ),
    Idle(
        ("optim.schedule.min_lr",),
        lambda c: c.optim.schedule.kind == "constant",
        lambda c: "optim.schedule.kind is constant",
    ),
    Idle(
        ("train.ema_device",), lambda c: not c.train.ema_decay, lambda c: "train.ema_decay is off"
    ),
    Idle(
        ("train.grad_norm_modules",),
        lambda c: c.train.grad_norm_every is None,
        lambda c: "train.grad_norm_every is null",
    ),
    Idle(
        ("restore.num_steps", "restore.sampler", "restore.guidance"),
        lambda c: c.model.recipe not in SAMPLED,
        lambda c: f"{_recipe(c)}, which restores without a sampler",
    ),
    Idle(
        ("tracking.project", "tracking.mode"),
        lambda c: set(c.tracking.report_to) <= {"jsonl"},
        lambda c: "tracking.report_to names no tracker",
    ),
)
HORIZONS = ("steps", "hours", "images", "epochs")


def problems(config) -> list[str]:
    """Return a line for everything that makes the config unusable."""
    lines = _not_yet(config, refused=True)
    lines += [*_batch(config), *_source_problems(config), *_rates(config), *_choosing(config)]
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
    lines += _stages(config)
    return lines + _ablation(config)


def notes(config) -> list[str]:
    """Return the derived numbers of this config, each with its reason."""
    train = config.train
    micro = train.micro_batch or train.effective_batch
    why = (
        f"train.effective_batch {train.effective_batch} / train.micro_batch {micro} on one process"
        if train.micro_batch
        else f"train.micro_batch is null, so the whole effective batch of {micro} at once"
    )
    lines = [f"accumulation {train.accumulation}: {why}"]
    horizon = next(name for name in HORIZONS if getattr(train, name) is not None)
    length = f"{getattr(train, horizon):g} {horizon}"
    more = f", and {train.extend} steps more" if train.extend else ""
    lines.append(f"horizon {length}{more}: train.{horizon} comes first of {', '.join(HORIZONS)}")
    lines += [f"{what} is step {step} of {train.steps}" for what, step in _shares(config)]
    return lines


def warnings(config) -> list[str]:
    """Return a line for every option that is set and idle in this run, and for likely slips."""
    changed = _changed(config)
    lines = _not_yet(config, refused=False)
    for keys, when, reason in (*IDLE, *_idle_here(config)):
        hits = [k for k in changed if any(fnmatch(k, pattern) for pattern in keys)]
        if hits and when(config):
            listed = ", ".join(f"{k}: {json.dumps(changed.pop(k))}" for k in hits)
            lines.append(f"without effect: {listed} ({reason(config)})")
    model = config.model
    if model.recipe == "one_step_gan":
        if model.model_t != model.coeff_t:
            lines.append(
                f"model.model_t {model.model_t} differs from model.coeff_t {model.coeff_t}: the "
                "network is told another noise level than the one its epsilon is converted with"
            )
        if not config.loss.gan and not any("loss.gan" in s.changes for s in config.stages.values()):
            lines.append(
                "loss.gan is 0: the discriminator trains, and the generator does not see it"
            )
    if config.validation.weights == "ema" and not config.train.ema_decay:
        lines.append("validation.weights is ema and train.ema_decay is off: raw weights are scored")
    return lines


def _idle_here(config) -> list[Idle]:
    """Return the rows of IDLE that follow from the recipe's terms and phases, and the horizon."""
    recipe, always = config.model.recipe, lambda c: True
    terms = tuple(f"loss.{n}" for n in type(config.loss).model_fields if n not in TERMS[recipe])
    phases = tuple(f"optim.{n}.*" for n in config.optim.phases if n not in PHASES[recipe])
    rmsprop = tuple(
        f"optim.{n}.betas" for n, phase in config.optim.phases.items() if phase.name == "rmsprop"
    )
    set_ones = [n for n in HORIZONS if getattr(config.train, n) is not None]
    later = tuple(f"train.{n}" for n in set_ones[1:])
    return [
        Idle(terms, always, _recipe),
        Idle(phases, always, lambda c: f"{_recipe(c)}, with the phases {', '.join(PHASES[recipe])}"),
        Idle(rmsprop, always, lambda c: "rmsprop has no betas"),
        Idle(later, always, lambda c: f"train.{set_ones[0]} comes first"),
    ]


def _changed(config) -> dict[str, Any]:
    """Return the dotted keys that differ from the defaults."""
    defaults = names.flat(type(config)().to_dict())
    return {k: v for k, v in names.flat(config.to_dict()).items() if v != defaults.get(k, ...)}


def _not_yet(config, *, refused: bool) -> list[str]:
    values = names.flat(config.to_dict())
    return [
        f"`{key}: {json.dumps(value)}` is not there yet: {row.instead}"
        for row in NOT_YET
        if row.refused == refused
        for key, value in values.items()
        if fnmatch(key, row.key) and row.waits(value)
    ]


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
    if config.data.source in ("folder", "pairs", "parquet") and not config.data.train:
        what = "parquet file" if config.data.source == "parquet" else "folder"
        return [f"`data.source` is {config.data.source}, and `data.train` names no {what}: set it"]
    return []


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
        f"`{key}` is {metric}, which validation.metrics does not score: it scores {', '.join(scored)}"
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
