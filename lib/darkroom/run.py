"""A run directory: its config, index snapshot, rows, decisions and status."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .paths import repo_root, write_atomically
from .tracking import Rows

VERSIONS = ("torch", "numpy", "opencv-python-headless", "diffusers", "peft", "accelerate", "polars")


class RunMismatch(ValueError):
    """The run directory holds a run of another config; the message shows every difference."""


@dataclass
class Result:
    """How a training ended: completed, early-stopped, interrupted, terminated, stopped, failed."""

    run_dir: Path
    step: int
    status: str
    reason: str = ""


def read_config(run_dir: Path):
    """Return the Config that a run was made with."""
    from .config import Config

    path = Path(run_dir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: {run_dir} is not a run. Train first (notebook 03 or "
            "python -m darkroom.train)."
        )
    return Config.from_dict(json.loads(path.read_text())["config"])


def read_train_rows(run_dir: Path):
    """Return train.jsonl as a polars frame, a row a step."""
    import polars as pl

    rows = Rows(Path(run_dir) / "train.jsonl").read()
    return pl.DataFrame(rows, infer_schema_length=None)


class RunDirectory:
    """The files of one run, for its one writer."""

    def __init__(self, config) -> None:
        self.config = config
        self.path = Path(config.run_dir)
        self.path.mkdir(parents=True, exist_ok=True)
        self.rows = Rows(self.path / "train.jsonl")
        self.decisions = Rows(self.path / "decisions.jsonl")
        self.made = self.decisions.read()
        self.document = self.path / "config.json"

    def open(self, threads: int, *, write: bool = True) -> int:
        """Check the config against the stored one and store it; returns the pinned thread count."""
        from .config import difference

        if self.document.exists():
            stored = json.loads(self.document.read_text())
            changes = difference(stored["config"], self.config)
            if changes and not self.begun() and write:
                self.note(f"never begun, so the config may change: {'; '.join(changes)}")
                (self.path / "index.parquet").unlink(missing_ok=True)
                self.decisions.rewind(-1)
                self.made = []
            elif changes:
                listing = "\n  ".join(changes)
                raise RunMismatch(
                    f"{self.path} holds a run with another config:\n  {listing}\nSet these back to "
                    "continue it, give this run another name (`run`), or move the folder away."
                )
            threads = stored["threads"]
        document = {
            "config": self.config.to_dict(),
            "hash": self.config.hash,
            "seed": self.config.seed,
            "threads": threads,
            "versions": {name: _version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "commit": _commit(),
        }
        if write:
            self.decisions.mend()
            write_atomically(self.document, json.dumps(document, indent=1).encode())
        return threads

    def begun(self) -> bool:
        """Tell whether there is a step, a decision in one or a checkpoint to lose."""
        checkpoints = self.path / "checkpoints"
        decided = any(row["step"] for row in self.made)
        return bool(
            decided or self.rows.read() or (checkpoints.is_dir() and any(checkpoints.iterdir()))
        )

    def rewind(self, step: int) -> None:
        """Drop rows and scores after `step`, which will be written again."""
        import polars as pl

        self.rows.rewind(step)
        path = self.path / "validation.parquet"
        if path.exists():
            kept = pl.read_parquet(path).filter(pl.col("step") <= step)
            write_atomically(path, kept.write_parquet)

    def samples(self, split: str, progress: bool = True):
        """Return the run's own snapshot of the index: later changes on disk do not enter."""
        import polars as pl

        from . import index

        path = self.path / "index.parquet"
        if not path.exists():
            frame = index.build_index(self.config, progress=progress)
            write_atomically(path, frame.write_parquet)
        return index.samples(pl.read_parquet(path), split)

    def decide(self, step: int, decision: str, value, reason: str) -> None:
        """Record a decision that time or memory made, on the disk before it takes effect."""
        row = {"step": step, "decision": decision, "value": value, "reason": reason}
        self.decisions.append(row, sync=True)
        self.made.append(row)
        self.note(f"step {step}: {decision} = {value} ({reason})")

    def decided(self, decision: str, default=None, *, at: int | None = None):
        """Return the value of a decision in force at step `at` (None: the last one recorded)."""
        values = [
            r["value"]
            for r in self.made
            if r["decision"] == decision and (at is None or r["step"] <= at)
        ]
        return values[-1] if values else default

    def note(self, line: str) -> None:
        """Write a line for people to train.log."""
        with (self.path / "train.log").open("a") as file:
            file.write(line + "\n")

    def status(self, status: str, step: int, reason: str = "") -> None:
        """Say how the run stands: this file, not a notebook's metadata, tells of success."""
        document = {"status": status, "step": step, "reason": reason, "pid": os.getpid()}
        write_atomically(self.path / "status.json", json.dumps(document).encode())

    def control(self) -> str:
        """Take the word in the control file: pause, resume, stop, validate, save or ''."""
        path = self.path / "control"
        try:
            word = path.read_text().strip()
        except FileNotFoundError:
            return ""
        path.unlink(missing_ok=True)
        return word

    def asked(self, step: int, signals) -> tuple[str, str] | None:
        """Return what to do now: (status, why to stop), ("validate", ""), ("save", "") or None.

        `signals` are `interrupts.StopSignals`. A pause waits here, until a signal or a word.
        """
        again = f"step {step} is finished and saved; run the same again to continue"
        word = self.control()
        if word == "pause":
            self.status("paused", step)
            while not (signals.received or (word := self.control())):
                time.sleep(0.2)
            self.status("running", step)
        if signals.received:
            terminated = signals.received == signal.SIGTERM
            name = "terminated" if terminated else "interrupted"
            return name, f"{name} by {'SIGTERM' if terminated else 'an interrupt'}: {again}"
        if word == "stop":
            return "stopped", f"stopped by request: {again}"
        return (word, "") if word in ("validate", "save") else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(repo_root()), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
