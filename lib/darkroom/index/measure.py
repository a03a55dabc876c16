"""What is measured of every file, and of every LQ against its GT; decided on nowhere here.

Luminance is uint8 (H, W). One read of a file serves hash, decoding and measures. Pairs are compared
in one window of at most WINDOW pixels a side, the one of five with the most contrast in the GT.
"""
# H height, W width

from __future__ import annotations

import hashlib

import numpy as np

from .. import images

WINDOW = 256
THUMBNAIL = 16

FILE_MEASURES = (
    "width",
    "height",
    "content_hash",
    "format",
    "notes",
    "error",
    "dhash",
    "thumbnail",
)
PAIR_MEASURES = (
    "gain",  # detail of the LQ that is the GT's own, over the GT's detail
    "detail",  # energy of the LQ's detail over that of the GT's
    "brightness",  # mean luminance of LQ minus GT, in 8-bit steps
    "skew",  # of the difference LQ minus GT; light that was added is positive
    "shift_x",  # of the LQ's content, in pixels to the right
    "shift_y",  # and down
    "response",  # of the phase correlation, 0 to 1
    "fine",  # (1 - correlation) with the shift undone, over that without; of detail
    "coarse",  # the same, of smoothed luminance
)


def measure_group(group: list[tuple[str, str | None]]) -> list[dict]:
    """Measure a GT with all its LQs, or one image: (path, partner) each, the GT first."""
    rows, reference = [], None
    for path, partner in group:
        row, grey = measure_file(path)
        row["partner"] = partner
        if partner is None:
            reference = grey
        elif grey is not None and reference is not None and grey.shape == reference.shape:
            row.update(compare(grey, reference))
        rows.append(row)
    return rows


def measure_file(path: str) -> tuple[dict, np.ndarray | None]:
    """Return a file's measures and its luminance, (H, W) uint8; None when it does not decode."""
    row: dict = dict.fromkeys((*FILE_MEASURES, *PAIR_MEASURES))
    row["path"] = path
    try:
        data = images.read_bytes(path)
    except OSError as error:
        row["error"] = f"cannot be read: {error.strerror}"
        return row, None
    row["content_hash"] = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        decoded = images.decode(data, path, grey=True)
    except images.UnreadableImage as error:
        row["error"] = error.reason
        return row, None
    row["height"], row["width"] = decoded.array.shape
    row["format"], row["notes"] = decoded.format, "; ".join(decoded.notes) or None
    row["dhash"], row["thumbnail"] = fingerprint(decoded.array)
    return row, decoded.array


def fingerprint(grey: np.ndarray) -> tuple[int, bytes]:
    """Return the 64-bit difference hash and a 16x16 thumbnail.

    A bit says whether a cell of an 8x9 mosaic is darker than its right neighbour (Krawetz, "Kind
    of like that", 2013).
    """
    import cv2

    while min(grey.shape) >= 256:  # quarters are quick, odd ratios are not
        height, width = (n // 4 for n in grey.shape)
        whole = grey[: 4 * height, : 4 * width]
        grey = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    small = cv2.resize(grey, (36, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    mosaic = cv2.resize(small, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(mosaic[:, 1:] > mosaic[:, :-1])
    thumbnail = cv2.resize(small, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return int.from_bytes(bits.tobytes(), "big"), np.rint(thumbnail).astype(np.uint8).tobytes()


def compare(lq: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    """Return PAIR_MEASURES of two luminances of one size, (H, W) uint8.

    `gain` projects the LQ's detail on the GT's, so noise, rain and snow, which are not in the GT,
    leave it at or below one; above one the LQ shows the GT's own detail stronger than the GT does.
    """
    import cv2

    where = _window(gt)
    lq, gt = lq[where].astype(np.float32), gt[where].astype(np.float32)
    found = {"brightness": float(lq.mean() - gt.mean())}
    soft_lq, soft_gt = (cv2.GaussianBlur(x, (0, 0), 1.0) for x in (lq, gt))
    a, b = (x - cv2.GaussianBlur(x, (0, 0), 2.0) for x in (soft_lq, soft_gt))
    energy_lq, energy_gt = float(np.vdot(a, a)), float(np.vdot(b, b))
    if energy_gt < 0.05 * b.size or min(gt.shape) < 32:  # nothing to compare in a flat picture
        return found
    difference = soft_lq - soft_gt - found["brightness"]
    square = difference * difference
    found |= {
        "gain": float(np.vdot(a, b)) / energy_gt,
        "detail": energy_lq / energy_gt,
        "skew": float(np.vdot(square, difference)) / b.size / (float(square.mean()) ** 1.5 + 1e-6),
    }
    (x, y), response = cv2.phaseCorrelate(
        soft_gt - soft_gt.mean(), soft_lq - soft_lq.mean(), _hann(gt.shape)
    )
    found |= {"shift_x": x, "shift_y": y, "response": response}
    if max(abs(x), abs(y)) >= 1.5 and response > 0.03:
        found |= _improvement(soft_lq, soft_gt, round(x), round(y))
    return found


def _window(grey: np.ndarray) -> tuple[slice, slice]:
    height, width = (min(WINDOW, n) for n in grey.shape)
    bottom, right = grey.shape[0] - height, grey.shape[1] - width
    corners = [(bottom // 2, right // 2)]
    if bottom + right >= WINDOW:
        corners += [(bottom // 8, right // 8), (bottom // 8, right - right // 8)]
        corners += [(bottom - bottom // 8, right // 8), (bottom - bottom // 8, right - right // 8)]
    windows = [np.s_[y : y + height, x : x + width] for y, x in corners]
    if len(windows) == 1:
        return windows[0]
    return max(windows, key=lambda w: float(grey[w][::4, ::4].std()))


def _hann(shape: tuple[int, int]) -> np.ndarray:
    import cv2

    if shape not in _windows:
        _windows.clear()
        _windows[shape] = cv2.createHanningWindow(shape[::-1], cv2.CV_32F)
    return _windows[shape]


_windows: dict[tuple[int, int], np.ndarray] = {}


def _improvement(lq: np.ndarray, gt: np.ndarray, x: int, y: int) -> dict[str, float]:
    """Say how much better the two agree once the shift is undone: below 1 is better."""
    import cv2

    height, width = gt.shape
    if abs(x) > width // 3 or abs(y) > height // 3:
        return {}
    there = np.s_[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
    back = np.s_[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]
    found = {}
    for name, a, b in (
        ("coarse", lq, gt),
        ("fine", *(z - cv2.GaussianBlur(z, (0, 0), 6.0) for z in (lq, gt))),
    ):
        found[name] = (1 - _correlation(a[there], b[back])) / (
            1 - _correlation(a[there], b[there]) + 1e-6
        )
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b) + 1e-9))
