"""The embedded data set: photographs that installed libraries ship, split by photograph.

Nothing is copied or downloaded: each is read from the wheel that holds it. Synthetic,
blurred or tiny pictures of those wheels are left out. The two motorcycle pictures show one scene
from two places, so they stay on one side.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

CC0 = "CC0 1.0"
CC_BY = "CC BY 2.0"
PUBLIC_DOMAIN = "public domain"
NO_KNOWN_COPYRIGHT = "no known copyright restrictions"


@dataclass(frozen=True)
class Photograph:
    """A picture inside an installed package, with its split and where it comes from."""

    name: str
    package: str
    file: str  # inside the package
    split: str  # "train" or "val"
    licence: str
    source: str

    @property
    def path(self) -> Path:
        """Return the absolute path of the installed file."""
        path = _package_folder(self.package) / self.file
        if not path.is_file():
            raise FileNotFoundError(
                f"the photograph {self.name} is not at {path}: reinstall the {self.package} package"
            )
        return path


@functools.cache
def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # locates a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the embedded photographs ship inside {package}, which is not installed: run "
            "`make install`"
        )
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _skimage(file: str, split: str, licence: str, source: str) -> Photograph:
    return Photograph(Path(file).stem, "skimage", f"data/{file}", split, licence, source)


def _sklearn(file: str, source: str) -> Photograph:
    return Photograph(Path(file).stem, "sklearn", f"datasets/images/{file}", "train", CC_BY, source)


MIDDLEBURY = "Middlebury 2014 stereo benchmark, Scharstein et al., GCPR 2014"
UNSTATED = "not stated; benchmark data that scikit-image redistributes"

PHOTOGRAPHS = (
    _skimage("astronaut.png", "train", PUBLIC_DOMAIN, "NASA Great Images: Eileen Collins"),
    _skimage("coffee.png", "train", CC0, "Rachel Michetti, Pikolo Espresso Bar"),
    _skimage("motorcycle_left.png", "train", UNSTATED, MIDDLEBURY),
    _skimage("motorcycle_right.png", "train", UNSTATED, MIDDLEBURY),
    _skimage(
        "hubble_deep_field.jpg", "train", PUBLIC_DOMAIN, "NASA, ESA: Hubble eXtreme Deep Field"
    ),
    _skimage("ihc.png", "train", NO_KNOWN_COPYRIGHT, "CMMI: colonic glands, hematoxylin and DAB"),
    _skimage("retina.jpg", "train", CC0, "Mikael Häggström, WikiJournal of Medicine 1 (2), 2014"),
    _skimage("brick.png", "train", CC0, "CC0Textures: Bricks25 (grey)"),
    _skimage("grass.png", "train", CC0, "linolafett, DeviantArt (grey)"),
    _skimage("gravel.png", "train", CC0, "CC0Textures: Gravel04 (grey)"),
    _sklearn("china.jpg", "danielbuechele, flickr.com/photos/danielbuechele/6061409035"),
    _sklearn("flower.jpg", "vultilion, flickr.com/photos/vultilion/6056698931"),
    _skimage("chelsea.png", "val", CC0, "Stefan van der Walt: Chelsea the cat"),
    _skimage("rocket.jpg", "val", PUBLIC_DOMAIN, "SpaceX: launch of DSCOVR on Falcon 9"),
    _skimage("camera.png", "val", CC0, "Lav Varshney (grey)"),
    _skimage("coins.png", "val", NO_KNOWN_COPYRIGHT, "Brooklyn Museum: Greek coins (grey)"),
    Photograph(
        "grace_hopper",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "val",
        PUBLIC_DOMAIN,
        "James S. Davis, US Navy: Grace Hopper",
    ),
)

HELD_OUT = tuple(p.name for p in PHOTOGRAPHS if p.split == "val")


def photograph_paths() -> dict[str, Path]:
    """Return name -> absolute path of every embedded photograph, in the order of PHOTOGRAPHS."""
    return {p.name: p.path for p in PHOTOGRAPHS}
