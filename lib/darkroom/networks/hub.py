"""Whether the hub would give a repository, asked once and briefly: its own retries take minutes."""

from __future__ import annotations

import os

SECONDS = 5


def refusal(repository: str) -> str | None:
    """Return why the hub does not give a repository, or None when it would."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=SECONDS)
    except Exception as error:  # the hub's HTTP library changes its error classes by version
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
