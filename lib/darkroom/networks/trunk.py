"""CLIP's ConvNeXt as the frozen trunk of a discriminator: the visual tower alone, stage by stage.

Liu et al. 2022 (arXiv 2201.03545), weights by open_clip. The stages are called one after the other
here, so nothing depends on how a version of timm numbers its feature maps.
"""
# B batch, C channels, H height, W width

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .. import autocast
from . import hub
from .discriminator import TinyTrunk

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NUM_LEVELS = 3  # the last stage only feeds the embedding


class ConvNeXtTrunk(nn.Module):
    """Three maps and the image embedding of CLIP, as `TinyTrunk` gives them, at any size."""

    def __init__(self, name: str, weights: str | None, models: Path) -> None:
        from ..torchvision_ops import ensure_torchvision

        ensure_torchvision()
        from open_clip import get_model_config
        from open_clip.timm_model import TimmModel

        super().__init__()
        settings = _settings(name, get_model_config(name))
        vision = settings["vision_cfg"]
        self.embedding = settings["embed_dim"]
        self.visual = TimmModel(
            vision["timm_model_name"],
            self.embedding,
            image_size=vision["image_size"],
            pool=vision["timm_pool"],
            proj=vision["timm_proj"],
        )
        if weights is not None and not torch.empty(0).is_meta:  # a plan needs none
            self.visual.load_state_dict(_visual_weights(name, weights, models))
        self.visual.requires_grad_(False)
        self.channels = [info["num_chs"] for info in self.visual.trunk.feature_info[:NUM_LEVELS]]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> ConvNeXtTrunk:
        return super().train(False)  # no stochastic depth in a judge

    def forward(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return maps of sides H / 4, H / 8, H / 16 and the embedding, of images in [0, 1]."""
        trunk = self.visual.trunk
        with autocast.off(image):
            # frozen weights rule the dtype: under autocast every norm would be kept in float32
            dtype = next(trunk.parameters()).dtype
            x = ((image.to(self.mean.dtype) - self.mean) / self.std).to(dtype)
            x, maps = trunk.stem(x), []
            for stage in trunk.stages:
                x = stage(x)
                maps.append(x)
            embedding = self.visual.head(trunk.forward_head(trunk.norm_pre(x)))
        return maps[:NUM_LEVELS], embedding


def _settings(name: str, settings: dict | None) -> dict:
    """Return open_clip's settings of a ConvNeXt CLIP; another name is refused."""
    from open_clip import list_models

    if settings is None or not settings["vision_cfg"].get("timm_model_name", "").startswith(
        "convnext"
    ):
        known = ", ".join(sorted(n for n in list_models() if n.startswith("convnext")))
        raise ValueError(
            f"model.trunk {name!r} is no ConvNeXt that open_clip knows: it can be tiny, {known}"
        )
    return settings


def locate(name: str, weights: str | None, models: Path) -> Path | None:
    """Return the file of a trunk's weights; None where there are none or the hub will give them.

    Raises ValueError for a trunk that open_clip does not know, and for weights that are neither a
    file nor one of its tags.
    """
    from ..torchvision_ops import ensure_torchvision

    ensure_torchvision()
    from huggingface_hub import try_to_load_from_cache
    from open_clip import get_model_config, get_pretrained_cfg, list_pretrained_tags_by_model

    _settings(name, get_model_config(name))
    if weights is None:
        return None
    path = next((p for p in (Path(weights), Path(models) / weights) if p.is_file()), None)
    if path is not None:
        return path
    tags = list_pretrained_tags_by_model(name)
    if weights not in tags:
        raise ValueError(
            f"model.trunk_weights {weights!r} is neither a file nor a tag of {name}, whose tags "
            f"are {', '.join(tags) or 'none'}; or {_place(models)}"
        )
    repository = get_pretrained_cfg(name, weights)["hf_hub"].rstrip("/")
    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    if reason := hub.refusal(repository):
        raise ValueError(
            f"model.trunk_weights {weights!r} of {name} is not in the hub's cache and the hub did "
            f"not give {repository} ({reason}); {_place(models)}"
        )
    return None


def _place(models: Path) -> str:
    return (
        f"put its open_clip_model.safetensors below {Path(models).absolute()} and write the file's "
        "path there in model.trunk_weights; null takes random weights"
    )


def _visual_weights(name: str, weights: str, models: Path) -> dict[str, torch.Tensor]:
    """Return the visual tower's tensors of an open_clip checkpoint: a file, or a hub tag."""
    from open_clip import download_pretrained, get_pretrained_cfg

    path = locate(name, weights, models)
    if path is None:
        path = Path(download_pretrained(get_pretrained_cfg(name, weights)))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    state = {k.removeprefix("module."): v for k, v in state.items()}
    visual = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    if not visual:
        raise ValueError(
            f"model.trunk_weights: {path} holds no tensor named visual.…, so it is no checkpoint "
            f"of open_clip's {name}; the first names are {', '.join(list(state)[:3])}"
        )
    return visual


def build(model, models: Path) -> nn.Module:
    """Return the trunk that a config's `model` section names; "tiny" is the random stand-in."""
    if model.trunk == "tiny":
        return TinyTrunk()
    return ConvNeXtTrunk(model.trunk, model.trunk_weights, models)


def is_block(module: nn.Module) -> bool:
    """Tell whether activation checkpointing takes this module: a stage, or a layer of tiny's."""
    return type(module).__name__ == "ConvNeXtStage" or isinstance(module, nn.Conv2d)
