"""Memory that cannot be traced, counted: 8-bit and 4-bit weights, 8-bit moments, the CPU's share.

All of it is arithmetic on parameter shapes, and `analytic` says so. Activations, the CUDA context,
an EMA and temporaries are not in a tier; `decoder_activations` counts those of one kind of network.
"""
# M values that are trained or frozen, r rank, T tokens, h width, i inner width, V vocabulary

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .memory import GIB

NF4_BLOCK, NF4_SECOND_BLOCK = 64, 256  # QLoRA, arXiv 2305.14314 §3; bitsandbytes' defaults too
ADAM8_BLOCK, ADAM8_SMALLEST = 256, 4096  # bitsandbytes: smaller tensors keep 32-bit moments
LANES, LINE_CODE = 16, 128 / 130  # of a PCI Express slot, from generation 3 on
PCIE_GTS = {"3.0": 8, "4.0": 16, "5.0": 32}  # 10**9 transfers a second and lane (PCI-SIG)

COLUMNS = ["tier", "trained", "weights", "gradients", "optimizer", "total", "host", "transfer"]
COLUMNS += ["analytic", "note"]
MASTER = "weights and gradients 2 bytes, master and moments 12: ZeRO, arXiv 1910.02054 §3.1"
PURE = "no master: an update below 2**-8 of its weight is rounded away"
ZERO_OFFLOAD = "2 bytes a value on the card, 14 on the host: ZeRO-Offload, arXiv 2101.06840"
BLOCKS = "two of the largest block at a time; its weights come twice a micro batch"
ADAPTERS = "adapters and what is unfrozen in float32; no gradients for the rest"


@dataclass(frozen=True)
class Full:
    """A way to train everything: bytes a value on the card, on the host and over the bus."""

    name: str
    weights: float
    gradients: float
    optimizer: float | None  # None: 8-bit moments, whose size depends on the tensor
    note: str
    host: float = 0.0
    transfer: float = 0.0
    blockwise: bool = False  # only two of the largest block are on the card


FULL = (
    Full("full, fp32", 4, 4, 8, "also under autocast, whose casts come on top"),
    Full("full, fp32, 8-bit Adam", 4, 4, None, "moments in blocks of 256, arXiv 2110.02861"),
    Full("full, bf16 with fp32 master", 2, 2, 12, MASTER),
    Full("full, bf16", 2, 2, 4, PURE),
    Full("full, bf16, 8-bit Adam", 2, 2, None, PURE),
    Full("full, optimizer on the CPU", 2, 2, 0, "master and moments on the host", 12, 4),
    Full("full, optimizer and gradients on the CPU", 2, 0, 0, ZERO_OFFLOAD, 14, 4),
    Full("full, everything on the CPU", 2, 2, 0, BLOCKS, 16, 6, blockwise=True),
)


def tiers(
    network: nn.Module,
    *,
    rank: int = 16,
    targets: str | None = None,
    unfrozen: Iterable[str] = (),
    added: int = 0,
):
    """Return a polars frame, a row a way to train `network`: what is resident between two steps.

    Columns: `tier`, `trained` (values), in GiB `weights`, `gradients`, `optimizer` and their
    `total` on the card, `host` (memory of the CPU), `transfer` (over the bus, a step of one micro
    batch), `analytic` (always True) and `note`. For the tiers with adapters: LoRA of `rank` on the
    linear layers and convolutions whose whole name matches the expression `targets`, by default
    the linear layers that a quantiser takes; `unfrozen` are parts of names of parameters that are
    trained beside them, and `added` counts new values such as embedding rows. The network may be
    on the meta device. Adapters that it already has are not counted. Raises ValueError where
    nothing matches.
    """
    import polars as pl

    base = {n: p for n, p in network.named_parameters() if ".lora_" not in n}
    rows = [_full(tier, network, base) for tier in FULL]
    rows += _adapted(network, base, rank, targets, tuple(unfrozen), added)
    frame = pl.DataFrame(rows)
    total = pl.sum_horizontal("weights", "gradients", "optimizer").alias("total")
    return frame.with_columns(total, analytic=pl.lit(True)).select(COLUMNS)


