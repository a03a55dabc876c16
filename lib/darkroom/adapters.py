"""A bank of low-rank adapters on one frozen base: switched, weighted and scored by domain.

The base's tensors are never written to. A choice of adapters is merged once, into tensors of its
own (W + sum of weight · alpha / rank · B A), and put in the base's place; beyond a stated memory
the least recently used are dropped.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import checkpoint, degradations, exchange, inference, validate
from .networks import base_weights

CACHE_BYTES = 2**30  # of merged weights, beside the base and the adapters themselves
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
RESERVED = ("input", "none", "domain", "n")  # columns of `by_domain`
SAME = ("recipe", "size", "prediction", "noise_schedule", "space", "autoencoder")


@dataclass
class Adapter:
    """What a run adds to its base, by the network's parameter names, on the network's device."""

    name: str
    run: str
    step: int
    weights: str  # "ema" or "raw": what was taken
    types: tuple[str, ...]  # the degradations it was trained on
    kind: str  # and their kind
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor, float]]  # A, B and alpha / rank
    whole: dict[str, torch.Tensor] = field(default_factory=dict)  # weights that were unfrozen

    @property
    def bytes(self) -> int:
        """Bytes of the tensors it holds."""
        held = [tensor for a, b, _ in self.pairs.values() for tensor in (a, b)]
        return sum(t.nbytes for t in (*held, *self.whole.values()))

    def names(self) -> list[str]:
        """Return the parameters that it changes."""
        return [*self.pairs, *(name for name in self.whole if name not in self.pairs)]

    def update(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """Return what it adds to a parameter, float32 in the parameter's shape."""
        start = self.whole.get(name)
        added = torch.zeros_like(base, dtype=torch.float32)
        if start is not None:
            added += start.float() - base.float()
        if name in self.pairs:
            a, b, scale = self.pairs[name]  # a convolution's: A (r, in, k, k), B (out, r, 1, 1)
            added += (b.float().flatten(1) @ a.float().flatten(1)).view(base.shape) * scale
        return added


