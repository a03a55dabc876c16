"""Train from a notebook, in its own process or in several: accelerate's launcher."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from . import interrupts, trainer
from .progress import Quiet
from .run import Result, RunDirectory


def train(config, progress=None) -> Result:
    """Train as `trainer.train` does; in `budget.processes` processes where that is more than one.

    Several processes are forked by accelerate's `notebook_launcher`, one for each GPU, and print
    their progress as lines; in a process that a launcher started, this is one of them. ValueError
    or RuntimeError where they cannot be started, RuntimeError where one of them fails.
    """
    number = config.budget.processes
    if number == 1 or "WORLD_SIZE" in os.environ:
        return trainer.train(config, progress)
    _check(number)
    from accelerate import notebook_launcher

    status = RunDirectory(config).path / "status.json"
    before, failed = status.stat().st_mtime_ns if status.exists() else None, None
    with _environment():
        try:
            notebook_launcher(_work, (config,), num_processes=number, use_port=str(_free_port()))
        except BaseException as error:  # the launcher has stopped all processes
            failed = error
    if not status.exists() or status.stat().st_mtime_ns == before:
        raise RuntimeError(f"no process began to train; the reason stands above: {failed}")
    return _result(status, failed)


def _check(number: int) -> None:
    import torch

    cards = torch.cuda.device_count()  # asks the driver, and does not start CUDA
    if cards and number > cards:
        raise ValueError(f"budget.processes is {number}, and there are {cards} GPUs: at most that")
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "this kernel already uses CUDA, and processes that it forks cannot: restart the kernel "
            "and run the notebook from its top, without cells of your own that use the GPU"
        )


@contextmanager
def _environment():
    """Let accelerate take the CPU where there is no GPU."""
    import torch

    name = "ACCELERATE_USE_CPU"
    before = os.environ.get(name)
    if not torch.cuda.device_count():
        os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _work(config) -> None:
    with suppress(interrupts.Interrupted, interrupts.Terminated):  # in the run's status
        trainer.train(config, Quiet(sys.stdout))


def _result(file: Path, failed: BaseException | None) -> Result:
    """Return how the run says it ended, or raise what `trainer.train` would have."""
    document = json.loads(file.read_text())
    status, reason = document["status"], document["reason"]
    if status in ("interrupted", "terminated"):
        # the launcher passes an interrupt on as SIGTERM
        by_hand = status == "interrupted" or isinstance(failed, KeyboardInterrupt)
        raise (interrupts.Interrupted if by_hand else interrupts.Terminated)(reason)
    if failed is not None or status in ("failed", "running"):
        raise RuntimeError(f"a process of the training ended: {reason or failed}") from failed
    return Result(file.parent, document["step"], status, reason)
