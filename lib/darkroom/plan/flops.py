"""Floating-point operations of a step, counted on shapes: no weights, no GPU, no storage."""
# B effective batch, H height, W width

from __future__ import annotations

import contextlib

from .shapes import batch, build_on_meta


def count(config) -> dict[str, float]:
    """Return the TFLOP of one turn of every phase in steady state, at the configured batch.

    Forward, backward and recomputation of the recipe's own losses as PyTorch's FlopCounterMode
    counts them (matrix products, convolutions, attention; a multiply-add is two). Optimizer, EMA
    and the data are left out; embeddings of prompts are taken from the cache.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .. import recipes, step

    recipe = build_on_meta(config)
    recipes.place(recipe, torch.device("meta"), torch.float32)
    own, micro = config.train.effective_batch, config.train.micro_batch
    whole = batch(recipe, config, own, (config.data.crop_size,) * 2, device="meta")
    batches = list(whole.parts(micro or own))
    found = {}
    for phase in recipe.phases(config):
        recipe.begin(phase)
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()
        with counter:
            step.accumulate(recipe, phase, batches, effective_batch=own)
        found[phase.name] = counter.get_total_flops() / 1e12
    return found


class _NoModules(contextlib.AbstractContextManager):
    """Stand in for the counter's module tracker, whose hooks refuse a backward in a forward."""

    parents = frozenset({"Global"})

    def __exit__(self, *error) -> None:
        return None
