"""What every test stands on: one thread a process, no network, figures without a screen."""

import os

# Before torch is imported anywhere: a fixed thread count makes sums the same on every machine.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from one seed, whichever tests its process ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Return the repository's root."""
    return ROOT
