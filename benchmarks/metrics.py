"""Time PSNR and SSIM on one core against pyiqa, in one process, and say how far the values differ.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py [--write]

`--write` replaces benchmarks/results/metrics.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from darkroom import losses, metrics
from darkroom.torchvision_ops import ensure_torchvision
from skimage import data

RATIO_BAR, SSIM_BAR_MS = 50, 14.0
PSNR_TOLERANCE, SSIM_TOLERANCE = 1e-4, 1e-6


def milliseconds(function, repeats: int) -> float:
    """Return the median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def photograph(size: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a noisy photograph and the clean one, (1, 3, size, size) on the 8-bit grid."""
    clean = (
        torch.from_numpy(data.astronaut()[:size, :size].copy()).permute(2, 0, 1)[None].contiguous()
        / 255
    )
    noise = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return metrics.round_to_8bit((clean + noise).clamp(0, 1)), clean


def loss_milliseconds(loss, x: torch.Tensor, y: torch.Tensor, repeats: int) -> float:
    """Return the time of forward and backward."""

    def run():
        prediction = x.clone().requires_grad_(True)
        loss(prediction, y).sum().backward()

    return milliseconds(run, repeats)


def measure() -> list[dict]:
    """Return a row a quantity: ours, pyiqa's, ratio and difference."""
    ensure_torchvision()
    import pyiqa

    x, y = photograph()
    settings = {"test_y_channel": True, "color_space": "ycbcr", "device": "cpu"}
    rows = []
    for name, metric, tolerance, repeats in (
        ("PSNR-Y", "psnr", PSNR_TOLERANCE, 10),
        ("SSIM-Y", "ssim", SSIM_TOLERANCE, 5),
    ):
        ours = getattr(metrics, f"{metric}_y")
        theirs = pyiqa.create_metric(metric, **settings)
        row = {
            "what": name,
            "ours_ms": milliseconds(lambda f=ours: f(x, y), 40),
            "pyiqa_ms": milliseconds(lambda f=theirs: f(x, y), repeats),
            "difference": abs(float(ours(x, y)) - float(theirs(x, y))),
        }
        assert row["difference"] <= tolerance, row
        rows.append(row)
    differentiable = pyiqa.create_metric("ssim", as_loss=True, **settings)
    rows.append(
        {
            "what": "SSIM loss, forward + backward",
            "ours_ms": loss_milliseconds(losses.ssim, x, y, 20),
            "pyiqa_ms": loss_milliseconds(lambda a, b: 1 - differentiable(a, b), x, y, 3),
            "difference": None,
        }
    )
    return rows


def report(rows: list[dict]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# PSNR and SSIM against pyiqa",
        "",
        "One pair of 512x512, one core, medians of one process: "
        f"`OMP_NUM_THREADS=1 python benchmarks/metrics.py --write` ({platform.machine()}, "
        f"torch {torch.__version__}, OpenCV {cv2.__version__}).",
        "",
        "| | ours, ms | pyiqa, ms | ratio | difference |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = row["pyiqa_ms"] / row["ours_ms"]
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        lines.append(
            f"| {row['what']} | {row['ours_ms']:.2f} | {row['pyiqa_ms']:.1f} | {ratio:.1f} "
            f"| {difference} |"
        )
    ssim = next(r for r in rows if r["what"] == "SSIM-Y")
    ratio = ssim["pyiqa_ms"] / ssim["ours_ms"]
    met = ratio >= RATIO_BAR and ssim["ours_ms"] <= SSIM_BAR_MS
    lines += [
        "",
        f"Bar: SSIM-Y at least {RATIO_BAR} times faster than pyiqa, at most {SSIM_BAR_MS:.0f} ms: "
        f"{'met' if met else 'MISSED'}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    text = report(measure())
    print(text)
    if arguments.write:
        (Path(__file__).parent / "results" / "metrics.md").write_text(text)
    if "MISSED" in text:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
