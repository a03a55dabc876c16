"""What `one_step_gan` is made of in each size: autoencoder, U-Net, discriminator, text."""
# B batch, C latent channels, H height, W width

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..diffusion import alpha_bars, epsilon_for_x0
from ..networks import stable_diffusion, trunk
from ..networks.discriminator import Discriminator, TinyTrunk
from ..networks.prompts import Prompts
from ..networks.recompute import recompute
from ..networks.tiny import PixelUnshuffleCodec, ResidualBlock, TinyUNet
from ..tiling import AUTO_TILE

FULL_TILE = 1024  # pixels a side; above it restoring tiles
MIN_JUDGED = 64  # pixels a side: four at the trunk's third level


@dataclass
class Networks:
    """The parts of a one-step restorer; `prompts` is None where no text conditions the U-Net."""

    codec: Any
    unet: nn.Module
    discriminator: Discriminator
    prompts: Prompts | None
    alpha_bar: float
    multiple: int
    auto_tile: int


class TinyEpsilon(nn.Module):
    """A tiny U-Net that predicts epsilon, as the full-size one does.

    It finds the restored latent x0 and returns the epsilon for which the one-step formula gives
    it back, so the recipe is the same for both sizes.
    """

    def __init__(self, codec: PixelUnshuffleCodec, alpha_bar: float) -> None:
        super().__init__()
        self.unet = TinyUNet(codec)
        self.alpha_bar = alpha_bar

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return epsilon, the shape of z (B, C, H, W)."""
        return epsilon_for_x0(z, self.unet(z), self.alpha_bar)


def build(config) -> Networks:
    """Build the networks of `config.model`, adapters and activation checkpointing included."""
    networks = _tiny(config) if config.model.size == "tiny" else _full(config)
    setting, dropout = config.train.checkpointing, config.model.lora_dropout > 0
    recompute(networks.unet, setting.network, _is_unet_block, "network", dropout)
    if config.model.size != "tiny":  # the tiny codec keeps nothing
        recompute(networks.codec, setting.decoder, _is_decoder_block, "decoder", False)
    recompute(
        networks.discriminator.trunk, setting.discriminator, trunk.is_block, "discriminator", False
    )
    return networks


def _tiny(config) -> Networks:
    alpha_bar = float(alpha_bars()[config.model.coeff_t])
    codec = PixelUnshuffleCodec()
    unet = TinyEpsilon(codec, alpha_bar)
    discriminator = Discriminator(TinyTrunk(), width=64)
    multiple = codec.factor * unet.unet.multiple
    return Networks(codec, unet, discriminator, None, alpha_bar, multiple, AUTO_TILE)


def _full(config) -> Networks:
    models = config.paths.models
    base = stable_diffusion.load(config.model.base, models)
    stable_diffusion.add_adapters(base.unet, config.model)
    codec = stable_diffusion.LatentCodec(base.vae)
    multiple = codec.factor * 2 ** (len(base.unet.config.block_out_channels) - 1)
    if config.data.crop != "none" and config.data.crop_size % multiple:
        below = max(multiple, config.data.crop_size // multiple * multiple)
        raise ValueError(
            f"data.crop_size {config.data.crop_size} is not a multiple of {multiple}, which this "
            f"U-Net takes: set it to {below} or {below + multiple}"
        )
    if config.data.crop_size < MIN_JUDGED and config.model.trunk != "tiny":
        raise ValueError(
            f"data.crop_size {config.data.crop_size} is too small for the discriminator's coarsest "
            f"level: set it to at least {MIN_JUDGED}"
        )
    return Networks(
        codec=codec,
        unet=base.unet,
        discriminator=Discriminator(trunk.build(config.model, models)),
        prompts=base.prompts,
        alpha_bar=float(base.alpha_bars[config.model.coeff_t]),
        multiple=multiple,
        auto_tile=FULL_TILE,
    )


def _is_unet_block(module: nn.Module) -> bool:
    return isinstance(module, ResidualBlock) or (
        type(module).__name__ in stable_diffusion.UNET_BLOCKS
    )


def _is_decoder_block(module: nn.Module) -> bool:
    return type(module).__name__ in stable_diffusion.DECODER_BLOCKS
