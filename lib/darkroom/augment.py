"""Augmentation of training samples: windows, flips, rotations, and tones of clean images."""

from __future__ import annotations

import numpy as np


def window(gt, lq, section, generator: np.random.Generator):
    """Crop, flip and rotate an image and its partner (or None) jointly; arrays are (H, W, 3).

    `section` is `config.data`. Raises ValueError for an image smaller than the crop.
    """
    size, height, width = section.crop_size, *gt.shape[:2]
    if section.crop != "none":
        if min(height, width) < size:
            raise ValueError(
                f"is {width}x{height}, smaller than data.crop_size {size}: set data.crop_size to "
                f"at most {min(height, width)} or leave the image out"
            )
        top, left = (height - size) // 2, (width - size) // 2
        if section.crop == "random":
            top = int(generator.integers(height - size + 1))
            left = int(generator.integers(width - size + 1))
        window = np.s_[top : top + size, left : left + size]
        gt, lq = gt[window], None if lq is None else lq[window]
    flip = section.hflip and generator.random() < 0.5
    vflip = section.rotate and generator.random() < 0.5
    transpose = section.rotate and generator.random() < 0.5

    def turn(picture):
        picture = picture[:, ::-1] if flip else picture
        picture = picture[::-1] if vflip else picture
        return picture.transpose(1, 0, 2) if transpose else picture

    return turn(gt), None if lq is None else turn(lq)


def tone(image: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Change contrast, gamma, exposure and tint of every second clean image; (H, W, 3) in [0, 1].

    With few photographs a model takes any pale or dark scene for haze or low light; scenes of
    many tones teach it to look for the degradation. 0 changes nothing, 1 is strong.
    """
    if strength == 0 or generator.random() < 0.5:
        return image
    contrast = generator.uniform(1 - 0.4 * strength, 1 + 0.1 * strength)
    gamma = np.exp(generator.normal(0, 0.25 * strength))
    exposure = generator.uniform(1 - 0.35 * strength, 1)
    tint = 1 + generator.normal(0, 0.06 * strength, 3)
    mean = image.mean()
    changed = np.clip((image - mean) * contrast + mean, 0, 1) ** gamma * (exposure * tint)
    return np.clip(changed, 0, 1).astype(np.float32)
