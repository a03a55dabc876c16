"""Static memory of a run: its weights, gradients, optimizer and EMA, counted without allocating.

The recipe is built on PyTorch's meta device, so full-size models are counted in seconds and no
weight file is needed. Activations are not static and not counted here.
"""

from __future__ import annotations

GIB = 2**30
STATE_FLOATS = {"adamw": 2, "rmsprop": 1}  # float32 values an optimizer keeps for each parameter


def build_on_meta(config):
    """Return the configured recipe on the meta device: shapes without storage.

    Only what holds weights goes there. Numbers that a constructor computes and reads back (a noise
    schedule, a list of drop rates from linspace) stay on the CPU, where they can be read.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from .. import recipes

    storage = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}

    class Shapes(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func in storage and kwargs.get("device") is None:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with Shapes():
        recipe = recipes.build(config)
    for module in recipe.modules.values():
        module.to("meta")  # small constants that were written out number by number
    return recipe


def static(config):
    """Return a polars frame, a row a module of the recipe and a last one for the total.

    Columns: `module`, `phase` (what trains it, null when frozen), `parameters`, `trained`, and in
    GiB `weights`, `gradients`, `optimizer`, `ema`, `total`. Gradients, optimizer state and EMA are
    float32 and exist for what is trained; the EMA covers the first phase.
    """
    import polars as pl

    recipe = build_on_meta(config)
    phases = recipe.phases(config)
    rows = []
    for name, module in recipe.modules.items():
        own = {f"{name}.{key}": p for key, p in module.named_parameters()}
        held = [*own.values(), *module.buffers()]
        phase = next((p for p in phases if own.keys() & p.parameters.keys()), None)
        trained = [] if phase is None else [p for n, p in own.items() if n in phase.parameters]
        count = sum(p.numel() for p in trained)
        states = STATE_FLOATS[config.optim.for_phase(phase.name).name] if phase else 0
        averaged = count if phase is phases[0] and config.train.ema_decay else 0
        row = {
            "module": name,
            "phase": phase.name if phase else None,
            "parameters": sum(p.numel() for p in own.values()),
            "trained": count,
            "weights": sum(t.numel() * t.element_size() for t in held) / GIB,
            "gradients": sum(p.numel() * p.element_size() for p in trained) / GIB,
            "optimizer": 4 * states * count / GIB,
            "ema": 4 * averaged / GIB,
        }
        rows.append(row)
    parts = ["weights", "gradients", "optimizer", "ema"]
    frame = pl.DataFrame(rows, schema_overrides={"phase": pl.String})
    frame = frame.with_columns(pl.sum_horizontal(parts).alias("total"))
    numeric = [c for c, t in frame.schema.items() if t.is_numeric()]
    total = frame.select(pl.lit("total").alias("module"), *[pl.col(c).sum() for c in numeric])
    return pl.concat([frame, total], how="diagonal")
