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
