"""The tail of a generator (decoder and losses) a few samples at a time, one loss after the other.

Between the U-Net's output and the loss lie the largest activations of a one-step restorer: pixels.
`by_parts` decodes a few samples, takes each loss's gradient at the image, frees it, and keeps only
the sum's gradient at the latent; the U-Net then has one backward for the whole batch. The gradient
is the same sum in another order. It needs no cross-sample operation in decoder or losses.
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

from collections.abc import Callable

import torch


def by_parts(
    latent: torch.Tensor,
    decode: Callable[[torch.Tensor, slice], torch.Tensor],
    terms: dict[str, Callable[[torch.Tensor, slice], torch.Tensor]],
    chunk: int,
    *,
    separate: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return every term, (B,), and the norm of its gradient at the image, (B,) and detached.

    `decode(z, part)` maps latents (b, C, H, W) to images, each term maps (images, part) to (b,);
    `part` is the slice of the batch, `chunk` its length. The terms may only be used with equal
    weights, as a sum; with `separate` each has a gradient of its own, for one more backward of the
    decoder a term.
    """
    names = list(terms)
    values = _Tail.apply(latent, decode, list(terms.values()), chunk, separate)
    count = len(names)
    norms = dict(zip(names, values[count:], strict=True))
    return dict(zip(names, values[:count], strict=True)), norms


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latent, decode, terms, chunk, separate):
        values, norms = [[] for _ in terms], [[] for _ in terms]
        gradients = [[] for _ in (terms if separate else terms[:1])]
        for start in range(0, len(latent), chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                z = latent[part].detach().requires_grad_()
                image = decode(z, part)
            at_image = []
            for n, term in enumerate(terms):
                leaf = image.detach().requires_grad_()
                with torch.enable_grad():
                    value = term(leaf, part)
                    total = value.sum()
                (gradient,) = torch.autograd.grad(total, leaf)
                values[n].append(value.detach())
                norms[n].append(gradient.flatten(1).norm(dim=1))
                if separate or not at_image:
                    at_image.append(gradient)
                else:
                    at_image[0] = at_image[0] + gradient
                del value, total, leaf, gradient
            for n, gradient in enumerate(at_image):
                keep = n < len(at_image) - 1
                (at_latent,) = torch.autograd.grad(image, z, gradient, retain_graph=keep)
                gradients[n].append(at_latent)
            del image, z, at_image
        ctx.save_for_backward(*(torch.cat(g) for g in gradients))
        outputs = [torch.cat(v) for v in [*values, *norms]]
        ctx.mark_non_differentiable(*outputs[len(terms) :])
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        total = None
        for gradient, weight in zip(ctx.saved_tensors, upstream, strict=False):
            weighted = gradient * weight.to(gradient.dtype).view(-1, 1, 1, 1)
            total = weighted if total is None else total + weighted
        return total, None, None, None, None
