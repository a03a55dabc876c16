"""A picture file's format and size, read from its first bytes without decoding anything.

Only PNG, JPEG and WebP are taken: their decoders are compiled, and what they cost follows from the
size in the header. Files built to be slow to read (thousands of blocks or scans) are refused.
"""

from __future__ import annotations

import re
import struct

from .limits import Refused

ALLOWED = "a PNG, JPEG or WebP file"
OTHER_BLOCKS = 256  # of a PNG beside its pixels, or of a JPEG before them
PIXEL_BLOCKS = 2**16  # of a PNG
SCANS = 64  # of a progressive JPEG, with three tables each; encoders write about ten
FRAMES = tuple(m for m in range(0xC0, 0xD0) if m not in (0xC4, 0xC8, 0xCC))  # SOF markers
BARE = (0x01, *range(0xD0, 0xD8))  # JPEG markers without a length
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # among a JPEG's pixels


def size(content: bytes) -> tuple[str, int, int]:
    """Return format, width and height; raises Refused (415 another format, 422 a broken header)."""
    if not content:
        raise Refused(422, "the picture has no bytes", ALLOWED)
    for name, starts, read in (
        ("PNG", (b"\x89PNG\r\n\x1a\n",), _png),
        ("JPEG", (b"\xff\xd8\xff",), _jpeg),
        ("WEBP", (b"RIFF",), _webp),
    ):
        if content.startswith(starts):
            try:
                width, height = read(content)
            except (struct.error, IndexError, ValueError) as error:
                reason = str(error) if type(error) is ValueError else "it ends too early"
                raise Refused(422, f"the {name} header is broken: {reason}", ALLOWED) from None
            if not (width and height):
                raise Refused(422, f"the picture has {width}x{height} pixels", ALLOWED)
            return name, width, height
    raise Refused(415, "the file is of another kind (its first bytes say so)", ALLOWED)


def _png(content: bytes) -> tuple[int, int]:
    if content[12:16] != b"IHDR":
        raise ValueError("IHDR is not its first block")
    width, height = struct.unpack(">II", content[16:24])
    place, others, pixels = 8, 0, 0
    while place + 8 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind = content[place + 4 : place + 8]
        pixels, others = pixels + (kind == b"IDAT"), others + (kind != b"IDAT")
        if others > OTHER_BLOCKS or pixels > PIXEL_BLOCKS:
            raise ValueError(f"more than {OTHER_BLOCKS} blocks, or {PIXEL_BLOCKS} of pixels")
        if kind == b"IEND":
            break
        place += 12 + length
    return width, height


def _jpeg(content: bytes) -> tuple[int, int]:
    place, found = 2, None
    for _ in range(OTHER_BLOCKS):
        if content[place] != 0xFF:
            raise ValueError("a marker is missing")
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:
            if found is None:
                raise ValueError("its pixels begin before its size is known")
            _count_scans(content, place)
            return found
        if marker in BARE:
            place += 2
            continue
        (length,) = struct.unpack(">H", content[place + 2 : place + 4])
        if marker in FRAMES:
            if found is not None:
                raise ValueError("it has two sizes")
            height, width = struct.unpack(">HH", content[place + 5 : place + 9])
            found = width, height
        place += 2 + length
    raise ValueError(f"more than {OTHER_BLOCKS} blocks before its pixels")


def _count_scans(content: bytes, place: int) -> None:
    """Raise ValueError for more scans than an encoder writes, up to the picture's end."""
    for _ in range(4 * SCANS):
        match = MARKER.search(content, place)
        if match is None or content[match.start() + 1] == 0xD9:  # the picture's end
            return
        (length,) = struct.unpack(">H", content[match.end() : match.end() + 2])
        place = match.end() + length
    raise ValueError(f"more than {4 * SCANS} scans and tables")


def _webp(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if content[8:12] != b"WEBP":
        raise ValueError("it is another RIFF file")
    if kind == b"VP8X":
        sides = content[24:27] + b"\0" + content[27:30] + b"\0"
        width, height = struct.unpack("<II", sides)
        return width + 1, height + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", content[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"its first block is {kind!r}")
