"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on a frozen network, through peft."""

from __future__ import annotations

from torch import nn


def add(network: nn.Module, model, names: tuple[str, ...]) -> list[str]:
    """Freeze a network and add adapters as the config's `model` section says.

    `names` stand where `lora_modules` is null. A is Gaussian with standard deviation 1 / rank, B is
    zero: the first output is the base's. Without `lora_rank` the whole network is trained. Returns
    the paths of the adapted modules. Raises ValueError where none matches.
    """
    if model.lora_rank is None:
        return []
    from ..torchvision_ops import ensure_torchvision

    ensure_torchvision()
    from peft import LoraConfig, inject_adapter_in_model

    paths = select(network, model.lora_modules or names, model.lora_blocks)
    network.requires_grad_(False)
    settings = LoraConfig(
        r=model.lora_rank,
        lora_alpha=model.lora_alpha or model.lora_rank,
        lora_dropout=model.lora_dropout,
        init_lora_weights="gaussian",
        target_modules=paths,
    )
    inject_adapter_in_model(settings, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return paths


def select(network: nn.Module, names, blocks) -> list[str]:
    """Return the paths of the layers that end with one of `names` below one of `blocks`, or any."""
    paths = [
        path
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and any(path == n or path.endswith(f".{n}") for n in names)
        and (blocks is None or any(path == b or path.startswith(f"{b}.") for b in blocks))
    ]
    if not paths:
        raise ValueError(
            f"model.lora_modules {list(names)} below model.lora_blocks {blocks} match no linear or "
            f"convolution layer; blocks are {', '.join(n for n, _ in network.named_children())}"
        )
    return paths
