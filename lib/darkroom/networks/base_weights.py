"""A frozen base for adapters: another run's weights, or a file of them, read and never written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

PARTS = ("ema", "weights")  # of a checkpoint, the better first


def find(base: str, runs: Path, models: Path) -> Path:
    """Return the weight file that `model.base` names: a run (its `best`, else `latest`), or a file.

    Raises FileNotFoundError with what was looked for.
    """
    files = [Path(base), Path(models) / base]
    for file in files:
        if file.suffix == ".safetensors" and file.is_file():
            return file
    for folder in (Path(base), Path(runs) / base):
        for name in ("best", "latest"):
            for part in PARTS:
                file = folder / "checkpoints" / name / f"{part}.safetensors"
                if file.is_file():
                    return file.resolve()
    raise FileNotFoundError(
        f"model.base {base!r} is neither a run with a checkpoint ({Path(runs) / base}) nor a "
        f".safetensors file ({files[1]}). Train the base first, or name the run that was"
    )


@torch.no_grad()
def load(network: nn.Module, prefix: str, file: Path) -> str:
    """Copy every weight of a network, named `prefix.name` in the file; returns the file's digest.

    Raises ValueError where the file is another network's, or an adapter's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"model.base: {file} cannot be read: {error}") from error
    own = {f"{prefix}.{name}": value for name, value in network.named_parameters()}
    if any(".lora_" in name for name in tensors):
        raise ValueError(f"model.base: {file} is an adapter; name the run of the base it stands on")
    missing = [n for n, p in own.items() if n not in tensors or tensors[n].shape != p.shape]
    if missing:
        raise ValueError(
            f"model.base: {file} is no base of this network: {len(missing)} of {len(own)} weights "
            f"are missing or of another shape, the first {missing[0]}. The base needs the same "
            "model.recipe and model.size"
        )
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
    return digest(file)


def digest(file: Path) -> str:
    """Return what names the content of a base's file, 32 hex digits."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:32]
