"""The trivial baseline a trained model has to beat: each degradation's best colour correction."""
# N pixels

from __future__ import annotations

import numpy as np
import torch

from . import data, metrics


def fit_affine(pairs) -> np.ndarray:
    """Return the 4x3 matrix that maps [r, g, b, 1] of lq to gt best in the least squares sense.

    `pairs` yields (lq, gt) tensors (3, H, W) in [0, 1]; every pixel of every pair weighs the same.
    """
    power, product = np.zeros((4, 4)), np.zeros((4, 3))
    for lq, gt in pairs:
        inputs, target = _rows(lq), gt.reshape(3, -1).T.double().numpy()
        power += inputs.T @ inputs
        product += inputs.T @ target
    return np.linalg.lstsq(power, product, rcond=None)[0]


def apply_affine(matrix: np.ndarray, lq: torch.Tensor) -> torch.Tensor:
    """Return the corrected image (3, H, W) float32, clamped to [0, 1]."""
    corrected = torch.from_numpy((_rows(lq) @ matrix).T.astype(np.float32))
    return corrected.reshape(lq.shape).clamp(0, 1)


def _rows(image: torch.Tensor) -> np.ndarray:
    """Return [r, g, b, 1] of every pixel, (N, 4) float64."""
    values = image.reshape(3, -1).T.double().numpy()
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def best_affine(config, items):
    """Score the best global affine colour correction of each degradation; returns a frame.

    A row an item: image, degradation, draw, psnr_y_affine, ssim_y_affine, psnr_y_input. One 3x4
    matrix a degradation, fitted on the very pairs it is scored on, so it flatters this family of
    methods. `items` are `data.validation_items(config, samples)`.
    """
    import polars as pl

    rows = []
    for name in sorted({item.degradation for item in items}):
        chosen = [item for item in items if item.degradation == name]
        samples = (data.load_item(item, config) for item in chosen)
        matrix = fit_affine((sample.lq, sample.gt) for sample in samples)
        for item in chosen:
            sample = data.load_item(item, config)
            lq, gt = sample.lq[None], sample.gt[None]
            corrected = apply_affine(matrix, sample.lq)[None]
            rows.append(
                {
                    "image": item.image,
                    "degradation": name,
                    "draw": item.draw,
                    "psnr_y_affine": float(metrics.psnr_y(corrected, gt)),
                    "ssim_y_affine": float(metrics.ssim_y(corrected, gt)),
                    "psnr_y_input": float(metrics.psnr_y(lq, gt)),
                }
            )
    return pl.DataFrame(rows)


def gain(frame):
    """Return the mean PSNR-Y gain of `best_affine`'s frame over the input, a row a degradation."""
    import polars as pl

    gains = (pl.col("psnr_y_affine") - pl.col("psnr_y_input")).mean().alias("gain")
    return frame.group_by("degradation").agg(gains, pl.len().alias("n")).sort("degradation")
