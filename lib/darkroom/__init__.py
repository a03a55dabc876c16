"""Darkroom: a workbench for training image-restoration models and trusting their numbers."""

from __future__ import annotations

import os

# OpenMP's threads wait asleep instead of spinning: on a machine that does anything else beside the
# training (a browser, a loader process) spinning made steps 2 to 20 times slower. Read when torch
# is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Whether there is a GPU is asked of the driver's library, and not by starting CUDA, after which a
# notebook could not fork processes that use one (PyTorch's documentation of is_available).
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

__all__ = ["Config", "__version__", "load_config"]


def __getattr__(name: str):
    """Import what is asked for when it is asked for, so that `import darkroom` stays light."""
    if name in ("load_config", "Config"):
        from . import config

        return getattr(config, name)
    if name == "__version__":
        import importlib.metadata

        try:
            return importlib.metadata.version("darkroom")
        except importlib.metadata.PackageNotFoundError:
            return "0+uninstalled"
    raise AttributeError(f"module 'darkroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
