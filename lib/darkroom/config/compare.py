"""What differs between the config a run was made with and the one at hand."""

from __future__ import annotations

from typing import Any

from .names import ConfigError, flat
from .resolved import Config

# may differ in the same run directory: none of them changes what was trained up to now
PERMITTED = (
    "base",
    "run",
    "paths.",
    "override.",
    "validation.",
    "restore.",
    "tracking.",
    "ablation.",
    "budget.",
    "data.workers",
    "data.prefetch",
    "train.extend",
)
HORIZON = ("train.steps", "train.hours", "train.images", "train.epochs")


def difference(stored: dict[str, Any], current: Config) -> list[str]:
    """Return a line for every key whose value forbids `current` to continue a run.

    `stored` is the run's `Config.to_dict()`. A key the stored one lacks counts at its default,
    so an upgrade refuses nothing. PERMITTED keys never count; a run goes on past its horizon with
    `train.extend`, because the learning rate is a function of the horizon.
    """
    before, now = flat(_completed(stored)), flat(current.to_dict())
    lines = []
    for key in sorted({*before, *now}):
        if before.get(key, ...) == now.get(key, ...) or key.startswith(PERMITTED):
            continue
        old = _shown(before[key]) if key in before else "absent"
        new = _shown(now[key]) if key in now else "absent"
        hint = " (to train longer, set this back and add train.extend)" if key in HORIZON else ""
        lines.append(f"{key}: {old} in the run, {new} now{hint}")
    return lines


def _completed(stored: dict[str, Any]) -> dict[str, Any]:
    try:
        return Config.from_dict(stored).to_dict()
    except ConfigError:  # another version's config: its keys over our defaults
        from .load import merge

        return merge(Config().to_dict(), stored)


def _shown(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
