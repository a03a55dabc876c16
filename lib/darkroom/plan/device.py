"""An accelerator that computes nothing: fake tensors on it behave as on CUDA, without a GPU.

PyTorch's slot for out-of-tree devices (PrivateUse1) gets a device named `planner`, CUDA's autocast
policy and CUDA's choice of attention kernels. All of it is process-wide and rests on private
functions of PyTorch, so it belongs into a process of its own: see `trace`.
"""

from __future__ import annotations

import contextlib

import torch

from . import policy
from .policy import NAME, cast, plain

FLASH_HEAD = 256  # widest attention head that the flash kernel takes

_libraries: list[torch.library.Library] = []  # registrations live as long as these


def accelerator() -> torch.device:
    """Register the device, its autocast and its attention once; returns it."""
    if not _libraries:
        from torch.utils import backend_registration

        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        _libraries.extend(policy.register())
        _register_kernels()
        torch.nn.functional.scaled_dot_product_attention = _attention
        torch.nn.functional.group_norm = _group_norm
        torch._C._conv_determine_backend_memory_format = _convolution_order
    return torch.device(NAME, 0)


def cpu() -> torch.device:
    """Return the CPU, with the layouts of its real kernels."""
    torch.nn.functional.group_norm = _group_norm
    return torch.device("cpu")


class _Module:
    """What PyTorch asks of `torch.<device>`; there is one device and its generator is a dummy."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state, device=None) -> None:
        pass

    def device(self, index):
        return contextlib.nullcontext()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


# --- kernels ------------------------------------------------------------------------------------


def _register_kernels() -> None:
    """Claim a kernel for every operator that CPU and CUDA have one for beside its composition.

    Without one PyTorch would compose it on this device from smaller operators (silu's backward
    from five, with as many temporaries). No claimed kernel is ever called: fake tensors come first.
    """
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or not has(name, "CPU"):
            continue
        if has(name, "CompositeImplicitAutograd") and not has(name, "PrivateUse1"):
            library.impl(name.removeprefix("aten::"), _never)
    _libraries.append(library)


def _never(*args, **kwargs):
    raise AssertionError("a fake accelerator computes nothing")


# --- convolution and attention --------------------------------------------------------------------

_cpu_attention = torch.nn.functional.scaled_dot_product_attention


_plain_group_norm = torch.nn.functional.group_norm
_cpu_layouts = False


def follow_cpu(yes: bool) -> None:
    """Give results on the accelerator the layouts that a CPU's kernels give them, or CUDA's."""
    global _cpu_layouts
    _cpu_layouts = yes


def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    """Normalise in (B, C, H, W) order, as CUDA does: channels last is copied.

    So does a CPU for a single image, whose strides fake tensors take for channels last.
    """
    there = x.device.type == NAME
    x = x.contiguous() if there and not _cpu_layouts or len(x) == 1 else x
    if there and _cpu_layouts and weight is not None:
        return _CPUGroupNorm.apply(x, num_groups, weight, bias, eps)
    return _plain_group_norm(x, num_groups, weight, bias, eps)


class _CPUGroupNorm(torch.autograd.Function):
    """Keep the order of a CPU's kernel in the backward too: elsewhere autograd copies for it."""

    @staticmethod
    def forward(ctx, x, groups, weight, bias, eps):
        sizes = len(x), x.shape[1], x[0, 0].numel(), groups
        result, mean, deviation = torch.ops.aten.native_group_norm(x, weight, bias, *sizes, eps)
        ctx.save_for_backward(x, mean, deviation, weight)
        ctx.sizes = sizes
        return result

    @staticmethod
    def backward(ctx, gradient):
        needed = [ctx.needs_input_grad[k] for k in (0, 2, 3)]
        backward = torch.ops.aten.native_group_norm_backward
        found = backward(gradient, *ctx.saved_tensors, *ctx.sizes, needed)
        return found[0], None, found[1], found[2], None


def _convolution_order(x: torch.Tensor, weight: torch.Tensor, backend) -> torch.memory_format:
    """Keep channels last where input or weight has it, as cuDNN and oneDNN do."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if x.dim() in (4, 5):
        for tensor in (x, weight):
            if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
                return last
    return torch.contiguous_format


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Choose the kernel as CUDA does: flash in half precision without a mask, else efficient."""
    if query.device.type != NAME:
        return _cpu_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled(NAME):
        dtype = torch.get_autocast_dtype(NAME)
        query, key, value, attn_mask = (cast(x, dtype) for x in (query, key, value, attn_mask))
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(times, -3) for x in (key, value))
    half = query.dtype in (torch.bfloat16, torch.float16)
    with plain():
        if half and attn_mask is None and query.shape[-1] <= FLASH_HEAD:
            return _flash(query, key, value, dropout_p, is_causal, scale)
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale
        )[0]


def _flash(query, key, value, dropout_p, is_causal, scale):
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    if width % 8:  # the kernel wants multiples of 8 channels a head
        query, key, value = (
            torch.nn.functional.pad(x, (0, -width % 8)) for x in (query, key, value)
        )
    out = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, scale=scale
    )[0]
    return out[..., :width]
