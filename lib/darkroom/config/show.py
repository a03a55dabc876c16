"""The resolved config for people: grouped by section, what differs from the defaults marked."""

from __future__ import annotations

import html as markup
import json
from typing import Any

from . import checks, names


def groups(config) -> dict[str, list[tuple[str, Any, Any]]]:
    """Return section -> rows of (key, value, default); the default is ... where it is the value.

    Optimizers of phases that the recipe does not have appear only where they are set.
    """
    defaults = names.flat(type(config)().to_dict())
    phases = checks.PHASES[config.model.recipe]
    found: dict[str, list[tuple[str, Any, Any]]] = {}
    for key, value in names.flat(config.to_dict()).items():
        section, _, rest = key.partition(".")
        default = defaults.get(key)
        same = value == default
        idle = section == "optim" and rest.split(".")[0] not in (*phases, "schedule")
        if section in ("base", "run", "override") or (idle and same):
            continue
        row = (rest or section, value, ... if same else default)
        found.setdefault(section if rest else "run", []).append(row)
    return found


def text(config) -> str:
    """Return the config as text; `*` marks what differs from the default, which follows it."""
    lines = [_title(config)]
    for section, rows in groups(config).items():
        lines.append(f"\n{section}")
        width = max(len(key) for key, _, _ in rows)
        for key, value, default in rows:
            mark, was = (" ", "") if default is ... else ("*", f"   (default {_value(default)})")
            lines.append(f"{mark} {key:<{width}}  {_value(value)}{was}")
    lines += ["", *[f"note: {n}" for n in config.notes]]
    return "\n".join([*lines, *[f"warning: {w}" for w in config.warnings]])


def html(config) -> str:
    """Return the config as HTML for a notebook: what differs in bold, the rest folded away."""
    escape = markup.escape
    parts = [f"<b>{escape(_title(config))}</b>"]
    parts += [f"<div>⚠️ {escape(w)}</div>" for w in config.warnings]
    parts += [f"<div>{escape(n)}</div>" for n in config.notes]
    changed, rest = [], []
    for section, rows in groups(config).items():
        for key, value, default in rows:
            name = key if section == "run" else f"{section}.{key}"
            cells = f"<td style='text-align:left'>{escape(name)}</td>"
            shown = escape(_value(value))
            if default is ...:
                rest.append(f"<tr>{cells}<td style='text-align:left'>{shown}</td></tr>")
            else:
                cells += f"<td style='text-align:left'><b>{shown}</b></td>"
                cells += f"<td style='text-align:left'>{escape(_value(default))}</td>"
                changed.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("set", "value", "default"))
    parts.append(f"<table><tr>{head}</tr>{''.join(changed)}</table>")
    folded = f"<summary>{len(rest)} keys at their defaults</summary><table>{''.join(rest)}</table>"
    return "\n".join([*parts, f"<details>{folded}</details>"])


def _title(config) -> str:
    return (
        f"run {config.run} · base {config.base or 'none'} · config {config.hash} · {config.run_dir}"
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
