"""The process in which a run is rehearsed on fake tensors, and how to ask it.

The fake accelerator changes PyTorch for its whole process, so it has one to itself. A request is a
line of JSON on its stdin; the answer is a file, and a line on its stdout when it is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = ("kind", "number", "bytes", "category", "path", "phase")
ARITHMETIC = ("bf16", "fp16", "tf32", "fp32")


class PlanError(RuntimeError):
    """The run could not be rehearsed; the message ends with the other process's own."""


@dataclass
class Trace:
    """What happened on the device: events (n, 6) int64 in COLUMNS, names they index, operations.

    `kernels` is (k, 5) int64: phase, index in ARITHMETIC, operations, bytes read and written, and
    how many kernels are like that. Of `accumulation` micro batches of a turn two are rehearsed, the
    second as "<phase>: accumulating". `tflop` is a turn's, by phase; `seconds` those of building
    and rehearsing.
    """

    events: np.ndarray
    kernels: np.ndarray
    categories: list[str]
    paths: list[str]
    phases: list[str]
    turns: list[str]
    accumulation: int
    tflop: dict[str, float]
    seconds: float


class Worker:
    """A process that traces; a context manager, or for a single trace closed by `close`."""

    def __init__(self) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "darkroom.plan.trace"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def trace(self, config, device: str, precision: str, options: dict) -> Trace:
        """Rehearse a run; raises ValueError where its config is refused, PlanError otherwise.

        `options` are those of `rehearsal.Rehearsal`.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.npz"
            request = {"config": config.to_dict(), "device": device, "precision": precision}
            request |= {"options": options, "path": str(path)}
            try:
                print(json.dumps(request), file=self.process.stdin, flush=True)
                line = self.process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                self.errors.seek(0)
                said = self.errors.read().decode(errors="replace")[-2000:]
                raise PlanError(f"the planning process ended early; it said: {said}")
            answer = json.loads(line)
            if "refused" in answer:
                raise ValueError(answer["refused"])
            if "error" in answer:
                raise PlanError(
                    "this run cannot be traced on tensors without storage; where it stopped:\n"
                    + answer["error"]
                )
            with np.load(path) as arrays:
                return Trace(events=arrays["events"], kernels=arrays["kernels"], **answer)


def main() -> None:
    """Answer requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w")  # what libraries print must not be taken for an answer
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except ValueError as error:
            answer = {"refused": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc(limit=-12)[-4000:]}
        print(json.dumps(answer), file=out, flush=True)


def _answer(request: dict) -> dict:
    from ..config import Config
    from ..precision import DTYPES
    from . import device as fake
    from .rehearsal import Rehearsal

    started = time.perf_counter()
    config = Config.from_dict(request["config"])
    device = fake.cpu() if request["device"] == "cpu" else fake.accelerator()
    rehearsal = Rehearsal(config, device, DTYPES[request["precision"]], request["options"])
    tracker = rehearsal.run()
    kernels = [
        (phase, ARITHMETIC.index(kind), flops, moved, count)
        for (phase, kind, flops, moved), count in tracker.kernels.items()
    ]
    events = np.array(tracker.events, np.int64)
    np.savez(request["path"], events=events, kernels=np.array(kernels, np.int64).reshape(-1, 5))
    return {
        "categories": tracker.categories,
        "paths": tracker.paths,
        "phases": tracker.phases,
        "turns": rehearsal.turns,
        "accumulation": rehearsal.accumulation,
        "tflop": rehearsal.tflop(),
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
