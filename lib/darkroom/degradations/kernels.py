"""Blur kernels: float32, odd square support, sum 1.

The families of Real-ESRGAN (isotropic, anisotropic, generalised Gaussian, plateau, sinc), the
defocus disc and the camera-shake trajectory.
"""

import numpy as np


def normalize(kernel: np.ndarray) -> np.ndarray:
    """Scale a kernel to sum 1, as float32."""
    return (kernel / kernel.sum()).astype(np.float32)


def gaussian(size: int, sigma: float) -> np.ndarray:
    """Build a separable Gaussian, exp(-(x^2 + y^2) / (2 sigma^2)), (size, size)."""
    line = gaussian_line(size, sigma)
    return np.outer(line, line)


def gaussian_line(size: int, sigma: float) -> np.ndarray:
    """Build a 1-D Gaussian of `size` taps."""
    x = np.arange(size) - size // 2
    return normalize(np.exp(-0.5 * (x / sigma) ** 2))


def odd_size(radius: float) -> int:
    """Return the smallest odd support that reaches `radius` px from the centre."""
    return 2 * int(np.ceil(radius)) + 1


def disc(radius: float) -> np.ndarray:
    """Build the defocus kernel of a round aperture: a disc of `radius` px with a one-pixel ramp."""
    half = odd_size(radius + 0.5) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return normalize(np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0))


def trajectory(
    length: float, bend: float, generator: np.random.Generator, *, num_points: int = 96
) -> np.ndarray:
    """Build a camera-shake kernel: a random path of `length` px, rasterised bilinearly.

    The direction does a random walk of `bend` radians over the whole exposure and, as in shaken
    hands, may jump; the speed varies smoothly. After the random motion trajectories of Boracchi &
    Foi, "Modeling the Performance of Image Restoration from Motion Blur", IEEE TIP 2012.
    """
    turns = generator.standard_normal(num_points) * bend / np.sqrt(num_points)
    if generator.random() < 0.2 * min(bend, 1.0):  # an impulsive shake reverses part of the path
        turns[generator.integers(num_points)] += np.pi * (0.5 + 0.5 * generator.random())
    angle = 2 * np.pi * generator.random() + np.cumsum(turns)
    swing = 2 * np.pi * (np.arange(num_points) / num_points * generator.random() * 2)
    speed = 1.0 + 0.6 * np.sin(swing + 2 * np.pi * generator.random())
    step = length * speed / speed.sum()
    x, y = np.cumsum(step * np.cos(angle)), np.cumsum(step * np.sin(angle))
    x, y = x - x.mean(), y - y.mean()
    half = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 1
    size = 2 * half + 1
    left, top = np.floor(x), np.floor(y)
    right_share, bottom_share = x - left, y - top
    kernel = np.zeros(size * size)
    for down, share_y in ((0, 1 - bottom_share), (1, bottom_share)):
        for right, share_x in ((0, 1 - right_share), (1, right_share)):
            where = (top + half + down) * size + left + half + right
            kernel += np.bincount(where.astype(int), share_y * share_x, size * size)
    return normalize(kernel.reshape(size, size))


def quadratic_form(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    """Return q = x^T Sigma^-1 x on a (size, size) grid, Sigma = R diag(sx^2, sy^2) R^T."""
    y, x = np.mgrid[:size, :size] - size // 2
    along = x * np.cos(rotation) + y * np.sin(rotation)
    across = y * np.cos(rotation) - x * np.sin(rotation)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def generalized_gaussian(
    size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float = 1.0
) -> np.ndarray:
    """Build exp(-q^beta / 2); beta = 1 is the Gaussian (Liu et al., "Estimating Generalized
    Gaussian Blur Kernels", TIP 2020)."""
    return normalize(np.exp(-0.5 * quadratic_form(size, sigma_x, sigma_y, rotation) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float) -> np.ndarray:
    """Build the plateau-shaped kernel 1 / (q^beta + 1) (Wang et al. 2021, section 3.1)."""
    return normalize(1 / (quadratic_form(size, sigma_x, sigma_y, rotation) ** beta + 1))


def sinc(size: int, cutoff: float) -> np.ndarray:
    """Build the circular low-pass filter of `cutoff` radians a pixel: c J1(c r) / (2 pi r).

    It rings and overshoots as sharpened and compressed pictures do (Wang et al. 2021, eq. 6).
    """
    from scipy.special import j1

    y, x = np.mgrid[:size, :size] - size // 2
    radius = np.hypot(x, y)
    radius[size // 2, size // 2] = 1.0  # its value is the limit c^2 / (4 pi), set below
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return normalize(kernel)
