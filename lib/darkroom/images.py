"""Read any picture file as 8-bit RGB by one set of rules, and write PNG.

Arrays are uint8, (H, W, 3), RGB, 0 to 255. Colour profiles are ignored: values are taken as sRGB.
"""
# H height, W width

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import charts, tar
from .paths import write_atomically

PIXEL_LIMIT = 2**27  # 134 megapixels; beyond it a header is taken for a decompression bomb

ORIENTATIONS = {  # EXIF tag 274: how the stored picture is turned upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class UnreadableImage(ValueError):
    """A file that does not decode to a picture; `path` and `reason` say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Decoded:
    """A decoded picture and what was done to make it 8-bit RGB."""

    array: np.ndarray  # (H, W, 3) uint8; (H, W) when asked for grey
    format: str  # what the bytes are, as PIL names it: JPEG, PNG, …
    notes: tuple[str, ...]  # conversions: "EXIF orientation 6 applied", "CMYK converted", …


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file or a shard's member; a chart's are drawn on the spot."""
    if chart := charts.find(path):
        return charts.encode(*chart)
    if member := tar.find(path):
        return tar.read(member)
    with open(path, "rb") as file:
        return file.read()


def read_image(path: str | Path) -> np.ndarray:
    """Return the picture in a file, or an embedded chart, as uint8 (H, W, 3) RGB.

    EXIF orientation is applied, palette and CMYK converted, alpha composited on white, 16 bits
    scaled to 8 (rounded), grey repeated. Raises UnreadableImage with the reason, also for headers
    that claim more than PIXEL_LIMIT pixels, which are not decoded.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error
    return decode(data, path).array


def decode(data: bytes, path: str | Path, *, grey: bool = False) -> Decoded:
    """Decode the bytes of a picture file; `path` only names it in errors.

    With `grey` the array is the luminance, (H, W) uint8 (ITU-R BT.601), which is faster to get.
    """
    from PIL import Image

    if not data:
        raise UnreadableImage(path, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's bomb warning: the limit here is PIXEL_LIMIT
            picture = Image.open(io.BytesIO(data))
            width, height = picture.size
            if width * height > PIXEL_LIMIT:
                raise UnreadableImage(path, _bomb(width, height))
            return _convert(picture, data, path, grey)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"decompression bomb: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(path, "not a picture format that can be read") from error
    except MemoryError as error:
        raise UnreadableImage(path, "not enough memory to decode it") from error
    except Exception as error:  # PIL's plugins raise OSError, ValueError, SyntaxError, struct.error
        text = str(error) or type(error).__name__
        raise UnreadableImage(path, f"does not decode: {text}") from error


def _bomb(width: int, height: int) -> str:
    return f"decompression bomb: {width}x{height} pixels, more than the limit of {PIXEL_LIMIT}"


def _convert(picture, data: bytes, path: str | Path, grey: bool) -> Decoded:
    """Load an opened PIL image and turn it into 8-bit RGB, or into its luminance."""
    container, depth, notes = picture.format, _bits(picture, data), []
    if depth > 8:
        notes.append(f"{depth}-bit scaled to 8")
    if getattr(picture, "n_frames", 1) > 1:
        notes.append(f"first of {picture.n_frames} frames")
    if picture.mode in ("P", "PA"):
        notes.append("palette converted")
    elif picture.mode == "CMYK":
        notes.append("CMYK converted")
    if grey and picture.format == "JPEG" and picture.mode == "RGB":
        picture.draft("L", None)  # the same pass over the file, without the chroma planes' pixels
    picture.load()
    if picture.has_transparency_data:
        notes.append("alpha composited on white")
    if depth > 8:
        array = _deep(picture, data, path)
    elif picture.has_transparency_data:
        array = _on_white(np.asarray(picture.convert("RGBA")), 255)
    else:
        if picture.mode not in ("RGB", "L") or (picture.mode == "L" and not grey):
            picture = picture.convert("RGB")
        array = np.array(picture.convert("L") if grey else picture)
    if grey and array.ndim == 3:
        array = np.rint(array @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    orientation = _orientation(picture)
    if orientation in ORIENTATIONS:
        array = np.ascontiguousarray(ORIENTATIONS[orientation](array))
        notes.append(f"EXIF orientation {orientation} applied")
    return Decoded(array, container, tuple(notes))


def _bits(picture, data: bytes) -> int:
    """Return the bits a channel has in the file; PIL itself reads 16-bit RGB as its high bytes."""
    if picture.mode.startswith("I;16"):
        return 16
    if picture.format == "PNG":
        return data[24]  # IHDR: 8 signature, 4 length, 4 type, 4 width, 4 height, depth
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (8,)))
    return {"I": 32, "F": 32}.get(picture.mode, 8)


def _deep(picture, data: bytes, path: str | Path) -> np.ndarray:
    """Return a 16-bit picture as (H, W, 3) uint8, rounded: v / 257."""
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint32)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    import cv2

    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3 or deep.shape[2] not in (3, 4):
        raise UnreadableImage(
            path, f"samples of more than 16 bits, or of a kind not read ({picture.mode})"
        )
    if deep.shape[2] == 4:
        return _on_white(cv2.cvtColor(deep, cv2.COLOR_BGRA2RGBA), 65535)
    return ((cv2.cvtColor(deep, cv2.COLOR_BGR2RGB).astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_white(rgba: np.ndarray, full: int) -> np.ndarray:
    """Composite (H, W, 4) with values up to `full` on white; returns (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / full
    colour = rgba[..., :3].astype(np.float32) * (255 / full)
    return np.rint(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _orientation(picture) -> int:
    try:
        return picture.getexif().get(0x0112, 1)
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        struct.error,
    ):  # a broken EXIF block says nothing about the orientation
        return 1


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) RGB picture as PNG, atomically."""
    from PIL import Image

    array, path = np.asarray(array), Path(path)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"a picture to write is uint8 of shape (H, W, 3), not {array.dtype} {array.shape}: "
            "scale to 0…255, round and transpose first"
        )
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as PNG; give a name that ends in .png")
    encoded = io.BytesIO()
    Image.fromarray(array).save(encoded, format="PNG")
    write_atomically(path, encoded.getvalue())
