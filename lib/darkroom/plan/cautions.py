"""What looks like a slip in a run's length: said where the horizon or the forecast is known."""

from __future__ import annotations

from .. import schedule
from ..rhythm import WARN_SHARE
from ..stopwatch import spoken

LONG_WARMUP = 0.2  # share of the run
FEW_STEPS = 1000  # optimizer steps from random weights; fewer hardly leave the beginning


def from_scratch(config) -> bool:
    """Tell whether training starts from random weights."""
    model = config.model
    if model.init_from:
        return False
    return model.recipe == "regression" or model.size == "tiny" or model.base is None


def cautions(config, horizon: int, num_images: int) -> list[str]:
    """Return what is likely a slip in a run of so many optimizer steps, with the way out."""
    train, lines = config.train, []
    warmup = schedule.resolve(config.optim.schedule.warmup, horizon)
    if warmup >= LONG_WARMUP * horizon > 0:
        lines.append(
            f"warm-up takes {warmup:,} of {horizon:,} steps ({warmup / horizon:.0%}): the learning "
            f'rate is hardly ever what was set. Give optim.schedule.warmup a share, such as "5%"'
        )
    if from_scratch(config) and horizon < FEW_STEPS:
        samples = horizon * train.effective_batch
        lines.append(
            f"{horizon:,} optimizer steps are few for weights that start at random (fewer than "
            f"{FEW_STEPS:,}): {samples:,} samples / effective batch {train.effective_batch}. Train "
            "longer, lower train.effective_batch, or start from weights (model.init_from)"
        )
    by_epochs = all(getattr(train, name) is None for name in ("steps", "hours", "images"))
    if config.data.sample_ratio < 1 and by_epochs:
        lines.append(
            f"data.sample_ratio {config.data.sample_ratio:g} leaves {num_images:,} images, and an "
            f"epoch is one pass over these: train.epochs {train.epochs:g} is {horizon:,} steps, "
            "less training, not faster training. Set train.steps or train.images to keep its amount"
        )
    return lines


def excesses(config, forecast) -> list[str]:
    """Return what of a forecast is beyond budget.hours, or dear, with the way out."""
    lines, hours = [], config.budget.hours
    middle, share = forecast.middle_seconds, forecast.share("validation")
    if hours is not None and middle > hours * 3600:
        over = middle - hours * 3600
        lines.append(
            f"the run is forecast to take {spoken(middle)}, {spoken(over)} more than budget.hours "
            f"{hours:g}: it will stop there with a checkpoint, its schedule unfinished. Raise "
            "budget.hours, or start a shorter run (train.hours fits the schedule to the time)"
        )
    if share > WARN_SHARE and config.validation.max_time_share is None:
        lines.append(
            f"validation is forecast to take {share:.0%} of the time: raise validation.every, "
            "lower validation.samples_per_type, or set validation.max_time_share"
        )
    return lines
