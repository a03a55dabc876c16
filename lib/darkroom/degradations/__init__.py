"""Degradations as pure functions: what bad cameras and weather make of a photograph, or scanners,
files and wear of a document.

Images are float32 (H, W, 3) RGB in [0, 1], H and W at least 16. Every random number comes from the
generator given, so equal generator states give equal bytes, whatever the worker or thread count.
Lengths are in pixels and densities per pixel: a 96 px crop looks like a window of a 512 px image.
"""

import numpy as np

from darkroom.degradations import real_esrgan
from darkroom.degradations.blur import blur
from darkroom.degradations.document import DOCUMENT
from darkroom.degradations.haze import haze
from darkroom.degradations.lowlight import lowlight
from darkroom.degradations.pixels import check_image, quantize
from darkroom.degradations.rain import rain
from darkroom.degradations.snow import snow

# The spelling is that of the folders of paired data sets: <Type>/{LQ,GT}.
FIVE = {
    "Blur": blur,
    "Haze": haze,
    "Lowlight": lowlight,
    "Rain": rain,
    "Snow": snow,
}
DEGRADATIONS = {**FIVE, **DOCUMENT}
FIVE_TYPES, DOCUMENT_TYPES = tuple(FIVE), tuple(DOCUMENT)
# what `degradation.kind` draws from where `degradation.types` names nothing
DEFAULT_TYPES = {
    "five_types": FIVE_TYPES,
    "document": ("Gaussian", "Motion", "LowResolution", "Compression", "Scan", "PrintScan"),
}

__all__ = [
    "DEGRADATIONS",
    "DOCUMENT_TYPES",
    "FIVE_TYPES",
    "degrade",
    "draw_severity",
    "real_esrgan",
    "types_of",
]


def types_of(section) -> tuple[str, ...]:
    """Return the degradations that a config's section draws from, one named twice twice.

    A kind without types of its own (none, real_esrgan) is its only one.
    """
    if section.kind not in DEFAULT_TYPES:
        return (section.kind,)
    return tuple(section.types or DEFAULT_TYPES[section.kind])


def degrade(
    image: np.ndarray, kind: str, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Degrade one image and round it to 8-bit levels, as a file would hold it.

    image: float32 (H, W, 3) RGB in [0, 1], left untouched; kind: one of FIVE_TYPES or of
    DOCUMENT_TYPES, which take dark ink on light paper; severity: 0 (mild, not the identity) to 1.
    Returns a new float32 (H, W, 3) in [0, 1]. Grey images come as three equal channels. With
    severity uniform in [0, 1] the mean PSNR-Y of the five types is near that of public paired sets:
    Blur 25.5, Haze 15, Lowlight 9, Rain 17, Snow 22 dB.
    Raises ValueError for another kind, shape, dtype or severity.
    """
    if kind not in DEGRADATIONS:
        raise ValueError(
            f"degradation {kind!r} is unknown; allowed: {', '.join(DEGRADATIONS)}"
            " (the second-order Real-ESRGAN pipeline is darkroom.degradations.real_esrgan)"
        )
    check_image(image)
    if not 0.0 <= severity <= 1.0:
        raise ValueError(f"severity {severity} is outside [0, 1]: 0 is mild, 1 is the hardest")
    return quantize(DEGRADATIONS[kind](image, float(severity), generator))


def draw_severity(severity_range: tuple[float, float], generator: np.random.Generator) -> float:
    """Draw a severity uniformly from (low, high), 0 <= low <= high <= 1."""
    low, high = severity_range
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"severity range {severity_range} must satisfy 0 <= low <= high <= 1")
    return float(low + (high - low) * generator.random())
