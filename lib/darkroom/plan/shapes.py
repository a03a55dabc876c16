"""A recipe in full size without storage: shapes on PyTorch's meta device."""

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
