"""The arithmetic of a turn: forward, backward, gradient sync, clip, optimizer, EMA.

Runs on real and on fake tensors alike, so nothing here asks a tensor for its value; whether the
losses are finite is the trainer's question, between `accumulate` and `apply`.
"""
# B micro batch

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from . import autocast, optim, sharding
from .batch import Batch


def accumulate(
    recipe,
    phase,
    batches: Iterable[Batch],
    *,
    effective_batch: int,
    dtype: torch.dtype = torch.float32,
    scaler=None,
) -> dict[str, torch.Tensor]:
    """Add the gradient of sum(terms) / effective_batch over all micro batches.

    Terms come unreduced, so accumulated equals one big batch equals several processes. Returns
    every term and log as one (samples,) detached tensor, `total` among them.
    """
    rows: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        with autocast.on(batch.lq.device, dtype):
            losses = recipe.losses(batch, phase)
        total = torch.stack(list(losses.terms.values())).sum(0)  # (B,)
        loss = total.sum() / effective_batch
        (loss if scaler is None else scaler.scale(loss)).backward()
        detached = {k: v.detach() for k, v in losses.terms.items()}
        for name, value in {**losses.logs, **detached, "total": total.detach()}.items():
            rows.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in rows.items()}


def synchronise(phase) -> None:
    """Sum the phase's gradients over all processes with one all-reduce.

    Those of a network that is split over them were summed in the backward pass.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    parameters = [phase.parameters[n] for n in sorted(phase.parameters)]
    if sharding.is_split(parameters[0]):
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter)


def gradient_norm(phase) -> torch.Tensor:
    """Return the L2 norm over all gradients of the phase, a scalar tensor."""
    gradients = [p.grad for p in phase.parameters.values() if p.grad is not None]
    return sharding.whole(torch.nn.utils.get_total_norm(gradients))


def apply(
    phase, optimizer, *, lr: float, at: int = 0, norm=None, clip=None, ema=None, scaler=None
) -> None:
    """Clip to `clip`, take the optimizer step at `lr`, drop the gradients, move the EMA on.

    `at` is the step, from which groups that joined late warm up.
    Gradients must be unscaled (`scaler.unscale_`) before `norm` was taken.
    """
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(phase.parameters.values(), clip, norm)
    optim.set_rates(optimizer, lr, at)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if ema is not None:
        ema.update()


def term_gradient_norms(recipe, phase, batch: Batch, parameters: dict, dtype=torch.float32):
    """Return `<module>_<term>` -> L2 norm of that weighted term's own gradient at these parameters.

    `parameters` maps a module's name to its parameters; takes one forward and a backward a term.
    """
    with autocast.on(batch.lq.device, dtype):
        terms = recipe.losses(batch, replace(phase, separate=True)).terms
    every = [p for group in parameters.values() for p in group]
    norms = {}
    for n, (term, value) in enumerate(terms.items()):
        keep = n < len(terms) - 1
        gradients = torch.autograd.grad(
            value.mean(), every, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
        parts = iter(gradients)
        for module, group in parameters.items():
            norms[f"{module}_{term}"] = torch.nn.utils.get_total_norm([next(parts) for _ in group])
    return norms
