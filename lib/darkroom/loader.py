"""Loader processes: batches in the order of their keys, whatever the number of processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable

import torch

from .data import Batch, TrainingSet, collate

GRACE_SECONDS = 60  # how long a loader process outlives SIGTERM
SHARE_OF_MEMORY = 16  # one part in so many of what is free may hold batches that are ready
LARGE = 2048  # pixels a side that an image is taken to have where nothing says it


def num_workers(config) -> int:
    """Return the loader's worker processes: as configured, else from the cores of this process.

    A GPU leaves the cores to the loader; where the cores themselves train, half of them load.
    """
    if config.data.workers is not None:
        return config.data.workers
    cores = len(os.sched_getaffinity(0)) // _local_processes()
    return max(0, min(8, (cores if torch.cuda.is_available() else cores // 2) - 1))


def batches_ahead(config, batch_size: int, workers: int) -> int:
    """Return how many batches each worker keeps ready: as configured, else from the free memory.

    2 to 8, as many as take a sixteenth of it; a sample is counted as its two crops in float32.
    """
    if config.data.prefetch is not None:
        return config.data.prefetch
    whole = config.data.chart_size if config.data.source == "charts" else LARGE
    side = whole if config.data.crop == "none" else config.data.crop_size
    batch = batch_size * 2 * 3 * side * side * 4
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _local_processes()
    return max(2, min(8, free // SHARE_OF_MEMORY // (batch * max(1, workers))))


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class _Workers(torch.utils.data.Dataset):
    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __getitem__(self, key):
        return self.dataset[key]


def _prepare_worker(_worker_id: int) -> None:
    # a stop concerns the trainer, which still needs the samples of the step it finishes: a worker
    # ends when its loader is closed, and on its own some time after SIGTERM
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    torch.set_num_threads(1)


def load(
    dataset: TrainingSet, keys: Iterable[list[tuple[str, int]]], *, workers: int, prefetch: int = 2
) -> Generator[Batch]:
    """Yield one batch for every list of (phase, position) keys, in their order."""
    import cv2

    # OpenCV's thread pool does not survive a fork: a worker forked beside it would hang
    cv2.setNumThreads(0)
    options = {}
    if workers > 0:
        options = {"prefetch_factor": prefetch, "worker_init_fn": _prepare_worker}
    loader = torch.utils.data.DataLoader(
        _Workers(dataset),
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # keeps the global random state untouched
        **options,
    )
    yield from loader
