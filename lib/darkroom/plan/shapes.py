"""A recipe in full size without storage: shapes on PyTorch's meta device, and its batches."""
# B batch, H height, W width

from __future__ import annotations


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


def batch(recipe, config, count: int, size: tuple[int, int], start: int = 0, device=None):
    """Return `count` samples of (3, *size) as the loader gives them, their numbers unset.

    Draws are the recipe's own, by shape. `start` is the first position.
    """
    import torch

    from ..batch import Batch, Sample

    prompt, names = config.data.prompt, [""] * count
    sample = Sample(*torch.empty(2, 3, *size, device="meta"), prompt, "Blur", "", 0)
    draws = recipe.draw(sample, torch.Generator().manual_seed(0))
    return Batch(
        lq=torch.empty(count, 3, *size, device=device),
        gt=torch.empty(count, 3, *size, device=device),
        prompts=[prompt] * count,
        degradations=names,
        images=names,
        positions=list(range(start, start + count)),
        draws={k: torch.empty(count, *v.shape, device=device) for k, v in draws.items()},
    )
