"""The losses between a restored image and its target that several families share."""
# B batch, H height, W width

from __future__ import annotations

import torch

from .. import losses

SIGNED_TERMS = ("l2", "l1", "charbonnier")


IMAGE_TERMS = (*SIGNED_TERMS, "psnr", "ssim", "lpips", "vgg")


def image_terms(
    prediction: torch.Tensor, target: torch.Tensor, weights: dict[str, float]
) -> dict[str, torch.Tensor]:
    """Return the weighted image losses, each (B,), of (B, 3, H, W) images in [0, 1].

    As in HYPIR and most diffusion code, l2, l1 and charbonnier are taken in [-1, 1], so that
    published weights mean the same here; psnr, ssim and the perceptual losses take [0, 1].
    """
    terms = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        if name in SIGNED_TERMS:
            value = losses.LOSSES[name](prediction * 2 - 1, target * 2 - 1)
        else:
            value = losses.LOSSES[name](prediction, target)
        terms[name] = weight * value
    return terms


def weights_of(config, names: tuple[str, ...]) -> dict[str, float]:
    """Return the configured weights of these losses."""
    return {name: getattr(config.loss, name) for name in names}
