"""Load the service with many clients at once, time its steps, and send it hostile uploads.

    python benchmarks/serve.py [--hostile] [--clients 50] [--seconds 60] [--write]

Trains a tiny base and two adapters for seconds into a temporary folder (what they restore is worth
nothing here) and serves them in a process of its own. `--hostile` sends the hostile uploads alone;
`--write` replaces benchmarks/results/serve.md. Takes two minutes. Exit status 1 where an answer is
neither 200 nor 429, a hostile upload is not answered 4xx, or the service ends.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "serve.md"
sys.path.insert(0, str(HERE.parent / "tests"))

import hostile_uploads as hostile  # noqa: E402
import service  # noqa: E402

SIDE, TIMED_SIDE, NUM_TIMED, NUM_HOSTILE = 64, 128, 20, 200
ADAPTERS = ("none", "one", "two", "one:0.5,two:0.5")
PAUSE_SECONDS = 0.5  # after a 429: much sooner than Retry-After asks, to keep the queue full


class Client(threading.Thread):
    """Asks again and again until `end`; keeps status and seconds of every answer."""

    def __init__(self, running, number: int, end: float) -> None:
        super().__init__()
        self.running, self.number, self.end = running, number, end
        self.answers: list[tuple[int, float]] = []

    def run(self) -> None:
        for n in itertools.count(self.number):
            if time.monotonic() > self.end:
                return
            adapter = ADAPTERS[n % len(ADAPTERS)]
            body = hostile.form(hostile.picture(SIDE, seed=n), adapter=adapter)
            started = time.perf_counter()
            try:
                status = self.running.ask("POST", "/restore", hostile.FORM, body)[0]
            except OSError:
                status = 0
            self.answers.append((status, time.perf_counter() - started))
            if status != 200:
                time.sleep(PAUSE_SECONDS)


def resident_mib(running) -> float:
    return psutil.Process(running.process.pid).memory_info().rss / 2**20


def load(running, num_clients: int, seconds: float) -> tuple[list[str], bool]:
    """Return rows of the table, and whether nothing but 200 and 429 was answered."""
    end = time.monotonic() + seconds
    clients = [Client(running, n, end) for n in range(num_clients)]
    for client in clients:
        client.start()
    memory = []
    while any(client.is_alive() for client in clients):
        memory.append(resident_mib(running))
        time.sleep(1)
    answers = [answer for client in clients for answer in client.answers]
    took = sorted(1000 * seconds for status, seconds in answers if status == 200)
    refused = sum(status == 429 for status, _ in answers)
    other = len(answers) - len(took) - refused
    tenth = max(1, len(memory) // 6)
    early, late = statistics.mean(memory[tenth : 2 * tenth]), statistics.mean(memory[-tenth:])
    p50, p95 = (float(np.percentile(took, share)) for share in (50, 95))
    rows = [
        f"| {num_clients} clients for {seconds:g} s, {SIDE} px, 25 steps: restored | {len(took)} |",
        f"| … refused with 429 (the queue is full) | {refused} |",
        f"| … any other answer | {other} |",
        f"| … p50, p95 of the restored, waiting included | {p50:.0f} ms, {p95:.0f} ms |",
        f"| … resident memory: second to sixth part, last | {early:.0f} MiB, {late:.0f} MiB |",
    ]
    return rows, other == 0


def latency(running) -> list[str]:
    """Return rows of the time that one picture takes alone, the median of twenty."""
    rows, median = [], {}
    for steps in (25, 50):
        body = hostile.form(hostile.picture(TIMED_SIDE), num_inference_steps=str(steps))
        took = []
        for _ in range(NUM_TIMED):
            started = time.perf_counter()
            status = running.ask("POST", "/restore", hostile.FORM, body)[0]
            took.append(1000 * (time.perf_counter() - started))
            assert status == 200, status
        median[steps] = statistics.median(took)
        rows.append(f"| latency_ms@{steps}steps, {TIMED_SIDE} px, alone | {median[steps]:.0f} |")
    return [*rows, f"| 50 steps over 25 steps | {median[50] / median[25]:.2f} |"]


def uploads():
    """Yield name, path, headers and body of the hostile uploads: every kind, then cut files."""
    yield from ((name, *request) for name, request in hostile.requests().items())
    generator = np.random.default_rng(1)
    for n in itertools.count():
        kind = ("PNG", "JPEG", "WEBP")[n % 3]
        file = hostile.picture(96, kind, seed=n)
        file = file[: int(len(file) * generator.uniform(0.02, 0.9))]
        name = "../" * (n % 9) + "etc/passwd"
        yield f"a {kind} cut at {len(file)}", "/restore", hostile.FORM, hostile.form(file, name)


def attack(running) -> tuple[list[str], bool]:
    """Return rows of the table, and whether every upload got a 4xx and the service lives."""
    before, wrong = resident_mib(running), []
    for name, path, headers, body in itertools.islice(uploads(), NUM_HOSTILE):
        status = running.ask("POST", path, headers, body)[0]
        if not 400 <= status < 500:
            wrong.append(f"{name}: {status}")
    good = running.ask("POST", "/restore", hostile.FORM, hostile.form(hostile.picture()))[0]
    for line in wrong:
        print(f"not refused: {line}", file=sys.stderr)
    rows = [
        f"| {NUM_HOSTILE} hostile uploads: answered 4xx | {NUM_HOSTILE - len(wrong)} |",
        f"| … a good upload after them | {good} |",
        f"| … resident memory before, after | {before:.0f} MiB, {resident_mib(running):.0f} MiB |",
    ]
    return rows, not wrong and good == 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hostile", action="store_true", help="the hostile uploads alone")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows, well = [], True
    with tempfile.TemporaryDirectory() as folder:
        service.train(Path(folder))
        with service.Service(Path(folder)) as running:
            if not options.hostile:
                rows += latency(running)
                more, well = load(running, options.clients, options.seconds)
                rows += more
            more, refused = attack(running)
            rows, well = rows + more, well and refused and running.process.poll() is None
    cores = psutil.cpu_count()
    head = f"# The service under load\n\n{platform.machine()}, {cores} cores; `benchmarks/serve.py`"
    text = "\n".join([head, "", "| what | measured |", "|---|---|", *rows, ""])
    print(text)
    if options.write:
        RESULT.write_text(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
