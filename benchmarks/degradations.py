"""Time the degradations on one core, and hold the second-order pipeline against a direct one.

Run: OMP_NUM_THREADS=1 python benchmarks/degradations.py [--draws 200] [--write]
The draws are those of the seeds 0 .. 199 at 512 by 512, on photographs that ship with scikit-image;
both pipelines apply the same records. The table goes to results/degradations.md with --write.
"""

import argparse
import hashlib
import platform
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import real_esrgan_reference as reference  # noqa: E402
from darkroom.degradations import FIVE_TYPES, degrade, draw_severity, real_esrgan  # noqa: E402

SEEDS = range(200)
SIZE = 512
PHOTOGRAPHS = ("astronaut", "hubble_deep_field", "immunohistochemistry", "retina", "camera")
MIN_IMAGES_PER_SECOND = 10
MAX_PSNR_DIFFERENCE = 0.2  # dB


def photographs() -> list[np.ndarray]:
    """Load the middle 512 by 512 of each photograph, float32 RGB in [0, 1]."""
    import skimage.data

    images = []
    for name in PHOTOGRAPHS:
        image = np.atleast_3d(getattr(skimage.data, name)())
        image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
        top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
        crop = image[top : top + SIZE, left : left + SIZE]
        images.append(np.ascontiguousarray(crop).astype(np.float32) / 255)
    return images


def psnr_y(x: np.ndarray, y: np.ndarray) -> float:
    """PSNR of Y (BT.601, 16 to 235) after rounding to 8 bits, dB, at most 80."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    difference = (np.rint(x * 255.0) - np.rint(y * 255.0)) @ weights
    return 10 * np.log10(255**2 / max(np.mean(difference**2), 255**2 * 1e-8))


def second_order(images: list[np.ndarray], seeds: range) -> dict[str, float]:
    """Apply every seed's draws both ways; return rates, PSNR and the distance of the two."""
    seconds = {"fast": 0.0, "direct": 0.0}
    psnr, between, digest = {"fast": [], "direct": []}, [], hashlib.blake2b(digest_size=8)
    gt_distance = 0.0
    real_esrgan.degrade(images[0], np.random.default_rng(0))  # warm: loads scipy.special
    for seed in seeds:
        image, generator = images[seed % len(images)], np.random.default_rng(seed)
        start = time.perf_counter()
        draws = real_esrgan.draw((SIZE, SIZE), generator)
        fast, gt = real_esrgan.apply(image, draws)
        middle = time.perf_counter()
        slow, slow_gt = reference.apply(image, draws)
        seconds["direct"] += time.perf_counter() - middle
        seconds["fast"] += middle - start
        digest.update(repr([draws.resize1, draws.noise1, draws.quality1, draws.quality2]).encode())
        psnr["fast"].append(psnr_y(fast, gt))
        psnr["direct"].append(psnr_y(slow, slow_gt))
        between.append(psnr_y(fast, slow))
        gt_distance = max(gt_distance, float(np.abs(gt - slow_gt).max()))
    per_draw = np.subtract(psnr["fast"], psnr["direct"])
    return {
        "draws": len(seeds),
        "digest": digest.hexdigest(),
        "fast_images_per_second": len(seeds) / seconds["fast"],
        "direct_images_per_second": len(seeds) / seconds["direct"],
        "fast_psnr_y": float(np.mean(psnr["fast"])),
        "direct_psnr_y": float(np.mean(psnr["direct"])),
        "max_psnr_difference": float(np.abs(per_draw).max()),
        "min_psnr_between": float(min(between)),
        "max_gt_distance": gt_distance,
    }


def five_types(images: list[np.ndarray], num_draws: int = 60) -> list[str]:
    """Return a table row a type: milliseconds at 96 and 512 px, mean PSNR-Y untouched."""
    rows = []
    for kind in FIVE_TYPES:
        milliseconds, psnr = {}, []
        for size in (96, SIZE):
            times = []
            for seed in range(num_draws):
                image = np.ascontiguousarray(images[seed % len(images)][:size, :size])
                generator = np.random.default_rng(seed)
                severity = draw_severity((0.0, 1.0), generator)
                start = time.perf_counter()
                lq = degrade(image, kind, severity, generator)
                times.append(time.perf_counter() - start)
                if size == SIZE:
                    psnr.append(psnr_y(lq, image))
            milliseconds[size] = 1e3 * float(np.median(times))
        rows.append(
            f"| {kind} | {milliseconds[96]:.2f} | {milliseconds[SIZE]:.1f} | {np.mean(psnr):.1f} |"
        )
    return rows


def report(r: dict[str, float], rows: list[str]) -> str:
    """Write both tables as Markdown."""
    ratio = r["fast_images_per_second"] / r["direct_images_per_second"]
    difference = r["fast_psnr_y"] - r["direct_psnr_y"]
    lines = [
        "# Degradations on one core",
        "",
        f"`OMP_NUM_THREADS=1 python benchmarks/degradations.py --draws {r['draws']} --write`,"
        f" {cpu()}, OpenCV {cv2.__version__}, NumPy {np.__version__}, torch {torch.__version__}.",
        "",
        "## Real-ESRGAN, second order, 512 x 512, sharpened target included",
        "",
        f"{r['draws']} draws of the seeds {SEEDS.start} to {r['draws'] - 1} (digest"
        f" {r['digest']}) over {', '.join(PHOTOGRAPHS)}; both columns apply the same draws.",
        "",
        "| | darkroom | direct torch | |",
        "|---|---|---|---|",
        f"| images/s | {r['fast_images_per_second']:.1f} | {r['direct_images_per_second']:.2f}"
        f" | x {ratio:.1f} |",
        f"| mean LQ PSNR-Y against its gt, dB | {r['fast_psnr_y']:.3f} | {r['direct_psnr_y']:.3f}"
        f" | {difference:+.4f} (any one draw: at most {r['max_psnr_difference']:.4f}) |",
        "",
        f"The two LQ agree to at least {r['min_psnr_between']:.1f} dB, the two targets to"
        f" {r['max_gt_distance']:.1e}. Bars: {MIN_IMAGES_PER_SECOND} images/s,"
        f" {MAX_PSNR_DIFFERENCE} dB.",
        "",
        "## The five types, severity uniform in [0, 1]",
        "",
        "| type | ms at 96 x 96 | ms at 512 x 512 | PSNR-Y of the untouched result, dB |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def cpu() -> str:
    """Name the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    """Measure, print, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=len(SEEDS))
    parser.add_argument("--write", action="store_true", help="write results/degradations.md")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = photographs()
    rows = five_types(images)
    results = second_order(images, SEEDS[: arguments.draws])
    text = report(results, rows)
    print(text)
    if arguments.write:
        (HERE / "results" / "degradations.md").write_text(text)
    if results["fast_images_per_second"] < MIN_IMAGES_PER_SECOND:
        sys.exit(f"below the bar of {MIN_IMAGES_PER_SECOND} images/s")
    if abs(results["fast_psnr_y"] - results["direct_psnr_y"]) > MAX_PSNR_DIFFERENCE:
        sys.exit(f"further than {MAX_PSNR_DIFFERENCE} dB from the direct pipeline")


if __name__ == "__main__":
    main()
