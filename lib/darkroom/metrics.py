"""Image quality as papers report it: PSNR and SSIM on Y, LPIPS, and the protocol of each number.

Metrics take (prediction, target), both (B, 3, H, W) float32 in [0, 1], and return (B,) float64 on
the CPU. Unlike a loss, they say whether lower is better, and nothing in them has a gradient.
"""
# B batch, C channels, H height, W width

from __future__ import annotations

import cv2
import numpy as np
import torch

from . import losses, perceptual
from .measurement import Absent, Metric, check, round_to_8bit

# stored with every number; numbers of different protocols are neither averaged nor compared
PROTOCOL = {
    "protocol": "darkroom-1",
    "crop_border": 0,
    "colour": "Y of BT.601, 16-235",
    "rounding": "8-bit",
    "lpips_trunk": "vgg 0.1",
}

PSNR_EPSILON = 1e-8  # added to the mean squared error: identical images have 80 dB, as in pyiqa
LOWER_BETTER = {"lpips": True, "final_score": False}  # beside METRICS, which say it themselves
WINDOW, SIGMA, BAND = 11, 1.5, 64  # BAND rows at a time stay in the processor's cache
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

# BT.601: weights of R, G, B in [0, 1], offset, and the value that white would have without it
COLOURS = {
    "ycbcr": ((65.481, 128.553, 24.966), 16, 255),  # Y from 16 to 235
    "yiq": ((0.299, 0.587, 0.114), 0, 1),  # Y from 0 to 255: pyiqa's default
}


def psnr_y(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    crop_border: int = 0,
    round_8bit: bool = True,
    colour: str = "ycbcr",
) -> torch.Tensor:
    """Return the PSNR on Y in dB, (B,), at most 80.

    `colour` "ycbcr" is what restoration papers report; "yiq" (Y over the full range) gives
    20 log10(255 / 219) = 1.322 dB less. Raises ValueError as `check` does.
    """
    images = _images(prediction, target, crop_border, round_8bit)
    return _psnr(*(_luma(image, colour) for image in images))


def psnr_rgb(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    crop_border: int = 0,
    round_8bit: bool = True,
) -> torch.Tensor:
    """Return the PSNR over all three channels in dB, (B,), at most 80."""
    return _psnr(*_images(prediction, target, crop_border, round_8bit))


def ssim_y(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    crop_border: int = 0,
    round_8bit: bool = True,
    colour: str = "ycbcr",
) -> torch.Tensor:
    """Return SSIM on Y, (B,): 11x11 Gaussian window, sigma 1.5, no padding (Wang et al. 2004).

    As in the authors' code on 8-bit images and in pyiqa, Y too is rounded to 8 bit when
    `round_8bit`, and a negative structure term counts as 0. Raises ValueError as `check` does, and
    below 11 pixels.
    """
    images = _images(prediction, target, crop_border, round_8bit, smallest=WINDOW)
    return _ssim(*(_luma(image, colour) * 255 for image in images), round_8bit)


def ssim_rgb(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    crop_border: int = 0,
    round_8bit: bool = True,
) -> torch.Tensor:
    """Return SSIM averaged over R, G and B, (B,), with the window of `ssim_y`."""
    images = _images(prediction, target, crop_border, round_8bit, smallest=WINDOW)
    return _ssim(*(image * 255 for image in images), round_8bit)


def final_score(psnr: float, ssim: float, lpips: float | None) -> float | None:
    """Return PSNR + 10 SSIM - 5 LPIPS; None without LPIPS, as the sum would mean something else."""
    return None if lpips is None else psnr + 10 * ssim - 5 * lpips


def lower_better(name: str) -> bool:
    """Return whether less of a metric is better: ours, final_score, or any by pyiqa's name.

    Needs no weights. Raises ValueError for a name that nobody knows.
    """
    if name in METRICS:
        return METRICS[name].lower_better
    if name in LOWER_BETTER:
        return LOWER_BETTER[name]
    from . import pyiqa_metrics

    return pyiqa_metrics.lower_better(name)


def find(name: str, device: str | torch.device = "cpu") -> Metric | Absent:
    """Return a metric by our name (METRICS, lpips) or by pyiqa's, or Absent with what is missing.

    Raises ValueError for a name that nobody knows.
    """
    if name in METRICS:
        return METRICS[name]
    if name == "lpips":
        return lpips(device)
    from . import pyiqa_metrics

    return pyiqa_metrics.find(name, device)


