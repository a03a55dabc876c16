"""Requests that no service should answer with anything but 4xx, each of its own kind."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zlib

import numpy as np
from PIL import Image

BOUNDARY = "--------frame"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}


def picture(side: int = 32, kind: str = "PNG", seed: int = 0) -> bytes:
    """Return a good picture file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format=kind)
    return encoded.getvalue()


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(content: bytes | None, file: str = "a.png", **fields: str) -> bytes:
    """Return a form's body with a file and other fields."""
    body = b"" if content is None else part("image", content, f'; filename="{file}"')
    body += b"".join(part(name, value.encode()) for name, value in fields.items())
    return body + f"--{BOUNDARY}--\r\n".encode()


def document(**fields) -> bytes:
    """Return a JSON body, by default with a good picture."""
    return json.dumps({"image": base64.b64encode(picture()).decode(), **fields}).encode()


def block(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, pixels: bytes = b"", before: bytes = b"") -> bytes:
    """Return a PNG of RGB that says it has this size."""
    header = block(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = block(b"IDAT", pixels) + block(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + rest


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG whose header says it has this size."""
    content = bytearray(picture(kind="JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + sides
    return b"RIFF" + struct.pack("<I", len(body)) + body


def files() -> dict[str, bytes]:
    """Return picture files that must not be restored, by kind."""
    good, photo = picture(), picture(64, "JPEG")
    rows = zlib.compress(b"\0" * (3 * 8192 + 1) * 8192, 9)
    second = block(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    text = block(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 50_000_000))
    return {
        "empty": b"",
        "one byte": b"\x89",
        "a PNG's signature alone": good[:8],
        "a truncated PNG": good[: len(good) // 2],
        "a truncated JPEG's header": photo[:100],
        "a truncated JPEG": photo[: len(photo) // 2],
        "a truncated WebP": picture(kind="WEBP")[:60],
        "huge dimensions, PNG": png(2**31 - 1, 2**31 - 1),
        "huge dimensions, JPEG": jpeg(65535, 65535),
        "huge dimensions, WebP": webp(2**24, 2**24),
        "a line of pixels": png(3_000_000, 1),
        "no width": png(0, 100),
        "a deflate bomb of pixels": png(8192, 8192, rows),
        "more pixels than it says": png(8, 8, b"\0" * 100),
        "a text bomb": png(8, 8, zlib.compress(b"\0" * 200), text),
        "two sizes": png(8, 8, zlib.compress(b"\0" * 200), second),
        "thousands of blocks": png(8, 8, b"", block(b"teSt", b"") * 5000),
        "thousands of scans": photo[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 5000,
        "a JPEG of fill bytes": b"\xff\xd8\xff" + b"\xff" * 100_000,
        "a wrong checksum": good[:45] + bytes([good[45] ^ 255]) + good[46:],
        "text": b"not a picture",
        "HTML": b"<html><script>alert(1)</script></html>",
        "SVG with an entity": b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
        "a gzip bomb": gzip.compress(b"\0" * 20_000_000),
        "a zip": b"PK\x03\x04" + b"\0" * 100,
        "GIF": picture(kind="GIF"),
        "TIFF": picture(kind="TIFF"),
        "BMP": picture(kind="BMP"),
        "an ELF program": b"\x7fELF" + bytes(range(256)),
    }


def requests() -> dict[str, tuple[str, dict, bytes]]:
    """Return path, headers and body of hostile requests, by kind; all of them deserve a 4xx."""
    found = {name: ("/restore", FORM, form(content)) for name, content in files().items()}
    bad = {
        "a traversal name without a picture": form(b"x", "../../../../etc/passwd"),
        "an absolute name without a picture": form(b"", "/etc/shadow"),
        "a name of 100 kB": form(b"x", "a" * 100_000),
        "a path in place of a file": part("path", b"/etc/passwd") + form(None),
        "the wrong field": part("file", picture(), '; filename="a.png"') + form(None),
        "no field": form(None),
        "the field twice": part("image", picture()) + form(picture()),
        "a hundred fields": part("x", b"y") * 100 + form(picture()),
        "no end": form(picture())[:-20],
        "no form at all": picture(),
        "nothing": b"",
        "steps: -1": form(picture(), num_inference_steps="-1"),
        "steps: 0": form(picture(), num_inference_steps="0"),
        "steps: 10^9": form(picture(), num_inference_steps="1000000000"),
        "steps: a word": form(picture(), num_inference_steps="many"),
        "steps: 2.5": form(picture(), num_inference_steps="2.5"),
        "steps: 5000 digits": form(picture(), num_inference_steps="9" * 5000),
        "an unknown adapter": form(picture(), adapter="nobody"),
        "an adapter's path": form(picture(), adapter="../../runs/x"),
        "an infinite weight": form(picture(), adapter="one:inf"),
        "a weight that is none": form(picture(), adapter="one:nan"),
        "an adapter twice": form(picture(), adapter="one:1,one:2"),
    }
    found |= {name: ("/restore", FORM, body) for name, body in bad.items()}
    documents = {
        "bad base64": document(image="&&&"),
        "base64 of text": document(image=base64.b64encode(b"text").decode()),
        "an image that is a number": document(image=5),
        "an image that is a list": document(image=[1, 2]),
        "an image that is nothing": document(image=None),
        "JSON steps: -5": document(num_inference_steps=-5),
        "JSON steps: true": document(num_inference_steps=True),
        "JSON steps: a string": document(num_inference_steps="25"),
        "JSON steps: 1e400": document()[:-1] + b', "num_inference_steps": 1e400}',
        "JSON adapter: a list": document(adapter=["one"]),
        "JSON adapter: a weight of text": document(adapter={"one": "x"}),
        "half a character": document(adapter="\ud800"),
        "a key of half a character": document(**{"\ud800": 1}),
        "an unknown key": document(path="/etc/passwd"),
        "an array": b"[1, 2]",
        "broken JSON": b'{"image": ',
        "nested JSON": b"[" * 200_000,
        "bytes that are no UTF-8": b'{"image": "\xff\xfe"}',
    }
    found |= {name: ("/restore/json", JSON, body) for name, body in documents.items()}
    packed = FORM | {"Content-Encoding": "gzip"}
    return found | {
        "a compressed body": ("/restore", packed, gzip.compress(form(picture()))),
        "a gzip bomb of a body": ("/restore", packed, gzip.compress(b"\0" * 20_000_000)),
        "no boundary": ("/restore", {"Content-Type": "multipart/form-data"}, form(picture())),
        "a wrong content-type": ("/restore", {"Content-Type": "image/png"}, picture()),
        "no content-type": ("/restore", {}, form(picture())),
        "JSON as a form": ("/restore", FORM, document()),
        "a form as JSON": ("/restore/json", JSON, form(picture())),
        "more bytes than allowed": ("/restore", FORM, form(b"\0" * 30 * 2**20)),
        "more base64 than allowed": ("/restore/json", JSON, document(image="A" * 40 * 2**20)),
        "another path": ("/restore/../../etc/passwd", FORM, form(picture())),
    }
