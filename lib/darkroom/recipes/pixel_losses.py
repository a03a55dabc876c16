"""The losses between a restored image and its target that several families share."""
# B batch, H height, W width

from __future__ import annotations

import torch

from .. import losses

SIGNED_TERMS = ("l2", "l1", "charbonnier")
PERCEPTUAL_TERMS = ("lpips", "vgg")
IMAGE_TERMS = (*SIGNED_TERMS, "psnr", "ssim", *PERCEPTUAL_TERMS)


def image_term(
    name: str,
    weight: float,
    prediction: torch.Tensor,
    target: torch.Tensor,
    perceptual_autocast: bool = False,
) -> torch.Tensor:
    """Return one weighted image loss, (B,), of (B, 3, H, W) images in [0, 1].

    As in HYPIR and most diffusion code, l2, l1 and charbonnier are taken in [-1, 1], so that
    published weights mean the same here; psnr, ssim and the perceptual losses take [0, 1].
    `perceptual_autocast` lets the perceptual networks compute in the run's precision.
    """
    if name in SIGNED_TERMS:
        return weight * losses.LOSSES[name](prediction * 2 - 1, target * 2 - 1)
    options = {"full_precision": not perceptual_autocast} if name in PERCEPTUAL_TERMS else {}
    return weight * losses.LOSSES[name](prediction, target, **options)


def image_terms(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: dict[str, float],
    perceptual_autocast: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the image losses whose weight is not 0, each weighted and (B,)."""
    return {
        name: image_term(name, weights[name], prediction, target, perceptual_autocast)
        for name in IMAGE_TERMS
        if weights.get(name)
    }


def weights_of(config, names: tuple[str, ...]) -> dict[str, float]:
    """Return the configured weights of these losses."""
    return {name: getattr(config.loss, name) for name in names}