class Bank:
    """A base run's network, and adapter runs that stand on it.

    `config` is that of the base run (`restore.run_config`, or the one it was trained with);
    `adapters` names each run (by its name below `paths.runs`, or its folder). Its weights are those
    that `model.base` of an adapter run loads: EMA of `best`, else of `latest`. Merged weights take
    at most `cache_bytes`, and at least what is in use. Not for several threads at once. Raises
    ValueError where a run is no adapter or stands on another base, naming both.
    """

    def __init__(self, config, adapters: dict[str, str], cache_bytes: int = CACHE_BYTES) -> None:
        if config.model.recipe != "conditional_diffusion" or config.model.lora_rank is not None:
            raise ValueError(
                f"the run {config.run} ({config.model.recipe}, lora_rank {config.model.lora_rank}) "
                "is no base: name a run of conditional_diffusion without adapters, and adapter "
                "runs beside it"
            )
        file = base_weights.find(str(config.run_dir), config.paths.runs, config.paths.models)
        best = checkpoint.linked(config.run_dir, "best") is not None
        self.trained = inference.load_run(config, name="best" if best else "latest")
        self.recipe, self.config = self.trained.recipe, self.trained.config
        self.network = self.recipe.network.eval().requires_grad_(False)
        prefix = next(n for n, m in self.recipe.modules.items() if m is self.network)
        self.digest = base_weights.load(self.network, prefix, file)
        self._parameters = dict(self.network.named_parameters())
        self.base = {name: p.data for name, p in self._parameters.items()}
        self.cache_bytes, self.merges, self.hits = cache_bytes, 0, 0
        self._merged: OrderedDict[tuple, dict[str, torch.Tensor]] = OrderedDict()
        self.in_use: tuple[tuple[str, float], ...] = ()
        self.adapters = {name: self._load(name, run, prefix) for name, run in adapters.items()}

    @property
    def cached_bytes(self) -> int:
        """Bytes of all merged weights that are kept, those in use included."""
        return sum(t.nbytes for merged in self._merged.values() for t in merged.values())

    def use(self, weights: dict[str, float]) -> None:
        """Switch to a weighted sum of adapters; {} is the base alone.

        Raises ValueError for an unknown name or a weight that is no finite number.
        """
        chosen = self.key(weights)
        if chosen == self.in_use:
            self.hits += 1
            return
        tensors = self._merge(chosen)
        changed = {name for key in (chosen, self.in_use) for name in self._changed(key)}
        for name in changed:
            self._parameters[name].data = tensors.get(name, self.base[name])
        self.in_use = chosen
        while self.cached_bytes > self.cache_bytes and len(self._merged) > 1:
            self._merged.popitem(last=False)
        if not chosen and self.cached_bytes > self.cache_bytes:
            self._merged.clear()

    def key(self, weights: dict[str, float]) -> tuple[tuple[str, float], ...]:
        """Return the adapters of a choice and their weights, sorted; weights of 0 are left out."""
        for name, weight in weights.items():
            if name not in self.adapters:
                listing = ", ".join(self.adapters) or "none, the base alone"
                raise ValueError(f"there is no adapter {name!r}; there are: {listing}")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of adapter {name!r} is {weight}: give a number")
        return tuple(sorted((name, float(w)) for name, w in weights.items() if w))

    def _changed(self, key) -> dict[str, None]:
        """Return the parameters that a choice changes."""
        return dict.fromkeys(n for name, _ in key for n in self.adapters[name].names())

    @torch.no_grad()
    def _merge(self, key) -> dict[str, torch.Tensor]:
        """Return the changed parameters of a choice, kept from earlier or computed."""
        if not key or key in self._merged:
            self.hits += 1
            if key:
                self._merged.move_to_end(key)
            return self._merged.get(key, {})
        merged = {}
        for name in self._changed(key):
            base = self.base[name]
            total = base.float()
            for adapter, weight in key:
                if name in self.adapters[adapter].names():
                    total = total + weight * self.adapters[adapter].update(name, base)
            merged[name] = total.to(base.dtype)
        self.merges += 1
        self._merged[key] = merged
        return merged

    def _load(self, name: str, run: str, prefix: str) -> Adapter:
        """Read an adapter run and check that it stands on this base."""
        from .run import read_config

        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"an adapter cannot be called {name!r}: letters, digits, _ . - and none of "
                f"{', '.join(RESERVED)}"
            )
        folder = (
            Path(run) if (Path(run) / "config.json").is_file() else self.config.paths.runs / run
        )
        config = read_config(folder).with_changes(
            {"run": folder.resolve().name, "paths.runs": str(folder.resolve().parent)}
        )
        what = f"the run {folder} (adapter {name})"
        self._check_kind(config, what)
        link = inference.chosen(config)
        step = checkpoint.linked(folder, link)
        if step is None:
            raise checkpoint.CheckpointError(f"{folder} has no checkpoint {link!r}: train it first")
        saved = checkpoint.read(folder, step, ("weights", "ema"))
        self._check_base(config, saved.state.get("base"), what)
        parts = saved.tensors
        averaged = parts.get("ema") if config.validation.weights == "ema" else None
        tensors = parts["weights"] | (averaged or {})
        scale, device = exchange.scale(config.model), self.trained.device
        pairs, whole = _sorted(tensors, prefix, self.base, scale, device, folder)
        section, taken = config.degradation, "ema" if averaged else "raw"
        types = degradations.types_of(section)
        return Adapter(name, folder.name, step, taken, types, section.kind, pairs, whole)

    def _check_kind(self, config, what: str) -> None:
        """Raise ValueError where a run has no adapter, or one of another kind of network."""
        model, own = config.model, self.config.model
        if model.lora_rank is None:
            raise ValueError(f"{what} has no adapter: its model.lora_rank is null")
        for key in SAME:
            if getattr(model, key) != getattr(own, key):
                raise ValueError(
                    f"{what} has model.{key} {getattr(model, key)} and the base {self.config.run} "
                    f"{getattr(own, key)}: an adapter works only as it was trained"
                )

    def _check_base(self, config, digest: str | None, what: str) -> None:
        """Raise ValueError where an adapter was trained on other weights than this base's."""
        if digest != self.digest:
            raise ValueError(
                f"{what} stands on {config.model.base} ({digest}), not on the base "
                f"{self.config.run_dir} ({self.digest}): train it again on this one "
                f"(model.base: {self.config.run})"
            )


