"""Small sets of real files on the disk, and the config that indexes them."""

from pathlib import Path

import cv2
import numpy as np
from darkroom import index, load_config
from PIL import Image


def picture(seed: int, width: int = 120, height: int = 88) -> np.ndarray:
    """Return a picture with structure at every scale, (height, width, 3) uint8; one a seed."""
    generator, total = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for cells in (3, 6, 12, 24, 48):
        noise = generator.normal(size=(cells, cells, 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    total = (total - total.mean()) / total.std()
    return np.clip(128 + 50 * total, 0, 255).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options) -> Path:
    """Write an array under a name, by its suffix, creating folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def hazy(array: np.ndarray) -> np.ndarray:
    """Return a hazy version: half the contrast, brighter."""
    return (array * 0.5 + 110).astype(np.uint8)


def configured(folder: Path, source: str, place: str | None, **override):
    """Return a config that indexes a place below `folder` and keeps its runs there."""
    return load_config(
        base=None,
        run="indexed",
        override={
            "paths.data": str(folder),
            "paths.runs": str(folder / "runs"),
            "data.source": source,
            "data.train": place,
            **override,
        },
    )


def indexed(folder: Path, source: str, place: str | None, *, workers=1, **override):
    """Return the index of a place below `folder`."""
    config = configured(folder, source, place, **override)
    return index.build_index(config, workers=workers, progress=False)


def statuses(frame) -> dict[str, tuple[str, str | None]]:
    """Return file name -> (status, reason)."""
    return {
        Path(path).name: (status, reason)
        for path, status, reason in frame.select("path", "status", "reason").iter_rows()
    }


def pairs(folder: Path, kind: str = "Haze", num: int = 4, first: int = 0) -> Path:
    """Write hazy pairs as <kind>/{LQ,GT}: LQ as JPEG, GT as PNG."""
    for i in range(first, first + num):
        save(folder / kind / "GT" / f"{i:03d}.png", picture(i))
        save(folder / kind / "LQ" / f"{i:03d}.jpg", hazy(picture(i)), quality=95)
    return folder
