"""`python -m darkroom.forecast params/x.yaml [--run NAME] [--override a.b=c …]`: how long it takes.

Runs the first steps of the training in a folder of its own, prints the table, leaves nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .config import OVERRIDE_HELP, Config, load_config, pair
from .pace import FILE, SHORTEST
from .paths import write_atomically
from .progress import Quiet


class Once(Quiet):
    """Stops a training as soon as its forecast is there."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir

    def start(self, total: int, step: int) -> None:
        """Refuse a run that is over before it can be forecast; `total` steps are all of it."""
        super().start(total, step)
        if total <= SHORTEST and not (self.run_dir / FILE).exists():
            raise ValueError(
                f"a run of {total} steps is too short to forecast: it takes {SHORTEST + 1} or more"
            )

    def update(self, row: dict) -> None:
        """Ask for the stop, as a person would."""
        super().update(row)
        if (self.run_dir / FILE).exists():
            write_atomically(self.run_dir / "control", b"stop")


def _rehearse(path: Path) -> int:
    """Run the first steps of the config in this file, which is in a folder made for it."""
    from . import trainer

    config = Config.from_dict(json.loads(path.read_text()))
    try:
        trainer.train(config, Once(config.run_dir))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Print a run's forecast; exit status 0 done, 1 refused or failed."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.forecast", description=__doc__)
    parser.add_argument("base", nargs="?", help="a params file, or its name")
    parser.add_argument("--run", help="run name; the params file's own by default")
    parser.add_argument(
        "--override", nargs="*", default=[], type=pair, metavar="KEY=VALUE", help=OVERRIDE_HELP
    )
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)  # plan.time.forecast's own
    parsed = parser.parse_args(arguments)
    if parsed.config is not None:
        return _rehearse(parsed.config)
    if parsed.base is None:
        parser.error("name a params file: params/tiny.yaml or tiny")
    import polars as pl

    from .plan import cautions
    from .plan import time as plan_time

    options = {"run": parsed.run} if parsed.run else {}
    try:
        config = load_config(base=parsed.base, override=dict(parsed.override), **options)
        found = plan_time.forecast(config)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, float_precision=3):
        print(found.frame)
    print(found.line())
    for line in cautions.excesses(config, found):
        print(f"warning: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
