"""What convolutions allocate inside themselves on a CPU, where oneDNN copies layouts.

Measured with torch 2.13 on AVX512, float32: tensors in (B, C, H, W) order are copied to blocks of
16 channels (8 without AVX512) and back, each C padded; in channels-last order only the weights are.
A tracker sees no more than an operator's results, and would miss a CPU's peak by up to 5 %. What
cuDNN takes on a GPU is not known here.
"""
# B batch, C channels, H height, W width

from __future__ import annotations

import math

import torch

FORWARD = torch.ops.aten.convolution.default
BACKWARD = torch.ops.aten.convolution_backward.default
SMALLEST = 20480  # values of a single image above which PyTorch takes oneDNN


def onednn(func, args: tuple) -> list[tuple[str, int]]:
    """Return what a convolution does inside: ("take" | "give", bytes) and ("result", index).

    A result is the index of the operator's output (0 for the only one), at the moment it is made;
    what is given back is as large as what was taken. [] for other operators and other kernels.
    """
    if func is FORWARD:
        x, weight, transposed = args[0], args[1], args[6]
        if transposed or not _reordered(x, weight):
            return []
        return _last(x, weight, None) if _is_last(x, weight) else _forward(x, weight, args)
    if func is BACKWARD:
        gradient, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
        if transposed or not _reordered(x, weight):
            return []
        if _is_last(x, weight):
            return _last(x, weight, mask)
        return _backward(gradient, x, weight, args[4], mask)
    return []


def _reordered(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether oneDNN computes this, and copies: float32, larger than 1x1, not tiny."""
    if x.dim() != 4 or x.dtype != torch.float32 or weight[0, 0].numel() == 1:
        return False
    grouped, wide = x.shape[1] != weight.shape[1], min(weight.shape[2:]) > 3
    return grouped or wide or len(x) > 1 or x.numel() > SMALLEST


def _lies_last(tensor: torch.Tensor) -> bool:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()


def _is_last(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return _lies_last(x) or _lies_last(weight)


def _block(channels: int) -> int:
    block = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
    return math.ceil(channels / block) * block


def _padded(shape) -> int:
    """Return the bytes of a (B, C, H, W) float32 tensor in blocks of channels."""
    return 4 * shape[0] * _block(shape[1]) * shape[2] * shape[3]


def _forward(x, weight, args) -> list[tuple[str, int]]:
    stride, padding, dilation = args[3], args[4], args[5]
    geometry = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
    source = 0 if x.shape[1] <= 3 else _padded(x.shape)
    result = _padded((x.shape[0], weight.shape[0], *sides))
    return [("take", source), ("take", result), ("give", source), ("result", 0), ("give", result)]


def _backward(gradient, x, weight, stride, mask) -> list[tuple[str, int]]:
    steps: list[tuple[str, int]] = []
    if mask[0]:
        source, result = _padded(gradient.shape), _padded(x.shape)
        steps += [("take", source), ("take", result), ("give", source), ("result", 0)]
        if max(stride) > 1:
            steps += [("take", 4 * x.numel()), ("give", 4 * x.numel())]
        steps.append(("give", result))
    if mask[1]:
        depthwise = weight.shape[1] == 1
        size = sum(_padded(t.shape) if depthwise else 4 * t.numel() for t in (x, gradient))
        if x.shape[1] <= 3:
            size -= 4 * x.numel() if not depthwise else 0
        steps += [("take", size), ("give", size)]
    return steps


def _last(x, weight, mask) -> list[tuple[str, int]]:
    """Return the steps in channels-last order; `mask` is None for the forward."""
    copies = [4 * t.numel() for t in (x, weight) if not _lies_last(t)]
    rows, columns = weight.shape[:2]
    taps = 4 * weight[0, 0].numel()
    blocked, both = taps * _block(rows) * columns, taps * _block(rows) * _block(columns)
    steps = [("take", size) for size in copies]
    if mask is None or mask[0]:
        steps += [("result", 0), ("take", blocked), ("give", blocked)]
    if mask is not None and mask[1]:
        steps += [("take", both), ("result", 1), ("give", both)]
    return steps + [("give", size) for size in copies]
