"""Give a run's weights to other programs: its adapter as a file, or merged into the base's U-Net.

`python -m darkroom.export RUN TARGET [--step N] [--weights ema|raw] [--force]` writes the adapter
in HYPIR's format (.pth, or .safetensors by TARGET's suffix). With `--merge [--dtype float32]`
TARGET becomes a diffusers `unet` folder without adapters, and how far its output moved is printed.
"""
# B batch, C latent channels, H latent height, W latent width, T tokens, D width of the text

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import checkpoint, exchange, inference
from .batch import torch_rng
from .networks import stable_diffusion
from .paths import flush, write_atomically
from .restore import run_config
from .run import read_config

DTYPES = ("float32", "bfloat16", "float16")
PROBE_SIDE = 32  # latent pixels a side of the input that the difference is measured on
UNET_FILES = ("config.json", "diffusion_pytorch_model")  # how a folder we may replace is known


@dataclass
class Weights:
    """A run's trained U-Net tensors by their names in the U-Net, and where they came from."""

    model: object  # the run's own `model` section
    tensors: dict[str, torch.Tensor]
    step: int
    taken: str  # "ema" or "raw"

    def __str__(self) -> str:
        return f"{self.taken} weights of step {self.step}"


@dataclass
class Difference:
    """How far the stored U-Net's epsilon is from the adapter's, on a seeded random input."""

    largest: float  # max |difference|
    relative: float  # to the largest |epsilon|
    dtype: str
    shape: tuple[int, ...]  # (B, C, H, W) of the latent

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return (
            f"merged {self.dtype} against the adapter in float32, on a random {size} latent: "
            f"max difference {self.largest:.2e}, {self.relative:.2e} of the largest value"
        )


def run_weights(config, step: int | None = None, weights: str = "ema") -> Weights:
    """Read the generator of a run's checkpoint; raises where there is none of full size.

    `ema` falls back to raw weights where the run kept no average. The run's own config.json counts;
    of `config` only the run directory does.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights {weights!r}: take ema or raw")
    stored, run_dir = read_config(config.run_dir), config.run_dir
    if stored.model.recipe != "one_step_gan" or stored.model.size != "full":
        raise ValueError(
            f"{run_dir} trains {stored.model.recipe} of model.size {stored.model.size}, a network "
            "of its own: only runs of one_step_gan with model.size full have a U-Net to export"
        )
    if step is None:
        own = stored.with_changes({"run": config.run, "paths.runs": str(config.paths.runs)})
        step = checkpoint.linked(run_dir, inference.chosen(own))
    have = checkpoint.steps(run_dir)
    if step not in have:
        wanted = "yet" if step is None else f"of step {step}"
        listing = ", ".join(map(str, have)) or "none"
        raise ValueError(f"{run_dir} has no checkpoint {wanted}; steps with one: {listing}")
    saved = checkpoint.read(run_dir, step, ("weights", "ema"))
    averaged = saved.tensors.get("ema") if weights == "ema" else None
    tensors = exchange.of_network(saved.tensors["weights"] | (averaged or {}))
    return Weights(stored.model, tensors, step, "ema" if averaged else "raw")


def export(config, target, *, step=None, weights: str = "ema", force: bool = False) -> Path:
    """Write a run's adapter in HYPIR's format; returns the file.

    HYPIR's files mean alpha = rank: where `model.lora_alpha` differs, B is scaled to it. Raises
    ValueError when the run has no adapter, or `target` is there and `force` is not given.
    """
    target = Path(target).expanduser()
    _check_file(target, force)
    found = run_weights(config, step, weights)
    if found.model.lora_rank is None:
        raise ValueError(
            "this run trained its whole U-Net (model.lora_rank is null) and has no adapter: "
            "--merge writes the U-Net"
        )
    tensors = exchange.rescaled(found.tensors, exchange.scale(found.model))
    _save(tensors, target)
    print(f"{found}: {len(tensors)} tensors, rank {found.model.lora_rank}")
    return target


def _check_file(path: Path, force: bool) -> None:
    """Raise ValueError unless a file can be written, and is new or may be replaced."""
    if path.suffix not in exchange.SUFFIXES:
        raise ValueError(f"{path}: name a file that ends in {', '.join(exchange.SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file, such as {path / 'adapter.pth'}")
    if path.exists() and not force:
        raise ValueError(f"{path} is there already: name another file, or give --force")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as float32, whole or not at all: a torch.save, or .safetensors by suffix."""
    plain = {n: v.detach().cpu().float().contiguous() for n, v in tensors.items()}

    def save(temporary: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(plain, temporary, metadata={"format": "pt"})
            return
        with temporary.open("wb") as file:  # a path would get into the file
            torch.save(plain, file)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save)


