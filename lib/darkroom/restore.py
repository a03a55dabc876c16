"""Restore a folder of pictures with a run's model, and go on where it stopped.

`python -m darkroom.restore IN OUT [--run RUN] [--step N | --checkpoint best|latest]
[--override restore.tile=512 …]`. OUT mirrors the sub-folders of IN; every picture becomes a PNG.
"""
# B batch, H height, W width

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from . import data, images, inference, precision
from .bar import bar as progress_bar
from .config import OVERRIDE_HELP, load_config, pair
from .tracking import Rows

MANIFEST = "restored.jsonl"  # in OUT: a row a finished picture
RESTORED, KEPT, FAILED = "restored", "kept", "failed"


def restore_folder(
    config,
    source,
    target,
    *,
    step: int | None = None,
    checkpoint: str | None = None,
    progress: bool = True,
):
    """Restore every picture below `source` into `target`; returns a polars frame, a row a picture.

    `source` is a folder tree or one picture, `target` a folder. The model is that of the run
    `config.run` (see `inference.load_run`), enlarged, tiled and colour-fixed as `config.restore`
    says. What an earlier call finished with the same input, checkpoint and settings is kept
    (status `kept`); a picture that does not decode or fit is `failed`, with the reason, and the
    others are done. Pictures below `target` are never inputs. Raises FileNotFoundError, ValueError
    or CheckpointError where there is nothing to restore, or nothing to restore with.
    """
    import polars as pl

    source, target = Path(source).expanduser(), Path(target).expanduser()
    names = _pictures(source, target)
    trained = inference.load_run(config, step, checkpoint)
    settings = _settings(trained)
    target.mkdir(parents=True, exist_ok=True)
    manifest = Rows(target / MANIFEST)
    manifest.mend()
    made = {row["output"]: row for row in manifest.read()}
    rows, bar = [], progress_bar(len(names), "restoring", "image", show=progress)
    for output, path in names.items():
        row = {"image": str(path), "output": output, "status": KEPT, "reason": ""}
        try:
            content = _read(path)
            wanted = {"input": _digest(content), "settings": settings}
            if not _is_made(made.get(output), wanted, target / output):
                started = time.perf_counter()
                picture = images.decode(content, path).array
                restored = restore_picture(trained, picture, _seed_key(path, source))
                (target / output).parent.mkdir(parents=True, exist_ok=True)
                images.write_image(target / output, restored)
                done = {"content": _digest((target / output).read_bytes())}
                about = {"step": trained.step, "weights": trained.weights}
                manifest.append({"output": output, **wanted, **done, **about}, sync=True)
                row |= {"status": RESTORED, "seconds": time.perf_counter() - started}
        except (images.UnreadableImage, TooLarge) as error:
            row |= {"status": FAILED, "reason": error.reason}
        rows.append(row)
        bar.update()
    bar.close()
    columns = ("image", "output", "status", "reason")
    return pl.DataFrame(rows, schema={**dict.fromkeys(columns, pl.String), "seconds": pl.Float64})


