"""Blur: camera shake, defocus or a Gaussian, in light and not in display values."""

import cv2
import numpy as np

from darkroom.degradations import kernels
from darkroom.degradations.fields import between, normal

# kernel extents in px at severity 0 and 1
MOTION_LENGTH = (5.0, 32.0)
DEFOCUS_RADIUS = (1.4, 5.8)
GAUSSIAN_SIGMA = (1.0, 3.8)
NOISE = 1.5 / 255  # largest read-out noise after the blur


def blur(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Blur by a random camera path (half of all draws), a defocus disc or a Gaussian.

    The sensor sums light, so the filter runs on squared values (gamma 2), which lets highlights
    bleed as they do in photographs; some read-out noise follows. float32 (H, W, 3) in [0, 1].
    Sources: Levin et al., "Understanding and Evaluating Blind Deconvolution Algorithms", CVPR 2009
    (camera shake); Boracchi & Foi, IEEE TIP 2012 (trajectories); Nah et al., CVPR 2017 (GoPro:
    frames summed in linear light).
    """
    kernel = blur_kernel(severity, generator)
    light = cv2.filter2D(image * image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    blurred = np.sqrt(np.maximum(light, 0.0))
    amount = np.float32(NOISE * generator.random())
    return blurred + amount * normal(image.shape, generator)


def blur_kernel(severity: float, generator: np.random.Generator) -> np.ndarray:
    """Draw the kernel of one blurred photograph: float32, odd and square, sum 1."""
    kind = generator.random()
    spread = severity * (0.75 + 0.25 * generator.random())
    if kind < 0.5:
        bend = 0.15 + 2.5 * generator.random() ** 2
        return kernels.trajectory(between(MOTION_LENGTH, spread), bend, generator)
    if kind < 0.75:
        return kernels.disc(between(DEFOCUS_RADIUS, spread))
    sigma = between(GAUSSIAN_SIGMA, spread)
    return kernels.gaussian(kernels.odd_size(3 * sigma), sigma)
