"""Discriminators: a frozen trunk with features of several scales, small trainable heads on them.

The heads follow HYPIR (arXiv 2507.20590) and vision-aided GANs (Kumari et al. 2022): an
anti-aliased convolution a level and a linear head on the pooled embedding, all under spectral
normalisation.
"""
# B batch, C channels, H height, W width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .. import autocast

NUM_FIRST_ITERATIONS = 15  # as torch.nn.utils.parametrizations.spectral_norm


class SpectralNorm(nn.Module):
    """A convolution or linear layer whose weight is divided by its largest singular value.

    Miyato et al. 2018. Unlike `torch.nn.utils.spectral_norm` the power iteration runs only when
    `iterate()` is called, once an optimizer step: iterated at every forward, the result would
    depend on the micro batch.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.stride = getattr(layer, "stride", None)
        self.weight_orig = layer.weight
        self.bias = layer.bias
        rows = layer.weight.flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(rows.shape[0]), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(rows.shape[1]), dim=0))
        for _ in range(NUM_FIRST_ITERATIONS):  # random vectors would divide by almost nothing
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """Run one power iteration: the estimate of the first singular vectors moves on."""
        rows = self.weight_orig.flatten(1)
        v = F.normalize(rows.t().mv(self.weight_u), dim=0, eps=1e-12)
        u = F.normalize(rows.mv(v), dim=0, eps=1e-12)
        # into new storage: a backward still to come may hold the old vectors
        self.weight_v, self.weight_u = v, u

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast.off(x):  # a singular value in bfloat16 is wrong in the third digit
            sigma = torch.dot(self.weight_u, self.weight_orig.flatten(1).mv(self.weight_v))
            weight = self.weight_orig / sigma
        if self.stride is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, stride=self.stride)


class BinomialBlur(nn.Module):
    """Zero-pad and blur every channel with [1, 3, 3, 1] x [1, 3, 3, 1] / 64 (Zhang 2019)."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(row, row) / 64, persistent=False)
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, padding=self.padding, groups=channels)


class MultiLevelHeads(nn.Module):
    """Logits of every level: maps (B, 1, h, w) of the spatial ones, (B, 1) of the embedding."""

    def __init__(self, channels: list[int], embedding: int, width: int = 512) -> None:
        super().__init__()
        self.decoder = nn.ModuleList(
            nn.Sequential(
                BinomialBlur(2),
                SpectralNorm(nn.Conv2d(c, width, 3, stride=2)),
                nn.LeakyReLU(0.2),
                BinomialBlur(1),
                SpectralNorm(nn.Conv2d(width, 1, 1, stride=2)),
            )
            for c in channels
        )
        self.decoder.append(
            nn.Sequential(SpectralNorm(nn.Linear(embedding, width)), nn.LeakyReLU(0.2))
        )
        self.out = SpectralNorm(nn.Linear(width, 1))

    def forward(self, maps: list[torch.Tensor], embedding: torch.Tensor) -> list[torch.Tensor]:
        logits = [head(m) for head, m in zip(self.decoder, maps, strict=False)]
        return [*logits, self.out(self.decoder[-1](embedding.to(self.out.weight_orig.dtype)))]


class TinyTrunk(nn.Module):
    """A frozen random convolution pyramid: three maps and a pooled embedding, as a ConvNeXt has.

    Random features tell pictures apart less well than CLIP's, but they are the same kind of
    object: fixed, differentiable, of several scales.
    """

    channels = [24, 48, 64]
    embedding = 64

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *self.channels]
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 5 if n == 0 else 3, stride=2, padding=2 if n == 0 else 1)
            for n, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        for stage in self.stages:
            nn.init.orthogonal_(stage.weight, gain=1.5)
            nn.init.zeros_(stage.bias)
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the maps and the (B, 64) embedding of images (B, 3, H, W) in [0, 1]."""
        x, maps = image * 2 - 1, []
        for stage in self.stages:
            x = F.leaky_relu(stage(x), 0.2)
            maps.append(x)
        return maps, x.mean(dim=(2, 3))


class Discriminator(nn.Module):
    """A frozen trunk under trainable heads; images (B, 3, H, W) in [0, 1] to a list of logits."""

    def __init__(self, trunk: nn.Module, width: int = 512) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = MultiLevelHeads(trunk.channels, trunk.embedding, width)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.heads(*self.trunk(image))

    def iterate(self) -> None:
        """Move every spectral norm on by one power iteration."""
        for module in self.heads.modules():
            if isinstance(module, SpectralNorm):
                module.iterate()
