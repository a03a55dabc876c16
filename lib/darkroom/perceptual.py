"""VGG16 features for LPIPS and the VGG loss, and whether their weight files are here and whole.

No weights come with Darkroom and none are downloaded: a missing file is reported with the path
where it belongs. Images are (B, 3, H, W) in [-1, 1].
"""
# B batch, C channels, H height, W width

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

VGG16_FILE = "vgg16-397923af.pth"
LPIPS_HEADS = "LPIPS_v0.1_vgg-a78928a0.pth"  # pyiqa's name for the lpips package's v0.1/vgg.pth
STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)  # configuration D
EPSILON = 1e-10


class WeightsMissing(ValueError):
    """A network's weight file is not here or not whole; the message says where it belongs."""


@dataclass(frozen=True)
class WeightFile:
    """A weight file and what is wrong with it; `problem` is None when it can be used."""

    path: Path
    problem: str | None

    def require(self, use: str) -> Path:
        """Return the path; raise WeightsMissing when it cannot be used."""
        if self.problem:
            raise WeightsMissing(f"{use} cannot be computed: {self.problem}")
        return self.path


def hub_file(name: str, folder: str = "checkpoints") -> WeightFile:
    """Look for a weight file under torch.hub's folder and check the sha256 prefix in its name.

    The name ends in `-<hex>.pth`, as torchvision's and pyiqa's do; both accept a file put there by
    hand without looking at its content.
    """
    return checked(Path(torch.hub.get_dir()) / folder / name, hash_in_name(name))


def checked(path: Path, prefix: str) -> WeightFile:
    """Check that a file exists and that its sha256 starts with `prefix` ("" checks nothing)."""
    if not path.is_file():
        return WeightFile(path, f"{path.name} is not here; put it at {path}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(prefix):
        return WeightFile(
            path,
            f"{path} is damaged or another file: its sha256 starts with {found[:8]}, its name says "
            f"{prefix}; put the right file there",
        )
    return WeightFile(path, None)


def hash_in_name(name: str) -> str:
    """Return the sha256 prefix in a file name such as `vgg16-397923af.pth`; "" when it has none."""
    found = re.search(r"-([0-9a-f]{8,})\.(?:pth|pt)$", name)
    return found.group(1) if found else ""


def lpips_heads() -> WeightFile:
    """Look for the heads of LPIPS-VGG 0.1: the lpips package has them, or pyiqa's file."""
    spec = importlib.util.find_spec("lpips")
    if spec is None:
        return hub_file(LPIPS_HEADS, "pyiqa")
    path = Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
    return checked(path, hash_in_name(LPIPS_HEADS))


def require(use: str, heads: bool) -> None:
    """Raise WeightsMissing unless the VGG16 file, and LPIPS' heads where wanted, are here."""
    hub_file(VGG16_FILE).require(use)
    if heads:
        lpips_heads().require(use)


class VGG16(nn.Module):
    """VGG16 up to relu5_3 (Simonyan and Zisserman 2015, arXiv 1409.1556), frozen.

    Parameters are named as in torchvision's `features`. Without `pretrained` the weights are random
    numbers, good for planning memory only.
    """

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        layers, channels = [], 3
        self.taps = []  # index of each stage's last ReLU
        for stage in STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers[:-1])
        if pretrained:
            path = hub_file(VGG16_FILE).require("a VGG16 distance")
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.load_state_dict({k: state[k] for k in self.state_dict()})
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of a normalised image."""
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class _OnVGG16(nn.Module):
    mean: tuple[float, float, float]  # of images in [-1, 1]
    std: tuple[float, float, float]

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.trunk = _without_global_rng(lambda: VGG16(pretrained))
        self.register_buffer("shift", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.trunk((image - self.shift) / self.scale)


class LPIPS(_OnVGG16):
    """LPIPS 0.1 with the VGG trunk (Zhang et al. 2018, arXiv 1801.03924); lower is more alike."""

    mean, std = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__(pretrained)
        widths = [stage[-1] for stage in STAGES]
        for level, width in enumerate(widths):
            self.register_buffer(f"head{level}", torch.full((1, width, 1, 1), 1 / width))
        if pretrained:
            path = lpips_heads().require("LPIPS")
            state = torch.load(path, map_location="cpu", weights_only=True)
            for level in range(len(widths)):
                getattr(self, f"head{level}").copy_(state[f"lin{level}.model.1.weight"])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the distance of each pair, (B,); x and y are (B, 3, H, W) in [-1, 1]."""
        levels = zip(self.features(x), self.features(y), strict=True)
        return sum(
            (getattr(self, f"head{n}") * (_unit(a) - _unit(b)).square()).sum(1).flatten(1).mean(1)
            for n, (a, b) in enumerate(levels)
        )


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Normalise the channel vector of every pixel to length 1."""
    # the square root's gradient at 0 is infinite: a pixel without any feature would give NaN
    length = x.square().sum(1, keepdim=True).add(EPSILON**2).sqrt()
    return x / (length + EPSILON)


class FeatureDistance(_OnVGG16):
    """Mean absolute difference of VGG16's ReLU features, averaged over its five stages.

    The feature reconstruction loss of Johnson et al. 2016 (arXiv 1603.08155, eq. 2) in l1.
    """

    # ImageNet's mean and standard deviation, moved to images in [-1, 1]
    mean = (2 * 0.485 - 1, 2 * 0.456 - 1, 2 * 0.406 - 1)
    std = (2 * 0.229, 2 * 0.224, 2 * 0.225)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the distance of each pair, (B,); x and y are (B, 3, H, W) in [-1, 1]."""
        levels = zip(self.features(x), self.features(y), strict=True)
        return sum((a - b).abs().flatten(1).mean(1) for a, b in levels) / len(STAGES)


def _without_global_rng(build):
    """Build a module without moving the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
