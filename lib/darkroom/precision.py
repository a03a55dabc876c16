"""Where a run computes and in which number format, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """The autocast dtype (float32: no autocast), whether losses are scaled, and why."""

    dtype: torch.dtype
    scaled: bool
    reason: str


def choose(config, device: torch.device) -> Precision:
    """Choose the precision once; only fp16 needs a scaler, bf16 has float32's exponent range.

    Raises ValueError for fp16 where it cannot work.
    """
    chosen = _chosen(config, device)
    if chosen.scaled and config.train.tail_micro_batch is not None:
        raise ValueError(
            f"train.tail_micro_batch {config.train.tail_micro_batch} and fp16 ({chosen.reason}): "
            "the tail takes its gradients before the loss is scaled, where they vanish in fp16. "
            "Take train.precision bf16 or fp32, or train.tail_micro_batch null and a smaller "
            "micro_batch"
        )
    return chosen


def _chosen(config, device: torch.device) -> Precision:
    wanted = config.train.precision
    if wanted != "auto":
        if wanted == "fp16" and device.type == "cpu":
            raise ValueError(
                "train.precision fp16 needs a GPU: on a CPU use fp32 (fastest here) or bf16"
            )
        return Precision(DTYPES[wanted], wanted == "fp16", f"train.precision is {wanted}")
    if device.type != "cuda":
        return Precision(torch.float32, False, f"auto: {device.type} computes float32 fastest")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(torch.bfloat16, False, "auto: this GPU has native bfloat16")
    return Precision(torch.float16, True, "auto: this GPU has no native bfloat16, so fp16 scaled")


def attention_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Name the kernel that scaled_dot_product_attention prefers here."""
    if device.type != "cuda":
        return "math / CPU flash (scaled_dot_product_attention)"
    if dtype in (torch.bfloat16, torch.float16) and torch.backends.cuda.flash_sdp_enabled():
        return "flash (scaled_dot_product_attention)"
    return "memory-efficient (scaled_dot_product_attention)"
