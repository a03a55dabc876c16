"""Small honest stand-ins: an invertible autoencoder and a U-Net, trained from scratch in minutes on a CPU.

Both networks start as the identity: before the first step the restored image is the untouched input.
"""
# B batch, C channels, H height, W width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PixelUnshuffleCodec(nn.Module):
    """An exactly invertible "autoencoder": space to depth, range [0, 1] to [-1, 1].

    It stands where the VAE of a full-size model stands; it has no parameters.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.latent_channels = 3 * factor**2

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, H, W) in [0, 1] to (B, 3 f^2, H / f, W / f) in [-1, 1]."""
        return F.pixel_unshuffle(image * 2 - 1, self.factor)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode a latent to (B, 3, H, W), [0, 1] but not clamped."""
        return (F.pixel_shuffle(latent, self.factor) + 1) / 2


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip; group norm would erase the exposure it has to correct."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class GlobalContext(nn.Module):
    """Scale and shift every channel by a function of the image's mean and spread (FiLM, Perez et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * channels, 2 * channels)
        self.film = nn.Linear(2 * channels, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3))
        spread = (x - mean[:, :, None, None]).abs().mean(dim=(2, 3))
        scale, shift = self.film(F.silu(self.hidden(torch.cat([mean, spread], 1)))).chunk(2, 1)
        return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class TinyUNet(nn.Module):
    """A three-level U-Net on latents that returns the restored latent.

    The last layer gives a gain and an offset for every latent value: the restored latent is
    (z + 1) exp(gain) - 1 + offset. Both are zero at the start.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (32, 64, 96)) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(ResidualBlock(w) for w in widths[:-1])
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.mid_blocks = nn.Sequential(
            ResidualBlock(widths[-1]),
            GlobalContext(widths[-1]),
            ResidualBlock(widths[-1]),
            GlobalContext(widths[-1]),
        )
        pairs = list(zip(widths, widths[1:], strict=False))[::-1]
        self.upsamplers = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.up_blocks = nn.ModuleList(ResidualBlock(a) for a, _ in pairs)
        self.conv_out = nn.Conv2d(widths[0], 2 * channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) latents in [-1, 1] to restored latents of the same shape."""
        x, skips = self.conv_in(z), []
        for block, down in zip(self.down_blocks, self.downsamplers, strict=True):
            x = block(x)
            skips.append(x)
            x = down(F.silu(x))
        x = self.mid_blocks(x)
        for up, block in zip(self.upsamplers, self.up_blocks, strict=True):
            x = block(F.pixel_shuffle(up(F.silu(x)), 2) + skips.pop())
        gain, offset = self.conv_out(F.silu(x)).chunk(2, dim=1)
        return (z + 1) * gain.clamp(max=4).exp() - 1 + offset
