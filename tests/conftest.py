"""What every test stands on: one thread a process, no network, figures without a screen."""

import os

# Before torch is imported anywhere: a fixed thread count makes sums the same on every machine.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = (  # begun first, so that no worker is left with one of them at the end
    "notebooks browser hypir_runs distributed plan_trace trainer serve plan_fit"
    " conditional_diffusion validation_budget metrics plan_time levers plan_budget exchange shards"
)


def pytest_collection_modifyitems(items) -> None:
    """Put the files that take longest first."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_xdist_make_scheduler(config, log):
    """Give each process whole files, in order: what a file's tests share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.split("::", 1)[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from one seed, whichever tests its process ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Return the repository's root."""
    return ROOT
