"""The resolved configuration of a run: typed sections, their defaults, and how layers become one.

The only place where a default lives. `load_config` reads, `Config` holds, `difference` compares a
run's stored config with the one at hand.
"""

from __future__ import annotations

from .compare import difference
from .load import OVERRIDE_HELP, load_config, pair
from .names import ConfigError
from .resolved import Config

__all__ = ["OVERRIDE_HELP", "Config", "ConfigError", "difference", "load_config", "pair"]
