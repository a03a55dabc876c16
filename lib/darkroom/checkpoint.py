"""Checkpoints: only what training changes, safetensors and JSON, safe against a kill.

A checkpoint is a folder `checkpoints/step_00000500/`. It is written under a temporary name, every
file is flushed to the disk, and the folder is renamed; links and deletions come after. A folder
with its final name is therefore complete; its digests are checked all the same when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from . import exchange, sharding
from .paths import flush

FORMAT = 1
PARTS = ("weights", "ema", "optimizer")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what is still there."""


@dataclass
class Checkpoint:
    """What a checkpoint holds: tensors by part and name, and the plain state."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict


def folder(run_dir: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def name_of(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def steps(run_dir: Path) -> list[int]:
    """Return the steps that have a checkpoint, ascending."""
    return sorted(int(p.name[5:]) for p in folder(run_dir).glob("step_????????") if p.is_dir())


def save(run_dir: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> int:
    """Write the checkpoint of `step` and point `latest` at it; returns its size in bytes.

    A failing write (a full disk) leaves every earlier checkpoint as it was.
    """
    from safetensors.torch import save_file

    root = folder(run_dir)
    temporary, final = root / f".tmp_{name_of(step)}", root / name_of(step)
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = {}
        for part, values in tensors.items():
            path = temporary / f"{part}.safetensors"
            save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, path)
            flush(path)
            files[path.name] = {"bytes": path.stat().st_size, "blake2b": _digest(path)}
        document = {"format": FORMAT, "step": step, **state, "files": files}
        path = temporary / "state.json"
        path.write_text(json.dumps(document, indent=1))
        flush(path)
        flush(temporary)
        if final.exists():  # the same step again, after a resume from an earlier one
            shutil.rmtree(final)
        os.rename(temporary, final)
        flush(root)
        link(run_dir, "latest", step)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = steps(run_dir)
        there = (
            f"the last good checkpoint is step {kept[-1]}" if kept else "there was none before it"
        )
        free = shutil.disk_usage(run_dir).free / 2**20
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root} ({error}; "
            f"{free:.0f} MiB free); {there}. Make room and run the same command to continue."
        ) from error
    return sum(f["bytes"] for f in files.values())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def link(run_dir: Path, name: str, step: int) -> None:
    """Point the link `latest` or `best` at a step's checkpoint, atomically."""
    path = folder(run_dir) / name
    temporary = path.with_name(f".tmp_{name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name_of(step), target_is_directory=True)
    os.replace(temporary, path)
    flush(path.parent)


def linked(run_dir: Path, name: str) -> int | None:
    """Return the step that `latest` or `best` points at; None when there is no such checkpoint."""
    path = folder(run_dir) / name
    if not path.exists():
        return None
    return int(path.resolve().name[5:])


def prune(run_dir: Path, keep_last: int | None) -> None:
    """Delete unfinished checkpoints, and all but `best` and the last `keep_last` (None: all)."""
    root = folder(run_dir)
    for leftover in root.glob(".tmp_*"):
        leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover, ignore_errors=True)
    if keep_last is None:
        return
    keep = {linked(run_dir, "best"), linked(run_dir, "latest"), *steps(run_dir)[-keep_last:]}
    for step in steps(run_dir):
        if step not in keep:
            # renamed first: a half-deleted folder must not look like a checkpoint
            doomed = root / f".tmp_{name_of(step)}"
            os.rename(root / name_of(step), doomed)
            shutil.rmtree(doomed)


def read(run_dir: Path, step: int, parts: tuple[str, ...] = PARTS) -> Checkpoint:
    """Read a checkpoint, its digests checked; tensors only, nothing is unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder(run_dir) / name_of(step)
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {}
        for name, expected in state["files"].items():
            file, part = path / name, name.removesuffix(".safetensors")
            if file.stat().st_size != expected["bytes"] or _digest(file) != expected["blake2b"]:
                raise CheckpointError(f"{file} is damaged: its content is not what was written")
            if part in parts:
                tensors[part] = load_file(file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(step, tensors, state)


def read_latest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, or None, and what was wrong with newer ones."""
    problems: list[str] = []
    for step in reversed(steps(run_dir)):
        try:
            return read(run_dir, step), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            "no checkpoint of this run is whole: " + "; ".join(problems) + ". Restore one from a "
            "copy, or start again under another run name."
        )
    return None, problems


def read_named(run_dir: Path, name: str) -> Checkpoint:
    """Read the checkpoint `best` or `latest` of a run."""
    step = linked(run_dir, name)
    if step is None:
        have = ", ".join(map(str, steps(run_dir))) or "none"
        raise CheckpointError(f"{run_dir} has no checkpoint {name!r}; steps with one: {have}")
    return read(run_dir, step)


def load_network(recipe, checkpoint: Checkpoint, weights: str = "ema") -> str:
    """Load a checkpoint into a recipe's networks for inference; returns which weights were taken.

    `ema` falls back to the raw weights where the run kept no EMA.
    """
    load_weights(recipe, checkpoint.tensors["weights"])
    averaged = checkpoint.tensors.get("ema") or {}
    if weights == "raw" or not averaged:
        return "raw"
    load_weights(recipe, averaged)
    return "ema"


@torch.no_grad()
def load_weights(recipe, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into parameters and buffers by name; an unknown name or shape is an error."""
    known = {}
    for name, module in recipe.modules.items():
        known.update({f"{name}.{k}": v for k, v in module.named_parameters()})
        known.update({f"{name}.{k}": v for k, v in module.named_buffers()})
    for key, value in tensors.items():
        if key not in known:
            raise CheckpointError(f"the checkpoint holds {key!r}, which this model does not have")
        if known[key].shape != value.shape:
            raise CheckpointError(
                f"{key} is {tuple(value.shape)} in the checkpoint and {tuple(known[key].shape)} in "
                "this model: the configs differ in the model's size"
            )
        known[key].copy_(sharding.like(value, known[key]))


def start_from(recipe, config) -> str:
    """Load `model.init_from` (a run's name or folder, or a weight file); returns what was taken.

    A run gives its EMA weights of the checkpoint `best`, else `latest`; a file (`exchange`) fills
    the restoring network alone. Raises FileNotFoundError, ValueError or CheckpointError.
    """
    source = exchange.find_source(config)
    if source.is_file():
        tensors = exchange.read_tensors(source)
        network = exchange.of_network(tensors)
        if not exchange.is_own(tensors):  # others mean alpha = rank
            network = exchange.rescaled(network, 1 / exchange.scale(config.model))
        taken = exchange.fill(recipe.network, network, config.model, source)
        fresh = "; the discriminator starts fresh" if "discriminator" in recipe.modules else ""
        return f"{source} ({taken}{fresh})"
    name = "best" if linked(source, "best") is not None else "latest"
    saved = read_named(source, name)
    weights = exchange.of_network(saved.tensors["weights"])
    exchange.check_adapter(weights, config.model, f"the run {source}")
    taken = load_network(recipe, saved)
    return f"{source} ({name}, step {saved.step}, {taken})"
