"""The conditional denoiser: diffusers' U-Net on the noisy image and the condition, side by side.

`full` is LineFuse's (253.8 M parameters on RGB); `tiny` trains on a CPU in minutes.
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import torch
from torch import nn

SHAPES = {
    "full": {
        "block_out_channels": (128, 256, 512, 1024),
        "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
        "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    "tiny": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "norm_num_groups": 8,
    },
}
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "UNetMidBlock2D", "AttnUpBlock2D", "UpBlock2D")
LORA_MODULES = ("to_q", "to_k", "to_v", "to_out.0")


class PixelCodec(nn.Module):
    """No autoencoder: an image in [0, 1] as it is, in [-1, 1]."""

    factor, latent_channels = 1, 3

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, H, W) in [-1, 1]."""
        return image * 2 - 1

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, H, W), [0, 1] but not clamped."""
        return (latent + 1) / 2


class Denoiser(nn.Module):
    """What is predicted from the noisy latent, its timestep and the condition's latent."""

    def __init__(self, size: str, channels: int) -> None:
        super().__init__()
        from ..torchvision_ops import ensure_torchvision

        ensure_torchvision()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(in_channels=2 * channels, out_channels=channels, **SHAPES[size])
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.multiple = 2 ** (len(SHAPES[size]["block_out_channels"]) - 1)

    def forward(
        self, noisy: torch.Tensor, condition: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Map two (B, C, H, W) and timesteps (B,) to one (B, C, H, W)."""
        return self.unet(torch.cat([noisy, condition], 1), timestep).sample


def is_block(module: nn.Module) -> bool:
    """Return whether a module is one of those that are recomputed together."""
    return type(module).__name__ in BLOCKS
