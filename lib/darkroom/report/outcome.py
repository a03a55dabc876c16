"""What a training left behind: its newest pictures and its checkpoints."""

from __future__ import annotations

import numpy as np

from .style import INK, Picture, bare, figure, styled
from .tables import Table


@styled
def newest_images(config) -> Picture | Table:
    """Draw the newest picture that training logged: rows of input, restored and target.

    A line instead where train.image_every is null and nothing was logged.
    """
    from ..images import read_image

    paths = sorted((config.run_dir / "figures").glob("images_*.png"))
    if not paths:
        import polars as pl

        line = f"none was logged: train.image_every is {config.train.image_every}"
        return Table(pl.DataFrame({"pictures": [line]}))
    step = int(paths[-1].stem.split("_")[1])
    shown = read_image(paths[-1])
    picture, axes = figure(
        f"Training crops at step {step:,}", height=min(5.6, 10 * shown.shape[0] / shown.shape[1])
    )
    axis = axes[0, 0]
    bare(axis)
    axis.imshow(shown)
    axis.set_anchor("W")
    third = shown.shape[0] / 3
    axis.set_yticks(np.arange(3) * third + third / 2, ["input", "restored", "target"])
    axis.tick_params(axis="y", length=0, labelcolor=INK, rotation=90)
    return picture


def checkpoints(config) -> Table:
    """Return a row a kept checkpoint: step, bytes of each part, and which link points at it."""
    import json

    import polars as pl

    from .. import checkpoint

    links = {n: checkpoint.linked(config.run_dir, n) for n in ("latest", "best")}
    rows = []
    for step in checkpoint.steps(config.run_dir):
        folder = checkpoint.folder(config.run_dir) / checkpoint.name_of(step)
        files = json.loads((folder / "state.json").read_text())["files"]
        sizes = {f"{n.split('.')[0]} (bytes)": f["bytes"] for n, f in files.items()}
        names = ", ".join(n for n, at in links.items() if at == step)
        rows.append({"step": step, **sizes, "link": names})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return Table(frame, f"{len(rows)} checkpoints, only what training changed")
