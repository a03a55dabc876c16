"""Time the index: the header pass, a repeated run, and the whole audit against PIL's decode alone.

Run: OMP_NUM_THREADS=1 python benchmarks/index.py [--write]
All files are made here, from the embedded photographs, in a temporary folder. Each bar is a ratio
of CPU times taken in this one run, in one process; the table goes to results/index.md with --write.
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
from darkroom import images, index, load_config
from darkroom.index.measure import measure_group
from darkroom.photographs import photograph_paths
from PIL import Image

HERE = Path(__file__).parent
NUM_SMALL, SMALL = 20_000, 192  # files, pixels a side
NUM_PAIRS, SIZE = 100, (640, 480)
HEADERS_PER_SECOND, REPEAT_RATIO, DECODE_RATIO = 8_000, 20, 0.5
REPEATS = 5


def windows(number: int, width: int, height: int):
    """Yield windows of the embedded photographs at several scales, (height, width, 3) uint8."""
    pictures = []
    for picture in (images.read_image(p) for p in photograph_paths().values()):
        least = max(width / picture.shape[1], height / picture.shape[0])
        for scale in (1.1 * least, 1.7 * least, 2.6 * least):
            size = (round(picture.shape[1] * scale) + 1, round(picture.shape[0] * scale) + 1)
            filtering = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            pictures.append(cv2.resize(picture, size, interpolation=filtering))
    generator = np.random.default_rng(0)
    for i in range(number):
        picture = pictures[i % len(pictures)]
        y = int(generator.integers(picture.shape[0] - height + 1))
        x = int(generator.integers(picture.shape[1] - width + 1))
        yield np.ascontiguousarray(picture[y : y + height, x : x + width])


def write_small_tree(folder: Path) -> list[Path]:
    """Write NUM_SMALL small pictures, half JPEG and half PNG, in a tree of folders."""
    paths = []
    for i, picture in enumerate(windows(NUM_SMALL, SMALL, SMALL)):
        path = folder / f"{i // 1000:02d}" / f"{i:05d}.{'jpg' if i % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=90, compress_level=1)
        paths.append(path)
    return paths


def write_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Write NUM_PAIRS blurred pairs of SIZE, alternating JPEG and PNG."""
    pairs = []
    for i, picture in enumerate(windows(NUM_PAIRS, *SIZE)):
        suffix = "jpg" if i % 2 else "png"
        pair = tuple(folder / side / f"{i:03d}.{suffix}" for side in ("LQ", "GT"))
        for path, array in zip(
            pair, (cv2.GaussianBlur(picture, (0, 0), 2.0), picture), strict=True
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path, quality=92)
        pairs.append(pair)
    return pairs


def seconds(work) -> float:
    """Return the CPU seconds that `work` takes, once; other load does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def decode_by_pil(pairs) -> None:
    """Decode every file with PIL and nothing else."""
    for pair in pairs:
        for path in pair:
            with Image.open(path) as picture:
                picture.load()


def audit(pairs) -> None:
    """Read, hash, decode, fingerprint and compare every pair, as the index does."""
    for lq, gt in pairs:
        measure_group([(str(gt), None), (str(lq), str(gt))])


def measure_headers_and_repeat(root: Path) -> dict:
    """Time the header pass, the first whole index run and the second, on the small tree."""
    paths = write_small_tree(root / "small")
    index.headers(paths)  # warms the file cache
    header = statistics.median(seconds(lambda: index.headers(paths)) for _ in range(REPEATS))
    config = load_config(
        base=None,
        run="bench",
        override={
            "data.source": "folder",
            "data.train": str(root / "small"),
            "paths.runs": str(root / "runs"),
        },
    )

    def build():
        frame = index.build_index(config, workers=1, progress=False)
        assert len(frame) == NUM_SMALL

    first = seconds(build)
    again = statistics.median(seconds(build) for _ in range(REPEATS))
    return {"header": header, "first": first, "again": again}


def measure_audit(root: Path) -> dict[str, tuple[float, float]]:
    """Time PIL's decode and the audit in turns, by format: name -> (decode, audit) seconds."""
    pairs = write_pairs(root / "pairs")
    sets = {
        "JPEG": [p for p in pairs if p[0].suffix == ".jpg"],
        "PNG": [p for p in pairs if p[0].suffix == ".png"],
        "both": pairs,
    }
    found = {}
    for name, chosen in sets.items():
        audit(chosen), decode_by_pil(chosen)
        turns = [
            (seconds(lambda: decode_by_pil(chosen)), seconds(lambda: audit(chosen)))  # noqa: B023
            for _ in range(REPEATS)
        ]
        found[name] = tuple(min(t[i] for t in turns) for i in (0, 1))
    return found


def report(times: dict, audits: dict) -> tuple[str, bool]:
    """Return the table and whether every bar is met."""
    headers, repeat = NUM_SMALL / times["header"], times["first"] / times["again"]
    rows = [
        ("header pass, files/s on one core, warm", f"{headers:,.0f}", f"{HEADERS_PER_SECOND:,}"),
        ("first whole run / second run", f"{repeat:.0f}×", f"{REPEAT_RATIO}×"),
    ]
    met = headers >= HEADERS_PER_SECOND and repeat >= REPEAT_RATIO
    for name, (decode, whole) in audits.items():
        bar = f"{DECODE_RATIO}×" if name == "both" else ""
        rows.append((f"audit speed / PIL decode speed, {name}", f"{decode / whole:.2f}×", bar))
    met &= audits["both"][0] / audits["both"][1] >= DECODE_RATIO
    decode, whole = (1e3 * s / (2 * NUM_PAIRS) for s in audits["both"])
    lines = [
        "| measure | found | bar |",
        "| --- | ---: | ---: |",
        *(f"| {a} | {b} | {c} |" for a, b, c in rows),
        "",
        f"- Small tree: {NUM_SMALL:,} files of {SMALL}x{SMALL}, half JPEG, half PNG.",
        "- First run: nothing cached, every file decoded, hashed and judged in one process: "
        f"{times['first']:.1f} s. Second run, nothing changed: {times['again']:.2f} s. The header "
        f"pass alone: {times['header']:.2f} s.",
        f"- Audit: {NUM_PAIRS} pairs of {SIZE[0]}x{SIZE[1]}: {whole:.2f} ms a file to read, hash, "
        "decode, fingerprint and compare LQ with GT, against "
        f"{decode:.2f} ms to decode it with PIL alone; best of {REPEATS} turns.",
        f"- Python {platform.python_version()}, {platform.machine()}, CPU seconds, files cached.",
    ]
    return "\n".join(lines), met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write results/index.md")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table, met = report(measure_headers_and_repeat(root), measure_audit(root))
    print(table)
    if options.write:
        (HERE / "results" / "index.md").write_text(f"# Index\n\n{table}\n")
    if not met:
        sys.exit("a bar is missed")


if __name__ == "__main__":
    main()
