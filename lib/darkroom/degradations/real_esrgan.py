"""The second-order degradation of Real-ESRGAN: sharpen, then blur, resize, noise and JPEG, twice.

Source: Wang, Xie, Dong & Shan, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure
Synthetic Data", ICCVW 2021; Zhang et al., "Designing a Practical Degradation Model for Deep Blind
Image Super-Resolution", ICCV 2021. Images are float32 (H, W, 3) RGB in [0, 1].

Every sample has draws of its own, down to the resize mode and the order of the last steps. A
pipeline that degrades whole batches on a GPU shares those within a batch, and needs a pool of some
256 past images, shuffled, to undo it. Here there is no pool, no queue to fill and nothing to save
for a resume: a sample is a function of its generator.
"""

import cv2
import numpy as np

from darkroom.degradations import jpeg, kernels
from darkroom.degradations.fields import stream
from darkroom.degradations.pixels import check_image, clip, levels, quantize, resize
from darkroom.degradations.real_esrgan_draws import Draws, NoiseDraw, RealESRGAN, draw

__all__ = ["Draws", "RealESRGAN", "apply", "degrade", "draw", "sharpen"]

GREY = np.array([[0.299, 0.587, 0.114]], np.float32)  # BT.601


def degrade(
    image: np.ndarray, generator: np.random.Generator, parameters: RealESRGAN | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade one image: (lq, gt), both float32 (H, W, 3) in [0, 1], lq on 8-bit levels.

    gt is the sharpened image. Raises ValueError for another shape or dtype.
    """
    parameters = parameters or RealESRGAN()
    check_image(image)
    return apply(image, draw(image.shape[:2], generator, parameters), parameters)


def apply(
    image: np.ndarray, draws: Draws, parameters: RealESRGAN | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Apply one sample's draws to an image: (lq, gt) as `degrade`."""
    p = parameters or RealESRGAN()
    gt = sharpen(image, p) if p.sharpen else image.copy()
    x = convolve(gt, draws.kernel1)
    x = resize(x, draws.resize1.size, draws.resize1.mode)
    x = add_noise(x, draws.noise1)
    x = jpeg.compress(x, draws.quality1)
    x = convolve(x, draws.kernel2)
    x = resize(x, draws.resize2.size, draws.resize2.mode)
    x = add_noise(x, draws.noise2)
    if draws.final_first:
        x = resize(x, draws.final_resize.size, draws.final_resize.mode)
        x = convolve(x, draws.final_kernel)
        x = jpeg.compress(clip(x), draws.quality2)
    else:
        x = jpeg.compress(x, draws.quality2)
        x = resize(x, draws.final_resize.size, draws.final_resize.mode)
        x = convolve(x, draws.final_kernel)
    if p.resize_back:
        x = resize(x, image.shape[:2], "bicubic")
    return quantize(x), gt


def sharpen(image: np.ndarray, parameters: RealESRGAN | None = None) -> np.ndarray:
    """Sharpen by an unsharp mask where the residual is large, blended in softly."""
    p = parameters or RealESRGAN()
    blurred = _gaussian_blur(image, p.usm_size)
    residual = image - blurred
    mask = (np.abs(residual) * 255 > p.usm_threshold).astype(np.float32)
    soft = _gaussian_blur(mask, p.usm_size)
    sharp = clip(image + np.float32(p.usm_weight) * residual)
    return image + soft * (sharp - image)


def usm_sigma(size: int) -> float:
    """Return OpenCV's sigma for a Gaussian of `size` taps: 8.0 for 51."""
    return 0.3 * ((size - 1) * 0.5 - 1) + 0.8


def _gaussian_blur(image: np.ndarray, size: int) -> np.ndarray:
    line = kernels.gaussian_line(size, usm_sigma(size))
    return cv2.sepFilter2D(image, -1, line, line, borderType=cv2.BORDER_REFLECT_101)


def convolve(image: np.ndarray, kernel: np.ndarray | None) -> np.ndarray:
    """Correlate each channel with the kernel, reflecting at the border; None leaves it."""
    if kernel is None:
        return image
    middle = len(kernel) // 2
    row, column = kernel[middle] / kernel[middle, middle], kernel[:, middle]
    if (
        np.abs(np.outer(column, row) - kernel).max() < 1e-7 * column[middle]
    ):  # separable: two short passes
        return cv2.sepFilter2D(image, -1, row, column, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def add_noise(image: np.ndarray, noise: NoiseDraw) -> np.ndarray:
    """Add Gaussian or Poisson noise and clip to [0, 1]; nothing is rounded.

    Poisson noise counts photons of the image's 8-bit levels, 2^ceil(log2(number of levels)) of
    them at white.
    """
    source = stream(noise.seed)
    if noise.kind == "gaussian":
        shape = image.shape[:2] + (1 if noise.grey else 3,)
        added = source.standard_normal(shape, dtype=np.float32)
    else:
        counted = levels(cv2.transform(clip(image), GREY) if noise.grey else image)
        num_levels = np.count_nonzero(np.bincount(counted.ravel(), minlength=256))
        photons = 2.0 ** np.ceil(np.log2(num_levels))
        exact = counted.reshape(image.shape[:2] + (-1,)) / 255
        added = (source.poisson(exact * photons) / photons - exact).astype(np.float32)
    return clip(image + added * np.float32(noise.strength))
