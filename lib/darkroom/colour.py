"""Colours of a restored picture, taken back from its input: by low frequencies or by statistics.

Pictures are (B, 3, H, W) in [0, 1], float32, restored and reference of the same shape.

Both fixes are off by default (`restore.colour_fix`). They help where the input's colours are right
and the model drifts, as in super-resolution. They must stay off where the colours are what is to
be restored: the fix re-imposes the input's low frequencies (below a Gaussian of sigma 13 pixels),
or its mean and contrast, and so undoes the correction of low light and haze. A perfect restoration
of a picture darkened to 0.15, which has no error at all, falls to a PSNR of about 8 dB.
"""
# B batch, H height, W width

from __future__ import annotations

import torch
from torch.nn import functional

LEVELS = 5


def wavelet_fix(restored: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the high frequencies of `restored` on the low ones of `reference`, in [0, 1].

    Off by default: it re-imposes the input's low frequencies (sigma about 13 pixels) and so undoes
    low-light and haze correction: a perfect low-light restoration (gain 0.15) falls to 5 to 13 dB
    on the embedded photographs (chelsea: 8.1 dB, where the untouched dark picture has 7.8). The
    split is an a-trous wavelet of 5 levels, as in StableSR and HYPIR.
    """
    _same_shape(restored, reference)
    # high(restored) + low(reference), and low is linear: one low-pass instead of two
    return (restored + low_frequencies(reference - restored)).clamp(0, 1)


def low_frequencies(image: torch.Tensor) -> torch.Tensor:
    """Return what 5 a-trous levels leave: the kernel [1, 2, 1] x [1, 2, 1] / 16, dilated 1 … 16.

    Rims are replicated. The levels' variances add up to (1 + 4 + … + 256) / 2: sigma 13.06 pixels.
    """
    for level in range(LEVELS):
        step = 2**level
        for dim, pad in ((-1, (step, step, 0, 0)), (-2, (0, 0, step, step))):
            size = image.shape[dim]
            padded = functional.pad(image, pad, mode="replicate")
            before, after = padded.narrow(dim, 0, size), padded.narrow(dim, 2 * step, size)
            image = image / 2 + (before + after) / 4
    return image


def adain_fix(restored: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return `restored` with the mean and standard deviation of `reference` a channel, in [0, 1].

    Off by default: brightness and contrast of the input come back, and with them low light and
    haze. A channel without contrast takes the reference's mean (AdaIN, arXiv 1703.06868).
    """
    _same_shape(restored, reference)
    spread, mean = torch.std_mean(restored, dim=(-2, -1), correction=0, keepdim=True)
    wanted_spread, wanted = torch.std_mean(reference, dim=(-2, -1), correction=0, keepdim=True)
    return ((restored - mean) * (wanted_spread / spread.clamp_min(1e-5)) + wanted).clamp(0, 1)


def _same_shape(restored: torch.Tensor, reference: torch.Tensor) -> None:
    if restored.shape != reference.shape or restored.ndim != 4:
        raise ValueError(
            f"a colour fix takes two pictures of one shape (B, 3, H, W), not "
            f"{tuple(restored.shape)} and {tuple(reference.shape)}: enlarge the input first"
        )


FIXES = {"wavelet": wavelet_fix, "adain": adain_fix}  # by restore.colour_fix
