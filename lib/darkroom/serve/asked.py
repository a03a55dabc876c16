"""What a request asks for, read from a form or from JSON within the limits."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass

from .limits import Limits, Refused

FRAME_BYTES = 2**16  # of a request beside the picture
NUM_PARTS = 8
HEAD_BYTES = 4096  # of a form part
FIELDS = ("image", "num_inference_steps", "adapter")
BOUNDARY = re.compile(r'multipart/form-data;.*?\bboundary="?([^\s";,]{1,70})"?', re.IGNORECASE)
DISPOSITION = re.compile(rb"^content-disposition:\s*form-data(.*)$", re.IGNORECASE | re.MULTILINE)
NAME = re.compile(rb';\s*name="?([^";\r\n]*)"?')
FORM = "a multipart/form-data body with the file in `image`"
DOCUMENT = "a JSON object with the file, base64, in `image`"
OPTIONAL = "; beside it num_inference_steps and adapter, nothing else"
HEAVIEST = 4.0  # of an adapter's weight


@dataclass(frozen=True)
class Asked:
    """A picture file's bytes, adapters and their weights, and a number of steps."""

    content: bytes
    weights: dict[str, float]
    steps: int


async def body(request, limit: int) -> bytes:
    """Return a request's body; raises Refused as soon as its header or its bytes exceed `limit`."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body is compressed", "a body as it is, without content-encoding")
    allowed = f"at most {limit} bytes"
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 15 or int(declared) > limit:
        raise Refused(413, f"the request announces {declared[:20]} bytes", allowed)
    received = bytearray()
    async for chunk in request.stream():
        if len(received) + len(chunk) > limit:
            raise Refused(413, "the request is larger than it may be", allowed)
        received += chunk
    return bytes(received)


async def form(request, limits: Limits, default_steps: int) -> Asked:
    """Read a form; the names of its files are never looked at."""
    kind = request.headers.get("content-type", "")
    boundary = BOUNDARY.match(kind)
    if not boundary:
        raise Refused(415, f"the content-type is {kind[:80]!r}", FORM + OPTIONAL)
    content = await body(request, limits.upload_bytes + FRAME_BYTES)
    found = _parts(content, boundary[1].encode("latin-1", "replace"))
    return _asked(found, limits, default_steps, FORM)


def _parts(content: bytes, boundary: bytes) -> dict[str, bytes]:
    """Return a form's fields, strictly: each named once, the last boundary there."""
    pieces = (b"\r\n" + content).split(b"\r\n--" + boundary, NUM_PARTS + 1)
    if len(pieces) > NUM_PARTS + 1:
        raise Refused(400, f"the form has more than {NUM_PARTS} parts", FORM + OPTIONAL)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Refused(
            400, "the form is broken: its boundary or its end is missing", FORM + OPTIONAL
        )
    found: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, _, value = piece.partition(b"\r\n\r\n")
        where = DISPOSITION.search(head[:HEAD_BYTES].replace(b"\r\n", b"\n"))
        name = NAME.search(where[1]) if where else None
        if name is None or not piece.startswith(b"\r\n"):
            raise Refused(400, "a part of the form has no name", FORM + OPTIONAL)
        _once(found, name[1].decode("latin-1"), value, FORM)
    return found


async def document(request, limits: Limits, default_steps: int) -> Asked:
    """Read a JSON object."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, f"the content-type is {kind[:80]!r}", f"application/json, {DOCUMENT}")
    content = await body(request, limits.upload_bytes * 4 // 3 + FRAME_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the JSON is broken: {reason[:120]}", DOCUMENT + OPTIONAL) from None
    if not isinstance(value, dict):
        raise Refused(400, f"the JSON is a {type(value).__name__}", DOCUMENT + OPTIONAL)
    found: dict[str, object] = {}
    for name, item in value.items():
        _once(found, name, item, DOCUMENT)
    if "image" in found:
        try:
            found["image"] = base64.b64decode(found["image"], validate=True)
        except (ValueError, TypeError) as error:
            wrong = f"`image` is not base64: {str(error)[:80]}"
            raise Refused(422, wrong, DOCUMENT + OPTIONAL) from None
    return _asked(found, limits, default_steps, DOCUMENT)


def _once(found: dict, name: str, value, allowed: str) -> None:
    if name not in FIELDS or name in found:
        wrong = "twice in the request" if name in found else "not known"
        raise Refused(400, f"the field {name[:40]!r} is {wrong}", allowed + OPTIONAL)
    found[name] = value


def _asked(found: dict, limits: Limits, default_steps: int, allowed: str) -> Asked:
    if "image" not in found:
        raise Refused(400, "the field `image` is missing", allowed + OPTIONAL)
    content = found["image"]
    if len(content) > limits.upload_bytes:
        wrong = f"the picture file has {len(content)} bytes"
        raise Refused(413, wrong, f"at most {limits.upload_bytes} bytes")
    steps = _steps(found.get("num_inference_steps", default_steps), limits.steps)
    return Asked(content, weights(found.get("adapter", "")), steps)


def _steps(value, most: int) -> int:
    if isinstance(value, bytes):
        text = value.decode("latin-1").strip()
        value = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else text
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        wrong = f"num_inference_steps is {str(value)[:40]!r}"
        raise Refused(422, wrong, f"a whole number from 1 to {most}")
    return value


def weights(value) -> dict[str, float]:
    """Return weights by adapter of "motion", "motion:0.5,scan:0.5", {"motion": 0.5} or ""."""
    allowed = (
        "an adapter's name, names with weights such as motion:0.5,scan:0.5, or none; weights from "
        f"-{HEAVIEST:g} to {HEAVIEST:g}"
    )
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        pairs = [item.strip().rpartition(":") for item in value[:1000].split(",") if item.strip()]
        items = [(name, weight) if colon else (weight, 1.0) for name, colon, weight in pairs]
        items = [] if value.strip() == "none" else items
    elif isinstance(value, dict):
        items = list(value.items())
    else:
        raise Refused(422, f"adapter is a {type(value).__name__}", allowed)
    found: dict[str, float] = {}
    for name, weight in items:
        try:
            number = float(weight) if not isinstance(weight, bool) else float("nan")
        except (ValueError, TypeError, OverflowError):
            number = float("nan")
        if name in found or not abs(number) <= HEAVIEST:
            wrong = f"adapter {name[:40]!r} comes twice or has the weight {str(weight)[:40]!r}"
            raise Refused(422, wrong, allowed)
        found[name] = number
    return found
