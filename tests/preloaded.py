"""What a small run imports, for the server that forks such runs (`small_runs.train_process`)."""

import accelerate  # noqa: F401
import polars  # noqa: F401
import torch._dynamo  # noqa: F401  # optimizers import it
from darkroom import trainer  # noqa: F401
from darkroom.torchvision_ops import ensure_torchvision

ensure_torchvision()

import peft  # noqa: E402, F401
from diffusers import UNet2DConditionModel, UNet2DModel  # noqa: E402, F401
