"""Random fields that several degradations share: smooth ones, sensor noise, sparse seeds.

A field is a window of an endless one: lengths are in absolute pixels, so that a crop and a whole
image have the same statistics.
"""

import cv2
import numpy as np

FRAME = 512  # px: a smaller image is a window of a frame of this size
_GRID = 8  # px between the points where a smooth field is evaluated


def between(ends: tuple[float, float], share: float) -> float:
    """Interpolate linearly between two ends."""
    return ends[0] + (ends[1] - ends[0]) * share


def log_between(ends: tuple[float, float], share: float) -> float:
    """Interpolate between two positive ends by ratio."""
    return ends[0] * (ends[1] / ends[0]) ** share


def stream(seed: int) -> np.random.Generator:
    """Return a fast generator for whole arrays."""
    return np.random.Generator(np.random.SFC64(seed))


def draw_seed(generator: np.random.Generator) -> int:
    """Draw the seed of a `stream`."""
    return int(generator.integers(2**63))


def normal(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Draw standard normal float32 noise from one draw of `generator`."""
    return stream(draw_seed(generator)).standard_normal(shape, dtype=np.float32)


def window(shape: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Place a (H, W) window in its frame: top, left, frame height, frame width (px)."""
    height, width = shape
    frame_height, frame_width = max(FRAME, height), max(FRAME, width)
    top = int(generator.integers(frame_height - height + 1))
    left = int(generator.integers(frame_width - width + 1))
    return top, left, frame_height, frame_width


def smooth(
    shape: tuple[int, int],
    wavelengths: tuple[float, float],
    generator: np.random.Generator,
    *,
    num_waves: int = 8,
) -> np.ndarray:
    """Draw a smooth (H, W) float32 field of mean 0 and variance 1: a sum of plane waves.

    Wavelengths (px) are log-uniform over the range, directions and phases uniform.
    """
    height, width = shape
    low, high = np.log(wavelengths)
    wave = np.exp(low + (high - low) * generator.random(num_waves))
    angle, phase = 2 * np.pi * generator.random((2, num_waves))
    ys = np.arange(-(-height // _GRID) + 1) * _GRID
    xs = np.arange(-(-width // _GRID) + 1) * _GRID
    frequency = 2 * np.pi / wave
    along_y = frequency[:, None] * np.sin(angle)[:, None] * ys + phase[:, None]  # (N, h)
    along_x = frequency[:, None] * np.cos(angle)[:, None] * xs  # (N, w)
    # cos(a + b) = cos a cos b - sin a sin b: two small matrix products instead of N images
    coarse = np.cos(along_y).T @ np.cos(along_x) - np.sin(along_y).T @ np.sin(along_x)
    coarse = (coarse * np.sqrt(2.0 / num_waves)).astype(np.float32)
    fine = cv2.resize(coarse, (len(xs) * _GRID, len(ys) * _GRID), interpolation=cv2.INTER_LINEAR)
    return fine[_GRID // 2 : height + _GRID // 2, _GRID // 2 : width + _GRID // 2]


def seeds(
    shape: tuple[int, int],
    density: float,
    generator: np.random.Generator,
    *,
    low: float = 0.3,
) -> np.ndarray:
    """Scatter points of height U(low, 1): a Poisson process of `density` points a pixel.

    Returns float32 (H, W), zero where there is no point.
    """
    height, width = shape
    field = np.zeros(height * width, np.float32)
    num_points = int(generator.poisson(density * field.size))
    source = stream(draw_seed(generator))
    where = source.integers(field.size, size=num_points)
    field[where] = low + (1.0 - low) * source.random(num_points, dtype=np.float32)
    return field.reshape(height, width)
