"""Small real runs: a folder of little pictures, a config on it, a process that trains.

Run as a script it trains the config in a JSON file, with the faults that the file names.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np


def write_pictures(folder: Path, count: int = 6, size: int = 48) -> Path:
    """Write small smooth random pictures, each of its own content."""
    import cv2
    from darkroom.images import write_image

    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        generator = np.random.default_rng(n)
        coarse = generator.random((6, 6, 3)).astype(np.float32)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        picture += 0.05 * generator.random((size, size, 1), dtype=np.float32)
        write_image(folder / f"picture_{n}.png", (picture.clip(0, 1) * 255).astype(np.uint8))
    return folder


def sections(root: Path, **override) -> dict:
    """Return the keywords of load_config for a run of seconds below `root`."""
    values = {
        "model.recipe": "one_step_gan",
        "model.size": "tiny",
        "loss.l2": 0.0,
        "loss.psnr": 1.0,
        "loss.ssim": 0.2,
        "loss.gan": 0.01,
        "optim.generator.lr": 1e-3,
        "optim.discriminator.lr": 2e-4,
        "optim.schedule.kind": "cosine",
        "optim.schedule.warmup": 1,
        "degradation.kind": "five_types",
        "data.source": "folder",
        "data.train": str(root / "pictures"),
        "data.crop_size": 32,
        "data.workers": 0,
        "train.effective_batch": 4,
        "train.micro_batch": 2,
        "train.steps": 8,
        "train.save_every": 3,
        "train.image_every": None,
        "train.grad_norm_every": None,
        "validation.every": 4,
        "validation.metrics": ["psnr_y", "ssim_y"],
        "validation.samples_per_type": 1,
        "paths.runs": str(root / "runs"),
        **override,
    }
    return {"base": None, "run": "small", "override": values}


def command(root: Path, *, faults: dict | None = None, run: str = "small", **override) -> list[str]:
    """Return the command line of a process that trains such a run."""
    job = sections(root, **override) | {"run": run}
    path = root / f"job_{abs(hash(json.dumps([job, faults], sort_keys=True)))}.json"
    path.write_text(json.dumps({"job": job, "faults": faults or {}}))
    return [sys.executable, __file__, str(path)]


def train_process(root: Path, *, timeout: float = 240, **options) -> subprocess.CompletedProcess:
    """Train in a process of its own and wait for it.

    It is forked by a server that has imported everything already: a process like any other, only
    begun seconds sooner.
    """
    arguments = command(root, **options)
    errors = Path(arguments[2]).with_suffix(".stderr")
    process = _forks().Process(target=_train_jobs, args=(arguments[2:], errors))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(arguments, timeout, stderr=errors.read_text())
    return subprocess.CompletedProcess(arguments, process.exitcode, "", errors.read_text())


@functools.cache
def _forks():
    """Return the context of the server that forks, begun here: it must find `preloaded`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    before, here = os.environ.get("PYTHONPATH"), str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, before)))
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    return context


def train_in_two(*commands: list[str]) -> None:
    """Train the jobs of these commands in two processes (gloo), one after the other.

    accelerate's own launcher starts a single process on a CPU, however many are asked for.
    """
    arguments = ["--standalone", "--nproc-per-node", "2", __file__, *(c[2] for c in commands)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _train_jobs(paths: list[str], errors: Path) -> None:
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    train_jobs(paths)


LOSSES = ("loss/", "loss_by_degradation/", "logits/", "lr/", "grad_norm/")


def losses(run_dir: Path) -> list[dict]:
    """Return the columns of train.jsonl that must not depend on interruptions."""
    rows = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k in ("step", "images") or k.startswith(LOSSES)}
        for row in rows
    ]


def final_weights(run_dir: Path) -> dict[str, bytes]:
    """Return the files of the latest checkpoint, by name: bit for bit comparable."""
    latest = run_dir / "checkpoints" / "latest"
    return {p.name: p.read_bytes() for p in sorted(latest.glob("*.safetensors"))}


def kill_at_call(number: int) -> None:
    """Kill this process at the n-th write, flush or rename of the checkpoint and run files."""
    from safetensors import torch as safetensors_torch

    calls = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    safetensors_torch.save_file = counted(safetensors_torch.save_file)
    Path.write_text = counted(Path.write_text)


def train_jobs(paths: list[str]) -> None:
    """Train the jobs in these JSON files, one after the other."""
    import torch

    torch.set_num_threads(1)
    for path in paths:
        train_job(json.loads(Path(path).read_text()))


def train_job(document: dict) -> None:
    """Train one job; faults that it names stay for those after it."""
    faults = document["faults"]
    if "kill_at_call" in faults:
        kill_at_call(faults["kill_at_call"])
    os.environ |= faults.get("environment", {})
    from darkroom import data, launch
    from darkroom.config import load_config

    config = load_config(**document["job"])
    if "kill_at_sample" in faults:
        taken = data.TrainingSet.__getitem__
        seen = [0]

        def killing(self, key):
            seen[0] += 1
            if seen[0] == faults["kill_at_sample"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return taken(self, key)

        data.TrainingSet.__getitem__ = killing
    launch.train(config)


if __name__ == "__main__":
    train_jobs(sys.argv[1:])
