"""Darkroom: a workbench for training image-restoration models and trusting their numbers."""

from __future__ import annotations

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
