"""Plain regression: one network, one forward, a sum of image losses. The honest baseline."""

from __future__ import annotations

import torch
from torch import nn

from ..batch import Batch, Sample
from ..networks.recompute import recompute
from ..networks.restorer import GatedBlock, Restorer
from ..networks.tiny import PixelUnshuffleCodec, ResidualBlock, TinyUNet
from .pixel_losses import IMAGE_TERMS, image_terms, weights_of
from .protocol import Losses, Phase, Restored, trainable

SIZES = {"tiny": TinyUNet, "middle": Restorer}


class Regression:
    """The restored image is one forward of the network on the degraded one."""

    prompts = None

    def __init__(self, config) -> None:
        self.codec = PixelUnshuffleCodec()
        self.network: nn.Module = SIZES[config.model.size](self.codec)
        recompute(self.network, config.train.checkpointing.network, _is_block, "network", False)
        self.modules = {"network": self.network}
        self.multiple = self.codec.factor * self.network.multiple
        self._parameters = trainable(self.network, "network")

    def phases(self, config) -> list[Phase]:
        lr = config.optim.for_phase("network").lr
        return [Phase("network", self._parameters, lr, weights_of(config, IMAGE_TERMS))]

    def sharded(self, split) -> None:
        """Have the network split over the processes by `split(module, is_block)`."""
        split(self.network, _is_block)
        self._parameters = trainable(self.network, "network")

    def draw(self, sample: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def begin(self, phase: Phase) -> None:
        self.network.train()

    def _forward(self, lq: torch.Tensor) -> torch.Tensor:
        return self.codec.decode(self.network(self.codec.encode(lq)))

    def losses(self, batch: Batch, phase: Phase) -> Losses:
        return Losses(image_terms(self._forward(batch.lq), batch.gt, phase.weights))

    @torch.no_grad()
    def restore(self, batch: Batch, *, seed: int, num_steps: int | None = None) -> Restored:
        self.network.eval()
        return Restored(self._forward(batch.lq).float().clamp(0, 1))


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, (ResidualBlock, GatedBlock))
