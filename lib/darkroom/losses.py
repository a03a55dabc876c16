"""Losses between a restored image and its target, and the adversarial losses on logits.

Image losses take (prediction, target), both (B, 3, H, W), and return (B,) unreduced, in float32
also under autocast. l2, l1 and charbonnier work in any range, and scale with it; ssim, lpips and
vgg have to know the range (`value_range`).
"""
# B batch, H height, W width

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from . import autocast, perceptual

REAL_TARGET, FAKE_TARGET = 0.8, 0.0  # HYPIR's one-sided label smoothing
CHARBONNIER_EPSILON = 1e-3
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # BT.601, 16-235 of 255
LUMA_OFFSET = 16 / 255


def l2(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each image, (B,)."""
    prediction, target = _pair(prediction, target)
    return (prediction - target).square().flatten(1).mean(1)


def l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of each image, (B,)."""
    prediction, target = _pair(prediction, target)
    return (prediction - target).abs().flatten(1).mean(1)


def psnr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return log10 of the mean squared error, (B,): minus a tenth of the PSNR, in decibels.

    As in HINet (Chen et al. 2021) and NAFNet (Chen et al. 2022): an easy image weighs as much as a
    hard one, where l1 and l2 spend themselves on the darkest. Goes below zero; 1e-8 under the log.
    """
    return (l2(prediction, target) + 1e-8).log10()


def charbonnier(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean of sqrt(difference^2 + 0.001^2), (B,): a smooth l1.

    Charbonnier et al. 1994; epsilon as in Lai et al. 2018 (arXiv 1710.01992).
    """
    prediction, target = _pair(prediction, target)
    distance = ((prediction - target).square() + CHARBONNIER_EPSILON**2).sqrt()
    return distance.flatten(1).mean(1)


def ssim(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> torch.Tensor:
    """Return 1 - SSIM on the Y channel (BT.601, 16-235), (B,), with a gradient everywhere.

    Wang et al. 2004: 11x11 Gaussian window, sigma 1.5, no padding. Nothing is rounded or clamped,
    so it differs from `metrics.ssim_y` by that much. Raises ValueError below 11 pixels.
    """
    prediction, target = _pair(prediction, target)
    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"the ssim loss needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, these are "
            f"{prediction.shape[-2]}x{prediction.shape[-1]}: raise data.crop_size or set loss.ssim "
            "to 0"
        )
    with autocast.off(prediction):
        x, y = _luma(prediction, value_range), _luma(target, value_range)
        # the sum of the two variances is all that SSIM needs of them: four maps instead of five
        maps = torch.cat([x, y, x * x + y * y, x * y], dim=1)
        mu_x, mu_y, power, product = _window_mean(maps).chunk(4, dim=1)
        c1, c2 = 0.01**2, 0.03**2
        mu_power, mu_product = mu_x * mu_x + mu_y * mu_y, mu_x * mu_y
        luminance = (2 * mu_product + c1) / (mu_power + c1)
        structure = (2 * (product - mu_product) + c2) / (power - mu_power + c2)
        return 1 - (luminance * structure).flatten(1).mean(1)


def _luma(image: torch.Tensor, value_range: tuple[float, float]) -> torch.Tensor:
    low, high = value_range
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return (((image - low) / (high - low)) * weights).sum(1, keepdim=True) + LUMA_OFFSET


def _window_mean(maps: torch.Tensor) -> torch.Tensor:
    """Average (B, C, H, W) over the Gaussian window, without padding: two 1-D convolutions."""
    # by channel, not by batch: on a CPU the depthwise kernel is 15 times faster
    channels = maps.shape[1]
    offsets = torch.arange(SSIM_WINDOW, dtype=maps.dtype, device=maps.device) - SSIM_WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    across = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    rows = F.conv2d(maps, across, groups=channels)
    return F.conv2d(rows, across.transpose(2, 3), groups=channels)


class Perceptual:
    """A loss on VGG features whose network is built at its first use, once for a device.

    Under fake and meta tensors it is built without weights, so memory can be planned where they
    are absent.
    """

    def __init__(self, build: Callable[[bool], torch.nn.Module]) -> None:
        self.build = build
        self._key: object = None
        self._module: torch.nn.Module | None = None

    def module(self, like: torch.Tensor) -> torch.nn.Module:
        """Return the frozen network on the device, and in the fake mode, of a tensor.

        Raises perceptual.WeightsMissing, naming the file and its place, where it is not there.
        """
        mode = getattr(like, "fake_mode", None)
        if self._module is None or self._key != (mode, like.device):
            if mode is None and not like.is_meta:
                self._module = self.build(True).to(like.device)
            else:  # fake parameters cannot be moved: they are made where they belong
                with torch.device(like.device):
                    self._module = self.build(False)
            self._key = (mode, like.device)
        return self._module

    def __call__(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        full_precision: bool = True,
    ) -> torch.Tensor:
        """Return the distance of each image, (B,); inputs (B, 3, H, W) in `value_range`.

        Without `full_precision` the network follows autocast, for half the activation memory.
        """
        prediction, target = _pair(prediction, target)
        low, high = value_range
        scale = 2 / (high - low)
        with autocast.off(prediction) if full_precision else nullcontext():
            x, y = ((image - low) * scale - 1 for image in (prediction, target))
            return self.module(prediction)(x, y)


lpips = Perceptual(perceptual.LPIPS)
vgg = Perceptual(perceptual.FeatureDistance)

LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l2": l2,
    "l1": l1,
    "charbonnier": charbonnier,
    "psnr": psnr,
    "ssim": ssim,
    "lpips": lpips,
    "vgg": vgg,
}


def gan_generator(logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the generator's adversarial loss, (B,), from the discriminator's logits of its images.

    BCE with logits against 0.8; every level's map (B, 1, h, w) or (B, 1) is averaged over its
    pixels, the levels are summed (HYPIR; Kumari et al. 2022, arXiv 2112.09130). With four undecided
    levels it is 4 ln 2 = 2.7726, and it cannot go below 2.0016.
    """
    return _bce(logits, REAL_TARGET)


def gan_discriminator(real: list[torch.Tensor], fake: list[torch.Tensor]) -> torch.Tensor:
    """Return the discriminator's loss, (B,): real logits against 0.8 plus fake logits against 0."""
    return _bce(real, REAL_TARGET) + _bce(fake, FAKE_TARGET)


def _bce(logits: list[torch.Tensor], target: float) -> torch.Tensor:
    if not logits:
        raise ValueError("the adversarial loss got no logits: the discriminator needs a level")
    total: torch.Tensor | None = None
    for level in logits:
        level = level.to(torch.promote_types(level.dtype, torch.float32))
        values = F.binary_cross_entropy_with_logits(
            level, torch.full_like(level, target), reduction="none"
        )
        mean = values.flatten(1).mean(1)
        total = mean if total is None else total + mean
    return total


def _pair(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: a loss "
            "compares images of the same shape (B, 3, H, W)"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)  # float64 stays
    return prediction.to(dtype), target.to(dtype)
