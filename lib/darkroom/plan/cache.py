"""Traces kept on the disk, by what decides them: config, versions, our code.

Lies in `<paths.runs>/.plan-cache`; deleting it costs nothing but time. A damaged file counts as
none. What was not used for longest goes when all of them exceed LIMIT.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import os
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..paths import write_atomically
from .trace import Trace

FOLDER = ".plan-cache"
LIMIT = 256 * 2**20  # bytes; a trace of full-size HYPIR takes a third of a million
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "timm", "lpips")
# What a rehearsal never reads; a change there must not cost a new trace.
UNREAD = (
    "run",
    "base",
    "override",
    "seed",
    "paths",
    "degradation",
    "tracking",
    "budget",
    "ablation",
)
UNREAD_TRAIN = (
    *("steps", "hours", "images", "epochs", "extend", "early_stopping", "best", "keep_last"),
    *("save_every", "log_every"),
)
READ_DATA = ("crop_size", "prompt")
CODE = (
    *("recipes/*", "networks/*", "step.py", "tail.py", "losses.py", "perceptual.py", "optim.py"),
    *("autocast.py", "tiling.py", "diffusion.py", "batch.py", "schedule.py", "preview.py"),
    *(
        "plan/device.py",
        "plan/fakes.py",
        "plan/phase_names.py",
        "plan/policy.py",
        "plan/rehearsal.py",
    ),
    *("plan/shapes.py", "plan/trace.py", "plan/tracker.py", "plan/workspace.py"),
)


def key(config, **options) -> str:
    """Return the name under which what follows from this config and these options is kept."""
    document = {k: v for k, v in config.to_dict().items() if k not in UNREAD}
    document["train"] = {k: v for k, v in document["train"].items() if k not in UNREAD_TRAIN}
    document["data"] = {k: document["data"][k] for k in READ_DATA}
    text = json.dumps([document, options, _code()], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@functools.cache
def _code() -> list[str]:
    """Return the versions of what a trace runs, and a hash of our own files among it."""
    known = {d.name for d in importlib.metadata.distributions()}
    versions = [f"{n} {importlib.metadata.version(n)}" for n in LIBRARIES if n in known]
    digest = hashlib.blake2b(digest_size=12)
    package = Path(__file__).resolve().parent.parent
    for pattern in CODE:
        for path in sorted(package.glob(pattern)):
            if path.suffix == ".py":
                digest.update(path.read_bytes())
    return [*versions, digest.hexdigest()]


def kept(config, name: str) -> Trace | None:
    """Return the trace kept under a name, or None."""
    path = _path(config, name)
    try:
        with np.load(path) as arrays:
            document = json.loads(arrays["document"].tobytes())
            with suppress(OSError):
                os.utime(path)
            return Trace(events=arrays["events"], kernels=arrays["kernels"], **document)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def keep(config, name: str, traced: Trace) -> None:
    """Keep a trace under a name."""
    document = {k: v for k, v in vars(traced).items() if k not in ("events", "kernels")}
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez_compressed(buffer, document=text, events=traced.events, kernels=traced.kernels)
    path = _path(config, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    _prune(path.parent)


def _prune(folder: Path) -> None:
    """Delete what was not used for longest until the rest takes no more than LIMIT bytes."""
    found = []
    for path in folder.glob("*.npz"):
        with suppress(OSError):  # another process prunes, too
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left <= LIMIT:
            break
        path.unlink(missing_ok=True)
        left -= size


def _path(config, name: str) -> Path:
    return Path(config.paths.runs) / FOLDER / f"{name}.npz"
