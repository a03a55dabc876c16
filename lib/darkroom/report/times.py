"""Tables of the time plan: ways to say the horizon, least seconds on a card, the forecast."""

from __future__ import annotations

from .tables import Table

NO_CARD = "no card was named: set budget.gpu ('A100-40G', 'RTX 4090') to see what a step takes"


def horizons(config) -> Table:
    """List the ways to say how long the run is, which of them is in force, and what it means."""
    import polars as pl

    from ..plan import time
    from .before import _samples

    samples = _samples(config)
    frame = time.horizons(config, len(samples))
    wins = frame.filter(pl.col("wins"))
    steps = wins["steps"][0] if len(wins) else None
    said = "the horizon is fixed by timing the first steps" if steps is None else f"{steps:,} steps"
    frame = frame.with_columns((100 * pl.col("warmup_share")).alias("warm-up %")).select(
        "way", "set", "steps", "samples", "epochs", "warmup_steps", "warm-up %", "reason"
    )
    return Table(frame, f"How long: {said}", {"set": 1, "epochs": 1, "warm-up %": 0})


def bounds(config, plan, card) -> Table:
    """List what every phase costs on a card at least, once, and what a step does."""
    import polars as pl

    from ..plan import roofline

    if card is None or not card.tflops:
        return Table(pl.DataFrame({"time": [NO_CARD]}))
    found = roofline.phases(plan.traced, card)
    step = roofline.step(found, plan.traced.accumulation)
    rows = [{"phase": name, **_row(bound)} for name, bound in found.items()]
    rows.append({"phase": "a whole step", **_row(step)})
    hours = config.train.steps and config.train.steps * step.floor / 3600
    run = f"; {config.train.steps:,} steps at least {hours:.1f} h" if hours else ""
    title = f"A step takes at least {step.floor:.3g} s on {card.name}{run}; a probe tells the rest"
    return Table(pl.DataFrame(rows), title, {"kernels": 0, "s, launching": 3, "s, card": 3})


def _row(bound) -> dict[str, float]:
    from ..plan.roofline import LAUNCH_SECONDS

    return {
        "TFLOP": bound.tflop,
        "GiB moved": bound.gib_moved,
        "kernels": bound.launches,
        "s, card": bound.seconds,
        "s, launching": bound.launches * LAUNCH_SECONDS,
    }


def forecast(config, progress=None) -> Table:
    """Start the run for its first steps, here, and list what the whole of it will take.

    Only where the run can be started: on a GPU, or with a model of size tiny.
    """
    import polars as pl
    import torch

    from ..plan import time

    if not torch.cuda.is_available() and config.model.size != "tiny":
        reason = f"not here: model.size {config.model.size} on a CPU would take hours to probe"
        return Table(pl.DataFrame({"forecast": [reason]}))
    found = time.forecast(config, progress)
    frame = found.frame.with_columns((100 * pl.col("share")).alias("%")).drop("share")
    return Table(
        frame, found.line(), {"seconds_each": 3, "seconds": 1, "low": 1, "high": 1, "%": 0}
    )
