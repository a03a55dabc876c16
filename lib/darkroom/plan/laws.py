"""The laws of every structure: its parts traced at two sizes; any choice is arithmetic then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.effects import PHASES
from . import law, pool, roofline
from .levers import CHECKPOINTING, Choice
from .memory import STATE_BYTES
from .phase_names import BETWEEN, NORMS

SIZES = (2, 3)  # samples, times those of the tail: a single one takes other kernels
TERMS = [(), ("samples",)]
RANK_TERMS = [(), ("samples",), ("rank",), ("samples", "rank")]
DISCRIMINATOR = ("train.checkpointing.discriminator", "train.tail_micro_batch")
STANDARD = (*(f"train.checkpointing.{part}" for part in CHECKPOINTING), "train.tail_micro_batch")
PCIE_GBS = 25.0  # GB/s between card and computer, PCIe 4.0 x16 in practice; analytic


@dataclass
class Part:
    """A part of the rehearsal as a function of samples (and rank): bytes, and its two traces.

    Of the turns `sizes` are micro batches. What is between steps does not know the batch: there a
    sample is a crop of the config's own size.
    """

    law: law.Law
    between: bool
    sizes: tuple[int, int]
    traces: list


@dataclass
class Outcome:
    """A choice's peak in bytes, the phase it is in, and what a step costs at least."""

    peak: float
    phase: str
    phases: dict[str, float]
    step: roofline.Bound


class Laws:
    """The laws of some structures; made by `trace`."""

    def __init__(self, config, card, parts: dict[tuple, list[Part]]) -> None:
        self.config, self.card, self.parts = config, card, parts
        self.bounds = {
            id(part): [roofline.phases(t, card) for t in part.traces]
            for group in parts.values()
            for part in group
        }

    def outcome(
        self, choice: Choice, *, crop: int | None = None, rank: int | None = None
    ) -> Outcome:
        """Return what a choice takes; microseconds, no trace.

        `crop` is another data.crop_size: samples count by their pixels. `rank` is another
        model.lora_rank, for laws that were traced with `ranks`; the time stays the config's.
        """
        config = self.config
        pixels = ((crop or config.data.crop_size) / config.data.crop_size) ** 2
        accumulation = config.train.effective_batch // choice.micro
        peaks: dict[str, float] = {}
        bounds: dict[str, roofline.Bound] = {}
        for part in self.parts[choice.structure]:
            samples = pixels if part.between else choice.micro * pixels
            sizes = {"samples": samples, "rank": rank or config.model.lora_rank or 0}
            bytes_ = self._bytes(part.law, choice, sizes, accumulation)
            for name, value in part.law.peaks(bytes_).items():
                if choice.norms or not name.endswith(NORMS):
                    peaks[name] = max(value, peaks.get(name, 0.0))
            bounds |= self._bounds(part, samples)
        phase = max(peaks, key=peaks.__getitem__)
        step = roofline.step(bounds, accumulation)
        for name, bound in bounds.items():
            if name.endswith(NORMS) and choice.norms:
                step += bound * (1 / config.train.grad_norm_every)
        if choice.average_on_cpu:
            step += roofline.Bound(seconds=self._average(choice) / (PCIE_GBS * 1e9))
        return Outcome(peaks[phase], phase, peaks, step)

    def _bytes(
        self, found: law.Law, choice: Choice, sizes: dict[str, float], accumulation: int
    ) -> np.ndarray:
        total, ema, optimizer, gradients = found.at(**sizes).T
        if choice.average_on_cpu:
            total = total - ema
        if choice.eight_bit:
            ratio = STATE_BYTES["adamw8bit"] / STATE_BYTES["adamw"]
            total = total - (1 - ratio) * optimizer
        if accumulation > 1:  # from the second micro batch on, all gradients are there
            for number, name in enumerate(found.phases):
                if name in found.gradients:
                    inside = found.phase == number
                    missing = found.values(sizes) @ found.gradients[name] - gradients[inside]
                    total = total.copy()
                    total[inside] += missing
        return total

    def _bounds(self, part: Part, samples: float) -> dict[str, roofline.Bound]:
        (small, large), (a, b) = self.bounds[id(part)], part.sizes
        share = (samples - a) / (b - a)
        return {
            name: small[name] + (large[name] + small[name] * -1) * share
            for name in small
            if name in large
        }

    def _average(self, choice: Choice) -> float:
        first = self.parts[choice.structure][0].law
        sizes = {"samples": choice.micro, "rank": self.config.model.lora_rank or 0}
        return float(first.at(**sizes)[:, 1].max())


def trace(config, card, precision: str, structures: list[tuple], *, ranks: bool = False) -> Laws:
    """Trace what these structures need, each part once, and return their laws.

    With `ranks` the laws know model.lora_rank, for twice the traces. Raises PlanError and
    ValueError as `memory.trace` does, and law.NoLaw where sizes change more than sizes.
    """
    rank = config.model.lora_rank
    ranks_traced = [rank, max(1, rank // 2)] if ranks and rank and rank > 1 else [rank]
    requests, places = [], []
    for structure in structures:
        for only, relevant in _components(config):
            own = _own(structure, relevant)
            between = only == (BETWEEN,)
            tail = dict(own).get("train.tail_micro_batch") or 1
            rows = []
            for lora in ranks_traced:
                for size in (1, 4) if between else SIZES:
                    changed = _at(config, own, size * tail, between, lora)
                    rows.append((len(requests), size if between else size * tail, lora or 0))
                    requests.append((changed, precision, {"only": list(only)}))
            places.append((structure, between, rows))
    traced = pool.traces(requests)
    terms = RANK_TERMS if len(ranks_traced) > 1 else TERMS
    known: dict[tuple, law.Law] = {}
    parts: dict[tuple, list[Part]] = {}
    for structure, between, rows in places:
        own = [traced[n] for n, *_ in rows]
        key = tuple(map(id, own))
        if key not in known:
            sizes = [{"samples": samples, "rank": lora} for _, samples, lora in rows]
            known[key] = law.fit(own, sizes, terms)
        span = rows[0][1], rows[1][1]
        parts.setdefault(structure, []).append(Part(known[key], between, span, own[:2]))
    return Laws(config, card, parts)


def _own(structure: tuple, relevant: tuple | None) -> tuple:
    """Return what of a structure matters to a part."""
    return tuple(
        (k, v) for k, v in structure if relevant is None or k in relevant or k not in STANDARD
    )


def _components(config) -> list[tuple[tuple[str, ...], tuple[str, ...] | None]]:
    """Return what is rehearsed together, and the levers that matter there (None: all)."""
    first, *others = PHASES[config.model.recipe]
    if config.train.share_step:
        return [((first, *others), None), ((BETWEEN,), ())]
    return [((first,), None), *(((name,), DISCRIMINATOR) for name in others), ((BETWEEN,), ())]


def _at(config, structure: tuple, samples: int, between: bool, rank: int | None):
    """Return the config of a trace: everything on the card, one micro batch."""
    changes = dict(structure)
    micro = SIZES[0] if between else samples
    changes |= {"train.micro_batch": micro, "train.effective_batch": micro}
    if between:
        changes["data.crop_size"] = config.data.crop_size * round(samples**0.5)
    if rank is not None and "model.lora_rank" not in changes:
        changes["model.lora_rank"] = rank
    if config.train.ema_decay:
        changes["train.ema_device"] = "auto"
    for phase in PHASES[config.model.recipe]:
        changes[f"optim.{phase}.implementation"] = "auto"
    return config.with_changes(changes)