def fitting(frame, budget_gib: float, beside_gib: float = 0.0):
    """Return the frame with `needed` (total and what is `beside` it, GiB) and `fits`, as a bool.

    Give what is beside as activations, logits and overhead: the tiers do not know them.
    """
    import polars as pl

    frame = frame.with_columns(needed=pl.col("total") + beside_gib)
    return frame.with_columns(fits=pl.col("needed") <= budget_gib)


def transfer_seconds(gib: float, generation: str = "4.0") -> float:
    """Return the least seconds for so many GiB over a full PCI Express slot, one way: bytes / rate.

    The rate is the specification's own, 31.5 GB/s for generation 4.0; none is reached in practice.
    """
    if generation not in PCIE_GTS:
        raise ValueError(f"PCI Express {generation!r} is not known: {', '.join(PCIE_GTS)} are")
    return gib * GIB / (PCIE_GTS[generation] * 1e9 * LANES * LINE_CODE / 8)


# --- bytes of tensors -------------------------------------------------------------------------


def nf4_bytes(count: int, double: bool = False) -> int:
    """Return the bytes of so many values in NF4: a nibble each and a scale a block of 64.

    The scale is float32 (4.5 bits a value in all), or with `double` quantisation a byte and a
    float32 for 256 of them (4.127 bits). Tables shared by all values are left out.
    """
    blocks = math.ceil(count / NF4_BLOCK)
    scales = blocks + 4 * math.ceil(blocks / NF4_SECOND_BLOCK) if double else 4 * blocks
    return math.ceil(count / 2) + scales


def int8_bytes(weight: torch.Tensor) -> int:
    """Return the bytes of a linear layer's weight (out, in) in int8 with a float32 scale a row."""
    return weight.numel() + 4 * weight.shape[0]


def adam8_bytes(count: int) -> int:
    """Return the bytes of one tensor's two moments in 8 bits, with a float32 scale a block."""
    if count < ADAM8_SMALLEST:
        return 8 * count
    return 2 * (count + 4 * math.ceil(count / ADAM8_BLOCK))