def _sorted(tensors, prefix: str, base, scale: float, device, folder: Path):
    """Return an adapter's pairs and its unfrozen weights, by the plain network's names."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    whole = {}
    for key, value in tensors.items():
        name = key.removeprefix(f"{prefix}.").replace(".base_layer.", ".")
        if match := exchange.MODULE.fullmatch(name):
            half = "A" if ".lora_A." in name else "B"
            halves.setdefault(f"{match[1]}.weight", {})[half] = value.to(device)
        else:
            whole[name] = value.to(device)
    pairs = {}
    for name, pair in halves.items():
        fits = name in base and set(pair) == {"A", "B"}
        if not fits or len(pair["A"].flatten(1)[0]) * len(pair["B"]) != base[name].numel():
            raise ValueError(f"{folder} adapts {name}, which does not fit this base's")
        pairs[name] = (pair["A"], pair["B"], scale)
    if unknown := [n for n, v in whole.items() if n not in base or base[n].shape != v.shape]:
        raise ValueError(f"{folder} holds {unknown[0]}, which this base does not have in its shape")
    return pairs, whole


# --- which adapter helps which domain -------------------------------------------------------------


def domains(bank: Bank) -> list[str]:
    """Return the degradations that the base and the adapters were trained on."""
    section = bank.config.degradation
    if others := {a.kind for a in bank.adapters.values()} - {section.kind}:
        raise ValueError(
            f"the adapters' degradation.kind ({', '.join(sorted(others))}) is not the base's "
            f"({section.kind}): give `by_domain` a config whose validation images show all domains"
        )
    types = (*degradations.types_of(section), *(t for a in bank.adapters.values() for t in a.types))
    return list(dict.fromkeys(types))


def by_domain(bank: Bank, config=None, *, progress: bool = False):
    """Return mean PSNR-Y by domain and adapter: a polars frame, rows domains, columns adapters.

    Columns: domain, n (images), input (untouched), none (the base alone), then every adapter at
    weight 1. Held-out images, draws and seeds are those of `config`; by default the base run's with
    the degradations of every adapter. Switches back to what was in use.
    """
    import polars as pl

    from . import index

    if config is None:
        config = bank.config
        if config.degradation.kind in degradations.DEFAULT_TYPES:
            config = config.with_changes({"degradation.types": domains(bank)})
    samples = index.samples(index.build_index(config), "val")
    config = config.with_changes({"validation.metrics": ["psnr_y", "ssim_y"]})
    before, table = dict(bank.in_use), None
    try:
        for name in ("none", *bank.adapters):
            bank.use({} if name == "none" else {name: 1.0})
            frame = validate.score(
                bank.recipe,
                config,
                step=bank.trained.step,
                weights=bank.trained.weights,
                samples=samples,
                progress=progress,
            )
            grouped = frame.group_by(pl.col("degradation").alias("domain"))
            column = grouped.agg(pl.col("psnr_y").mean().alias(name))
            if table is None:
                table = grouped.agg(
                    pl.len().alias("n"), pl.col("psnr_y_input").mean().alias("input")
                )
            table = table.join(column, on="domain")
    finally:
        bank.use(before)
    return table.sort("domain")
