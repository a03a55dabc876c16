"""Every figure and table of the notebooks, frames in, Figure or Table out; a file a subject."""

from __future__ import annotations

from .costs import parameters, static_memory
from .curves import (
    gradient_norms,
    learning_rates,
    live,
    loss_by_degradation,
    losses,
    memory,
    schedule,
)
from .dataset import (
    contact_sheet,
    counts,
    degradations,
    inputs_and_targets,
    problems,
    resolutions,
    summary,
)
from .scores import absent, bars, differences, over_training, protocols
from .scores import summary as scores
from .tables import Table
from .triplets import extremes, previews, protocol_rows, restore, triplets

__all__ = [
    "Table",
    "absent",
    "bars",
    "contact_sheet",
    "counts",
    "degradations",
    "differences",
    "extremes",
    "gradient_norms",
    "inputs_and_targets",
    "learning_rates",
    "live",
    "loss_by_degradation",
    "losses",
    "memory",
    "over_training",
    "parameters",
    "previews",
    "problems",
    "protocol_rows",
    "protocols",
    "resolutions",
    "restore",
    "schedule",
    "scores",
    "static_memory",
    "summary",
    "triplets",
]
