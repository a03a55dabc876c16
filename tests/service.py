"""A service in a process of its own, and plain HTTP to talk to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import small_runs
from darkroom import load_config, trainer

RUN = {
    "model.recipe": "conditional_diffusion",
    "model.prediction": "x0",
    "loss.l2": 1.0,
    "loss.psnr": 0.0,
    "loss.ssim": 0.0,
    "loss.gan": 0.0,
    "optim.denoiser.lr": 0.02,
    "train.ema_decay": 0.5,
    "train.steps": 4,
    "validation.every": 50,
}
ADAPTER = {"model.base": "base", "model.lora_rank": 2, "optim.denoiser.lr": 0.05}


def train(root: Path) -> None:
    """Train a base and the adapters one and two on it below `root`/runs, for seconds."""
    small_runs.write_pictures(root / "pictures")
    runs = {"base": {}, "one": ADAPTER, "two": ADAPTER | {"seed": 5, "model.lora_rank": 3}}
    for name, keys in runs.items():
        trainer.train(load_config(**(small_runs.sections(root, **(RUN | keys)) | {"run": name})))


class Service:
    """`python -m darkroom.serve` on the runs below `root`, on a free port of this machine."""

    def __init__(self, root: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        runs = root / "runs"
        command = [sys.executable, "-m", "darkroom.serve", "--run", str(runs / "base")]
        command += ["--adapter", f"one={runs / 'one'}", "--adapter", f"two={runs / 'two'}"]
        self.log = root / f"serve_{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *options], stdout=log, stderr=log
            )

    def __enter__(self) -> Service:
        for _ in range(600):
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.1)
            if self.process.poll() is not None:
                break
        self.process.kill()
        raise RuntimeError(self.log.read_text())

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def ask(
        self, method: str, path: str, headers: dict | None = None, body: bytes | None = None
    ) -> tuple[int, dict, bytes]:
        """Return an answer's status, headers (names in small letters) and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            # refused before all was sent, the answer may be there all the same
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()
        finally:
            connection.close()

    def health(self) -> dict:
        """Return what /health says."""
        return json.loads(self.ask("GET", "/health")[2])
