"""Kill a `tiny` run with SIGKILL, again and again, and hold it against one that nobody touched.

Three ways: at random instants of `python -m darkroom.train`; at every system call that changes
something in the run directory (writes, fsyncs, renames, links, deletions; needs strace); and at
random instants of notebook 03 under papermill. After each kill the same command is given again.
Weights, links, loss columns and scores at the end must be the same bits. About an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
# Saves often, so that many kills fall into one; saving has no say in the numbers.
RANDOM = {"train.save_every": 20, "train.image_every": 30}
# Everything that writes happens in these few steps: saves, pruning, images, scores, best.
SHORT = {
    "train.steps": 3,
    "train.save_every": 1,
    "train.keep_last": 1,
    "train.image_every": 2,
    "train.grad_norm_every": 2,
    "validation.every": 2,
    "validation.samples_per_type": 1,
}
CHANGES = "write,pwrite64,writev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat"
CHANGES += ",symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
CLOCK = re.compile(r"seconds|time/|memory/|gpu/")  # the columns that may differ


def command(run_dir: Path, override: dict) -> list[str]:
    """Return the command that trains run_dir, or continues it."""
    pairs = [f"{key}={value}" for key, value in override.items()]
    pairs.append(f"paths.runs={run_dir.parent}")
    return [
        *(sys.executable, "-m", "darkroom.train", "tiny", "--run", run_dir.name),
        *("--override", *pairs),
    ]


def papermill(run_dir: Path, override: dict) -> list[str]:
    """Return the command that does the same through notebook 03."""
    override = override | {"paths.runs": str(run_dir.parent)}
    return [
        *(sys.executable, "-m", "papermill", "--no-progress-bar"),
        *("notebooks/03_train.ipynb", str(run_dir.parent / f"{run_dir.name}.ipynb")),
        *("-f", "params/tiny.yaml"),
        *("-y", json.dumps({"run": run_dir.name, "override": override})),
    ]


def start(words: list[str], log: Path) -> subprocess.Popen:
    """Start a command in a session of its own, from the repository's root."""
    with log.open("a") as file:
        return subprocess.Popen(
            words,
            cwd=ROOT,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def finish(words: list[str], log: Path) -> None:
    """Run a command to its end; raises RuntimeError with the log's end when it fails."""
    code = start(words, log).wait()
    if code:
        raise RuntimeError(f"exit status {code}: {' '.join(words)}\n{log.read_text()[-3000:]}")


def fingerprint(run_dir: Path) -> dict[str, object]:
    """Return everything of a run that must not depend on kills, by name."""
    import polars as pl

    found: dict[str, object] = {}
    folder = run_dir / "checkpoints"
    for path in sorted(folder.iterdir()):
        found[f"checkpoints/{path.name}"] = os.readlink(path) if path.is_symlink() else "folder"
        if not path.is_symlink():
            for file in path.glob("*.safetensors"):
                name = f"checkpoints/{path.name}/{file.name}"
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            state = json.loads((path / "state.json").read_text())
            found[f"checkpoints/{path.name}/positions"] = state["positions"]
    for line in (run_dir / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row["step"]
        name = f"train.jsonl step {step}"
        found[name + (" again" if name in found else "")] = {
            key: value for key, value in row.items() if not CLOCK.search(key)
        }
    scores = pl.read_parquet(run_dir / "validation.parquet")
    keys = ["step", "weights", "image", "degradation", "draw"]
    found["validation.parquet"] = scores.sort(keys).write_json()
    found["status"] = json.loads((run_dir / "status.json").read_text())["status"]
    return found


def compare(reference: dict[str, object], other: dict[str, object]) -> list[str]:
    """Return the names under which two fingerprints differ."""
    names = [*reference, *(name for name in other if name not in reference)]
    return [name for name in names if reference.get(name) != other.get(name)]


def kill(process: subprocess.Popen, whom: str) -> None:
    """Send SIGKILL to the process alone, to its session, or to the notebook's kernel under it."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if whom == "session":
            os.killpg(process.pid, signal.SIGKILL)
        elif whom == "kernel":
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.wait(60)  # papermill sees its kernel die
        else:
            process.kill()
    process.wait()


def at_random(words: list[str], log: Path, kills: int, seconds: float, whom: tuple) -> list[float]:
    """Kill a command `kills` times at seeded random instants, then let it end; return the instants.

    Raises RuntimeError when the command ends by itself before it was killed that often.
    """
    generator = random.Random(0)
    instants = []
    while len(instants) < kills:
        instant = generator.uniform(0, seconds)
        process = start(words, log)
        try:
            code = process.wait(instant)
        except subprocess.TimeoutExpired:
            kill(process, whom[len(instants) % len(whom)])
            instants.append(round(instant, 2))
            continue
        if code:
            raise RuntimeError(f"exit status {code} after a kill:\n{log.read_text()[-3000:]}")
        raise RuntimeError(f"the run ended after {len(instants)} kills: ask for fewer, or sooner")
    finish(words, log)
    return instants


def trace(run_dir: Path, override: dict) -> list[tuple[str, int, str]]:
    """Run once under strace; return (system call, its number among its kind, line) in run_dir."""
    record = run_dir.parent / f"{run_dir.name}.strace"
    strace = ["strace", "-y", "-s", "0", "-o", str(record), "-e", f"trace={CHANGES}"]
    finish([*strace, *command(run_dir, override)], record.with_suffix(".log"))
    counts: dict[str, int] = {}
    calls = []
    for line in record.read_text().splitlines():
        if name := re.match(r"(\w+)\(", line):
            counts[name[1]] = counts.get(name[1], 0) + 1
            if f"{run_dir}/" in line:
                calls.append((name[1], counts[name[1]], line))
    return calls


def at_call(run_dir: Path, override: dict, name: str, number: int) -> str:
    """Kill a run as it enters one system call, run it again to its end; return the call's line."""
    record = run_dir.parent / f"{run_dir.name}.strace"
    inject = ["-e", f"trace={CHANGES}", "-e", f"inject={name}:signal=KILL:when={number}"]
    strace = ["strace", "-y", "-s", "0", "-o", str(record), *inject]
    process = start([*strace, *command(run_dir, override)], record.with_suffix(".log"))
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # loader processes it left behind
    lines = record.read_text().splitlines()
    if "killed by SIGKILL" not in lines[-1]:
        raise RuntimeError(f"{name} number {number} did not come: {lines[-1]}")
    finish(command(run_dir, override), record.with_suffix(".log"))
    return next(line for line in reversed(lines) if line.startswith(name))


def report(title: str, wrong: dict[str, list[str]], cases: int) -> bool:
    """Print what differed; return whether all was well."""
    print(f"{title}: {cases - len(wrong)} of {cases} bit-identical", flush=True)
    for case, names in wrong.items():
        print(f"  {case}: {len(names)} differ: {', '.join(names[:5])}")
    return not wrong


def random_kills(
    folder: Path, make, kills: int, seconds: float | None, override: dict, whom
) -> list[str]:
    """Return what differs between an untouched run and one killed at random instants."""
    alone, killed = folder / "alone" / "run", folder / "killed" / "run"
    for run_dir in (alone, killed):
        run_dir.parent.mkdir(parents=True)
    started = time.monotonic()
    finish(make(alone, override), folder / "alone.log")
    took = time.monotonic() - started
    # late enough to reach past a save, early enough that the run does not end before its last kill
    seconds = seconds or 8 + 1.5 * took / kills
    print(f"untouched: {took:.0f} s; killed at instants up to {seconds:.0f} s", flush=True)
    print("killed at", *at_random(make(killed, override), folder / "log", kills, seconds, whom))
    return compare(fingerprint(alone), fingerprint(killed))


def call_kills(
    folder: Path, override: dict, every: int = 1, first: int = 0
) -> tuple[dict[str, list[str]], int]:
    """Kill at every n-th changing system call; return what differed by call, and how many."""
    alone = folder / "alone" / "run"
    alone.parent.mkdir(parents=True)
    calls = trace(alone, override)
    reference = fingerprint(alone)
    chosen, wrong = calls[first::every], {}
    print(f"{len(calls)} system calls change the run directory, {len(chosen)} tried", flush=True)
    for name, number, line in chosen:
        run_dir = folder / f"{name}_{number}" / "run"
        run_dir.parent.mkdir()
        try:
            hit = at_call(run_dir, override, name, number)
            differing = compare(reference, fingerprint(run_dir))
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            hit, differing = line, [f"{type(error).__name__}: {error}"]
        if differing:
            wrong[hit.replace(str(run_dir), "")] = differing
            print(f"  {hit}: {differing[:3]}", flush=True)
        else:
            shutil.rmtree(run_dir.parent)
    return wrong, len(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="at random instants")
    parser.add_argument("--seconds", type=float, help="the latest instant (fitted to the kills)")
    parser.add_argument("--steps", type=int, default=600, help="of the run killed at random")
    parser.add_argument("--every", type=int, default=1, help="of the system calls, every n-th")
    parser.add_argument("--first", type=int, default=0, help="and the first of them, from 0")
    parser.add_argument("--only", choices=("random", "calls", "papermill"))
    parser.add_argument("--keep", type=Path, help="folder for runs and logs")
    asked = parser.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="darkroom_kill_"))
    well, steps = True, {"train.steps": asked.steps}
    if asked.only in (None, "random"):
        whom = ("process", "session")
        wrong = random_kills(
            folder / "random", command, asked.kills, asked.seconds, RANDOM | steps, whom
        )
        well &= report("random instants", {"after all kills": wrong} if wrong else {}, 1)
    if asked.only in (None, "calls"):
        if not shutil.which("strace"):
            print("system calls: strace is missing (Debian: strace)")
            well = False
        else:
            tried = call_kills(folder / "calls", SHORT, asked.every, asked.first)
            well &= report("system calls", *tried)
    if asked.only in (None, "papermill"):
        few = RANDOM | {"train.steps": asked.steps // 2}
        wrong = random_kills(
            folder / "papermill",
            papermill,
            max(2, asked.kills // 3),
            asked.seconds,
            few,
            ("kernel", "session"),
        )
        well &= report("papermill", {"after all kills": wrong} if wrong else {}, 1)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
