"""Restore pictures of any size: pad to what the network takes, tile large ones, crop back."""
# B batch, H height, W width

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

AUTO_TILE = 2048  # pixels a side; above it "auto" tiles


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extend (B, C, H, W) at the bottom and the right by reflection to multiples of `multiple`.

    Works for any size, also where the padding is wider than the image.
    """
    for dim in (-2, -1):
        size = image.shape[dim]
        wanted = math.ceil(size / multiple) * multiple
        if wanted != size:
            image = image.index_select(dim, _reflected(size, wanted).to(image.device))
    return image


def _reflected(size: int, wanted: int) -> torch.Tensor:
    """Return indices 0 1 2 … size-1 size-2 … 1 0 1 … of length `wanted`."""
    period = max(1, 2 * (size - 1))
    index = torch.arange(wanted) % period
    return torch.minimum(index, period - index)


def starts(size: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along a side so that they cover it, evenly, overlapping enough."""
    if size <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    number = math.ceil((size - tile) / step) + 1
    return [round(n * (size - tile) / (number - 1)) for n in range(number)]


def _ramp(tile: int) -> torch.Tensor:
    """Return the weight of each pixel of a tile along one side: a sine arch, never 0."""
    return torch.sin((torch.arange(tile, dtype=torch.float32) + 0.5) * (math.pi / tile))


def restore_whole(restore: Callable, batch, multiple: int) -> torch.Tensor:
    """Restore a batch at its own size: reflect-pad to a multiple, restore, crop back."""
    height, width = batch.lq.shape[-2:]
    padded = replace(
        batch, lq=pad_to_multiple(batch.lq, multiple), gt=pad_to_multiple(batch.gt, multiple)
    )
    return restore(padded)[..., :height, :width]


def restore_tiled(
    restore: Callable, batch, multiple: int, tile: int, overlap: float
) -> torch.Tensor:
    """Restore a batch tile by tile; overlaps are averaged in float32 with smooth weights."""
    if tile < multiple:
        raise ValueError(f"restore.tile is {tile}; this model takes at least {multiple} pixels")
    tile -= tile % multiple
    height, width = batch.lq.shape[-2:]
    tall, wide = min(tile, height), min(tile, width)
    weight = _ramp(tall)[:, None] * _ramp(wide)[None, :]
    total, weights = torch.zeros(len(batch.lq), 3, height, width), torch.zeros(height, width)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            window = (..., slice(top, top + tall), slice(left, left + wide))
            part = replace(batch, lq=batch.lq[window], gt=batch.gt[window])
            total[window] += restore_whole(restore, part, multiple).float().cpu() * weight
            weights[window] += weight
    return total / weights


def restore_native(restore: Callable, batch, multiple: int, section) -> torch.Tensor:
    """Restore a batch at its own size, whole or tiled as `config.restore` says.

    `restore` maps a Batch whose sides are multiples of `multiple` to (B, 3, H, W) in [0, 1].
    """
    tile = AUTO_TILE if section.tile == "auto" else section.tile
    height, width = batch.lq.shape[-2:]
    if tile is None or height * width <= tile * tile:
        return restore_whole(restore, batch, multiple)
    return restore_tiled(restore, batch, multiple, tile, section.overlap)
