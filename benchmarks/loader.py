"""Images a second of one loader, from a folder, a parquet table and shards of the same pictures.

Run: OMP_NUM_THREADS=1 python benchmarks/loader.py [--write]
The real training set and loader, without processes of its own and without the cache of decoded
pictures, so that every sample is read; files are in the system's cache. The three take turns, and
CPU seconds are compared within this one run; the table goes to results/loader.md with --write.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from darkroom import data, images, index, load_config, loader, shards
from darkroom.photographs import photograph_paths
from PIL import Image

HERE = Path(__file__).parent
SOURCES = ("folder", "parquet", "shards")
SIZES = {64: 1000, 512: 100}  # pixels a side -> pictures
BATCH, REPEATS = 8, 7
LEAST_RATIO = 0.9  # shards over folder, samples a second


def write_pictures(folder: Path, size: int, count: int) -> None:
    """Write windows of the embedded photographs, half JPEG and half PNG."""
    pictures = [images.read_image(path) for path in photograph_paths().values()]
    generator = np.random.default_rng(size)
    folder.mkdir(parents=True)
    for n in range(count):
        picture = pictures[n % len(pictures)]
        side = int(generator.integers(min(size, *picture.shape[:2]), min(picture.shape[:2]) + 1))
        y, x = (int(generator.integers(length - side + 1)) for length in picture.shape[:2])
        window = cv2.resize(picture[y : y + side, x : x + side], (size, size))
        path = folder / f"{n:05d}.{'jpg' if n % 2 else 'png'}"
        Image.fromarray(window).save(path, quality=92)


def samples_of(root: Path, source: str, size: int, kind: str):
    """Return the training samples of one source, and its config."""
    places = {"folder": "pictures", "parquet": "table.parquet", "shards": "sharded"}
    override = {
        "paths.data": str(root),
        "paths.runs": str(root / "runs"),
        "data.source": source,
        "data.train": places[source],
        "data.crop_size": min(size, 256),
        "degradation.kind": kind,
    }
    config = load_config(base=None, run="bench", override=override)
    frame = index.build_index(config, workers=1, progress=False)
    return index.samples(frame, "train"), config


def prepare(root: Path, size: int, count: int) -> None:
    """Write the same pictures as a folder, as a table of its paths, and as shards."""
    write_pictures(root / "pictures", size, count)
    paths = sorted(str(path) for path in (root / "pictures").iterdir())
    pl.DataFrame({"image_path": paths, "prompt": ""}).write_parquet(root / "table.parquet")
    _, config = samples_of(root, "folder", size, "none")
    frame = index.build_index(config, workers=1, progress=False)
    shards.write_shards(frame, root / "sharded", max_bytes=16 * 2**20, progress=False)


def read_all(samples) -> None:
    """Read the bytes of every picture once."""
    for path in samples["gt_path"]:
        images.read_bytes(path)


def load_all(samples, config) -> None:
    """Load one epoch of samples."""
    keys = [("network", n) for n in range(len(samples))]
    batches = [keys[n : n + BATCH] for n in range(0, len(keys), BATCH)]
    dataset = data.TrainingSet(samples, config)
    num = sum(len(batch.images) for batch in loader.load(dataset, batches, workers=0))
    assert num == len(samples)


def cpu_seconds(work) -> float:
    """Return the CPU seconds that `work` takes, once; other load does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(works: dict) -> dict[str, list[float]]:
    """Return the CPU seconds of every work, REPEATS times, the works by turns."""
    for work in works.values():
        work()  # warms the caches
    found = {name: [] for name in works}
    for number in range(REPEATS):
        order = list(works)[number % len(works) :] + list(works)[: number % len(works)]
        for name in order:
            found[name].append(cpu_seconds(works[name]))
    return found


def measure(root: Path, size: int, count: int) -> dict[str, tuple[dict, int]]:
    """Return what is done -> (source -> CPU seconds of every turn, samples)."""
    prepare(root, size, count)
    found = {}
    for kind in ("none", "five_types"):
        held = {source: samples_of(root, source, size, kind) for source in SOURCES}
        length = len(held["folder"][0])
        assert all(len(samples) == length for samples, _ in held.values())
        if kind == "none":
            reads = {s: lambda s=s: read_all(held[s][0]) for s in SOURCES}  # noqa: B023
            found["bytes alone"] = turns(reads), length
        loads = {s: lambda s=s: load_all(*held[s]) for s in SOURCES}  # noqa: B023
        what = "read, decode, crop" if kind == "none" else "the same and degrade (five_types)"
        found[what] = turns(loads), length
    return found


def report(results: dict[int, dict]) -> tuple[str, bool]:
    """Return the table and whether shards are as fast as they must be."""
    lines = [
        "| pictures | what is done | folder /s | parquet /s | shards /s | shards over folder |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    met = True
    for size, found in results.items():
        for what, (seconds, length) in found.items():
            speeds = [length / statistics.median(seconds[s]) for s in SOURCES]
            ratios = sorted(
                f / s for f, s in zip(seconds["folder"], seconds["shards"], strict=True)
            )
            ratio = statistics.median(ratios)
            met &= what == "bytes alone" or ratio >= LEAST_RATIO
            cells = [f"{size}x{size}", what, *(f"{s:,.0f}" for s in speeds)]
            cells.append(f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"- Samples a second of CPU time on one core, medians of {REPEATS} turns; the ratio is the "
        "median of those within a turn, with the least and the largest.",
        f"- Bar: where pictures are decoded, shards at least {LEAST_RATIO} of the folder.",
        "- Windows of the embedded photographs, half JPEG, half PNG: "
        + ", ".join(f"{count:,} of {size}x{size}" for size, count in SIZES.items())
        + ". Files in the system's cache on a local disk, decoded pictures not kept: what shards "
        "are for, few files instead of many on a network's or a spinning disk, is not in here.",
        f"- Python {platform.python_version()}, {platform.machine()}; loader in the process "
        "itself, so the numbers grow with its worker processes.",
    ]
    return "\n".join(lines), met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write results/loader.md")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    data.CACHE_BYTES = 0
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, count in SIZES.items():
            results[size] = measure(Path(folder) / str(size), size, count)
    table, met = report(results)
    print(table)
    if options.write:
        (HERE / "results" / "loader.md").write_text(f"# Loader\n\n{table}\n")
    if not met:
        sys.exit("a bar is missed")


if __name__ == "__main__":
    main()
