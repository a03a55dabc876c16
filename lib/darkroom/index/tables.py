"""Parquet tables and plain lists of paths as a source: single images, or pairs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .listing import IndexSourceError, Listing, canonical_type, side_of

TYPE_COLUMNS = ("degradation", "degradation_type")


def list_table(place: Path, config) -> Listing:
    """Return the listing of a parquet file (.parquet), or of a list with one path a line.

    With both columns `data.lq_key` and `data.gt_key` it holds pairs, else `data.image_key` names
    the images. Paths are joined to `data.prefix`, then to `paths.data`.
    """
    section = config.data
    frame = _read(place, section.image_key)
    columns = frame.columns
    if section.lq_key in columns and section.gt_key in columns:
        keys = {"gt": section.gt_key, "lq": section.lq_key}
    elif section.image_key in columns:
        keys = {"image": section.image_key}
    else:
        raise IndexSourceError(
            f"{place} has the columns {', '.join(columns)}; needed is {section.image_key} "
            f"(data.image_key), or {section.lq_key} and {section.gt_key} (data.lq_key, data.gt_key)"
        )
    prompts = _prompts(frame, place, section.prompt_key)
    types = next((frame[c].cast(str).to_list() for c in TYPE_COLUMNS if c in columns), None)
    listing = Listing(str(place), num_found=len(frame) * len(keys))
    values = {role: frame[key].cast(str).to_list() for role, key in keys.items()}
    paths = {role: [_join(config, v) for v in column] for role, column in values.items()}
    names = _names(values["image" if "image" in values else "lq"])
    places: dict[str, tuple] = {}
    for i, name in enumerate(names):
        shared = {"prompt": prompts[i], "degradation": _type(types and types[i], paths, i)}
        if "gt" in paths:
            shared["pair"] = name
        if any(column[i] is None for column in paths.values()):
            shared["problem"] = f"row {i} of {place.name} has no path"
        for role, column in paths.items():
            path = column[i] or f"{place}#row {i}"
            size, modified = places.setdefault(path, _stat(path))
            partner = paths["gt"][i] if role == "lq" else None
            listing.add(
                path, role, name, partner=partner, bytes=size, modified_ns=modified, **shared
            )
    return listing


def _read(place: Path, image_key: str):
    import polars as pl

    if place.suffix.lower() in (".txt", ".list"):
        lines = [line.strip() for line in place.read_text().splitlines()]
        return pl.DataFrame({image_key: [line for line in lines if line]}, schema={image_key: str})
    try:
        return pl.read_parquet(place)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise IndexSourceError(f"{place} cannot be read as parquet: {error}") from error


def _prompts(frame, place: Path, key: str | None) -> list[str]:
    """Return the prompts; "none" (HYPIR's word) or null means there are none."""
    if key is None or key == "none" or place.suffix.lower() in (".txt", ".list"):
        return [""] * len(frame)
    if key not in frame.columns:
        raise IndexSourceError(
            f"{place} has no column {key} (data.prompt_key), only {', '.join(frame.columns)}: name "
            "the column that holds the prompts, or set data.prompt_key to none"
        )
    return frame[key].cast(str).fill_null("").to_list()


def _join(config, value: str | None) -> str | None:
    if not value:
        return None
    return os.path.normpath(os.path.join(config.paths.data, config.data.prefix, value))


def _stat(path: str) -> tuple[int | None, int | None]:
    try:
        place = os.stat(path)
    except OSError:
        return None, None
    return (place.st_size, place.st_mtime_ns) if stat.S_ISREG(place.st_mode) else (None, None)


def _names(values: list[str | None]) -> list[str]:
    """Return a short id a row: the path below the common folder, numbered where it repeats."""
    known = [v for v in values if v]
    folders = [os.path.dirname(v) for v in known]
    try:
        common = os.path.commonpath(folders) if folders else ""
    except ValueError:  # absolute and relative paths mixed
        common = ""
    names, seen = [], set()
    for i, value in enumerate(values):
        name = os.path.splitext(os.path.relpath(value, common or "."))[0] if value else "none"
        name = name if common or not value else os.path.splitext(value)[0]
        names.append(name if name not in seen else f"{name}#{i}")
        seen.add(names[-1])
    return names


def _type(named: str | None, paths: dict[str, list], row: int) -> str | None:
    """Return the degradation of a row: its column, else the folder above LQ or GT."""
    if named:
        return canonical_type(named)
    if "lq" not in paths or not paths["lq"][row]:
        return None
    parts = Path(paths["lq"][row]).parts[:-1]
    above = [parts[i - 1] for i in range(1, len(parts)) if side_of(parts[i])]
    return canonical_type(above[-1]) if above else None
