"""The networks that published guides train, in full size and without storage."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace

import torch
from darkroom.torchvision_ops import ensure_torchvision

LATE_ATTENTION = r"(mid_block|up_blocks\.[23])\..*\.(to_q|to_k|to_v|to_out\.0)"
LATE_BLOCKS = ("mid_block", "up_blocks.2", "up_blocks.3")
SVG_VOCABULARY, SVG_NEW_ROWS = 197_000, 197_000 - 151_936
TEXT_LAYERS = r"model\.language_model\.layers.*_proj"
VISION = SimpleNamespace(  # the image tower of Qwen2.5-VL-3B, in the words of a text model
    hidden_size=1280,
    intermediate_size=3420,
    num_hidden_layers=32,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=0,
)


@contextlib.contextmanager
def quiet():
    """Keep libraries from warning about casts that are meant."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def qwen(vocabulary: int = 151_936):
    """Return Qwen2.5-VL-3B on the meta device, with so many tokens."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": vocabulary}
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text |= {"tie_word_embeddings": True, "rope_parameters": rope}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    vision |= {"out_hidden_size": 2048, "patch_size": 14, "window_size": 112}
    vision |= {"fullatt_block_indexes": [7, 15, 23, 31]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def line_unet(widths=(128, 256, 512, 1024), side=512, device="meta"):
    """Return the pixel U-Net on noisy and blurred picture that the LineFuse guide trains."""
    ensure_torchvision()
    from diffusers import UNet2DModel

    with torch.device(device):
        return UNet2DModel(
            sample_size=side,
            in_channels=6,
            out_channels=3,
            block_out_channels=widths,
            layers_per_block=2,
            attention_head_dim=8,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * (len(widths) - 1),
            up_block_types=("AttnUpBlock2D",) * (len(widths) - 1) + ("UpBlock2D",),
        )


def with_adapters(network, rank: int, targets: str, unfrozen=()):
    """Freeze the network but for peft's adapters of that rank and what is `unfrozen`."""
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    with torch.device("meta"):
        inject_adapter_in_model(LoraConfig(r=rank, target_modules=targets), network)
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(unfrozen)):
            parameter.requires_grad_(True)
    return network


def next_dit(width: int, layers: int, heads: int, kv_heads: int, channels: int = 4):
    """Return diffusers' Lumina-Next NextDiT on the meta device."""
    ensure_torchvision()
    from diffusers import LuminaNextDiT2DModel

    with torch.device("meta"):
        return LuminaNextDiT2DModel(
            in_channels=channels,
            hidden_size=width,
            num_layers=layers,
            num_attention_heads=heads,
            num_kv_heads=kv_heads,
            cross_attention_dim=2048,
        )


def next_dit_parameters(
    width: int, layers: int, heads: int, kv_heads: int, channels: int = 4, copied: bool = False
) -> int:
    """Return NextDiT's parameters by its published layers; patch 2, captions of width 2048.

    `copied`: with the second query projection that diffusers gives to the attention on captions.
    """
    d, caption, patch = width, 2048, 4 * channels
    key = d // heads * kv_heads
    inner = 256 * -(-(8 * d // 3) // 256)
    c = min(d, 1024)
    attention = 2 * d * d + 2 * d * key + 2 * caption * key + 2 * d + 4 * key + heads
    block = attention + 3 * d * inner + 4 * d + caption + (c + 1) * 4 * d
    block += (d * d + 2 * d) * copied
    timestep, captions = (256 + 1) * c + (c + 1) * c, 2 * caption + (caption + 1) * c
    final = (c + 1) * d + (d + 1) * 2 * patch
    return layers * block + (patch + 1) * d + timestep + captions + final + d  # the pad token


def operations(run) -> float:
    """Return the TFLOP of `run()` as PyTorch counts them: matrix products, convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12
