"""Autocast switched on for a precision, and off where a network keeps its own number format."""

from __future__ import annotations

import contextlib

import torch


def on(device: torch.device, dtype: torch.dtype):
    """Return the autocast context of a precision; none for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def off(tensor: torch.Tensor):
    """Return a context in which operations on this tensor's device keep the dtype they are given.

    For frozen networks that are stored in the wanted dtype (autocast would compute, and keep, their
    norms in float32) and for sums of squares, which bfloat16 rounds away.
    """
    device = tensor.device.type
    if not torch.amp.autocast_mode.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
