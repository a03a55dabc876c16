"""Graphics cards by name: their memory and datasheet peaks, from gpus.yaml.

A bare size is a card, too: it has memory and no peaks, so nothing is said about time.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

USABLE = 0.97  # of a card's sold memory where what CUDA reports is not known; 0.978 to 0.99 are
NATIVE_BF16 = 8.0  # compute capability from which on tensor cores multiply bfloat16
VENDOR = re.compile(r"nvidia|geforce|tesla|quadro")
SIZE = re.compile(r"([0-9]*\.?[0-9]+)\s*(gib|gb|g)?", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """A card to plan for; GiB = 2**30 bytes.

    `memory_gib` is what CUDA gives to all that runs on it, `sold_gib` what the box says. `tflops`
    is dense TFLOP/s by arithmetic (bf16, fp16, tf32, fp32; None: no units for it), empty where only
    a size is known; `bandwidth_gbs` GB/s. `seen` is the page on which the vendor's figures were
    read, None: unverified.
    """

    name: str
    memory_gib: float
    sold_gib: float
    tflops: dict[str, float | None] = field(default_factory=dict, hash=False)
    bandwidth_gbs: float | None = None
    capability: float | None = None
    source: str = ""
    seen: str | None = None

    @property
    def native_bf16(self) -> bool | None:
        """Whether it multiplies bfloat16 in its tensor cores; None: unknown."""
        return None if self.capability is None else self.capability >= NATIVE_BF16

    def precision(self, wanted: str) -> str:
        """Return what train.precision `wanted` is on it: auto is bf16, fp16 where that is slow."""
        if wanted != "auto":
            return wanted
        return "fp16" if self.native_bf16 is False else "bf16"

    def with_memory(self, gib: float) -> Card:
        """Return the same card with other memory, such as what a budget leaves of it."""
        return replace(self, memory_gib=float(gib))


@functools.cache
def table() -> tuple[Card, ...]:
    """Return every card of gpus.yaml."""
    return tuple(found for found, _ in _rows())


def card(name: str | float | Card) -> Card:
    """Return a card by its name ("A100-40G", "rtx 4090"), or by a size.

    A number or "12 GiB" is that much usable memory; "12 GB" is a card sold as such, which has 12
    GiB by the vendors' habit, and USABLE of them to use. ValueError names the nearest and lists
    all.
    """
    if isinstance(name, Card):
        return name
    if size := SIZE.fullmatch(str(name).strip()):
        number, unit = float(size[1]), (size[2] or "gib").lower()
        if not _named(str(name)):
            return _bare(number, unit)
    found = _named(str(name))
    if not found:
        near = difflib.get_close_matches(_plain(str(name)), _names(), n=1, cutoff=0.0)
        nearest = next(c.name for c in table() if near[0] in _names_of(c))
        raise ValueError(
            f"no card {name!r} is known: the nearest is {nearest!r}; there are "
            f"{', '.join(c.name for c in table())}, or a size such as '24 GiB'"
        )
    if len({c.sold_gib for c in found}) > 1:
        choices = " or ".join(c.name for c in found)
        raise ValueError(f"{name!r} comes with different memory: write {choices}")
    return found[0]


def here() -> Card | None:
    """Return the CUDA device of this process, its memory as CUDA reports it; None without one.

    A card that the table does not know has memory and no peaks.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = properties.major + properties.minor / 10
    return _present(properties.name, properties.total_memory / 2**30, capability)


def _present(name: str, gib: float, capability: float) -> Card:
    candidates = sorted(_named(name), key=lambda c: abs(c.sold_gib - gib))
    if candidates and abs(candidates[0].sold_gib - gib) < 0.15 * candidates[0].sold_gib:
        return replace(candidates[0], memory_gib=gib)
    return Card(name, gib, gib, capability=capability)


def _bare(number: float, unit: str) -> Card:
    if number <= 0:
        raise ValueError(f"a card of {number:g} GiB: memory must be more than 0")
    if unit == "gib":
        return Card(f"{number:g} GiB", number, number)
    return Card(f"{number:g} GB card", number * USABLE, number)


def _rows() -> list[tuple[Card, tuple[str, ...]]]:
    import yaml

    rows = []
    for row in yaml.safe_load((Path(__file__).parent / "gpus.yaml").read_text())["cards"]:
        sold = float(row["sold_gib"])
        found = Card(
            name=row["name"],
            memory_gib=row["cuda_gib"] or sold * USABLE,
            sold_gib=sold,
            tflops=dict(row["tflops"]),
            bandwidth_gbs=float(row["gbs"]),
            capability=float(row["capability"]),
            source=row["source"],
            seen=row["seen"],
        )
        names = tuple(_plain(str(n)) for n in (row["name"], *row["aliases"]))
        rows.append((found, names))
    return rows


@functools.cache
def _aliases() -> dict[str, tuple[str, ...]]:
    return {found.name: names for found, names in _rows()}


def _names_of(found: Card) -> tuple[str, ...]:
    return _aliases()[found.name]


def _names() -> list[str]:
    return [name for names in _aliases().values() for name in names]


def _named(name: str) -> list[Card]:
    return [c for c in table() if _plain(name) in _names_of(c)]


def _plain(name: str) -> str:
    """Return a name without vendor and punctuation: "NVIDIA A100-SXM4-40GB" is a100sxm440g."""
    text = VENDOR.sub("", name.lower())
    text = re.sub(r"(\d)\s*gi?b?\b", r"\1g", text)
    return re.sub(r"[^a-z0-9]", "", text)
