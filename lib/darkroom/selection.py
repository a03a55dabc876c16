"""Which checkpoint is the best one, and when a run that stopped improving should end."""

from __future__ import annotations

from . import metrics


def metric_name(config, frame) -> str:
    """Return the deciding metric: `train.best`, else final_score where it is, else psnr_y."""
    if config.train.best:
        return config.train.best
    return "final_score" if "final_score" in frame.columns else "psnr_y"


def history(frame, metric: str) -> list[tuple[int, float]]:
    """Return (step, mean over degradations of their means), ascending, of a validation frame."""
    import polars as pl

    if metric not in frame.columns:
        raise ValueError(f"{metric!r} is not among the validation's columns {frame.columns}")
    means = (
        frame.group_by("step", "degradation")
        .agg(pl.col(metric).mean())
        .group_by("step")
        .agg(pl.col(metric).mean())
        .sort("step")
    )
    return list(means.iter_rows())


def means(frame) -> dict[str, float]:
    """Return `validation/<metric>` and `validation/<Type>/<metric>` of one validation's frame.

    Of every metric that was scored; the inputs' own scores are not among them.
    """
    import polars as pl

    scores = [name for name, kind in frame.schema.items() if kind == pl.Float64]
    names = [m for m in scores if not m.endswith("_input")]
    names = [m for m in names if frame[m].null_count() < len(frame)]
    types = frame.group_by("degradation").agg(pl.col(names).mean()).sort("degradation")
    values = {f"validation/{m}": types[m].mean() for m in names}
    for row in types.to_dicts():
        values |= {f"validation/{row['degradation']}/{m}": row[m] for m in names}
    return values


def _better(metric: str, new: float, old: float, min_delta: float = 0.0) -> bool:
    gain = old - new if metrics.lower_better(metric) else new - old
    return gain > min_delta


def best_step(frame, config) -> int | None:
    """Return the step of the best validation in a frame, the earliest of equals."""
    metric, best = metric_name(config, frame), None
    for step, score in history(frame, metric):
        if best is None or _better(metric, score, best[1]):
            best = (step, score)
    return best[0] if best else None


def judge(frame, config, step: int) -> tuple[bool, tuple[str, str] | None]:
    """Return whether `step` is the best validation so far, and ("early-stopped", reason) or None.

    A function of the recorded scores alone, so a resumed run judges alike.
    """
    import polars as pl

    frame = frame.filter(pl.col("step") <= step)
    metric = metric_name(config, frame)
    scores = history(frame, metric)
    if not scores:
        return False, None
    *earlier, (_, score) = scores
    best = all(_better(metric, score, old) for _, old in earlier)
    rule = config.train.early_stopping
    if rule is None:
        return best, None
    metric = rule.metric or metric
    reference, waited = None, 0
    for _, value in history(frame, metric):
        if reference is None or _better(metric, value, reference, rule.min_delta):
            reference, waited = value, 0
        else:
            waited += 1
    if waited < rule.patience:
        return best, None
    return best, (
        "early-stopped",
        f"{metric} did not improve by {rule.min_delta} in {waited} validations; its best was "
        f"{reference:.4f}. `checkpoints/best` holds the best weights",
    )
