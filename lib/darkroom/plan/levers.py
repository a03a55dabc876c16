"""What can be turned on a run to make it smaller, and what each turn costs.

None of these changes what is learned beyond rounding, but for `adamw8bit`, whose moments are
coarser, and what a caller adds. The effective batch is never touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ..config.effects import PHASES

TAILS = (None, 1, 2)  # samples decoded and judged at once
CHECKPOINTING = ("network", "decoder", "discriminator")
# how a lever is called when it is on, and when it is off again
WORDS = {
    "train.micro_batch": ("micro batch {}", ""),
    "train.checkpointing.network": ("network recomputed", "network kept"),
    "train.checkpointing.decoder": ("decoder recomputed", "decoder kept"),
    "train.checkpointing.discriminator": ("discriminator recomputed", "discriminator kept"),
    "train.tail_micro_batch": ("tail {} at a time", "no tail"),
    "train.ema_device": ("average in the computer's memory", "average on the card"),
    "train.grad_norm_every": ("norms of terms", "no norms of terms"),
}
OFF = ("off", None, "auto", "adamw")


@dataclass(frozen=True)
class Choice:
    """Values of every lever: `structure` decides which tensors there are, the rest is arithmetic.

    `structure` and `also` are (dotted key, value) pairs; `eight_bit` is the optimizer's moments.
    """

    structure: tuple[tuple[str, object], ...]
    micro: int
    average_on_cpu: bool
    eight_bit: bool
    norms: bool

    @property
    def level(self) -> int:
        """How much more than time it costs: 0 nothing, 1 the norms of terms, 2 coarser moments."""
        return 2 * self.eight_bit + (not self.norms)

    def changes(self, config) -> dict[str, object]:
        """Return the choice as dotted keys of the config."""
        found = dict(self.structure) | {"train.micro_batch": self.micro}
        if config.train.ema_decay:
            found["train.ema_device"] = "cpu" if self.average_on_cpu else "auto"
        if not self.norms:
            found["train.grad_norm_every"] = None
        for phase in PHASES[config.model.recipe]:
            if self.eight_bit:
                found[f"optim.{phase}.name"] = "adamw8bit"
            found[f"optim.{phase}.implementation"] = "auto"
        return found


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def has_tail(config) -> bool:
    """Return whether the recipe can decode and judge a few samples of its batch at a time."""
    return config.model.recipe == "one_step_gan"


def recomputable(config) -> list[str]:
    """Return the parts of the recipe's networks that train.checkpointing can recompute."""
    if config.model.recipe != "one_step_gan":
        return ["network"]
    return [p for p in CHECKPOINTING if p != "decoder" or config.model.size != "tiny"]


def structures(config, also: dict[str, list] | None = None, precision: str = "bf16") -> list[tuple]:
    """Return every structure that the config's recipe can have; `also` adds keys and values.

    fp16 has no tail: see `precision.choose`.
    """
    levers: dict[str, list] = {}
    for part in recomputable(config):
        value = getattr(config.train.checkpointing, part)
        listed = [value] if isinstance(value, list) else []
        levers[f"train.checkpointing.{part}"] = ["off", "on", *map(tuple, listed)]
    if has_tail(config):
        levers["train.tail_micro_batch"] = [None] if precision == "fp16" else list(TAILS)
    levers |= also or {}
    return [
        tuple(zip(levers, values, strict=True)) for values in itertools.product(*levers.values())
    ]


def choices(
    config, also: dict[str, list] | None = None, precision: str = "bf16"
) -> Iterator[Choice]:
    """Yield every choice with the config's effective batch; the arguments are `structures`'."""
    train = config.train
    averages = (False, True) if train.ema_decay else (False,)
    adam = all(config.optim.for_phase(p).name == "adamw" for p in PHASES[config.model.recipe])
    moments = (False, True) if adam else (False,)
    norms = (True, False) if train.grad_norm_every else (False,)
    for structure in structures(config, also, precision):
        tail = dict(structure).get("train.tail_micro_batch")
        for micro in divisors(train.effective_batch):
            if tail is None or tail < micro:
                for rest in itertools.product(averages, moments, norms):
                    yield Choice(structure, micro, *rest)


def describe(changes: dict[str, object], before: dict[str, object]) -> str:
    """Return in words what differs between two choices' changes; `before` may be empty."""
    said = []
    for key in dict.fromkeys([*changes, *before]):
        new, old = changes.get(key), before.get(key)
        if new == old or key.endswith(".implementation"):
            continue
        if key == "train.grad_norm_every":  # only named where it is turned off
            said.append(WORDS[key][key in changes])
        elif key in WORDS:
            if new not in OFF or old not in OFF:
                said.append(WORDS[key][new in OFF].format(new))
        elif key.endswith(".name"):
            said.append(f"{key.split('.')[1]} {new or 'adamw'}")
        else:
            said.append(f"{key} {new}")
    return ", ".join(said)
