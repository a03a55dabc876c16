"""How the phases of a rehearsal are called: a turn's own name, followed by one of these."""

from __future__ import annotations

LATER = ": accumulating"  # micro batches after the first, with gradients to add to
NORMS = ": norm of every term"
FIRST = ": first optimizer step"  # in which its states appear
OPTIMIZER = ": optimizer"
BETWEEN = "between"  # what happens between steps: pictures, validation
