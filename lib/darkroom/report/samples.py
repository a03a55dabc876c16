"""What the model sees: the first training batch, and what each degradation does to a picture."""
# B batch, H height, W width

from __future__ import annotations

import numpy as np

from .style import INK, MUTED, Picture, bare, figure, styled


@styled
def inputs_and_targets(batch, number: int = 6) -> Picture:
    """Draw the first pictures of a training batch, input over target, each with mean and std.

    `batch` has `lq` and `gt` (B, 3, H, W) in [0, 1], `degradations` and `images`.
    """
    shown = min(number, len(batch.degradations))
    lq, gt = batch.lq[:shown].float().cpu().numpy(), batch.gt[:shown].float().cpu().numpy()
    title = (
        f"What training sees: input mean {lq.mean():.3f} std {lq.std():.3f}, "
        f"target mean {gt.mean():.3f} std {gt.std():.3f} (values in [0, 1])"
    )
    picture, axes = figure(title, 2, shown, height=max(1.5, 8.6 / shown))
    for column in range(shown):
        for row, pictures in enumerate((lq, gt)):
            axis, values = axes[row, column], pictures[column]
            bare(axis)
            axis.imshow(values.transpose(1, 2, 0).clip(0, 1), vmin=0, vmax=1)
            text = f"mean {values.mean():.2f}  std {values.std():.2f}"
            axis.set_xlabel(text, fontsize=8, color=MUTED, labelpad=3)
        name = batch.degradations[column] or "?"
        axes[0, column].set_title(name, fontsize=9.5, loc="center")
    for row, name in enumerate(("input (LQ)", "target (GT)")):
        axes[row, 0].set_ylabel(name, fontsize=9, color=INK)
    return picture


@styled
def degradations(config, frame, number: int = 3) -> Picture:
    """Draw what each degradation looks like: a column a type, with the untouched input's PSNR-Y.

    Images degraded on the fly: one validation picture, a row a severity of the configured
    range. Pairs: the first `number` validation pairs of every type.
    """
    from ..index import samples

    rows = samples(frame, "val")
    if len(rows) == 0:
        rows = samples(frame, "train")
    paired = rows["lq_path"].is_not_null().all()
    columns = _pairs(rows, number) if paired else _severities(config, rows, number)
    title = "Validation pairs" if paired else "One picture, a row a severity"
    lines = max(len(c) for c in columns.values())
    picture, axes = figure(
        f"{title}: PSNR-Y of the untouched input", lines, len(columns), height=1.75
    )
    for axis in axes.flat:
        bare(axis)
    for column, (name, cells) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9.5, loc="center")
        for axis, (shown, text) in zip(axes[:, column], cells, strict=False):
            axis.imshow(_square(shown, 320).clip(0, 1))
            axis.set_xlabel(text, fontsize=8, color=MUTED, labelpad=2)
    return picture


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the central square of (H, W, 3), scaled down to at most `side`."""
    import cv2

    edge = min(picture.shape[:2])
    top, left = (picture.shape[0] - edge) // 2, (picture.shape[1] - edge) // 2
    square = picture[top : top + edge, left : left + edge]
    side = min(side, edge)
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def _decibel(lq: np.ndarray, gt: np.ndarray) -> str:
    import torch

    from ..metrics import psnr_y

    x, y = (torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1)[None] for p in (lq, gt))
    return f"{float(psnr_y(x, y)[0]):.1f} dB"


def _read(path: str) -> np.ndarray:
    from ..images import read_image

    return read_image(path).astype(np.float32) / 255


def _pairs(rows, number: int) -> dict[str, list]:
    columns: dict[str, list] = {}
    for name, part in rows.sort("degradation", "image").group_by(
        "degradation", maintain_order=True
    ):
        pairs = [(_read(r["lq_path"]), _read(r["gt_path"])) for r in part.head(number).to_dicts()]
        columns[name[0]] = [(lq, _decibel(lq, gt)) for lq, gt in pairs]
    return columns


def _severities(config, rows, number: int) -> dict[str, list]:
    from .. import data

    # the photograph with the most colour shows haze and low light best
    clean = max((_read(p) for p in rows["gt_path"]), key=lambda p: float(p.std(axis=2).mean()))
    low, high = config.degradation.severity
    severities = np.linspace(low, high, 2 * number + 1)[1::2]
    columns = {"clean": [(clean, f"severity {s:.2f} →") for s in severities]}
    for name in dict.fromkeys(data.degradations.types_of(config.degradation)):
        columns[name] = []
        for severity in severities:
            generator = data.rng(config.validation.seed, "figure", name)
            lq, gt, _ = data.degrade(clean, name, config.degradation, generator, float(severity))
            columns[name].append((lq, _decibel(lq, gt)))
    return columns
