"""Names of keys: which one was meant by an unknown one, and what other trainers call ours."""

from __future__ import annotations

import difflib
import functools
import typing

from pydantic import BaseModel


class ConfigError(ValueError):
    """The config cannot be used; the message has a line a problem, each with its way out."""


LR = "`optim.<phase>.lr`"
RESUME = "nothing (the same run continues by itself); other weights are `model.init_from`"
# what other trainers and the guides written for them call a key -> what it is called here
FAMILIAR = {
    "amp_dtype": "`train.precision`",
    "base_model_path": "`model.base`, below `paths.models`",
    "base_model_type": "`model.base`",
    "batch_size": "`train.effective_batch` (samples of one optimizer step) and `train.micro_batch` "
    "(samples computed at once)",
    "checkpoint_dir": "`paths.runs`, in params/local.yaml",
    "checkpointing_steps": "`train.save_every`",
    "checkpoints_total_limit": "`train.keep_last`",
    "crop_type": "`data.crop`",
    "data_config": "`data`, and `validation` for the validation set",
    "dataloader": "`data` (workers, prefetch)",
    "degradation_types": "`data.types` for paired data, `degradation.types` for others",
    "file_list": "`data.train`, with `data.source: parquet`",
    "gradient_accumulation_steps": "computed: `train.effective_batch` / `train.micro_batch`",
    "grad_accum": "computed: `train.effective_batch` / `train.micro_batch`",
    "gradient_checkpointing": "`train.checkpointing` (network, decoder, discriminator)",
    "gradient_clip": "`train.clip`",
    "hidden_size": "`model.width`",
    "hybrid_unfreeze": "`stages`",
    "image_path_key": "`data.image_key`",
    "image_path_prefix": "`data.prefix`, or `paths.data` in params/local.yaml",
    "image_size": "`data.crop_size`",
    "lambda_gan": "`loss.gan`",
    "lambda_l1": "`loss.l1`",
    "lambda_l2": "`loss.l2`",
    "lambda_lpips": "`loss.lpips`",
    "lambda_ssim": "`loss.ssim`",
    "learning_rate": LR,
    "log_dir": "`paths.runs`, in params/local.yaml",
    "log_grad_modules": "`train.grad_norm_modules`",
    "log_grad_steps": "`train.grad_norm_every`",
    "log_image_steps": "`train.image_every`",
    "logging_dir": "`paths.runs`, in params/local.yaml",
    "lr_D": "`optim.discriminator.lr`",
    "lr_G": "`optim.generator.lr`",
    "mask_channels": "`model.condition_channels`",
    "max_grad_norm": "`train.clip`",
    "max_train_steps": "`train.steps`",
    "mixed_precision": "`train.precision`",
    "model_name": "`model.recipe`",
    "module_filters": "`model.lora_blocks`",
    "num_epochs": "`train.epochs`",
    "num_heads": "`model.heads`",
    "num_inference_steps": "`restore.num_steps`",
    "num_kv_heads": "`model.kv_heads`",
    "num_samples_per_type": "`validation.samples_per_type`",
    "num_workers": "`data.workers`",
    "opt_kwargs": "`optim.<phase>.betas`, `.eps` and `.weight_decay`",
    "optimizer": "`optim.<phase>`",
    "optimizer_type": "`optim.<phase>.name`",
    "out_size": "`data.crop_size`",
    "output_dir": "`paths.runs` in params/local.yaml; the run's folder there is named by `run`",
    "patch_size": "`restore.tile`",
    "patience": "`train.early_stopping.patience`",
    "prefetch_factor": "`data.prefetch`",
    "RealESRGANDataset": "`degradation.kind: real_esrgan`",
    "resume": RESUME,
    "resume_from_checkpoint": RESUME,
    "scheduler": "`optim.schedule.kind`",
    "stride": "`restore.overlap`, a share of the tile",
    "swanlab": "`tracking.report_to: [jsonl, swanlab]`",
    "target_image_size": "`data.crop_size`",
    "train_data_path": "`data.train`",
    "train_schedule": "`stages`",
    "trainer_mode": "`model.recipe`",
    "training": "`train`",
    "use_amp": "`train.precision`",
    "use_ema": "`train.ema_decay` (null: no average)",
    "use_flash_attn": "nothing: PyTorch takes the fastest attention kernel there is",
    "use_gradient_checkpointing": "`train.checkpointing` (network, decoder, discriminator)",
    "use_hflip": "`data.hflip`",
    "use_lora": "`model.lora_rank` (null: full fine-tuning)",
    "use_rot": "`data.rotate`",
    "val_data_path": "`validation.data`",
    "val_dir": "`validation.data`",
    "validation_steps": "`validation.every`",
    "warmup_steps": '`optim.schedule.warmup`, in steps or "5%"',
}
_FAMILIAR = {name.lower(): ours for name, ours in FAMILIAR.items()}


def sections_of(annotation) -> type[BaseModel] | None:
    """Return the section behind a field's annotation: itself, or inside Optional or a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in typing.get_args(annotation):
        if found := sections_of(part):
            return found
    return None


@functools.cache
def keys(model: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Return every dotted key below a section; a dict's own names appear as <name>."""
    found = []
    for name, field in model.model_fields.items():
        below = sections_of(field.annotation)
        named = typing.get_origin(field.annotation) is dict
        path = f"{prefix}{name}"
        if below is None:
            found.append(path)
        else:
            found += keys(below, f"{path}.<name>." if named else f"{path}.")
    return tuple(found)


def flat(values, prefix: str = "") -> dict:
    """Return a nested dict by dotted keys; an empty dict has none."""
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def put(values: dict, key: str, value) -> None:
    """Set a dotted key in a nested dict; `stages.<name>.changes` keeps dotted keys of its own."""
    parts = key.split(".")
    if parts[0] == "stages" and parts[2:3] == ["changes"] and len(parts) > 3:
        parts = [*parts[:3], ".".join(parts[3:])]
    for n, part in enumerate(parts[:-1]):
        inner = values.get(part)
        if inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise ConfigError(
                f"override `{key}`: `{'.'.join(parts[: n + 1])}` is a value, nothing lies below it"
            )
        values[part] = dict(inner)
        values = values[part]
    values[parts[-1]] = value


def meant(
    name: str, path: tuple[str, ...], siblings: list[str], everything: tuple[str, ...]
) -> str:
    """Say which key was meant by an unknown `name` below `path`, as the end of a sentence."""
    here = ".".join((*path, ""))
    plain = name.lstrip("-").replace("-", "_")
    if "." in name and not path:
        return "dotted keys go into `override`, such as override: {loss.gan: 0.3}"
    if ours := _FAMILIAR.get(plain.lower()):
        return f"it is called {ours} here"
    if close := difflib.get_close_matches(plain, siblings, n=1, cutoff=0.85):
        return f"the nearest is `{here}{close[0]}`"
    elsewhere = [key for key in everything if key.rsplit(".", 1)[-1] == plain]
    if elsewhere and len(elsewhere) <= 2:
        return "the nearest is " + " or ".join(f"`{key}`" for key in elsewhere)
    if close := difflib.get_close_matches(plain, siblings, n=1, cutoff=0.5):
        return f"the nearest is `{here}{close[0]}`"
    leaves = {key.rsplit(".", 1)[-1]: key for key in reversed(everything)}
    if elsewhere:
        return f"the nearest are {', '.join(f'`{key}`' for key in elsewhere)}"
    if close := difflib.get_close_matches(plain, leaves, n=1, cutoff=0.6):
        return f"the nearest is `{leaves[close[0]]}`"
    return f"allowed here: {', '.join(siblings)}"
