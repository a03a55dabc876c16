"""CUDA's autocast policy for the fake accelerator: which operator computes in which precision."""

from __future__ import annotations

import weakref

import torch

NAME = "planner"  # of the device, see `device`
KEY = "AutocastPrivateUse1"


def _names(text: str) -> list[str]:
    return text.split()


# What CUDA's autocast does with each operator: ATen/autocast_mode.h of torch 2.13, in its order.
LOWER = _names("""
    _convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum
    mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
    _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention
""")
FLOAT32 = _names("""
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm
    group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa
""")
FLOAT32_RESULT = _names("""
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm
    linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList
""")
FLOAT32_NORM = {  # overloads that cannot be told a dtype -> those that can
    "norm.Scalar": "norm.ScalarOpt_dtype",
    "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype",
}
PROMOTE = _names("""
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
""")
casts: dict[int, tuple[weakref.ref, torch.Tensor]] = {}  # weight -> its cast, as in autocast


def register() -> list[torch.library.Library]:
    """Register the policy; it lasts as long as the libraries returned."""
    everything = torch.library.Library("_", "IMPL", KEY)
    everything.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", KEY)
    policies = ((LOWER, _lower), (FLOAT32, _float32), (FLOAT32_RESULT, _result), (PROMOTE, _widest))
    for names, policy in policies:
        for name in names:
            library.impl(name, policy(_overload(name)))
    for name, other in FLOAT32_NORM.items():
        library.impl(name, _norm(_overload(other)))
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        casts.clear()
        clear()

    torch.clear_autocast_cache = clear_both  # autocast calls it where its outermost block ends
    return [everything, library]


def _overload(name: str):
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def plain():
    """Return a context in which operators run without autocast."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))
    return torch._C._ExcludeDispatchKeyGuard(keys)


def _eligible(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == NAME
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def cast(value, dtype: torch.dtype):
    """Cast tensors, also inside lists; a weight in training is cast once an autocast block."""
    if isinstance(value, (list, tuple)):
        return type(value)(cast(v, dtype) for v in value)
    if not _eligible(value) or value.dtype == dtype:
        return value
    weight = (
        dtype == torch.get_autocast_dtype(NAME)
        and value.dtype == torch.float32
        and value.requires_grad
        and value.is_leaf
        and not value._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not weight:
        return value.to(dtype)
    found = casts.get(id(value))
    if found is None or found[0]() is not value:
        found = casts[id(value)] = (weakref.ref(value), value.to(dtype))
    return found[1]


def _with(operator, choose):
    def kernel(*args, **kwargs):
        dtype = choose(args)
        with plain():
            args = [cast(a, dtype) for a in args]
            return operator(*args, **{k: cast(v, dtype) for k, v in kwargs.items()})

    return kernel


def _lower(operator):
    return _with(operator, lambda args: torch.get_autocast_dtype(NAME))


def _float32(operator):
    return _with(operator, lambda args: torch.float32)


def _widest(operator):
    def choose(args):
        every = [x for a in args for x in (a if isinstance(a, (list, tuple)) else [a])]
        wide = any(_eligible(x) and x.dtype == torch.float32 for x in every)
        return torch.float32 if wide else torch.get_autocast_dtype(NAME)

    return _with(operator, choose)


def _result(operator):
    names = [argument.name for argument in operator._schema.arguments]

    def kernel(*args, **kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        if _eligible(args[0]) and given.get("dtype") is None:
            given["dtype"] = torch.float32
        with plain():
            return operator(**given)

    return kernel


def _norm(operator):
    names = [argument.name for argument in operator._schema.arguments]
    defaults = {k: v for k, v in {"p": 2, "keepdim": False}.items() if k in names}

    def kernel(*args, **kwargs):
        given = defaults | dict(zip(names, args, strict=False)) | kwargs
        given["dtype"] = torch.float32 if _eligible(args[0]) else args[0].dtype
        with plain():
            return operator(**given)

    return kernel