def lpips(device: str | torch.device = "cpu") -> Metric | Absent:
    """Return LPIPS-VGG (0.1), or Absent naming the file it needs and where it belongs."""
    for file in (perceptual.hub_file(perceptual.VGG16_FILE), perceptual.lpips_heads()):
        if file.problem:
            return Absent("lpips", file.problem, file.path)
    network = perceptual.LPIPS().to(device)

    @torch.no_grad()
    def score(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        check(prediction, target)
        x, y = (round_to_8bit(image.to(device, torch.float32)) for image in (prediction, target))
        return network(x * 2 - 1, y * 2 - 1).double().cpu()

    return Metric("lpips", LOWER_BETTER["lpips"], (0.0, 1.0), score)


def _images(prediction, target, crop_border, round_8bit, smallest=1) -> list[np.ndarray]:
    """Check both images and return them as (B, 3, H, W) in [0, 1].

    Rounded ones are float32, which tells 256 values apart exactly enough; others are float64.
    """
    check(prediction, target, crop_border=crop_border, smallest=smallest)
    inside, found = slice(crop_border, -crop_border or None), []
    for image in (prediction, target):
        image = image.detach()[..., inside, inside].cpu()
        found.append((round_to_8bit(image.float()) if round_8bit else image.double()).numpy())
    return found


def _luma(image: np.ndarray, colour: str) -> np.ndarray:
    if colour not in COLOURS:
        raise ValueError(f"colour is {colour!r}; it can be {' or '.join(map(repr, COLOURS))}")
    # in pyiqa's order of operations: in float32, values near .5 then round to the same side
    (red, green, blue), offset, white = COLOURS[colour]
    luma = image[:, :1] * red
    luma += image[:, 1:2] * green
    luma += image[:, 2:] * blue
    return (luma + offset) / white


def _psnr(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    difference = (x - y).reshape(len(x), -1).astype(np.float64)
    error = np.einsum("bn,bn->b", difference, difference) / difference.shape[1]
    return torch.from_numpy(-10 * np.log10(error + PSNR_EPSILON))


def _ssim(x: np.ndarray, y: np.ndarray, round_8bit: bool) -> torch.Tensor:
    """Return the mean over channels of SSIM of (B, C, H, W) in [0, 255]."""
    x, y = (np.rint(i) if round_8bit else i for i in (x, y))
    pairs = zip(x.astype(np.float64), y.astype(np.float64), strict=True)
    scores = [np.mean([_ssim_plane(a, b) for a, b in zip(*pair, strict=True)]) for pair in pairs]
    return torch.tensor(scores, dtype=torch.float64)


def _ssim_plane(x: np.ndarray, y: np.ndarray) -> float:
    kernel, halo = cv2.getGaussianKernel(WINDOW, SIGMA), WINDOW // 2

    def mean(plane):
        return cv2.sepFilter2D(plane, -1, kernel, kernel)[halo:-halo, halo:-halo]

    total, height, width = 0.0, x.shape[0] - 2 * halo, x.shape[1] - 2 * halo
    for top in range(0, height, BAND):
        a, b = x[top : top + BAND + 2 * halo], y[top : top + BAND + 2 * halo]
        mu_a, mu_b = mean(a), mean(b)
        power, product = mean(a * a + b * b), mean(a * b)
        mu_product, mu_power = mu_a * mu_b, mu_a * mu_a + mu_b * mu_b
        # the variances enter only as their sum: four filtered planes instead of five
        structure = (2 * (product - mu_product) + C2) / (power - mu_power + C2)
        np.maximum(structure, 0, out=structure)
        structure *= (2 * mu_product + C1) / (mu_power + C1)
        total += float(structure.sum())
    return total / (height * width)


def charbonnier(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean of sqrt(difference^2 + 0.001^2) over all channels, (B,); lower is better.

    The loss of that name (Charbonnier et al. 1994) on images of 8 bit; equal ones have 0.001.
    """
    images = _images(prediction, target, crop_border=0, round_8bit=True)
    return losses.charbonnier(*(torch.from_numpy(image).double() for image in images))


METRICS = {
    "psnr_y": Metric("psnr_y", False, (0.0, 80.0), psnr_y),
    "ssim_y": Metric("ssim_y", False, (0.0, 1.0), ssim_y),
    "psnr_rgb": Metric("psnr_rgb", False, (0.0, 80.0), psnr_rgb),
    "ssim_rgb": Metric("ssim_rgb", False, (0.0, 1.0), ssim_rgb),
    "charbonnier": Metric("charbonnier", True, (0.0, 1.001), charbonnier),
}


def protocols(prediction: torch.Tensor, target: torch.Tensor) -> list[dict]:
    """Score the same images under the protocols that papers use without naming them.

    Returns rows {"metric", "protocol", "value" (mean over the batch), "ours"}.
    """
    x, y = prediction, target
    rows = [
        ("PSNR", "Y 16-235", psnr_y(x, y)),
        ("PSNR", "Y 16-235, border of 4 cropped", psnr_y(x, y, crop_border=4)),
        ("PSNR", "Y 16-235, not rounded to 8 bit", psnr_y(x, y, round_8bit=False)),
        ("PSNR", "Y full range", psnr_y(x, y, colour="yiq")),
        ("PSNR", "RGB", psnr_rgb(x, y)),
        ("SSIM", "Y 16-235", ssim_y(x, y)),
        ("SSIM", "Y 16-235, border of 4 cropped", ssim_y(x, y, crop_border=4)),
        ("SSIM", "Y 16-235, not rounded to 8 bit", ssim_y(x, y, round_8bit=False)),
        ("SSIM", "Y full range", ssim_y(x, y, colour="yiq")),
        ("SSIM", "RGB, Gaussian window", ssim_rgb(x, y)),
        ("SSIM", "RGB, scikit-image's default window", _ssim_skimage(x, y)),
    ]
    return [
        {"metric": metric, "protocol": name, "value": float(v.mean()), "ours": name == "Y 16-235"}
        for metric, name, v in rows
    ]


def _ssim_skimage(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return SSIM with scikit-image's defaults: uniform 7x7 window, sample covariance, RGB mean."""
    from skimage.metrics import structural_similarity

    pairs = zip(*_images(prediction, target, 0, True), strict=True)
    scores = [structural_similarity(a, b, data_range=1, channel_axis=0) for a, b in pairs]
    return torch.tensor(scores, dtype=torch.float64)
