"""Where images come from: photographs, charts, folders, pair trees, parquet tables, shards.

Every source becomes one listing, a row a file, with nothing opened yet. `partner` is the GT of an
LQ file; `problem` is a reason to leave a file out that is known without looking inside.
"""

from __future__ import annotations

import os
from pathlib import Path

from .. import charts
from ..photographs import PHOTOGRAPHS
from .listing import IndexSourceError, Listing
from .shards import list_shards
from .tables import list_table
from .trees import list_folder, list_pairs


def list_sources(config) -> list[Listing]:
    """Return the listings of a config: that of `data.source`, and of `validation.data` if set.

    Rows of the second have split val and rows of the first split train. Without a second, the
    split is that of an embedded source, of shards or of folders named train and val, or null: to
    be drawn. Of shards that say their split, each takes its own part.
    """
    source = config.data.source
    known = (*EMBEDDED, *LISTERS)
    if source not in known:
        raise ValueError(f"data.source {source} cannot be indexed yet: {', '.join(known)} can")
    if source in EMBEDDED:
        first = EMBEDDED[source](config.data)
    else:
        first = _list(source, _location(config, "data.train", config.data.train), config)
    if config.validation.data is None:
        return [first]
    place = _location(config, "validation.data", config.validation.data)
    second = _list(_kind(place), place, config)
    if source in EMBEDDED:
        first.rows = [r for r in first.rows if r["split"] == "train"]
    for listing, split, kind in ((first, "train", source), (second, "val", _kind(place))):
        own = [r for r in listing.rows if r["split"] == split]
        if kind == "shards" and own:
            listing.rows = own
        for row in listing.rows:
            row["split"] = split
    return [first, second]


def _location(config, key: str, value: str | None) -> Path:
    if value is None:
        raise IndexSourceError(
            f"data.source {config.data.source} needs {key}: the folder or parquet of the images"
        )
    path = Path(config.paths.data, Path(value).expanduser())
    if not path.exists():
        raise IndexSourceError(
            f"{key} is {path}, which does not exist: relative names start at paths.data "
            f"({config.paths.data}), set in params/local.yaml"
        )
    return path.absolute()


def _kind(place: Path) -> str:
    """Say whether a validation location is a parquet file, shards, a tree of pairs or a folder."""
    if place.is_file():
        return "parquet"
    if any(place.glob("*.tar")):
        return "shards"
    names = {d.casefold() for _, folders, _ in os.walk(place) for d in folders}
    return "pairs" if {"lq", "gt"} <= names else "folder"


def _list(kind: str, place: Path, config) -> Listing:
    wanted, found = ("a parquet file or list", place.is_file()) if kind == "parquet" else (
        "a folder", place.is_dir()
    )  # fmt: skip
    if not found:
        raise IndexSourceError(f"data.source {kind} needs {wanted}, and {place} is none")
    return LISTERS[kind](place, config)


def _photographs(_section) -> Listing:
    listing = Listing("the embedded photographs", num_found=len(PHOTOGRAPHS))
    for photograph in PHOTOGRAPHS:
        place = os.stat(photograph.path)
        listing.add(
            str(photograph.path), "image", photograph.name, split=photograph.split,
            bytes=place.st_size, modified_ns=place.st_mtime_ns,
        )  # fmt: skip
    return listing


def _charts(section) -> Listing:
    """List the charts: nothing is drawn yet, and `modified_ns` is the version of the drawing."""
    size = section.chart_size
    listing = Listing(f"the embedded charts of {size} px")
    for split, numbers in charts.numbers(section.num_charts).items():
        for number in numbers:
            listing.add(
                charts.path_of(number, size), "image", charts.name_of(number), split=split,
                bytes=3 * size * size, modified_ns=charts.version(),
            )  # fmt: skip
    listing.num_found = len(listing.rows)
    return listing


EMBEDDED = {"photographs": _photographs, "charts": _charts}
LISTERS = {
    "folder": lambda place, config: list_folder(place),
    "pairs": lambda place, config: list_pairs(place),
    "parquet": list_table,
    "shards": list_shards,
}
