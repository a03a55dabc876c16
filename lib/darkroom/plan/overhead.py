"""What a trace cannot see on a card: the CUDA context, workspaces of libraries, and a margin.

None of the constants was measured by us. `verify` measures them on a card, and writes them into
`<paths.runs>/planner/<card>.json`; they are taken from there while torch is the same.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = "planner"
MIB = 2**20
GIB = 2**30

CONTEXT_GIB = 0.6
CONTEXT_WHY = (
    "PyTorch's maintainers name 0.3 to 0.4 GiB with CUDA >= 11.7, which loads kernels as they are "
    "used (pytorch#107667, #109888); kernels of cuDNN and cuBLAS join while training"
)
# One workspace a handle, and handles belong to threads: the forward's and the backward's.
CUBLAS_HANDLES = 2
CUBLAS_BYTES = {"hopper": 32 * MIB, "before": 8519680}  # :4096:2:16:8 in KiB is 8519680 bytes
CUBLAS_WHY = (
    "PyTorch's defaults in aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB from Hopper on, else "
    ":4096:2:16:8 (CUBLAS_WORKSPACE_CONFIG); shared with cuBLASLt"
)
CUDNN_GIB = 0.25
CUDNN_WHY = (
    "a guess: cuDNN chooses by version and shape and nothing caps it (pytorch#49207). It is input "
    "and output of the largest convolution at 512 px, 256 channels, two bytes a value"
)
MARGIN = 0.03  # share of the card
MARGIN_WHY = "for what the model of the caching allocator misses; never held against a card by us"


@dataclass(frozen=True)
class Part:
    """Some GiB of overhead: what they are, where the number is from, and whether it was measured.

    `allocated` says whether PyTorch's allocator hands them out, so that they count as allocated.
    """

    name: str
    gib: float
    allocated: bool
    provenance: str
    measured: bool = False


@dataclass(frozen=True)
class Overhead:
    """What comes on top of a trace on one card."""

    card: str
    parts: tuple[Part, ...]

    @property
    def gib(self) -> float:
        """The sum, in GiB."""
        return sum(part.gib for part in self.parts)

    @property
    def allocated_gib(self) -> float:
        """The part that `max_memory_allocated` counts, the margin aside."""
        return sum(part.gib for part in self.parts if part.allocated)

    @property
    def frame(self):
        """A polars frame: name, gib, allocated, provenance, measured."""
        import polars as pl

        return pl.DataFrame([vars(part) for part in self.parts])


def overhead(card, runs: Path | str | None = None) -> Overhead:
    """Return the overhead on a card; what `verify` measured below `runs` comes first.

    A calibration made with another torch is not taken.
    """
    if runs is not None and (found := calibration(card, runs)):
        why = f"measured by verify on {found['configs']} configs, torch {found['torch']}"
        named = (
            ("CUDA context", found["context_gib"], False),
            ("library workspaces", found["workspace_gib"], True),
            ("margin", found["margin"] * card.memory_gib, False),
        )
        return Overhead(card.name, tuple(Part(n, g, a, why, True) for n, g, a in named))
    hopper = card.capability is not None and card.capability >= 9.0
    cublas = CUBLAS_HANDLES * CUBLAS_BYTES["hopper" if hopper else "before"] / GIB
    parts = (
        Part("CUDA context", CONTEXT_GIB, False, CONTEXT_WHY),
        Part("cuBLAS workspaces", cublas, True, CUBLAS_WHY),
        Part("cuDNN workspaces", CUDNN_GIB, True, CUDNN_WHY),
        Part("margin", MARGIN * card.memory_gib, False, MARGIN_WHY),
    )
    return Overhead(card.name, parts)


def path(card, runs: Path | str) -> Path:
    """Return where a card's calibration lies."""
    return Path(runs) / FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"


def calibration(card, runs: Path | str) -> dict | None:
    """Return a card's measured constants, or None: there are none, or those of another torch."""
    try:
        found = json.loads(path(card, runs).read_text())
        same = found["torch"] == importlib.metadata.version("torch")
        numbers = [found[k] for k in ("context_gib", "workspace_gib", "margin", "configs")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same and all(isinstance(n, (int, float)) for n in numbers) else None


def allocates_expandable() -> bool:
    """Return whether PyTorch's allocator is asked for expandable segments in this process."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return any("expandable_segments:True" in os.environ.get(name, "") for name in names)
