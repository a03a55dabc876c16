"""What lenses, scanners and files do to a page: blurs, prints that are scanned, few pixels, JPEG.

Images are float32 (H, W, 3) RGB in [0, 1], dark ink on light paper; results may leave the range.
Every kernel has the sum 1, so no blur darkens.
"""

import cv2
import numpy as np

from darkroom.degradations import jpeg, kernels
from darkroom.degradations.fields import normal
from darkroom.degradations.levels import Levels, pick, pick_number

# easy, medium, hard. Blurs and factors stay above what leaves a line unchanged: a sigma below
# 0.4 px and a motion or a factor of 1 are the identity.
GAUSSIAN_SIGMA: Levels = (  # px
    ((0.40, 0.50), (0.45, 0.60)),
    ((0.60, 0.90), (0.72, 1.08)),
    ((0.90, 1.32), (1.08, 1.68)),
)
MOTION_LENGTH: Levels = (  # px
    ((1.5, 2.1), (1.5, 3.5)),
    ((2.1, 4.2), (3.5, 5.6)),
    ((3.5, 6.3), (5.6, 8.4)),
)
QUALITY: Levels = (
    ((40.0, 25.0), (35.0, 20.0)),
    ((15.0, 5.0), (10.0, 3.0)),
    ((8.0, 3.0), (5.0, 1.0)),
)
FACTOR: Levels = (((1.2, 1.4),), ((1.4, 2.1), (2.1, 2.8)), ((2.1, 3.5), (2.8, 4.0)))
SCAN_SIGMA: Levels = (((0.40, 0.48),), ((0.60, 0.72),), ((0.90, 1.08),))  # px
SCAN_CONTRAST: Levels = (((0.95, 0.9),), ((0.88, 0.8),), ((0.78, 0.7),))
SCAN_NOISE: Levels = (((0.05, 0.1),), ((0.1, 0.15),), ((0.18, 0.25),))  # 1 is 50 levels squared
SCAN_BRIGHTNESS = 0.065
PRINT_SIGMA: Levels = (((0.8, 1.0),), ((1.0, 1.4),), ((1.4, 1.8),))  # px, of the ink's spread
PRINT_SHARP = 0.3  # the other half's sigma, relative to it
PRINT_CONTRAST: Levels = (((0.95, 0.92),), ((0.92, 0.88),), ((0.88, 0.8),))
PRINT_NOISE: Levels = (((4.0, 6.0),), ((6.0, 9.0),), ((9.0, 12.0),))  # levels of 255
PATCHES: Levels = (((3, 4),), ((4, 6),), ((6, 8),))
PATCH_SIDE = (20.0, 60.0)  # px, at most a third of the image
PATCH_SIGMA: Levels = (((2.0, 2.6),), ((2.4, 3.2),), ((3.0, 4.0),))  # px


def gaussian(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian."""
    return soften(image, pick(GAUSSIAN_SIGMA, severity, generator))


def motion(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Blur along a straight line of any direction."""
    length = pick(MOTION_LENGTH, severity, generator)
    kernel = line_kernel(length, np.pi * generator.random())
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def compression(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Compress as a JPEG file of low quality."""
    return jpeg.compress(image, pick(QUALITY, severity, generator))


def low_resolution(
    image: np.ndarray, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Shrink by averaging over areas and enlarge by cubic interpolation."""
    factor = pick(FACTOR, severity, generator)
    height, width = image.shape[:2]
    size = (max(round(width / factor), 1), max(round(height / factor), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def scan(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Scan a page: soft optics, less contrast, another brightness, sensor noise."""
    contrast = pick(SCAN_CONTRAST, severity, generator)
    brightness = SCAN_BRIGHTNESS * (2 * generator.random() - 1)
    scanned = soften(image, pick(SCAN_SIGMA, severity, generator))
    scanned = np.float32(contrast) * scanned + np.float32(0.5 * (1 - contrast) + brightness)
    variance = 5.0 + 40.0 * pick(SCAN_NOISE, severity, generator)  # levels of 255, squared
    return scanned + np.float32(np.sqrt(variance) / 255) * normal(image.shape, generator)


def print_scan(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Print and scan a page: ink that spreads, blacks that are lifted, grey noise."""
    sigma = pick(PRINT_SIGMA, severity, generator)
    ink = 0.5 * soften(image, sigma) + 0.5 * soften(image, PRINT_SHARP * sigma)
    contrast = pick(PRINT_CONTRAST, severity, generator)
    lifted = np.float32(contrast) * ink + np.float32(1 - contrast)
    noise = np.float32(pick(PRINT_NOISE, severity, generator) / 255)
    return lifted + noise * normal((*image.shape[:2], 1), generator)


def local_blur(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Blur some round patches with soft edges, as where the page does not lie flat."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    share = np.zeros((height, width), np.float32)
    for _ in range(pick_number(PATCHES, severity, generator)):
        sides = PATCH_SIDE[0] + (PATCH_SIDE[1] - PATCH_SIDE[0]) * generator.random(2)
        radii = np.minimum(sides, min(height, width) / 3) / 2
        top, left = generator.random(2) * (height, width)
        distance = np.hypot((y - np.float32(top)) / radii[0], (x - np.float32(left)) / radii[1])
        share = np.maximum(share, np.clip(2.0 * (1.25 - distance), 0.0, 1.0))
    blurred = soften(image, pick(PATCH_SIGMA, severity, generator))
    return image + share[..., None].astype(np.float32) * (blurred - image)


def soften(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian of sigma px, reflecting at the border."""
    line = kernels.gaussian_line(kernels.odd_size(3 * sigma), sigma)
    return cv2.sepFilter2D(image, -1, line, line, borderType=cv2.BORDER_REFLECT_101)


def line_kernel(length: float, angle: float) -> np.ndarray:
    """Build the kernel of a straight motion of `length` px: (k, k) float32 of sum 1.

    angle in radians, from the x axis downwards. Points along the line are spread bilinearly, so a
    direction between the pixels has the same sum as one along them.
    """
    along = (np.arange(64) / 63 - 0.5) * max(length - 1.0, 0.0)
    x, y = along * np.cos(angle), along * np.sin(angle)
    half = int(np.ceil(max(length - 1.0, 0.0) / 2)) + 1
    grid = np.arange(-half, half + 1)
    near_x = np.clip(1.0 - np.abs(x[:, None] - grid), 0.0, None)  # (64, k)
    near_y = np.clip(1.0 - np.abs(y[:, None] - grid), 0.0, None)
    return kernels.normalize(near_y.T @ near_x)
