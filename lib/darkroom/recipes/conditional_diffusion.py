"""Diffusion of the clean image, conditioned on the degraded one, after LineFuse's design.

The network sees the noisy clean image and the degraded image side by side (Saharia et al. 2022,
arXiv 2104.07636). How noise is added in training (`model.noise_schedule`) and how a sampler walks
back (`restore`) are separate. With `model.lora_rank` a base is frozen and adapters are trained.
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import torch
from torch import nn

from ..batch import Batch, Sample
from ..diffusion import alpha_bars, ddim, estimate, target
from ..losses import LOSSES
from ..networks import adapters, base_weights, denoiser, stable_diffusion
from ..networks.recompute import recompute
from ..networks.tiny import PixelUnshuffleCodec
from ..tiling import AUTO_TILE
from .pixel_losses import IMAGE_TERMS, SIGNED_TERMS, image_terms, weights_of
from .protocol import Losses, Phase, Restored, trainable

BETAS = (1e-4, 0.02)  # of the linear and the scaled linear schedule
TINY_FACTOR = 2
FULL_TILE = 512  # pixels a side, LineFuse's own; its attention grows with the fourth power


class ConditionalDiffusion:
    """A denoiser trained on every timestep alike, and DDIM to restore with it."""

    prompts = None

    def __init__(self, config) -> None:
        model = config.model
        self.codec = _codec(config)
        self.network: nn.Module = denoiser.Denoiser(model.size, self.codec.latent_channels)
        self.base_digest = None
        if model.base is not None and not torch.empty(0).is_meta:  # a plan needs no weights
            file = base_weights.find(model.base, config.paths.runs, config.paths.models)
            self.base_digest = base_weights.load(self.network, "denoiser", file)
        self.adapted = adapters.add(self.network, model, denoiser.LORA_MODULES)
        setting, dropout = config.train.checkpointing.network, model.lora_dropout > 0
        recompute(self.network, setting, denoiser.is_block, "network", dropout)
        self.modules = {"denoiser": self.network}
        if isinstance(self.codec, stable_diffusion.LatentCodec):
            self.modules["codec"] = self.codec
        self.multiple = self.codec.factor * self.network.multiple
        self.auto_tile = FULL_TILE if model.size == "full" else AUTO_TILE
        self.prediction = model.prediction
        bars = alpha_bars(1000, *BETAS, kind=model.noise_schedule)
        self.bars, self._table = bars.tolist(), bars.float()  # on the CPU
        self._parameters = trainable(self.network, "denoiser")
        self._late = self._frozen(_ever_unfrozen(config)) if self.adapted else {}
        for parameter in self._late.values():
            parameter.requires_grad_(True)  # it stays float32, as what is trained does

    def _frozen(self, blocks) -> dict[str, nn.Parameter]:
        """Return the base's parameters in these blocks, by name; ValueError for an unknown one."""
        found: dict[str, nn.Parameter] = {}
        for block in blocks:
            path = f"unet.{block}." if not block.startswith("unet.") else f"{block}."
            inside = {
                f"denoiser.{name}": parameter
                for name, parameter in self.network.named_parameters()
                if name.startswith(path) and ".lora_" not in name
            }
            if not inside:
                children = ", ".join(name for name, _ in self.network.unet.named_children())
                raise ValueError(
                    f"model.unfreeze names {block!r}, which is no block of this network: it has "
                    f"{children}, and parts of them such as up_blocks.0"
                )
            found |= inside
        return found

    def phases(self, config) -> list[Phase]:
        lr = config.optim.for_phase("denoiser").lr
        late = self._frozen(config.model.unfreeze or ()) if self.adapted else {}
        parameters = {**self._parameters, **late}
        weights = weights_of(config, IMAGE_TERMS)
        return [Phase("denoiser", parameters, lr, weights, unfrozen=frozenset(late))]

    def sharded(self, split) -> None:
        """Have the network split over the processes by `split(module, is_block)`."""
        split(self.network, denoiser.is_block)
        anew = {f"denoiser.{name}": p for name, p in self.network.named_parameters()}
        self._parameters = {name: anew[name] for name in self._parameters}
        self._late = {name: anew[name] for name in self._late}

    def draw(self, sample: Sample, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw a timestep, evenly, with its alpha_bar, and the noise."""
        timestep = torch.randint(len(self.bars), (), generator=generator)
        height, width = (side // self.codec.factor for side in sample.gt.shape[-2:])
        shape = (self.codec.latent_channels, height, width)
        return {
            "timestep": timestep.float(),
            "alpha_bar": self._table.take(timestep),
            "noise": torch.randn(shape, generator=generator),
        }

    def begin(self, phase: Phase) -> None:
        self.network.train()
        for name, parameter in self._late.items():
            parameter.requires_grad_(name in phase.parameters)

    def _estimate(
        self, noisy: torch.Tensor, condition: torch.Tensor, timestep: torch.Tensor, bar
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction and the x0 that follows from it, both (B, C, H, W) float32.

        x0 is predicted as its difference from the condition: an untrained network changes nothing.
        """
        output = self.network(noisy, condition, timestep)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.prediction == "x0":
            output = output + condition
        return output, estimate(noisy, output, bar, self.prediction)

    def losses(self, batch: Batch, phase: Phase) -> Losses:
        """Return the terms: l2, l1 and charbonnier of what is predicted, the others of x0's image.

        Those three follow the field's habit and are taken in the network's own range; psnr, ssim
        and the perceptual ones are taken on the decoded image of the estimated x0.
        """
        condition, clean = self.codec.encode(batch.lq), self.codec.encode(batch.gt)
        noise, bar = batch.draws["noise"], batch.draws["alpha_bar"].view(-1, 1, 1, 1)
        noisy = bar**0.5 * clean + (1 - bar) ** 0.5 * noise
        output, x0 = self._estimate(noisy, condition, batch.draws["timestep"], bar)
        wanted = target(clean, noise, bar, self.prediction)
        terms = {
            name: phase.weights[name] * LOSSES[name](output, wanted)
            for name in SIGNED_TERMS
            if phase.weights.get(name)
        }
        others = {n: w for n, w in phase.weights.items() if n not in SIGNED_TERMS and w}
        if others:
            terms |= image_terms(self.codec.decode(x0), batch.gt, others)
        return Losses(terms)

    @torch.no_grad()
    def restore(self, batch: Batch, *, seed: int, num_steps: int | None = None) -> Restored:
        """Restore `lq` by DDIM from noise that `seed` alone decides, the same for every image."""
        self.network.eval()
        condition = self.codec.encode(batch.lq)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(condition.shape[1:], generator=generator).to(condition.device)

        def predict(noisy: torch.Tensor, timestep: int, bar: float) -> torch.Tensor:
            steps = torch.full((len(noisy),), float(timestep), device=noisy.device)
            return self._estimate(noisy, condition, steps, bar)[1]

        limit = None if "codec" in self.modules else 1.0
        start = noise.expand_as(condition).to(condition.dtype)
        x0 = ddim(predict, start, self.bars, num_steps or 25, limit)
        return Restored(self.codec.decode(x0).float().clamp(0, 1))


def _ever_unfrozen(config) -> list[str]:
    """Return the blocks that the config or one of its stages unfreezes."""
    blocks = list(config.model.unfreeze or ())
    for stage in config.stages.values():
        blocks += stage.changes.get("model.unfreeze") or ()
    return list(dict.fromkeys(blocks))


def _codec(config):
    """Return what maps images to the space in which is diffused."""
    model = config.model
    if model.space == "latent":
        vae = stable_diffusion.autoencoder(model.autoencoder, config.paths.models)
        return stable_diffusion.LatentCodec(vae)
    return PixelUnshuffleCodec(TINY_FACTOR) if model.size == "tiny" else denoiser.PixelCodec()
