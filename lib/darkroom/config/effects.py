"""Values that do nothing: those a later version brings, and those that are idle in this run."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, NamedTuple

from . import names, sections

PIXEL_TERMS = ("l2", "l1", "charbonnier", "psnr", "ssim", "lpips", "vgg")
PHASES = {
    "regression": ("network",),
    "one_step_gan": ("generator", "discriminator"),
    "conditional_diffusion": ("denoiser",),
    "flow_matching": ("velocity",),
    "image_to_svg": ("language_model",),
}
SIZES = {
    "regression": ("tiny", "middle"),
    "one_step_gan": ("tiny", "full"),
    "conditional_diffusion": ("tiny", "full"),
    "flow_matching": ("tiny", "full"),
    "image_to_svg": ("tiny", "full"),
}
TERMS = {
    "regression": PIXEL_TERMS,
    "one_step_gan": (*PIXEL_TERMS, "gan"),
    "conditional_diffusion": PIXEL_TERMS,
    "flow_matching": ("velocity",),
    "image_to_svg": ("cross_entropy",),
}
EMBEDDED = ("photographs", "charts")
KINDS = {"five_types": sections.Type, "document": sections.Domain}  # what each draws from
SAMPLED = ("conditional_diffusion", "flow_matching")


class NotYet(NamedTuple):
    """A value whose effect a later version brings."""

    key: str  # may hold *
    waits: Callable[[Any], bool]
    instead: str
    refused: bool = True  # False: it changes no result, so a warning does


NOT_YET = (
    NotYet(
        "data.source",
        lambda v: v in ("vessels", "icons"),
        "use photographs, charts, folder, pairs, parquet or shards",
    ),
    NotYet(
        "model.recipe",
        lambda v: v in ("flow_matching", "image_to_svg"),
        "use regression, one_step_gan or conditional_diffusion",
    ),
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
    Idle(("data.train",), lambda c: c.data.source in EMBEDDED, _source),
    Idle(("data.chart_size", "data.num_charts"), lambda c: c.data.source != "charts", _source),
    Idle(
        ("data.image_key", "data.lq_key", "data.gt_key", "data.prefix"),
        lambda c: c.data.source != "parquet",
        _source,
    ),
    Idle(("data.prompt_key",), lambda c: c.data.source not in ("parquet", "shards"), _source),
    Idle(
        ("data.types",),
        lambda c: c.data.source in (*EMBEDDED, "folder"),
        lambda c: f"{_source(c)}, degraded on the fly: set degradation.types",
    ),
    Idle(("data.crop_size",), lambda c: c.data.crop == "none", lambda c: "data.crop is none"),
    Idle(
        ("degradation.*", "data.tone_jitter"),
        lambda c: c.data.source == "pairs",
        lambda c: "data.source is pairs, degraded already",
    ),
    Idle(
        ("degradation.types", "degradation.severity"),
        lambda c: c.degradation.kind not in KINDS and c.data.source != "pairs",
        lambda c: f"degradation.kind is {c.degradation.kind}",
    ),
    Idle(
        ("model.model_t", "model.coeff_t", "model.trunk", "model.trunk_weights"),
        lambda c: c.model.recipe != "one_step_gan",
        _recipe,
    ),
    Idle(
        ("model.base", "model.lora_*", "model.trunk", "model.trunk_weights", "model.model_t"),
        lambda c: (
            c.model.recipe == "regression"
            or (c.model.size == "tiny" and c.model.recipe == "one_step_gan")
        ),
        lambda c: f"model.size is {c.model.size}, a network trained whole from random weights",
    ),
    Idle(
        ("model.prediction", "model.noise_schedule", "model.space", "model.autoencoder"),
        lambda c: c.model.recipe != "conditional_diffusion",
        _recipe,
    ),
    Idle(
        ("model.unfreeze", "optim.*.unfrozen_*"),
        lambda c: c.model.recipe != "conditional_diffusion" or c.model.lora_rank is None,
        lambda c: "nothing of the network is frozen, or its recipe unfreezes nothing",
    ),
    Idle(
        ("model.autoencoder",),
        lambda c: c.model.space == "pixel",
        lambda c: "model.space is pixel",
    ),
    Idle(
        ("restore.guidance",),
        lambda c: c.model.recipe == "conditional_diffusion",
        lambda c: f"{_recipe(c)}, whose condition is never left out",
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
        ("train.checkpointing.decoder",),
        lambda c: c.model.size == "tiny" and c.model.recipe == "one_step_gan",
        lambda c: "the tiny autoencoder keeps nothing",
    ),
    Idle(
        (
            *("train.tail_micro_batch", "train.share_step", "train.lpips_autocast"),
            *("train.checkpointing.decoder", "train.checkpointing.discriminator"),
        ),
        lambda c: c.model.recipe != "one_step_gan",
        _recipe,
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
        ("restore.upscale",),
        lambda c: True,
        lambda c: "on scores, taken at native size; it enlarges the folders that are restored",
    ),
    Idle(
        ("tracking.project", "tracking.mode"),
        lambda c: set(c.tracking.report_to) <= {"jsonl"},
        lambda c: "tracking.report_to names no tracker",
    ),
)
HORIZONS = ("steps", "hours", "images", "epochs")  # by precedence


def _idle_here(config) -> list[Idle]:
    """Return the rows of IDLE that follow from the recipe's terms and phases, and the horizon."""
    recipe, always = config.model.recipe, lambda c: True
    terms = tuple(f"loss.{n}" for n in type(config.loss).model_fields if n not in TERMS[recipe])
    phases = tuple(f"optim.{n}.*" for n in config.optim.phases if n not in PHASES[recipe])
    rmsprop = tuple(
        f"optim.{n}.betas" for n, phase in config.optim.phases.items() if phase.name == "rmsprop"
    )
    ways = {"adamw": ("fused", "foreach", "loop"), "rmsprop": ("foreach", "loop"), "adamw8bit": ()}
    no_way = tuple(
        f"optim.{n}.implementation"
        for n, phase in config.optim.phases.items()
        if phase.implementation not in ("auto", *ways[phase.name])
    )
    set_ones = [n for n in HORIZONS if getattr(config.train, n) is not None]
    later = tuple(f"train.{n}" for n in set_ones[1:])
    return [
        Idle(terms, always, _recipe),
        Idle(
            phases, always, lambda c: f"{_recipe(c)}, with the phases {', '.join(PHASES[recipe])}"
        ),
        Idle(rmsprop, always, lambda c: "rmsprop has no betas"),
        Idle(no_way, always, lambda c: "rmsprop has no fused step, adamw8bit only its own"),
        Idle(later, always, lambda c: f"train.{set_ones[0]} comes first"),
    ]


def _changed(config) -> dict[str, Any]:
    """Return the dotted keys that differ from the defaults."""
    defaults = names.flat(type(config)().to_dict())
    return {k: v for k, v in names.flat(config.to_dict()).items() if v != defaults.get(k, ...)}


def idle(config) -> list[str]:
    """Return a line for options that differ from their defaults and do nothing in this run."""
    changed, lines = _changed(config), []
    for keys, when, reason in (*IDLE, *_idle_here(config)):
        hits = [k for k in changed if any(fnmatch(k, pattern) for pattern in keys)]
        if hits and when(config):
            listed = ", ".join(f"{k}: {json.dumps(changed.pop(k))}" for k in hits)
            lines.append(f"without effect: {listed} ({reason(config)})")
    return lines


def not_yet(config, *, refused: bool) -> list[str]:
    """Return a line for every value that waits for a later version; `refused` picks errors."""
    values = names.flat(config.to_dict())
    return [
        f"`{key}: {json.dumps(value)}` is not there yet: {row.instead}"
        for row in NOT_YET
        if row.refused == refused
        for key, value in values.items()
        if fnmatch(key, row.key) and row.waits(value)
    ]
