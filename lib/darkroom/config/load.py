"""From layers to one config: defaults, base files, sections, params/local.yaml, override.

Papermill injects whatever it is given, also a misspelt section, without a word. So the whole
namespace of the notebook is looked at, and a name that is no key is an error.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

from ..paths import repo_root
from . import names
from .names import ConfigError
from .resolved import Config

GIVEN = ("base", "run", "seed", "override")
SECTIONS = tuple(name for name in Config.model_fields if name not in GIVEN)
# what IPython keeps in a notebook's namespace beside names with an underscore
IPYTHON = {"In", "Out", "exit", "quit", "open", "get_ipython"}
DEFAULT_BASE = "tiny"
_ABSENT: Any = object()
OVERRIDE_HELP = "dotted keys, YAML values"

Layer = tuple[str, dict[str, Any]]


def load_config(
    namespace: dict[str, Any] | None = None,
    *,
    base: str | Path | None = _ABSENT,
    run: str | None = _ABSENT,
    override: dict[str, Any] | None = None,
    **sections: Any,
) -> Config:
    """Return the resolved config of a notebook's namespace, or of what is given by name.

    Layers, deep-merged, the later wins: the typed defaults; the file `base` (params/tiny.yaml when
    not given, None for none) over its own base; the sections; params/local.yaml; `override`, a flat
    dict of dotted keys, where a params file's own come before those given. Names given beside a
    namespace win over the namespace's. Raises ConfigError that names the nearest valid key;
    FileNotFoundError for a missing base.
    """
    given = _from_namespace(namespace) if namespace is not None else {}
    given |= {k: v for k, v in (("base", base), ("run", run)) if v is not _ABSENT}
    given = merge(given, sections)
    overrides = [given.pop("override", None), override]
    base = given.pop("base", DEFAULT_BASE)
    layers = _base_layers(base)
    overrides = [*(layer.pop("override", None) for _, layer in layers), *overrides]
    override = {key: value for each in overrides for key, value in _flat_override(each).items()}
    if given.get("run") is None:
        given.pop("run", None)
    layers.append(("", given))
    local = repo_root() / "params" / "local.yaml"
    if local.is_file():
        layers.append((f" (in {_name(local)})", _read_local(local)))
    values: dict[str, Any] = {}
    for where, layer in layers:
        values = merge(values, _tidy(layer, where))
    for key, value in override.items():
        names.put(values, key, value)
    if isinstance(values.get("stages"), dict):  # null takes back a stage of a layer below
        values["stages"] = {k: v for k, v in values["stages"].items() if v is not None}
    values |= {"base": None if base is None else str(base), "override": override}
    return Config.from_dict(values, lambda path: _origin(path, layers, override))


def pair(text: str) -> tuple[str, Any]:
    """Return the key and the YAML value of "a.b=c": the type of --override in argparse."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"takes KEY=VALUE, not {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"the value of {key!r} is no YAML: {error}") from None


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return two nested dicts as one; where both have a value that is no dict, `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = merge(merged[key], value)
        merged[key] = value
    return merged


def read_params(path: Path) -> dict[str, Any]:
    """Return a params file as a dict."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{_name(path)} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{_name(path)} must hold sections, and holds {type(document).__name__}")
    return document


def _base_layers(base: str | Path | None, above: tuple[Path, ...] = ()) -> list[Layer]:
    """Return the layers of a params file and of what it is based on, the lowest first."""
    if base is None:
        return []
    path = _params_path(base)
    if path in above:
        chain = " -> ".join(_name(p) for p in (*above, path))
        raise ConfigError(f"`base` goes round in a circle: {chain}")
    document = read_params(path)
    for key in ("base", "run"):
        if key not in document:
            raise ConfigError(
                f"{_name(path)} has no `{key}:`, and would inherit the notebook's: add "
                f"`{key}: {'null' if key == 'base' else path.stem}`"
            )
    layers = _base_layers(document.pop("base"), (*above, path))
    return [*layers, (f" (in {_name(path)})", document)]


def _params_path(base: str | Path) -> Path:
    """Find a params file by its name (tiny) or path, which starts at the repo root."""
    if not isinstance(base, (str, Path)) or not str(base):
        raise ConfigError(
            f"`base` is {base!r}: write the name of a params file, such as tiny, or null"
        )
    root, path = repo_root(), Path(base).expanduser()
    for candidate in (root / path, root / "params" / f"{base}.yaml"):
        if candidate.is_file():
            return candidate.resolve()
    known = sorted(
        p.stem for p in (root / "params").glob("*.yaml") if not p.stem.startswith("local")
    )
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"the nearest is {close[0]}" if close else f"there are {', '.join(known) or 'none'}"
    raise FileNotFoundError(f"no params file {str(base)!r} below {root}: {hint}")


def _read_local(path: Path) -> dict[str, Any]:
    local = read_params(path) if path.read_text().strip("# \n") else {}
    for key in (*GIVEN[:2], GIVEN[3]):
        if key in local:
            raise ConfigError(
                f"{_name(path)} has `{key}`, which belongs to a run, not to a machine"
            )
    return local


def _tidy(layer: dict[str, Any], where: str) -> dict[str, Any]:
    """Take an empty section (`loss:`) as one that sets nothing."""
    return {k: {} if v is None and k in SECTIONS else v for k, v in layer.items()}


def _from_namespace(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return what a notebook's namespace says, and refuse every plain name that is no key."""
    known = (*GIVEN, *SECTIONS)
    stray = [
        name
        for name, value in namespace.items()
        if name not in known
        and not name.startswith("_")
        and name not in IPYTHON
        and _is_plain(value)
    ]
    if stray:
        lines = [
            f"unknown section or key `{name}` in the notebook: "
            + names.meant(name, (), list(known), names.keys(Config))
            for name in stray
        ]
        lines.append(
            "(a variable of your own that holds a number, text, list or dict starts with an "
            "underscore, or comes into being after load_config)"
        )
        raise ConfigError("\n".join(lines))
    return {name: namespace[name] for name in known if name in namespace}


def _is_plain(value: Any) -> bool:
    """Say whether a value is of JSON's types, which is all that papermill can inject."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


def _flat_override(override: Any) -> dict[str, Any]:
    if override is None:
        return {}
    if not isinstance(override, dict):
        raise ConfigError(
            f"`override` is {override!r}, and must be a dict such as {{loss.gan: 0.3}}"
        )
    for key, value in override.items():
        if not isinstance(key, str):
            raise ConfigError(
                f"override: the key {key!r} is not text; write it as {{loss.gan: 0.3}}"
            )
        if key in SECTIONS and isinstance(value, dict):
            inner = next(iter(value), "key")
            raise ConfigError(
                f"`override` is flat: write `{key}.{inner}`, not a dict under `{key}`"
            )
        if key in ("base", "run", "override"):
            raise ConfigError(f"`{key}` cannot be overridden: give it as `{key}` itself")
    return dict(override)


def _origin(path: tuple[str, ...], layers: list[Layer], override: dict[str, Any]) -> str:
    """Say which layer has this key, the last one first."""
    if any(path[: len(k.split("."))] == tuple(k.split(".")) for k in override):
        return " (in override)"
    for where, layer in reversed(layers):
        value: Any = layer
        for part in path:
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            return where
    return ""


def _name(path: Path) -> str:
    root = repo_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
