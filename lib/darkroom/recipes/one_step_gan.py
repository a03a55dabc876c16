"""One-step restoration trained against a discriminator, after HYPIR (arXiv 2507.20590).

A U-Net predicts epsilon once, at t = 200, on the latent of the degraded image; the one-step x0 is
decoded to the restored image. Generator and discriminator take turns on batches of their own.
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import torch
from torch import nn

from .. import losses
from ..data import Batch, Sample
from ..diffusion import alpha_bars, one_step_x0
from ..networks.discriminator import Discriminator, TinyTrunk
from ..networks.tiny import PixelUnshuffleCodec, TinyUNet
from .pixel_losses import IMAGE_TERMS, image_terms, weights_of
from .protocol import Losses, Phase, Restored, trainable


class TinyEpsilon(nn.Module):
    """A tiny U-Net that predicts epsilon, as the full-size one does.

    It finds the restored latent x0 and returns the epsilon for which the one-step formula gives
    it back, so the recipe is the same for both sizes.
    """

    def __init__(self, codec: PixelUnshuffleCodec, alpha_bar: float) -> None:
        super().__init__()
        self.unet = TinyUNet(codec)
        self.alpha_bar = alpha_bar
        self.multiple = self.unet.multiple

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return epsilon, the shape of z (B, C, H, W)."""
        x0 = self.unet(z)
        return (z - self.alpha_bar**0.5 * x0) / (1 - self.alpha_bar) ** 0.5


class OneStepGAN:
    """HYPIR's alternation of a one-step generator and a discriminator on a frozen trunk."""

    def __init__(self, config) -> None:
        self.alpha_bar = float(alpha_bars()[config.model.coeff_t])
        self.codec = PixelUnshuffleCodec()
        self.network: nn.Module = TinyEpsilon(self.codec, self.alpha_bar)
        self.discriminator = Discriminator(TinyTrunk(), width=64)
        self.modules = {"generator": self.network, "discriminator": self.discriminator}
        self.multiple = self.codec.factor * self.network.multiple
        self._generator = trainable(self.network, "generator")
        self._heads = trainable(self.discriminator, "discriminator")

    def phases(self, config) -> list[Phase]:
        weights = weights_of(config, (*IMAGE_TERMS, "gan"))
        generator = Phase(
            "generator", self._generator, config.optim.for_phase("generator").lr, weights
        )
        if weights["gan"] == 0:
            return [generator]
        lr = config.optim.for_phase("discriminator").lr
        return [generator, Phase("discriminator", self._heads, lr)]

    def draw(self, sample: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def begin(self, phase: Phase) -> None:
        trains_heads = phase.name == "discriminator"
        self.network.train(not trains_heads)
        for parameter in self._heads.values():
            parameter.requires_grad_(trains_heads)
        if trains_heads:
            self.discriminator.iterate()

    def _forward(self, lq: torch.Tensor) -> torch.Tensor:
        z = self.codec.encode(lq)
        return self.codec.decode(one_step_x0(z, self.network(z), self.alpha_bar))

    def losses(self, batch: Batch, phase: Phase) -> Losses:
        if phase.name == "discriminator":
            return self._discriminator_losses(batch)
        restored = self._forward(batch.lq)
        image_weights = {k: v for k, v in phase.weights.items() if k != "gan"}
        terms = image_terms(restored, batch.gt, image_weights)
        if phase.weights["gan"]:
            logits = self.discriminator(restored)
            terms["gan"] = phase.weights["gan"] * losses.gan_generator(logits)
        return Losses(terms)

    def _discriminator_losses(self, batch: Batch) -> Losses:
        with torch.no_grad():
            fake = self._forward(batch.lq)
        real_logits, fake_logits = self.discriminator(batch.gt), self.discriminator(fake)
        loss = losses.gan_discriminator(real_logits, fake_logits)
        logs = {"logits/real": _mean_logit(real_logits), "logits/fake": _mean_logit(fake_logits)}
        return Losses({"gan": loss}, logs)

    @torch.no_grad()
    def restore(self, batch: Batch, *, seed: int, num_steps: int | None = None) -> Restored:
        self.network.eval()
        return Restored(self._forward(batch.lq).float().clamp(0, 1))


def _mean_logit(logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over levels of the mean logit, (B,), detached."""
    return torch.stack([x.detach().flatten(1).mean(1) for x in logits]).mean(0)
