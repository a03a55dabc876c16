"""What a position decides: the learning rate, the stages in force and the run's horizon."""

from __future__ import annotations

import math

PROBE_STEPS, PROBE_WARMUP = 20, 5  # timed steps that turn hours into a horizon; the first are not


def resolve(amount: int | float | str, horizon: int) -> int:
    """Turn steps or a share such as "5%" into steps of this horizon."""
    if isinstance(amount, str):
        return round(float(amount.rstrip("% ")) / 100 * horizon)
    return int(amount)


def horizon(config, num_images: int | None = None) -> tuple[int | None, str]:
    """Return the horizon in steps and its reason, by precedence steps > hours > images > epochs.

    None where only timed steps can tell (hours). `num_images` are the training images of the run.
    """
    train = config.train
    if train.steps is not None:
        return train.steps, "train.steps"
    if train.hours is not None:
        return None, f"train.hours {train.hours:g}: fixed after {PROBE_STEPS} timed steps"
    batch = train.effective_batch
    if train.images is not None:
        return math.ceil(train.images / batch), f"train.images {train.images:,} / {batch}"
    steps = math.ceil(train.epochs * num_images / batch)
    return steps, f"train.epochs {train.epochs:g} x {num_images} images / {batch}"


def lr_factor(schedule, base_lr: float, step: int, horizon: int) -> float:
    """Return the learning rate of optimizer step `step` (0-based) as a share of `base_lr`.

    Linear warm-up, then constant or half a cosine down to `min_lr` at the horizon (Loshchilov &
    Hutter 2017); past the horizon it stays where it ended.
    """
    warmup = resolve(schedule.warmup, horizon)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant" or base_lr == 0:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, horizon - warmup))
    floor = schedule.min_lr / base_lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def stage_changes(config, step: int, horizon: int) -> dict[str, object]:
    """Return the dotted keys that stages change at this step, with their values.

    Later stages win. During a stage's `ramp` its numbers move linearly from what was in force.
    """
    changes: dict[str, object] = {}
    order = sorted(config.stages.values(), key=lambda s: resolve(s.start, horizon))
    for stage in order:
        start = resolve(stage.start, horizon)
        if step < start:
            continue
        ramp = resolve(stage.ramp or 0, horizon)
        share = min(1.0, (step - start + 1) / ramp) if ramp else 1.0
        for key, target in stage.changes.items():
            number = isinstance(target, (int, float)) and not isinstance(target, bool)
            if share < 1 and number and key.startswith(("loss.", "optim.")):
                before = changes.get(key, value_of(config, key))
                changes[key] = before + share * (target - before)
            else:
                changes[key] = target
    return changes


def value_of(config, key: str):
    """Return the value of a dotted key; a phase without a section of its own has the defaults."""
    parts = key.split(".")
    if parts[0] == "optim" and parts[1] != "schedule":
        return getattr(config.optim.for_phase(parts[1]), parts[2])
    value = config
    for part in parts:
        value = getattr(value, part)
    return value


def boundaries(config, horizon: int) -> list[int]:
    """Return the steps at which a stage starts."""
    return sorted(resolve(s.start, horizon) for s in config.stages.values())
