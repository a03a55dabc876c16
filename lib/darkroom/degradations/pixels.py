"""Pixel values and sizes: the checks, the 8-bit rounding and the resizing they all share."""

import cv2
import numpy as np

MIN_SIZE = 16
RESIZE_MODES = ("area", "bilinear", "bicubic")


def check_image(image: np.ndarray) -> None:
    """Refuse anything but float32 (H, W, 3) with both sides at least MIN_SIZE."""
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image is {image.dtype} {image.shape}; degradations take float32 (H, W, 3) RGB in"
            " [0, 1]: divide 8-bit images by 255 and repeat grey ones three times"
        )
    if min(image.shape[:2]) < MIN_SIZE:
        raise ValueError(f"image is {image.shape[:2]}; both sides must be at least {MIN_SIZE} px")


def clip(image: np.ndarray) -> np.ndarray:
    """Clip to [0, 1]."""
    return np.clip(image, np.float32(0.0), np.float32(1.0))


def levels(image: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and round to the nearest of 256 levels; uint8."""
    return cv2.convertScaleAbs(np.maximum(image, np.float32(0.0)), alpha=255.0)


def quantize(image: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and round to the nearest of 256 levels; float32."""
    return levels(image).astype(np.float32) * np.float32(1 / 255)


def resize(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Resize (H, W, 3) float32 to (height, width) as torch's F.interpolate(size=...) does.

    Corners are not aligned and nothing is smoothed before shrinking. mode: area (the mean over the
    pixels each output pixel touches), bilinear or bicubic (a = -0.75; may leave [0, 1]).
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {mode!r} is unknown; allowed: {', '.join(RESIZE_MODES)}")
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if mode == "area":
        return _resize_area(image, size)
    interpolation = cv2.INTER_LINEAR if mode == "bilinear" else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _resize_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average over whole pixels floor(i n / m) .. ceil((i + 1) n / m).

    OpenCV's INTER_AREA weighs partly covered pixels and turns bilinear when enlarging, so the means
    are taken from an integral image; when enlarging, bins of 1 or 2 pixels are sampled half-way.
    """
    (top, bottom), (left, right) = (_bins(n, m) for n, m in zip(image.shape[:2], size, strict=True))
    if max((bottom - top).max(), (right - left).max()) <= 2:
        x = np.broadcast_to(((left + right - 1) / 2).astype(np.float32), size)
        y = np.broadcast_to(((top + bottom - 1) / 2).astype(np.float32)[:, None], size)
        return cv2.remap(image, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR)
    total = cv2.integral(image, sdepth=cv2.CV_64F)  # (H + 1, W + 1, 3)
    rows = total[bottom] - total[top]
    sums = rows[:, right] - rows[:, left]
    count = (bottom - top)[:, None] * (right - left)[None, :]
    return (sums / count[..., None]).astype(np.float32)


def _bins(num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray]:
    i = np.arange(num_out)
    return i * num_in // num_out, -(-(i + 1) * num_in // num_out)
