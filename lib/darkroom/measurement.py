"""What a metric is, which images it takes, and what stands for one that cannot be computed."""
# B batch, H height, W width

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

RANGE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Metric:
    """A metric that can be computed here; calling it scores a batch."""

    name: str
    lower_better: bool
    range: tuple[float, float]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return (B,) float64 scores of (B, 3, H, W) images in [0, 1]."""
        return self.score(prediction, target)


@dataclass(frozen=True)
class Absent:
    """A metric that cannot be computed here: why, and where its file belongs (None: not a file)."""

    name: str
    reason: str
    path: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} is absent: {self.reason}"


def round_to_8bit(image: torch.Tensor) -> torch.Tensor:
    """Round [0, 1] to the 256 values that a saved picture can hold."""
    return (image * 255).round_().clamp_(0, 255).div_(255)


def check(
    prediction: torch.Tensor, target: torch.Tensor, *, crop_border: int = 0, smallest: int = 1
) -> None:
    """Raise ValueError unless both are (B, 3, H, W), float32 or float64, finite and in [0, 1]."""
    roles = (("prediction", prediction), ("target", target))
    for role, image in roles:
        if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[1] != 3:
            seen = tuple(image.shape) if hasattr(image, "shape") else type(image).__name__
            raise ValueError(f"{role} is {seen}: metrics take torch tensors of (B, 3, H, W)")
        if image.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{role} is {image.dtype}: too coarse or not in [0, 1], which would be measured as "
                "error. Compute the image in float32: .float().clamp(0, 1), bytes / 255"
            )
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)} and target {tuple(target.shape)}: a metric "
            "compares images of the same size; crop the padding back, never resize the target"
        )
    height, width = (n - 2 * crop_border for n in prediction.shape[-2:])
    if min(height, width) < smallest or crop_border < 0:
        raise ValueError(
            f"{prediction.shape[-1]}x{prediction.shape[-2]} pixels with crop_border={crop_border} "
            f"leave {width}x{height}; this metric needs at least {smallest}x{smallest}"
        )
    for role, image in roles:
        low, high = (float(v) for v in torch.aminmax(image.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = torch.nonzero(~image.isfinite().flatten(1).all(1)).flatten().tolist()
            raise ValueError(f"{role} holds NaN or infinite values in image {bad} of the batch")
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise ValueError(
                f"{role} lies in [{low:.4g}, {high:.4g}], metrics take [0, 1]: .clamp(0, 1) a "
                "prediction, (x + 1) / 2 an image in [-1, 1], x / 255 one in [0, 255]"
            )
