"""Haze: atmospheric scattering through a smooth random depth field."""

import numpy as np

from darkroom.degradations.fields import between, smooth, window

OPTICAL_DEPTH = (0.32, 1.12)  # beta * mean depth at severity 0 and 1
AIRLIGHT = (0.72, 1.0)


def haze(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Mix the image with airlight: I = J t + A (1 - t), t = exp(-beta d).

    d has mean about 1 over a frame: it grows towards the top, as on open ground, with smooth
    relief of 200 to 900 px; a crop is a window of such a frame. A is bright and nearly grey.
    float32 (H, W, 3) in [0, 1].
    Sources: Koschmieder 1924; Narasimhan & Nayar, "Vision and the Atmosphere", IJCV 2002.
    """
    beta = between(OPTICAL_DEPTH, severity)
    beta *= 0.85 + 0.3 * generator.random()
    t = np.exp(-beta * depth(image.shape[:2], generator))[..., None]  # (H, W, 1)
    brightness = between(AIRLIGHT, generator.random())
    tint = 1.0 + 0.012 * generator.standard_normal(3)
    airlight = np.clip(brightness * tint, 0.0, 1.0).astype(np.float32)
    return airlight + (image - airlight) * t


def depth(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Draw a depth field, float32 (H, W), at least 0.05, mean about 1 over a frame."""
    top, left, frame_height, frame_width = window(shape, generator)
    rise = 1.2 * generator.random()  # from the bottom of the frame to its top
    lean = 0.6 * (generator.random() - 0.5)
    y = (top + np.arange(shape[0], dtype=np.float32)) / frame_height - 0.5
    x = (left + np.arange(shape[1], dtype=np.float32)) / frame_width - 0.5
    relief = 0.08 + 0.17 * generator.random()
    plane = (1.0 - rise * y)[:, None] + (lean * x)[None, :]
    field = plane + relief * smooth(shape, (200.0, 900.0), generator)
    return np.maximum(field, 0.05).astype(np.float32)
