"""Samples and batches: every sample is a pure function of (seed, phase, position).

Position is the number of samples drawn before it in its phase. Nothing here reads a worker id, a
rank, a clock or a global random state, so the stream is the same for any number of workers and
processes, and after a resume at any position.
"""
# B batch, H height, W width

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import augment, degradations, images
from .batch import Batch, Sample, SampleError, collate, rng, torch_rng

__all__ = ["Batch", "Sample", "SampleError", "collate", "rng", "torch_rng"]  # and what is below

CACHE_BYTES = 192 * 2**20  # decoded pictures kept by each loader process
NUM_DRAWS = 4  # fixed draws of every (photograph, type) in validation


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, phase: str, epoch: int, length: int) -> np.ndarray:
    return rng(seed, phase, "permutation", epoch).permutation(length)


class _Decoded:
    """Decoded pictures, the least recently used dropped beyond CACHE_BYTES."""

    def __init__(self) -> None:
        self.pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self.bytes = 0

    def read(self, path: str) -> np.ndarray:
        if path in self.pictures:
            self.pictures.move_to_end(path)
            return self.pictures[path]
        try:
            picture = images.read_image(path)
        except (images.UnreadableImage, OSError) as error:
            raise SampleError(
                f"{path} was readable when the index was made and is not now ({error}). Put the "
                "file back and run the same command to continue, or index again under another run "
                "name."
            ) from error
        self.pictures[path] = picture
        self.bytes += picture.nbytes
        while self.bytes > CACHE_BYTES and len(self.pictures) > 1:
            self.bytes -= self.pictures.popitem(last=False)[1].nbytes
        return picture


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """Turn (H, W, 3) float32 in [0, 1] into a contiguous (3, H, W) tensor, rounded to 8 bit."""
    rounded = np.rint(np.clip(picture, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(rounded.transpose(2, 0, 1)))


def _floats(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) / np.float32(255)


class TrainingSet:
    """The training samples of a run, addressed by (phase, position).

    `samples` is the frame of `index.samples(frame, "train")`; `draw` is the recipe's own
    per-sample randomness.
    """

    def __init__(self, samples, config, draw: Callable | None = None) -> None:
        if len(samples) == 0:
            raise ValueError("no training image is left: see the index report for the reasons")
        self.rows = samples.select(
            "image", "lq_path", "gt_path", "degradation", "prompt"
        ).to_dicts()
        self.config = config
        self.draw = draw
        self.decoded = _Decoded()

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, phase: str, position: int) -> dict:
        """Return the index row at a position: a new seeded permutation every epoch."""
        epoch, offset = divmod(position, len(self.rows))
        order = _permutation(self.config.seed, phase, epoch, len(self.rows))
        return self.rows[order[offset]]

    def __getitem__(self, key: tuple[str, int]) -> Sample:
        phase, position = key
        row = self.row(phase, position)
        config = self.config
        stream = functools.partial(rng, config.seed, phase, position)
        gt = self.decoded.read(row["gt_path"])
        lq = self.decoded.read(row["lq_path"]) if row["lq_path"] else None
        try:
            gt, lq = augment.window(gt, lq, config.data, stream("augment"))
        except ValueError as error:
            raise SampleError(f"{row['gt_path']} {error}") from error
        name = row["degradation"]
        if lq is None:
            gt = augment.tone(_floats(gt), config.data.tone_jitter, stream("tone"))
            lq, gt, name = degrade(gt, name, config.degradation, stream("degradation"))
        else:
            lq, gt = _floats(lq), _floats(gt)
        prompt = row["prompt"] or config.data.prompt
        if stream("prompt").random() < config.data.p_empty_prompt:
            prompt = ""
        sample = Sample(to_tensor(lq), to_tensor(gt), prompt, name, row["image"], position)
        if self.draw is not None:
            sample.draws = self.draw(sample, torch_rng(config.seed, phase, position, "draw"))
        return sample


def prompts(config, samples) -> set[str]:
    """Return every prompt that these samples may come with, the emptied one included."""
    own = {prompt or config.data.prompt for prompt in samples["prompt"].unique()}
    return own | ({""} if config.data.p_empty_prompt else set())


def degrade(
    gt: np.ndarray, name: str | None, section, generator: np.random.Generator, severity=None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return (lq, gt, degradation) of an image degraded on the fly; both (H, W, 3) in [0, 1].

    HYPIR keeps a pool of 256 images so that one batch mixes several draws; here every sample has
    its own draws, so there is nothing to mix.
    """
    if section.kind == "none":
        return gt, gt, name or "none"
    if section.kind == "real_esrgan":
        lq, sharpened = degradations.real_esrgan.degrade(gt, generator)
        return lq, sharpened, "real_esrgan"
    types = degradations.types_of(section)
    chosen = name or types[int(generator.integers(len(types)))]
    if severity is None:
        severity = degradations.draw_severity(section.severity, generator)
    return degradations.degrade(gt, chosen, severity, generator), gt, chosen


@dataclass(frozen=True)
class Item:
    """One validation picture: a pair on disk, or a photograph with one of its fixed draws."""

    image: str
    degradation: str
    draw: int
    lq_path: str | None
    gt_path: str
    prompt: str


def validation_items(config, samples) -> list[Item]:
    """Return the fixed validation items; `samples` is `index.samples(frame, "val")`.

    A photograph degraded on the fly appears with NUM_DRAWS draws of every type. The cap
    `validation.samples_per_type` takes a seeded choice that spreads over the photographs.
    """
    types, items = tuple(dict.fromkeys(degradations.types_of(config.degradation))), []
    for row in samples.sort("image").to_dicts():
        paths = (row["lq_path"], row["gt_path"], row["prompt"] or config.data.prompt)
        if row["lq_path"]:
            items.append(Item(row["image"], row["degradation"] or "Pairs", 0, *paths))
            continue
        for name in (row["degradation"],) if row["degradation"] else types:
            items += [Item(row["image"], name, n, *paths) for n in range(NUM_DRAWS)]
    cap = config.validation.samples_per_type
    if cap is None:
        return items
    kept = []
    for name in sorted({i.degradation for i in items}):
        of_type = [i for i in items if i.degradation == name]
        pictures = sorted({i.image for i in of_type})
        order = rng(config.validation.seed, "cap").permutation(len(pictures))
        rank = {pictures[p]: n for n, p in enumerate(order)}
        kept += sorted(of_type, key=lambda i: (i.draw, rank[i.image]))[:cap]
    return kept


def load_item(item: Item, config) -> Sample:
    """Return a validation sample at native size; its draws depend on item and seed alone."""
    gt = images.read_image(Path(item.gt_path))
    if item.lq_path:
        lq, gt = _floats(images.read_image(Path(item.lq_path))), _floats(gt)
    else:
        generator = rng(config.validation.seed, item.image, item.degradation, item.draw)
        name = None if item.degradation in ("none", "real_esrgan") else item.degradation
        lq, gt, _ = degrade(_floats(gt), name, config.degradation, generator)
    return Sample(
        to_tensor(lq), to_tensor(gt), item.prompt, item.degradation, item.image, item.draw
    )
