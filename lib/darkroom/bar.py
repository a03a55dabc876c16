"""Progress bars that move where somebody watches, in Lab or a terminal, and stay out of logs."""

from __future__ import annotations

import os
import sys


def in_lab() -> bool:
    """Say whether someone watches: a kernel that a Jupyter server started, not papermill's.

    DARKROOM_PROGRESS=live or quiet decides for front ends that do not tell, such as VS Code.
    """
    wish = os.environ.get("DARKROOM_PROGRESS")
    if wish in ("live", "quiet"):
        return wish == "live"
    return "ipykernel" in sys.modules and "JPY_SESSION_NAME" in os.environ


def bar(total: int, description: str, unit: str, *, show: bool = True):
    """Return a tqdm bar of `total` units; hidden in executed notebooks and logs."""
    if show and in_lab():
        from tqdm.notebook import tqdm

        return tqdm(total=total, desc=description, unit=unit)
    from tqdm import tqdm

    watched = show and sys.stderr.isatty()
    return tqdm(total=total, desc=description, unit=unit, disable=not watched)
