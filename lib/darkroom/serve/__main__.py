"""Restore pictures over HTTP with a base run and adapters that are chosen by request.

`python -m darkroom.serve --run BASE [--adapter NAME=RUN …] [--port 8000]`, then
`curl -F image=@blurred.png -F adapter=NAME localhost:8000/restore -o restored.png`.
It binds to this machine alone unless `--host` says otherwise, and knows no passwords: put a proxy
before it that does. SIGTERM finishes what is running.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings

from ..config import OVERRIDE_HELP, pair
from .limits import Limits

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
TILE = 512  # pixels a side where the run says auto: what a request holds in memory stays bounded
CONNECTIONS = 256


def _adapter(text: str) -> tuple[str, str]:
    name, found, run = text.partition("=")
    if not (name and found and run):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN")
    return name, run


def _positive(kind):
    def read(text: str):
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return read


def options() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.serve", description=__doc__)
    whole, number, own = _positive(int), _positive(float), Limits()
    add = parser.add_argument
    add("--run", required=True, help="the base run: its name or its folder")
    add(
        "--adapter", action="append", default=[], type=_adapter, metavar="NAME=RUN",
        help="an adapter run on that base, and what requests call it; may be repeated",
    )  # fmt: skip
    add("--host", default="127.0.0.1", help="the address it listens on")
    add("--port", type=int, default=8000, help="and the port")
    add("--steps", type=whole, default=25, help="num_inference_steps where a request has none")
    add("--max-steps", type=whole, default=own.steps)
    add("--max-upload-mib", type=number, default=own.upload_bytes / 2**20)
    add("--max-pixels", type=whole, default=own.pixels)
    add("--queue", type=whole, default=own.queue_length, help="requests that may wait")
    add("--seconds", type=number, default=own.request_seconds, help="for an answer")
    add("--upload-seconds", type=number, default=own.upload_seconds, help="for a request to arrive")
    add("--cache-mib", type=number, default=1024, help="merged weights that are kept")
    add("--tile", type=whole, default=TILE, help="pixels a side of a tile")
    add("--override", nargs="*", default=[], type=pair, metavar="KEY=VALUE", help=OVERRIDE_HELP)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit status 1 where it cannot begin."""
    parsed = options().parse_args(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"{', '.join(missing)} not installed: pip install 'darkroom[serve]'", file=sys.stderr)
        return 1
    from ..checkpoint import CheckpointError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            bank = _bank(parsed)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    _serve(parsed, bank)
    return 0


def _bank(parsed):
    from ..adapters import Bank
    from ..restore import run_config

    config = run_config(parsed.run, {"restore.tile": parsed.tile, **dict(parsed.override)})
    return Bank(config, dict(parsed.adapter), int(parsed.cache_mib * 2**20))


def _serve(parsed, bank) -> None:
    import uvicorn

    from . import app

    limits = Limits(
        upload_bytes=int(parsed.max_upload_mib * 2**20),
        pixels=parsed.max_pixels,
        steps=parsed.max_steps,
        queue_length=parsed.queue,
        upload_seconds=parsed.upload_seconds,
        request_seconds=parsed.seconds,
    )
    service = app.Service(bank, limits, min(parsed.steps, parsed.max_steps))

    class Server(uvicorn.Server):
        """Tells the worker of a signal at once, so that what waits does not hold up the end."""

        def handle_exit(self, sig, frame) -> None:
            service.worker.stopping = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app.build(service),
        host=parsed.host,
        port=parsed.port,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(limits.request_seconds + limits.upload_seconds) + 1,
        access_log=False,
        server_header=False,
    )
    Server(config).run()


if __name__ == "__main__":
    sys.exit(main())
