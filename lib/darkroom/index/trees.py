"""Folders of images and trees of pairs as a source."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from pathlib import Path

from .listing import IndexSourceError, Listing, canonical_type, side_of

SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF",
    ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".jp2": "JPEG2000", ".avif": "AVIF",
}  # fmt: skip
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("val", "valid", "validation", "test"), "val"
)


def _walk(root: Path) -> tuple[list[tuple[str, int, int]], int]:
    """Return (path below root, bytes, modified_ns) of every image file, sorted, and the file count.

    Hidden files and folders are skipped; links to folders are followed once.
    """
    files, num_found, waiting, seen = [], 0, [(str(root), "")], {os.path.realpath(root)}
    while waiting:
        folder, below = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else None
                    if real is None or real not in seen:
                        seen.add(real)
                        waiting.append((entry.path, f"{below}{name}/"))
                    continue
                num_found += 1
                if name[name.rfind(".") :].lower() not in SUFFIXES:
                    continue
                try:
                    place = entry.stat()
                except OSError:  # a dangling link: listed, and found missing when it is read
                    files.append((below + name, None, None))
                    continue
                if stat.S_ISREG(place.st_mode):
                    files.append((below + name, place.st_size, place.st_mtime_ns))
    return sorted(files), num_found


def list_folder(root: Path) -> Listing:
    """List every image below a folder, as one to degrade."""
    files, num_found = _walk(root)
    listing, prefix = Listing(str(root), num_found=num_found), f"{root}/"
    stems = [name[: name.rfind(".")] for name, _, _ in files]
    times = Counter(stems)
    for (name, size, modified), stem in zip(files, stems, strict=True):
        listing.add(
            prefix + name, "image", stem if times[stem] == 1 else name,
            split=_split_of(name), bytes=size, modified_ns=modified,
        )  # fmt: skip
    _settle_splits(listing)
    return listing


def list_pairs(root: Path) -> Listing:
    """List LQ and GT files, matched by what lies below LQ and GT without its suffix."""
    files, num_found = _walk(root)
    listing = Listing(str(root), num_found=num_found)
    sides: dict[str, dict[str, list]] = {}
    for name, size, modified in files:
        parts = name.split("/")
        at = next((i for i in range(len(parts) - 2, -1, -1) if side_of(parts[i])), None)
        if at is None:
            continue
        stem = os.path.splitext("/".join([*parts[:at], *parts[at + 1 :]]))[0]
        row = {
            "path": f"{root}/{name}", "role": side_of(parts[at]), "image": stem, "pair": stem,
            "degradation": _type_of(parts[:at], root), "split": _split_of(name),
            "bytes": size, "modified_ns": modified,
        }  # fmt: skip
        sides.setdefault(stem, {"lq": [], "gt": []})[row["role"]].append(row)
    if files and not sides:
        raise IndexSourceError(
            f"{root} holds {len(files)} images, none below a folder LQ or GT: data.source pairs "
            "reads <Type>/{LQ,GT}, or one {LQ,GT}; data.source folder reads plain images"
        )
    for stem in sorted(sides):
        listing.rows += _matched(**sides[stem])
    _settle_splits(listing)
    return listing


def _matched(lq: list[dict], gt: list[dict]) -> list[dict]:
    """Link the LQ and GT files of one stem, or say what is missing or one too many."""
    for own, other, names in ((lq, gt, ("LQ", "GT")), (gt, lq, ("GT", "LQ"))):
        for row in own:
            if len(own) > 1:
                row["problem"] = f"{len(own)} {names[0]} files share this stem"
            elif not other:
                row["problem"] = f"no {names[1]} partner with this stem"
            elif len(other) > 1:
                row["problem"] = f"{len(other)} {names[1]} files share this stem"
    if len(lq) == len(gt) == 1:
        lq[0]["partner"] = gt[0]["path"]
    return gt + lq


def _type_of(above: list[str], root: Path) -> str | None:
    known = [canonical_type(name) for name in (root.name, *above)]
    return next((name for name in reversed(known) if name), None)


def _split_of(name: str) -> str | None:
    return _split_of_folder(os.path.dirname(name))


@functools.lru_cache(maxsize=1024)
def _split_of_folder(below: str) -> str | None:
    folders = below.split("/")
    return next((SPLITS[f.casefold()] for f in folders if f.casefold() in SPLITS), None)


def _settle_splits(listing: Listing) -> None:
    """Keep the splits that folder names gave only when there are both and no file is without."""
    if {row["split"] for row in listing.rows} != {"train", "val"}:
        for row in listing.rows:
            row["split"] = None
