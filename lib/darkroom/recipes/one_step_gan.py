"""One-step restoration trained against a discriminator, after HYPIR (arXiv 2507.20590).

A U-Net predicts epsilon once, at t = 200, on the latent of the degraded image; the one-step x0 is
decoded to the restored image. Generator and discriminator take turns on batches of their own, or,
with `train.share_step`, on the same one.
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import torch
from torch import nn

from .. import losses
from ..batch import Batch, Sample
from ..diffusion import one_step_x0
from ..tail import by_parts
from .one_step_networks import build
from .pixel_losses import IMAGE_TERMS, image_term, image_terms, weights_of
from .protocol import Losses, Phase, Restored, trainable


class OneStepGAN:
    """HYPIR's alternation of a one-step generator and a discriminator on a frozen trunk."""

    def __init__(self, config) -> None:
        networks = build(config)
        self.codec, self.network = networks.codec, networks.unet
        self.discriminator, self.prompts = networks.discriminator, networks.prompts
        self.alpha_bar, self.timestep = networks.alpha_bar, config.model.model_t
        self.modules: dict[str, nn.Module] = {
            "generator": self.network,
            "discriminator": self.discriminator,
        }
        if self.prompts is not None:  # the tiny codec has no weights
            self.modules["codec"] = self.codec
        self.multiple, self.auto_tile = networks.multiple, networks.auto_tile
        self.tail_micro_batch = config.train.tail_micro_batch
        self.perceptual_autocast = config.train.lpips_autocast
        self.share_step = config.train.share_step
        self._shared: dict[int, torch.Tensor] = {}  # position -> restored image of this step
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
        samples_of = "generator" if self.share_step else None
        return [generator, Phase("discriminator", self._heads, lr, samples_of=samples_of)]

    def draw(self, sample: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw the noise of the autoencoder's posterior, where there is one."""
        if self.prompts is None:
            return {}
        height, width = (side // self.codec.factor for side in sample.lq.shape[-2:])
        shape = (self.codec.latent_channels, height, width)
        return {"posterior": torch.randn(shape, generator=generator)}

    def begin(self, phase: Phase) -> None:
        trains_heads = phase.name == "discriminator"
        self.network.train(not trains_heads)
        for parameter in self._heads.values():
            parameter.requires_grad_(trains_heads)
        if trains_heads:
            self.discriminator.iterate()
        else:
            self._shared.clear()

    def _latent(self, batch: Batch) -> torch.Tensor:
        """Return the restored latent (B, C, H / f, W / f) of a batch."""
        if self.prompts is None:
            z = self.codec.encode(batch.lq)
            return one_step_x0(z, self.network(z), self.alpha_bar)
        z = self.codec.encode(batch.lq, batch.draws.get("posterior"))
        text = self.prompts(batch.prompts)
        epsilon = self.network(z, self.timestep, encoder_hidden_states=text).sample
        return one_step_x0(z, epsilon, self.alpha_bar)

    def _forward(self, batch: Batch) -> torch.Tensor:
        return self.codec.decode(self._latent(batch))

    def losses(self, batch: Batch, phase: Phase) -> Losses:
        if phase.name == "discriminator":
            return self._discriminator_losses(batch)
        if self.tail_micro_batch is not None:
            return self._losses_by_parts(batch, phase)
        restored = self._forward(batch)
        self._keep(restored, batch.positions)
        terms = image_terms(restored, batch.gt, phase.weights, self.perceptual_autocast)
        if phase.weights["gan"]:
            logits = self.discriminator(restored)
            terms["gan"] = phase.weights["gan"] * losses.gan_generator(logits)
        return Losses(terms)

    def _losses_by_parts(self, batch: Batch, phase: Phase) -> Losses:
        """The same terms with decoder and losses a few samples at a time: see `tail`."""

        def decode(z: torch.Tensor, part: slice) -> torch.Tensor:
            image = self.codec.decode(z)
            self._keep(image, batch.positions[part])
            return image

        def term(name: str, weight: float):
            if name == "gan":
                return lambda x, part: weight * losses.gan_generator(self.discriminator(x))
            return lambda x, part: image_term(
                name, weight, x, batch.gt[part], self.perceptual_autocast
            )

        active = {name: term(name, weight) for name, weight in phase.weights.items() if weight}
        terms, norms = by_parts(
            self._latent(batch), decode, active, self.tail_micro_batch, separate=phase.separate
        )
        return Losses(terms, {f"grad_norm/image_{name}": norm for name, norm in norms.items()})

    def _keep(self, restored: torch.Tensor, positions: list[int]) -> None:
        if self.share_step:
            self._shared |= dict(zip(positions, restored.detach(), strict=True))

    def _discriminator_losses(self, batch: Batch) -> Losses:
        if self.share_step:
            fake = torch.stack([self._shared[p] for p in batch.positions])
        else:
            fake = self._fake(batch)
        real_logits, fake_logits = self.discriminator(batch.gt), self.discriminator(fake)
        loss = losses.gan_discriminator(real_logits, fake_logits)
        logs = {"logits/real": _mean_logit(real_logits), "logits/fake": _mean_logit(fake_logits)}
        return Losses({"gan": loss}, logs)

    @torch.no_grad()
    def _fake(self, batch: Batch) -> torch.Tensor:
        parts = self._latent(batch).split(self.tail_micro_batch or len(batch))
        return torch.cat([self.codec.decode(part) for part in parts])

    @torch.no_grad()
    def restore(self, batch: Batch, *, seed: int, num_steps: int | None = None) -> Restored:
        """Restore `lq`; the autoencoder's mean stands for a draw, so that tiles agree."""
        self.network.eval()
        plain = Batch(batch.lq, batch.gt, batch.prompts, [], [], [])
        return Restored(self._forward(plain).float().clamp(0, 1))


def _mean_logit(logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over levels of the mean logit, (B,), detached."""
    return torch.stack([x.detach().flatten(1).mean(1) for x in logits]).mean(0)
