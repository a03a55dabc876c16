"""`python -m darkroom.train params/x.yaml [--run NAME] [--override a.b=c …]`."""

from __future__ import annotations

import argparse
import sys

from .config import OVERRIDE_HELP, load_config, pair


def main(arguments: list[str] | None = None) -> int:
    """Train as configured; exit status 0 done, 1 refused or failed, 130 SIGINT, 143 SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.train", description=__doc__)
    parser.add_argument("base", help="a params file, or its name: params/tiny.yaml or tiny")
    parser.add_argument("--run", help="run name; the params file's own by default")
    parser.add_argument(
        "--override", nargs="*", default=[], type=pair, metavar="KEY=VALUE", help=OVERRIDE_HELP
    )
    parsed = parser.parse_args(arguments)
    from . import interrupts, launch
    from .checkpoint import CheckpointError
    from .data import SampleError

    options = {"run": parsed.run} if parsed.run else {}
    try:
        config = load_config(base=parsed.base, override=dict(parsed.override), **options)
        for warning in config.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        launch.train(config)
    except interrupts.Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except interrupts.Terminated as stop:
        print(stop, file=sys.stderr)
        return int(stop.code)
    except (ValueError, RuntimeError, OSError, CheckpointError, SampleError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
