"""Activation checkpointing: chosen modules recompute their activations in the backward pass.

Chen et al. 2016, arXiv 1604.06174. Gradients are the same; a second forward of these modules is the
price.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint


def recompute(
    module: nn.Module, setting: bool | str | list[str], blocks: Callable, what: str, dropout: bool
) -> list[str]:
    """Wrap submodules as `train.checkpointing.<what>` says; returns their paths.

    "on" takes the modules for which `blocks(module)` is true, a list those whose path ends with one
    of its names; of nested ones the outer. With `dropout` the recomputation draws the same numbers
    again. Raises ValueError for a name that no module has.
    """
    if setting == "off":
        return []
    chosen: list[str] = []
    for path, child in module.named_modules():
        if not path or any(path.startswith(f"{outer}.") for outer in chosen):
            continue
        if blocks(child) if setting == "on" else any(_ends_with(path, name) for name in setting):
            chosen.append(path)
    unmatched = (
        [] if setting == "on" else [n for n in setting if not any(_ends_with(p, n) for p in chosen)]
    )
    if unmatched or not chosen:
        known = [path for path, child in module.named_modules() if path and blocks(child)]
        raise ValueError(
            f"train.checkpointing.{what} names {unmatched or setting}, which no module of this "
            f"network is called; those it can recompute are {', '.join(known[:12]) or 'none'}"
            f"{' …' if len(known) > 12 else ''}. Name some of them, or write on or off"
        )
    for path in chosen:
        child = module.get_submodule(path)
        child.forward = _recomputed(child.forward, dropout)
    return chosen


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _recomputed(forward: Callable, dropout: bool) -> Callable:
    def run(*args, **kwargs):
        if not is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=dropout, **kwargs)

    return run