# --- merging --------------------------------------------------------------------------------------


def merge(
    config, folder, *, step=None, weights: str = "ema", dtype: str = "float32", force: bool = False
) -> Difference:
    """Write a run's U-Net, its adapter merged into the base, as a diffusers folder.

    W + alpha / rank B A is summed in float32 and stored in `dtype`; the folder is loaded back and
    compared before it gets its name. Prints and returns the difference.
    """
    folder = Path(folder).expanduser()
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: take one of {', '.join(DTYPES)}")
    _check_folder(folder, force)
    found = run_weights(config, step, weights)
    if found.model.base is None:
        raise ValueError(
            "model.base of this run is null, random weights: there is no base to merge into"
        )
    base = stable_diffusion.find(found.model.base, config.paths.models) / "unet"
    if folder.resolve() == base.resolve():
        raise ValueError(f"{folder} is the base itself: name another folder")
    unet = _unet(base).eval()
    stable_diffusion.add_adapters(unet, found.model)
    exchange.fill(unet, found.tensors, found.model, config.run_dir)
    inputs = _probe(unet, found.model.model_t)
    expected = _epsilon(unet, inputs)
    if found.model.lora_rank is not None:
        unet.fuse_lora()
        unet.unload_lora()
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        nn.Module.to(unet, getattr(torch, dtype))  # diffusers' own warns without need
        unet.save_pretrained(temporary)
        del unet
        difference = _compare(expected, _unet(temporary, getattr(torch, dtype)), inputs, dtype)
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{found}: {difference}")
    return difference


def _unet(folder: Path, dtype: torch.dtype = torch.float32):
    from .torchvision_ops import ensure_torchvision

    ensure_torchvision()
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype)


def _probe(unet, timestep: int) -> tuple[torch.Tensor, int, torch.Tensor]:
    """Return a latent (1, C, H, W), a timestep and a text (1, T, D), the same at every call."""
    side = min(unet.config.sample_size, PROBE_SIDE)
    generator = torch_rng(0, "export")
    latent = torch.randn(1, unet.config.in_channels, side, side, generator=generator)
    text = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    return latent, timestep, text


@torch.no_grad()
def _epsilon(unet, inputs) -> torch.Tensor:
    latent, timestep, text = inputs
    latent, text = latent.to(unet.dtype), text.to(unet.dtype)
    return unet(latent, timestep, encoder_hidden_states=text).sample.float()


def _compare(expected: torch.Tensor, unet, inputs, dtype: str) -> Difference:
    found = _epsilon(unet.eval(), inputs)
    if not bool(found.isfinite().all()):
        raise ValueError(f"the merged U-Net overflows in {dtype}: take float32 or bfloat16")
    largest = (found - expected).abs().max().item()
    relative = largest / expected.abs().max().item()
    return Difference(largest, relative, dtype, tuple(inputs[0].shape))


def _check_folder(folder: Path, force: bool) -> None:
    """Raise ValueError unless a folder is new or empty, or, with `force`, a U-Net's and no more."""
    if folder.suffix in exchange.SUFFIXES:
        raise ValueError(f"{folder}: --merge writes a folder, a name without {folder.suffix}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the merged U-Net")
    held = sorted(p.name for p in folder.iterdir())
    if held and not force:
        raise ValueError(f"{folder} is there already: name another folder, or give --force")
    if other := [name for name in held if not name.startswith(UNET_FILES)]:
        raise ValueError(f"{folder} holds more than a U-Net ({other[0]} …) and is not replaced")


def _replace(temporary: Path, folder: Path) -> None:
    """Give a written folder its name; what stood there is deleted after."""
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    flush(folder.absolute().parent)
    shutil.rmtree(old, ignore_errors=True)


# --- the command ----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Export; exit status 0 done, 1 refused or failed."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the trained run: its name or its folder")
    parser.add_argument("target", metavar="TARGET", help="the file, or with --merge the folder")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the U-Net")
    parser.add_argument("--step", type=int, help="the step of the checkpoint; the run's own choice")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of a merged U-Net")
    parser.add_argument("--force", action="store_true", help="replace what TARGET holds")
    parsed = parser.parse_args(arguments)
    if parsed.dtype != "float32" and not parsed.merge:
        parser.error("--dtype is for --merge; an adapter is written as float32")
    target, options = Path(parsed.target).expanduser(), {"step": parsed.step}
    options |= {"weights": parsed.weights, "force": parsed.force}
    try:
        config = run_config(parsed.run, {})
        if parsed.merge:
            merge(config, target, dtype=parsed.dtype, **options)
        else:
            export(config, target, **options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(target.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