class TooLarge(ValueError):
    """A picture that this machine cannot hold; `reason` says what helps."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def restore_picture(trained: inference.Trained, picture: np.ndarray, key: str) -> np.ndarray:
    """Restore uint8 (H, W, 3) RGB; returns the same, `restore.upscale` times the size.

    The model's noise derives from `validation.seed` and `key`. Raises TooLarge.
    """
    config = trained.config
    lq = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W) in [0, 1]
    lq = enlarge(lq, config.restore.upscale)
    sample = data.Sample(lq[0], lq[0], config.data.prompt, "", key, 0)
    seed = int(data.rng(config.validation.seed, key, "restore").integers(2**31))
    try:
        restored = inference.restore_batch(trained.recipe, config, data.collate([sample]), seed)
    except torch.OutOfMemoryError:
        height, width = lq.shape[-2:]
        raise TooLarge(
            f"{width}x{height} pixels do not fit into the memory of {trained.device} with "
            f"restore.tile {config.restore.tile}: set a smaller one, such as 256"
        ) from None
    return (restored[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def enlarge(lq: torch.Tensor, factor: float) -> torch.Tensor:
    """Enlarge (B, 3, H, W) in [0, 1] bicubically by `factor` >= 1, to whole pixels."""
    if factor == 1:
        return lq
    height, width = (round(side * factor) for side in lq.shape[-2:])
    if height * width > images.PIXEL_LIMIT:
        raise TooLarge(
            f"{width}x{height} pixels after restore.upscale {factor:g}, more than the limit of "
            f"{images.PIXEL_LIMIT}: enlarge less"
        )
    size = (height, width)
    return torch.nn.functional.interpolate(lq, size, mode="bicubic").clamp(0, 1)


# --- what goes in, and what is done already -------------------------------------------------------


def _pictures(source: Path, target: Path) -> dict[str, Path]:
    """Return the pictures to restore: path below `target` -> input file."""
    from .index.trees import SUFFIXES

    if not source.exists():
        raise FileNotFoundError(f"there is no folder or picture {source.absolute()}")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: name the folder that the pictures go to")
    if source.is_dir():
        found = _tree(source, target)
    elif not target.is_dir() and target.suffix.lower() in SUFFIXES:
        raise ValueError(
            f"{target} is named like a picture: name the folder that {source.stem}.png goes to"
        )
    else:
        found = {f"{source.stem}.png": source}
    inputs = {path.resolve() for path in found.values()}
    for output, path in found.items():
        if target.resolve() / output in inputs:
            raise ValueError(
                f"{target / output} is an input, which the restored {path.name} would replace: "
                "name another folder for the restored pictures"
            )
    return found


def _tree(source: Path, target: Path) -> dict[str, Path]:
    """Return the pictures of a folder tree as `_pictures` does, without what an earlier call made.

    Two pictures of one folder and stem keep their suffix: a.jpg and a.png become a.jpg.png and
    a.png.png.
    """
    from .index.trees import SUFFIXES, list_folder

    root, home = source.resolve(), target.resolve()
    if root == home:
        raise ValueError(
            f"{target} is the folder of the inputs, which restored pictures would replace: "
            f"name another one, such as {target / 'restored'}"
        )
    earlier = {home / row["output"] for row in Rows(target / MANIFEST).read()}
    listing, found = list_folder(source.absolute()), {}
    for row in listing.rows:
        path = Path(row["path"])
        here = path.parent.resolve() / path.name
        if here in earlier or (home.is_relative_to(root) and here.is_relative_to(home)):
            continue
        output = f"{row['image']}.png"
        if output in found:
            raise ValueError(f"{path} and {found[output]} would both be written to {output}")
        found[output] = path
    if not found:
        raise ValueError(
            f"{source.absolute()} holds no picture to restore ({listing.num_found} files; pictures "
            f"end in {' '.join(sorted(SUFFIXES))})"
        )
    return found


def _seed_key(path: Path, source: Path) -> str:
    """Return the name that a picture's noise derives from: its path below `source`."""
    return path.name if source.is_file() else path.relative_to(source.absolute()).as_posix()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise images.UnreadableImage(path, error.strerror or str(error)) from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _settings(trained: inference.Trained) -> str:
    """Return a digest of all that a restored picture depends on beside its input."""
    config = trained.config
    values = config.to_dict()
    about = {
        "checkpoint": {k: v for k, v in trained.digests.items() if k != "optimizer.safetensors"},
        "weights": trained.weights,
        "seeds": [config.seed, config.validation.seed],
        "model": values["model"],
        "restore": values["restore"],
        "prompt": config.data.prompt,
        "dtype": str(precision.choose(config, trained.device).dtype),
    }
    return _digest(json.dumps(about, sort_keys=True).encode())


def _is_made(row: dict | None, wanted: dict, output: Path) -> bool:
    """Say whether an earlier call made this output of this input, and it is still what it was."""
    if row is None or any(row.get(key) != value for key, value in wanted.items()):
        return False
    return output.is_file() and _digest(output.read_bytes()) == row["content"]


# --- the command ----------------------------------------------------------------------------------


def run_config(run: str, override: dict):
    """Return the config of a run (its name, or its folder), with dotted keys set otherwise."""
    from .run import read_config

    where = {}
    if (Path(run) / "config.json").is_file():
        folder = Path(run).resolve()
        run, where = folder.name, {"paths.runs": str(folder.parent)}
    given = load_config(base=None, run=run, override={**override, **where})
    stored = read_config(given.run_dir)
    paths = {f"paths.{key}": str(value) for key, value in given.paths}
    return stored.with_changes({**override, **paths, "run": given.run})


def main(arguments: list[str] | None = None) -> int:
    """Restore; exit status 0 done, 1 refused or some picture failed, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.restore", description=__doc__)
    parser.add_argument("source", metavar="IN", help="a folder tree of pictures, or one picture")
    parser.add_argument("target", metavar="OUT", help="the folder for the restored pictures (PNG)")
    parser.add_argument("--run", default="tiny", help="the trained run: its name or its folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="the step whose checkpoint restores")
    which.add_argument("--checkpoint", choices=("best", "latest"), help="or the one of this name")
    parser.add_argument(
        "--override", nargs="*", default=[], type=pair, metavar="KEY=VALUE", help=OVERRIDE_HELP
    )
    parsed = parser.parse_args(arguments)
    from .checkpoint import CheckpointError

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & sets it to ignore
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            config = run_config(parsed.run, dict(parsed.override))
            frame = restore_folder(
                config, parsed.source, parsed.target, step=parsed.step, checkpoint=parsed.checkpoint
            )
    except KeyboardInterrupt:
        print("interrupted; what is finished is whole: run it again to go on", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, CheckpointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    counts = {status: (frame["status"] == status).sum() for status in (RESTORED, KEPT, FAILED)}
    for row in frame.filter(frame["status"] == FAILED).to_dicts():
        print(f"failed: {row['image']}: {row['reason']}", file=sys.stderr)
    listing = f"{counts[RESTORED]} restored, {counts[KEPT]} kept, {counts[FAILED]} failed"
    print(f"{listing}: {os.path.abspath(parsed.target)}")
    return 1 if counts[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
