"""What a forward keeps for its backward, by autograd's own hooks, on real tensors or on meta."""

from __future__ import annotations

import contextlib

import torch


def kept_bytes(network: torch.nn.Module, forward) -> int:
    """Run `forward()` and return the bytes of the storages it keeps, the network's own aside."""
    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held here, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


@contextlib.contextmanager
def one_kernel_attention():
    """Let attention on meta tensors be one kernel, as on a card: by default it is written out."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **more):
        if q.device.type != "meta":
            return plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **more)
        if attn_mask is not None:
            raise NotImplementedError("a mask is another kernel")
        if q.dtype in (torch.bfloat16, torch.float16):
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(q, k, v, dropout_p, is_causal, scale=scale)[0]
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(q, k, v, None, True, dropout_p, is_causal, scale=scale)[0]

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


def peak_bytes(run) -> int:
    """Return the peak of what `run()` adds, by the CPU allocator's own events."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
