"""What notebook 03 shows before it starts: the plan, the learning rates, inputs and targets."""

from __future__ import annotations

from ..schedule import horizon
from .curves import schedule
from .samples import inputs_and_targets
from .style import Picture
from .tables import Table


def _samples(config):
    """Return the training samples: the run's own snapshot, or what a first start would take now.

    Looking writes no snapshot: until a run has started, its data may still be changed.
    """
    from .. import index
    from ..run import RunDirectory

    if (config.run_dir / "config.json").exists():
        return RunDirectory(config).samples("train")
    return index.samples(index.build_index(config, progress=False), "train")


def preflight(config) -> Table:
    """Return the table of what is about to run: device, precision, batch, horizon, and why.

    For several processes it is made in one of its own: they cannot share a GPU with this one.
    """
    import polars as pl

    if config.budget.processes > 1:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows = pool.submit(_rows, config).result()
    else:
        rows = _rows(config)
    frame = pl.DataFrame(rows, schema=["what", "value", "why"], orient="row")
    return Table(frame, f"About to train {config.run}")


def _rows(config) -> list[tuple[str, str, str]]:
    from ..plan import budget
    from ..plan.memory import build_on_meta
    from ..preflight import check_sizes, check_weights, report

    check_weights(config)
    samples = _samples(config)
    check_sizes(config, samples)
    rows = list(report(config, samples, build_on_meta(config), budget.check(config)))
    steps, reason = horizon(config, len(samples))
    seen = f"; {steps * config.train.effective_batch:,} images seen" if steps else ""
    rows.append(("horizon", f"{steps:,} steps" if steps else "not yet known", reason + seen))
    # the horizon has its row, in steps
    rows += [("note", "", n) for n in config.notes if not n.startswith("horizon")]
    return rows + [("warning", "", line) for line in config.warnings]


def rates(config) -> Picture | Table:
    """Draw the learning rate of every phase over the horizon; a line where it is not known yet."""
    import polars as pl

    from ..plan.memory import build_on_meta

    steps, reason = horizon(config, len(_samples(config)))
    if steps is None:
        return Table(pl.DataFrame({"learning rate": [reason]}))
    phases = build_on_meta(config).phases(config)
    return schedule(config, steps, {p.name: p.lr for p in phases})


def first_batch(config, number: int = 6) -> Picture:
    """Draw the first training samples of the first phase, input over target."""
    from .. import data
    from ..plan.memory import build_on_meta

    phase = build_on_meta(config).phases(config)[0]
    dataset = data.TrainingSet(_samples(config), config)
    number = min(number, config.train.effective_batch)
    return inputs_and_targets(data.collate([dataset[phase.name, n] for n in range(number)]), number)
