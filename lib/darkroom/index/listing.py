"""A listing: the files of one location before anything is opened, and the words of folder names."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..degradations import FIVE_TYPES

_TYPES = {name.casefold(): name for name in FIVE_TYPES}


class IndexSourceError(ValueError):
    """The place that should hold images does not, or holds none that can be used."""


@dataclass
class Listing:
    """The files of one location, before anything is opened."""

    location: str  # as a person would name it
    rows: list[dict] = field(default_factory=list)
    num_found: int = 0  # files seen, images or not

    def add(self, path, role, image, **more) -> None:
        """Append a file; fields not given are null.

        `written_hash` is the content hash that the file must have.
        """
        self.rows.append({"path": path, "role": role, "image": image, **more})


def side_of(folder: str) -> str | None:
    """Return lq or gt for a folder of that name, however it is spelt."""
    name = folder.casefold()
    return name if name in ("lq", "gt") else None


def canonical_type(name: str | None) -> str | None:
    """Return one of FIVE_TYPES for its name in any spelling, else None."""
    return _TYPES.get((name or "").replace("_", "").replace("-", "").casefold())
