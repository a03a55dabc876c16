"""Make `import torchvision` work where its compiled extension cannot be loaded.

Beside a CPU build of torch, the default wheel of torchvision asks for CUDA libraries that are not
there. Its own code survives a missing extension, but `torchvision/_meta_registrations.py` calls
`torch.library.register_fake("torchvision::nms")` without asking whether that operator exists, and
the import stops with "operator torchvision::nms does not exist". Transforms and models need no
compiled operator, so declaring the schema is enough for all that import torchvision on the way.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # an operator lives as long as its library object


def ensure_torchvision() -> bool:
    """Declare the operators torchvision's import needs when its extension cannot load.

    Call it before the first import of torchvision, pyiqa, lpips, open_clip, timm or transformers.
    It does nothing where torchvision is absent, already imported or complete, and may be called any
    number of times. Returns whether operators had to be declared; a declared operator has no
    kernel, so calling it still raises.
    """
    if _declared:
        return True
    spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if spec is None or _loads(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)
    return True


def _loads(package: Path) -> bool:
    for extension in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(extension))
        except (OSError, ImportError):
            continue
        return True
    return False
