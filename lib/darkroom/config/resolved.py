"""The whole config: its sections, its hash, and every problem of a value said in one message."""

from __future__ import annotations

import functools
import hashlib
import json
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from . import checks, names, show
from .kinds import Integer, RunName, Section
from .sections import Data, Degradation, Loss, Model, Paths
from .training import Ablation, Budget, Optim, Restore, Stage, Tracking, Train, Validation

NOT_HASHED = ("base", "run", "paths", "override")  # where things lie and how the values were given


class Config(Section):
    """A run's resolved configuration: frozen, every key checked."""

    base: str | None = None
    """The params file underneath, by name or path; null: the defaults alone."""
    run: RunName = "untitled"
    """Name of the run, and of its folder below `paths.runs`."""
    seed: Integer = 231
    """Seed of everything that is drawn in training."""
    paths: Paths = Paths()
    data: Data = Data()
    degradation: Degradation = Degradation()
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    optim: Optim = Optim()
    stages: dict[str, Stage] = {}
    """Changes at positions: name to {start, ramp, changes}."""
    budget: Budget = Budget()
    validation: Validation = Validation()
    restore: Restore = Restore()
    tracking: Tracking = Tracking()
    ablation: Ablation = Ablation()
    override: dict[str, Any] = {}
    """The flat dict of dotted keys that had the last word; its values are in the sections."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if problems := checks.problems(self):
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: typing.Callable | None = None) -> Config:
        """Check a nested dict and return its Config; raises ConfigError naming every problem.

        `where` says for a key (a tuple of names) which layer it came from.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = _lines(error, where or (lambda path: ""))
            raise names.ConfigError("\n".join(lines)) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON; `from_dict` gives it back."""
        return self.model_dump(mode="json")

    def with_changes(self, changes: dict[str, Any]) -> Config:
        """Return the config with other values at these dotted keys."""
        values = self.to_dict()
        for key, value in changes.items():
            names.put(values, key, value)
        return type(self).from_dict(values)

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits over everything but NOT_HASHED.

        Paths inside `data.train` and `validation.data` count: they say which set it is, and
        `paths.data` where that set lies on this machine.
        """
        values = {k: v for k, v in self.to_dict().items() if k not in NOT_HASHED}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def run_dir(self) -> Path:
        """The run's directory, absolute."""
        return self.paths.runs / self.run

    @property
    def notes(self) -> list[str]:
        """Every derived number, with its reason."""
        return checks.notes(self)

    @property
    def warnings(self) -> list[str]:
        """Options that are set and have no effect in this run, and choices that look like slips."""
        return checks.warnings(self)

    def __str__(self) -> str:
        return show.text(self)

    def __repr__(self) -> str:
        return f"<Config {self.run} {self.hash}>"

    def _repr_html_(self) -> str:
        return show.html(self)


def _lines(error: ValidationError, where: typing.Callable) -> list[str]:
    """Return a line a problem: the key, the value seen, what is allowed and the way out."""
    lines = []
    for problem in error.errors():
        path = tuple(str(part) for part in problem["loc"])
        seen, model, field, depth = problem["input"], *_walk(path)
        key, layer = ".".join(path[:depth]), where(path[:depth])
        if problem["type"] == "extra_forbidden":
            unknown, here = path[-1], path[:-1]
            hint = names.meant(unknown, here, list(model.model_fields), names.keys(Config))
            what = "key" if here else "section or key"
            lines.append(f"unknown {what} `{'.'.join(path)}`{where(path)}: {hint}")
        elif problem["type"] == "value_error" and not path:
            lines += str(problem["ctx"]["error"]).splitlines()
        elif problem["type"] == "model_type":
            section = ", ".join(names.sections_of(field.annotation).model_fields)
            lines.append(f"`{key}`{layer} is {seen!r}, and must be a dict of its keys: {section}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            about = f" ({field.description.rstrip('.')})" if field and field.description else ""
            lines.append(f"`{key}` is {seen!r}{layer}: {message}{about}")
    return list(dict.fromkeys(lines))


def _walk(path: tuple[str, ...]) -> tuple[type[BaseModel], Any, int]:
    """Return the section and field that a location leads to, and how much of it is a key."""
    model, field, depth = Config, None, 0
    while depth < len(path) and path[depth] in model.model_fields:
        field = model.model_fields[path[depth]]
        depth += 1
        below = names.sections_of(field.annotation)
        if typing.get_origin(field.annotation) is dict:
            depth = min(len(path), depth + 1)
        if below is None:
            break
        model = below
    return model, field, depth
