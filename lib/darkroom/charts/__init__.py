"""The embedded line charts: drawn by matplotlib on the spot, each from its number alone.

A chart has a name (chart_00017) and, at a size, a path (charts:128/chart_00017) that
`images.read_image` takes like a file's. The first NUM_HELD_OUT numbers are never trained on.
"""
# S side of the chart in pixels, N points of a curve

from __future__ import annotations

import functools
import hashlib
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

NUM_HELD_OUT = 24
SIZES = (64, 512)  # px, smallest and largest side
CACHE_BYTES = 64 * 2**20  # rendered charts kept by each process

_PATH = re.compile(r"charts:(\d{2,3})/chart_(\d{5,})")
_STREAM = 0xC4A27  # keeps these seeds apart from those of runs
_rendered: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()


def numbers(num_train: int) -> dict[str, range]:
    """Return split -> chart numbers: val is always the same, train follows it."""
    return {
        "val": range(NUM_HELD_OUT),
        "train": range(NUM_HELD_OUT, NUM_HELD_OUT + num_train),
    }


def name_of(number: int) -> str:
    """Return a chart's name."""
    return f"chart_{number:05d}"


def path_of(number: int, size: int) -> str:
    """Return the path under which `images.read_image` finds a chart of size by size pixels."""
    return f"charts:{size}/{name_of(number)}"


def find(path: str | Path) -> tuple[int, int] | None:
    """Return (number, size) where a path is a chart's, else None."""
    found = _PATH.fullmatch(str(path))
    return (int(found[2]), int(found[1])) if found else None


def encode(number: int, size: int) -> bytes:
    """Return a chart as the bytes of an uncompressed picture file (PPM)."""
    return b"P6\n%d %d\n255\n" % (size, size) + render(number, size).tobytes()


@functools.cache
def version() -> int:
    """Return a number that changes when charts may look different: the code or the library."""
    import matplotlib

    source = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.blake2b(source + matplotlib.__version__.encode(), digest_size=7)
    return int.from_bytes(digest.digest(), "big")


def render(number: int, size: int) -> np.ndarray:
    """Return chart `number` as read-only uint8 (S, S, 3) RGB, the same bytes in every process.

    Style, curves and text depend on the number alone; a small chart has fewer words, and lines are
    0.8 to 2 px wide at every size. size: 64 to 512 px. Raises ValueError for another size.
    """
    low, high = SIZES
    if not low <= size <= high or number < 0:
        raise ValueError(f"chart {number} at {size} px: numbers start at 0, sizes are {low}…{high}")
    key = (number, size)
    if key in _rendered:
        _rendered.move_to_end(key)
        return _rendered[key]
    picture = _draw(number, size)
    picture.setflags(write=False)
    _rendered[key] = picture
    while len(_rendered) > 1 and sum(p.nbytes for p in _rendered.values()) > CACHE_BYTES:
        _rendered.popitem(last=False)
    return picture


def _draw(number: int, size: int) -> np.ndarray:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from . import curves

    generator = np.random.default_rng([_STREAM, number])
    with matplotlib.rc_context(_changed_settings()):
        figure = Figure((size / 72, size / 72), dpi=72)  # one point is one pixel
        canvas = FigureCanvasAgg(figure)
        curves.draw(figure, size, generator)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3].copy()


def _changed_settings() -> dict:
    """Return the defaults of all settings of matplotlib that someone has changed."""
    import matplotlib

    kept = ("backend", "date.epoch", "interactive", "toolbar", "webagg", "keymap", "savefig")
    defaults = matplotlib.rcParamsDefault
    return {
        key: defaults[key]
        for key in defaults
        if not key.startswith(kept) and matplotlib.rcParams[key] != defaults[key]
    }
