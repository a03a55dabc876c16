"""Samples, batches, and the random streams that belong to a seed and a key."""
# B batch, H height, W width

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch


class SampleError(RuntimeError):
    """A sample cannot be made; the message names the file and the way out."""


@dataclass
class Sample:
    """One training or validation sample."""

    lq: torch.Tensor  # (3, H, W) float32 in [0, 1]
    gt: torch.Tensor  # (3, H, W) float32 in [0, 1]
    prompt: str
    degradation: str
    image: str
    position: int
    draws: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Batch:
    """Samples of one phase, stacked."""

    lq: torch.Tensor  # (B, 3, H, W) float32 in [0, 1]
    gt: torch.Tensor  # (B, 3, H, W) float32 in [0, 1]
    prompts: list[str]
    degradations: list[str]
    images: list[str]
    positions: list[int]
    draws: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.lq.shape[0]

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield the batch in parts of at most `size` samples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Batch(
                **{f.name: getattr(self, f.name)[part] for f in fields(self) if f.name != "draws"},
                draws={k: v[part] for k, v in self.draws.items()},
            )

    def to(self, device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return replace(
            self,
            lq=self.lq.to(device, non_blocking=True),
            gt=self.gt.to(device, non_blocking=True),
            draws={k: v.to(device, non_blocking=True) for k, v in self.draws.items()},
        )


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of equal size into a batch."""
    sizes = {tuple(s.gt.shape[-2:]) for s in samples}
    if len(sizes) > 1:
        raise SampleError(
            f"a batch holds images of different sizes {sorted(sizes)} (height, width): set "
            "data.crop to random or center, or train.micro_batch to 1"
        )
    return Batch(
        lq=torch.stack([s.lq for s in samples]),
        gt=torch.stack([s.gt for s in samples]),
        prompts=[s.prompt for s in samples],
        degradations=[s.degradation for s in samples],
        images=[s.image for s in samples],
        positions=[s.position for s in samples],
        draws={k: torch.stack([s.draws[k] for s in samples]) for k in samples[0].draws},
    )


def _digest(seed: int, key: tuple, size: int) -> int:
    text = repr((int(seed), *key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "little")


def rng(seed: int, *key: int | str) -> np.random.Generator:
    """Return the NumPy generator (Philox) that belongs to this seed and key."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, key, 16)))


def torch_rng(seed: int, *key: int | str) -> torch.Generator:
    """Return the CPU torch generator that belongs to this seed and key."""
    return torch.Generator().manual_seed(_digest(seed, key, 8) >> 1)
