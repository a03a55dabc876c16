"""Restore pictures of any size: pad to what the network takes, tile large ones, crop back.

`restore` everywhere here maps a Batch whose sides are multiples of `multiple` to (B, 3, H, W) in
[0, 1]. It sees no target, and must treat each sample alone: noise, if it draws any, is a function
of the seed and the sample's own `positions` entry, so that no result depends on the tiles' batch.
"""
# B batch, H height, W width, N tiles

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch

from . import colour

AUTO_TILE = 2048  # pixels a side; "auto" tiles what is larger, unless the recipe says otherwise
VARIANCE = 0.01  # of a tile's Gaussian weights, where the tile's side is 1 (as HYPIR has it)
GPU_TILES = 4  # tiles computed at once on a GPU; one on a CPU, where a batch is no faster


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


def gaussian_weights(size: int) -> torch.Tensor:
    """Return the weight of each pixel along a tile's side, (size,) float32 in (0, 1].

    A Gaussian about the exact middle (size - 1) / 2, of VARIANCE relative to the side: 3.7e-6 at
    the rim, and the product of two rims, 1.4e-11, is still far from float32's smallest number.
    """
    offset = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / size
    return torch.exp(-(offset**2) / (2 * VARIANCE)).float()


def restore_whole(restore: Callable, batch, multiple: int) -> torch.Tensor:
    """Restore a batch at its own size: reflect-pad to a multiple, restore, crop back."""
    height, width = batch.lq.shape[-2:]
    padded = pad_to_multiple(batch.lq, multiple)
    return restore(replace(batch, lq=padded, gt=padded))[..., :height, :width]


def restore_tiled(
    restore: Callable,
    batch,
    multiple: int,
    tile: int,
    overlap: float,
    tile_batch: int | None = None,
) -> torch.Tensor:
    """Restore a batch tile by tile; returns (B, 3, H, W) float32 on the CPU.

    Tiles of `tile` pixels a side overlap by the share `overlap` and are averaged in float32 with
    Gaussian weights. `tile_batch` tiles of each sample go through the network at once (None: 4 on
    a GPU, 1 on a CPU), which changes no result.
    """
    if tile < multiple:
        raise ValueError(f"restore.tile is {tile}; this model takes at least {multiple} pixels")
    tile -= tile % multiple
    tile_batch = tile_batch or (GPU_TILES if batch.lq.device.type == "cuda" else 1)
    height, width = batch.lq.shape[-2:]
    tall, wide = min(tile, height), min(tile, width)
    tops, lefts = starts(height, tile, overlap), starts(width, tile, overlap)
    down, across = gaussian_weights(tall), gaussian_weights(wide)
    total = torch.zeros(len(batch.lq), 3, height, width)
    corners = list(enumerate(product(tops, lefts)))
    for first in range(0, len(corners), tile_batch):
        chosen = corners[first : first + tile_batch]
        windows = [
            (..., slice(top, top + tall), slice(left, left + wide)) for _, (top, left) in chosen
        ]
        numbers = [number for number, _ in chosen]
        part = _tiles(batch, windows, numbers, len(corners))
        restored = restore_whole(restore, part, multiple).float().cpu()
        for window, one in zip(windows, restored.chunk(len(windows)), strict=True):
            total[window] += one * down[:, None] * across
    # tiles form a grid, so the sum of their weights is the product of the sums along the sides
    total /= _sum(down, tops, height)[:, None]
    total /= _sum(across, lefts, width)
    return total


def _sum(weights: torch.Tensor, begins: list[int], size: int) -> torch.Tensor:
    """Return the sum of the weights of the tiles that begin at `begins`, (size,)."""
    total = torch.zeros(size)
    for begin in begins:
        total[begin : begin + len(weights)] += weights
    return total


def _tiles(batch, windows: list, numbers: list[int], count: int):
    """Return a Batch of N windows of each sample, prompts and draws with them; tile by tile.

    A tile has a position of its own, so that noise drawn by position is not the same in all.
    Draws are a sample's own, such as a number; what has a place in the picture cannot be cut.
    """
    times, lq = len(windows), torch.cat([batch.lq[window] for window in windows])
    return replace(
        batch,
        lq=lq,
        gt=lq,
        prompts=batch.prompts * times,
        degradations=batch.degradations * times,
        images=batch.images * times,
        positions=[position * count + n for n in numbers for position in batch.positions],
        draws={key: torch.cat([value] * times) for key, value in batch.draws.items()},
    )


def restore_native(
    restore: Callable,
    batch,
    multiple: int,
    section,
    auto_tile: int = AUTO_TILE,
    tile_batch: int | None = None,
) -> torch.Tensor:
    """Restore a batch at its own size, whole or tiled, and fix its colours as `section` says.

    `section` is `config.restore`. Its `tile: auto` tiles only pictures of more than `auto_tile`²
    pixels, what the recipe takes in one piece, into tiles of half that side: a batch of 4 then
    takes no more memory than the largest whole picture.
    """
    largest = auto_tile if section.tile == "auto" else section.tile
    height, width = batch.lq.shape[-2:]
    if largest is None or height * width <= largest * largest:
        restored = restore_whole(restore, batch, multiple)
    else:
        tile = max(multiple, auto_tile // 2) if section.tile == "auto" else section.tile
        restored = restore_tiled(restore, batch, multiple, tile, section.overlap, tile_batch)
    if section.colour_fix == "off":
        return restored
    restored = restored.float()
    reference = batch.lq.to(restored)
    return colour.FIXES[section.colour_fix](restored, reference)
