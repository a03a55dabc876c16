"""What the same command again finds in a run directory: why the run was over, links left behind."""

from __future__ import annotations

from pathlib import Path

from . import checkpoint, selection, validate


def stopped_early(run_dir: Path, config, saved: int | None) -> tuple[str, str] | None:
    """Return why this run was over when it was saved at step `saved`: a rerun must not go on."""
    if config.train.early_stopping is None or saved is None:
        return None
    if not (run_dir / validate.FILE).exists():
        return None
    return selection.judge(validate.read(run_dir, "training"), config, saved)[1]


def mend_links(run_dir: Path, config, saved: int | None) -> None:
    """Finish what a kill cut short after a save: the links `latest` and `best`, the pruning."""
    if saved is None:
        return
    checkpoint.link(run_dir, "latest", saved)
    if (run_dir / validate.FILE).exists():
        best = selection.best_step(validate.read(run_dir, "training"), config)
        if best in checkpoint.steps(run_dir):
            checkpoint.link(run_dir, "best", best)
    checkpoint.prune(run_dir, config.train.keep_last)
