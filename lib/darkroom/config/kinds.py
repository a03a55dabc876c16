"""The value types that config fields share: what YAML gives, checked and made into numbers.

YAML 1.1 reads `1e-5` as text and `off` as false; both are understood here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from ..paths import repo_root

SEVERITIES = {"easy": (0.0, 0.33), "medium": (0.33, 0.67), "hard": (0.67, 1.0)}


class Section(BaseModel):
    """A frozen part of the config that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("this is text, not a number") from None
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("write true or false")
    return value


def _amount(value: Any) -> int | str:
    """Take steps (600) or a share of the horizon ("5%")."""
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        if float(found[1]) > 100:
            raise ValueError("a share of the horizon is at most 100%")
        return f"{found[1]}%"
    try:
        number = _number(value)
    except ValueError:
        number = None
    if not isinstance(number, (int, float)) or number < 0 or number % 1:
        raise ValueError('write steps, such as 100, or a share of the horizon, such as "5%"')
    return int(number)


def _severity(value: Any) -> tuple[float, float]:
    if isinstance(value, str) and value in SEVERITIES:
        return SEVERITIES[value]
    if isinstance(value, (list, tuple)) and len(value) == 2:
        low, high = (_number(v) for v in value)
        if (
            isinstance(low, (int, float))
            and isinstance(high, (int, float))
            and 0 <= low <= high <= 1
        ):
            return float(low), float(high)
    raise ValueError("write easy, medium, hard, or [low, high] with 0 <= low <= high <= 1")


def _off(value: Any) -> Any:
    """Undo what YAML 1.1 makes of a bare `off` and `on`."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


def _switch(value: Any) -> str | list[str]:
    value = _off(value)
    names = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    if value in ("off", "on") or names:
        return list(value) if names else value
    raise ValueError("write off, on, or a list of module names")


def _tile(value: Any) -> int | str:
    if value == "auto":
        return value
    number = _number(value)
    if not isinstance(number, (int, float)) or number != int(number) or number < 8:
        raise ValueError("write auto, null, or the tile's side in pixels (at least 8)")
    return int(number)


def _location(value: Any) -> Path:
    """Make a location absolute: a relative one starts at the repo root."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("write the path of a folder")
    path = Path(value).expanduser()
    return path if path.is_absolute() else (repo_root() / path)


def _shown(path: Path) -> str:
    root = repo_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _run_name(value: Any) -> str:
    part = r"[A-Za-z0-9][A-Za-z0-9._=+-]*"
    if not isinstance(value, str) or not re.fullmatch(f"{part}(/{part})*", value):
        raise ValueError(
            "a run's name is made of letters, digits and . _ - = + (and / for a subfolder)"
        )
    return value


def _phrases(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number)]
Weight = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Decay = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Integer = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Timestep = Annotated[int, BeforeValidator(_number), Field(ge=0, le=999)]
Truth = Annotated[bool, PlainValidator(_truth)]
Amount = Annotated[Any, PlainValidator(_amount)]
Severity = Annotated[Any, PlainValidator(_severity)]
Switch = Annotated[Any, PlainValidator(_switch)]
Tile = Annotated[Any, PlainValidator(_tile)]
RunName = Annotated[str, PlainValidator(_run_name)]
Names = Annotated[list[str], BeforeValidator(_phrases)]
ColourFix = Annotated[Literal["off", "wavelet", "adain"], BeforeValidator(_off)]
Location = Annotated[Path, PlainValidator(_location), PlainSerializer(_shown)]
