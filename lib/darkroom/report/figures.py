"""Every figure and table of the notebooks, frames in, Figure or Table out; a file a subject."""

from __future__ import annotations

from .before import first_batch, preflight, rates
from .comparisons import differences, protocols, variants
from .costs import parameters, static_memory
from .curves import (
    gradient_norms,
    learning_rates,
    live,
    loss_by_degradation,
    losses,
    memory,
)
from .dataset import (
    contact_sheet,
    counts,
    problems,
    resolutions,
    summary,
)
from .outcome import checkpoints, newest_images
from .plans import choices, holders, pareto, phases, timeline
from .samples import degradations
from .scores import absent, bars, over_training
from .scores import summary as scores
from .tables import Table
from .times import bounds, forecast, horizons
from .triplets import extremes, previews, protocol_rows, restore, triplets

__all__ = [
    "Table",
    "absent",
    "bars",
    "bounds",
    "checkpoints",
    "choices",
    "contact_sheet",
    "counts",
    "degradations",
    "differences",
    "extremes",
    "first_batch",
    "forecast",
    "gradient_norms",
    "holders",
    "horizons",
    "learning_rates",
    "live",
    "loss_by_degradation",
    "losses",
    "memory",
    "newest_images",
    "over_training",
    "parameters",
    "pareto",
    "phases",
    "preflight",
    "previews",
    "problems",
    "protocol_rows",
    "protocols",
    "rates",
    "resolutions",
    "restore",
    "scores",
    "static_memory",
    "summary",
    "timeline",
    "triplets",
    "variants",
]