def quantised(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that transformers and diffusers quantise, by name.

    Embeddings, norms, convolutions, biases and the layer that gives the logits stay as they are.
    """
    kept = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    output = getattr(network, "get_output_embeddings", lambda: None)()
    kept |= {id(output.weight)} if output is not None else set()
    return {
        name.replace(".base_layer", ""): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name and id(module.weight) not in kept
    }


def lora_parameters(network: nn.Module, rank: int, targets: str | None = None) -> int:
    """Return how many values LoRA of `rank` trains; for `targets` see `tiers`.

    A linear layer has r (in + out), a convolution r (in k k + out), as peft builds them.
    """
    chosen = quantised(network)
    if targets is not None:
        kinds = (nn.Linear, nn.Conv2d)
        named = {n.replace(".base_layer", ""): m for n, m in network.named_modules()}
        chosen = {
            n: m for n, m in named.items() if isinstance(m, kinds) and re.fullmatch(targets, n)
        }
    if not chosen:
        raise ValueError(
            f"no linear layer or convolution has a name that matches {targets!r} as a whole: give "
            "an expression over module names, such as r'.*\\.(to_q|to_v)'"
        )
    weights = [module.weight for module in chosen.values()]
    return sum(rank * (w.shape[0] + w.numel() // w.shape[0]) for w in weights)


# --- rows -------------------------------------------------------------------------------------


def _row(tier, trained, weights, gradients, optimizer, note, host=0.0, transfer=0.0) -> dict:
    sizes = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    sizes |= {"host": host, "transfer": transfer}
    gib = {name: value / GIB for name, value in sizes.items()}
    return {"tier": tier, "trained": trained, **gib, "note": note}


def _full(tier: Full, network: nn.Module, base: dict) -> dict:
    count = sum(p.numel() for p in base.values())
    held = 2 * largest_block(network) if tier.blockwise else count
    moments = tier.optimizer
    if moments is None:
        states = sum(adam8_bytes(p.numel()) for p in base.values())
    else:
        states = moments * count
    return _row(
        tier.name,
        count,
        tier.weights * held,
        tier.gradients * held,
        states,
        tier.note,
        tier.host * count,
        tier.transfer * count,
    )


def _adapted(network, base, rank, targets, unfrozen, added) -> list[dict]:
    missing = [part for part in unfrozen if not any(part in name for name in base)]
    if missing:
        raise ValueError(
            f"unfrozen {', '.join(map(repr, missing))}: no parameter's name has that in it; names "
            f"look like {next(iter(base))!r}"
        )
    thawed = {n for n in base if any(part in n for part in unfrozen)}
    loose = sum(base[n].numel() for n in thawed)
    trained = lora_parameters(network, rank, targets) + loose + added
    frozen = {n: p for n, p in base.items() if n not in thawed}
    linear = {id(m.weight) for m in quantised(network).values()}

    def size(of: Callable[[torch.Tensor], float]) -> float:
        return sum(of(p) if id(p) in linear else 2 * p.numel() for p in frozen.values())

    kinds = {
        "LoRA, bf16 base": lambda p: 2 * p.numel(),
        "LoRA, 8-bit base": int8_bytes,
        "LoRA, 4-bit base": lambda p: nf4_bytes(p.numel()),
        "LoRA, 4-bit base, double quantisation": lambda p: nf4_bytes(p.numel(), double=True),
    }
    notes = {"LoRA, 8-bit base": "LLM.int8(), arXiv 2208.07339; embeddings, convolutions bf16"}
    notes |= {n: "NF4; embeddings, norms and convolutions bf16" for n in kinds if "4-bit" in n}
    rows = [
        _row(
            name, trained, size(of) + 4 * trained, 4 * trained, 8 * trained,
            notes.get(name, ADAPTERS),
        )
        for name, of in kinds.items()
    ]  # fmt: skip
    whole = 2 * sum(p.numel() for p in frozen.values())
    block = 2 * 2 * largest_block(network)
    own = (block + 4 * trained, 4 * trained, 8 * trained)
    rows.append(_row("LoRA, bf16 base on the CPU", trained, *own, BLOCKS, whole, 2 * whole))
    return rows


def largest_block(network: nn.Module) -> int:
    """Return the values of the largest thing that is loaded at once: a block, or a layer of none.

    Blocks are the members of module lists that lie in no other module list.
    """
    sizes, inside = [0], set()
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in inside:
            inside |= {id(m) for m in module.modules()}
            sizes += [sum(p.numel() for p in block.parameters()) for block in module]
    for module in network.modules():
        if id(module) not in inside:
            sizes.append(sum(p.numel() for p in module.parameters(recurse=False)))
    return max(sizes)


# --- activations of a decoder-only transformer --------------------------------------------------


def decoder_activations(
    text,
    tokens: int,
    *,
    bytes_a_value: int = 2,
    recomputed: bool = False,
    logit_tokens: int | None = None,
) -> dict[str, float]:
    """Return GiB that a decoder-only transformer holds in a training step: layers, logits, peak.

    `text` has transformers' names (hidden_size, intermediate_size, num_hidden_layers,
    num_attention_heads, num_key_value_heads, vocab_size, head_dim where it is not hidden / heads):
    RMSNorm in float32, grouped attention in one kernel, a gated MLP, all weights trained. `tokens`
    is batch x padded length. `recomputed`: checkpointing of each layer, which keeps its input.
    `logit_tokens` are those whose logits exist at once, by default all.

    `layers` is what waits for the backward. `logits` is the loss at its largest, 12 T V: float32
    log-softmax, its gradient and the gradient of the logits (a caller that keeps the model's
    output holds the logits beside them). `peak` is layers and the larger of the logits and a
    layer's backward. After "Reducing Activation Recomputation in Large Transformer Models" (arXiv
    2205.05198), whose 34 s b h is a layer with LayerNorm, GELU and dropout; the terms here are what
    transformers' Llama and Qwen2 keep.
    """
    b, h, i = bytes_a_value, text.hidden_size, text.intermediate_size
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or h // heads
    query, key = heads * width, text.num_key_value_heads * width
    norm = 4 * h + 2 * b * h + 4  # float32 copy or residual, normalised, scaled; the root
    attention = b * 2 * (query + key) + 4 * heads  # query, key, value, result; log-sum-exp
    layer = 2 * norm + attention + 4 * b * i  # gate, its SiLU, up, their product
    kept = text.num_hidden_layers * (b * h if recomputed else layer) + norm
    logits = 12 * text.vocab_size * (tokens if logit_tokens is None else logit_tokens)
    backward = tokens * (2 * b * i + (layer if recomputed else 0))
    layers = tokens * kept
    sizes = {"layers": layers, "logits": logits, "peak": layers + max(logits, backward)}
    return {name: size / GIB for name, size in sizes.items()}
