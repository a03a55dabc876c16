"""Pictures side by side: degraded, restored, target, with their numbers and a zoomed detail."""
# H height, W width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scores import latest
from .style import INK, MUTED, VERMILION, Picture, bare, figure, styled


@dataclass
class Triplet:
    """One restored image: arrays (H, W, 3) in [0, 1] and what the table says of it."""

    lq: np.ndarray
    restored: np.ndarray
    gt: np.ndarray
    name: str
    scores: dict[str, float]


def extremes(frame, number: int = 2, metric: str = "psnr_y"):
    """Return the rows of the last validation with the highest and lowest gain, best first.

    At most one row a degradation on either side, so that one type does not fill the figure.
    """
    import polars as pl

    gain = pl.col(metric) - pl.col(f"{metric}_input")
    rows = latest(frame).with_columns(gain.alias("gain")).sort("gain", "image", descending=True)
    best = rows.unique("degradation", keep="first", maintain_order=True).head(number)
    worst = rows.unique("degradation", keep="last", maintain_order=True).sort(
        "gain", descending=True
    )
    return pl.concat([best, worst.tail(min(number, len(rows) - len(best)))]).unique(
        maintain_order=True
    )


def restore(config, rows) -> list[Triplet]:
    """Restore the validation images of these rows again, with the same weights, seed and draws."""
    from ..validate import restore_items

    keys = [(r["image"], r["degradation"], r["draw"]) for r in rows.to_dicts()]
    pictures = restore_items(config, keys)
    return [
        Triplet(lq, restored, gt, f"{row['image']} · {row['degradation']}", row)
        for row, (lq, restored, gt) in zip(rows.to_dicts(), pictures, strict=True)
    ]


def protocol_rows(items: list[Triplet]) -> list[dict]:
    """Return every item's scores under the common protocols, for `figures.protocols`."""
    import torch

    from ..metrics import protocols

    def tensor(picture: np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()

    return [row for i in items for row in protocols(tensor(i.restored), tensor(i.gt))]


def detail(gt: np.ndarray, side: int) -> tuple[int, int]:
    """Return (top, left) of the square with the most contrast in its middle frequencies."""
    import cv2

    grey = cv2.cvtColor(gt.astype(np.float32), cv2.COLOR_RGB2GRAY)
    band = cv2.GaussianBlur(grey, (0, 0), 1) - cv2.GaussianBlur(grey, (0, 0), 4)
    energy = cv2.boxFilter(band**2, -1, (side, side), borderType=cv2.BORDER_REFLECT)
    half = side // 2
    inner = energy[half : grey.shape[0] - half or None, half : grey.shape[1] - half or None]
    return tuple(int(v) for v in np.unravel_index(np.argmax(inner), inner.shape))


def _landscape(picture: np.ndarray, shape: float) -> np.ndarray:
    """Cut the middle of a picture to width : height = `shape`, so that rows line up."""
    height, width = picture.shape[:2]
    wanted = min(width, int(height * shape)), min(height, int(width / shape))
    top, left = (height - wanted[1]) // 2, (width - wanted[0]) // 2
    return picture[top : top + wanted[1], left : left + wanted[0]]


@styled
def triplets(items: list[Triplet]) -> Picture:
    """Draw a row an item: input, restored and target, each with the same enlarged detail."""
    from matplotlib.patches import Rectangle

    first, last = (f"{_gain(i):+.1f} dB ({i.name})" for i in (items[0], items[-1]))
    title = f"Best and worst gains: {first} to {last}"
    picture, axes = figure(title, len(items), 6, height=1.62, width_ratios=[1.5, 1, 1.5, 1, 1.5, 1])
    picture.get_layout_engine().set(w_pad=0.03, h_pad=0.04)
    for row, item in enumerate(items):
        whole = [_landscape(p, 1.5) for p in (item.lq, item.restored, item.gt)]
        side = max(32, min(whole[0].shape[:2]) // 5)
        top, left = detail(whole[2], side)
        for column, (shown, name) in enumerate(
            zip(whole, ("input", "restored", "target"), strict=True)
        ):
            full, zoom = axes[row, 2 * column], axes[row, 2 * column + 1]
            bare(full)
            bare(zoom)
            full.imshow(shown.clip(0, 1))
            frame = Rectangle((left, top), side, side, fill=False, edgecolor=VERMILION, linewidth=1)
            full.add_patch(frame)
            zoom.imshow(
                shown[top : top + side, left : left + side].clip(0, 1), interpolation="nearest"
            )
            if row == 0:
                full.set_title(name, fontsize=10)
            full.set_xlabel(_caption(item, name), fontsize=8, color=MUTED, labelpad=3, loc="left")
        axes[row, 0].set_ylabel(item.name.replace(" · ", "\n"), fontsize=8.5, color=INK)
    return picture


def _caption(item: Triplet, name: str) -> str:
    scores = item.scores
    if name == "target":
        return ""
    suffix = "_input" if name == "input" else ""
    text = f"{scores['psnr_y' + suffix]:.2f} dB · SSIM {scores['ssim_y' + suffix]:.3f}"
    if name == "restored":
        text += f" · {_gain(item):+.2f} dB"
    return text


def _gain(item: Triplet) -> float:
    return item.scores["psnr_y"] - item.scores["psnr_y_input"]


@styled
def previews(pictures: dict, step: int) -> Picture:
    """Draw the fixed training crops of `darkroom.preview`: input, restored, target."""
    lq, restored, gt = (np.asarray(pictures[k]) for k in ("lq", "restored", "gt"))
    number = len(lq)
    picture, axes = figure(f"Training crops at step {step:,}", 3, number, height=1.6)
    for row, (name, stack) in enumerate(
        zip(("input", "restored", "target"), (lq, restored, gt), strict=True)
    ):
        for column in range(number):
            axis = axes[row, column]
            bare(axis)
            axis.imshow(stack[column].transpose(1, 2, 0).clip(0, 1))
            if row == 0:
                axis.set_title(pictures["degradations"][column], fontsize=9, loc="center")
        axes[row, 0].set_ylabel(name, fontsize=9, color=INK)
    return picture
