"""A run's plan against what the machine gives: said before anything is paid for, and after.

`limit` says what there is, `check` refuses what does not fit, `fitting_micro` chooses the micro
batch where the config leaves it open, `measured` compares at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config.effects import PHASES
from . import gpus, memory
from .levers import divisors, has_tail, recomputable
from .overhead import Overhead, allocates_expandable, overhead
from .phase_names import NORMS

DRIFT = 0.05  # share by which measured may differ from planned before it is a warning
SMALLEST_WORTH = 0.02  # GiB of optimizer state from which moments in 8 bit are worth naming


@dataclass(frozen=True)
class Verdict:
    """A run's plan held against a limit; empty where there is none.

    `needed_gib` is the planned peak of reserved memory (with expandable segments) and what a trace
    cannot see; on a CPU that of the tensors alone.
    """

    card: gpus.Card | None = None
    reason: str = ""
    plan: memory.Plan | None = None
    needed_gib: float = 0.0
    over: Overhead | None = None
    alarm: float = 1.0

    @property
    def fits(self) -> bool:
        """Whether it fits; True where there is no limit."""
        return self.card is None or self.needed_gib <= self.card.memory_gib

    @property
    def line(self) -> str:
        """The plan in one line, '' where there is none."""
        if self.card is None:
            return ""
        share = self.needed_gib / self.card.memory_gib
        return (
            f"planned peak {size(self.needed_gib)} of {size(self.card.memory_gib)} ({share:.0%}; "
            f"{self.reason}), in the phase {self.plan.peak_phase}"
        )

    @property
    def warnings(self) -> list[str]:
        """A line where the plan is above budget.alarm of the card."""
        if self.card is None or self.needed_gib <= self.alarm * self.card.memory_gib:
            return []
        return [
            f"{self.line}: above budget.alarm {self.alarm:g}; what a plan cannot know (another "
            "library version, other programs on the card) may not fit any more"
        ]


def limit(config, device=None) -> tuple[gpus.Card, str] | None:
    """Return what memory there is and by which key, or None: then nothing is planned.

    By precedence: budget.memory_gib, budget.gpu, the CUDA card that `device` is (None: whichever
    is here). Where the card here has less than the budget says, it is the limit. An unknown
    budget.gpu raises ValueError.
    """
    section = config.budget
    present = gpus.here() if device is None or device.type == "cuda" else None
    found = None
    if section.gpu is not None:
        found = gpus.card(section.gpu), f"budget.gpu {section.gpu}"
    if section.memory_gib is not None:
        card = found[0] if found else gpus.card(section.memory_gib)
        found = card.with_memory(section.memory_gib), f"budget.memory_gib {section.memory_gib:g}"
    if present is None:
        return found
    if found is None:
        return present, f"the card here, {present.name}"
    if present.memory_gib < found[0].memory_gib:
        return present, f"the card here, {present.name}, has less than {found[1]}"
    return found


def check(config, device=None, *, plan: memory.Plan | None = None, **options) -> Verdict:
    """Trace the run and hold it against its limit; a Verdict without a plan where there is none.

    On a CPU, budget.memory_gib alone limits the tensors in the computer's memory; with budget.gpu
    the run is planned for that card. `options` are memory.trace's `precision` (by default what the
    run takes on the card), `validation_size` and `worker`. Raises ValueError where it does not fit:
    what holds the peak, and the ways out.
    """
    verdict = examine(config, device, plan=plan, **options)
    if not verdict.fits:
        raise ValueError(refusal(config, verdict))
    return verdict


def examine(config, device=None, *, plan: memory.Plan | None = None, **options) -> Verdict:
    """Return `check`'s verdict, also where it does not fit."""
    found = limit(config, device)
    if found is None:
        return Verdict()
    card, reason = found
    on_cpu = _on_cpu(config, device)
    if plan is None:
        if not on_cpu:
            asked = options.get("precision") or config.train.precision
            options["precision"] = card.precision(asked)
        where = "cpu" if on_cpu else "accelerator"
        plan = memory.trace(config, device=where, keep=True, **options)
    over = None if on_cpu else overhead(card, config.paths.runs)
    needed = plan.peak_gib if on_cpu else plan.reserved_expandable_gib + over.gib
    return Verdict(card, reason, plan, needed, over, config.budget.alarm)


def _on_cpu(config, device) -> bool:
    return device is not None and device.type == "cpu" and config.budget.gpu is None


def refusal(config, verdict: Verdict) -> str:
    """Say what a run needs, what holds it, what there is, and every way out that is left."""
    plan, over = verdict.plan, verdict.over
    category = next(iter(plan.categories))
    module, held = _largest(plan)
    rest = ""
    if over:
        rest = f", with {size(over.gib)} beside them ({', '.join(p.name for p in over.parts)})"
    ways = ways_out(config, plan)
    return (
        f"this run needs {size(verdict.needed_gib)}, and there are "
        f"{size(verdict.card.memory_gib)} ({verdict.reason}). Its tensors take "
        f"{size(plan.peak_gib)} at the peak, in the phase '{plan.peak_phase}'"
        f"{rest}; most is held by {category} "
        f"({size(plan.categories[category])}), of the networks by {module} ({size(held)}). "
        + ("Ways out: " + "; ".join(ways) if ways else "No lever is left")
        + ". Notebook 02 searches them all; smaller crops, ranks and judges change what is learned."
    )


def _largest(plan: memory.Plan) -> tuple[str, float]:
    """Return the part of a network, two levels deep, that holds most at the peak, and its GiB."""
    parts: dict[str, float] = {}
    for row in plan.modules.to_dicts():
        if row["module"]:  # moments and averages belong to none
            name = ".".join(row["module"].split(".")[:2])
            parts[name] = parts.get(name, 0.0) + row["gib"]
    return max(parts.items(), key=lambda part: part[1], default=("none", 0.0))


def ways_out(config, plan: memory.Plan) -> list[str]:
    """Return the levers that this recipe has and that are not on yet, as keys and values."""
    train, recipe = config.train, config.model.recipe
    micro, ways = train.micro_batch or train.effective_batch, []
    if plan.peak_phase.endswith(NORMS):
        ways.append("train.grad_norm_every null")
    if plan.peak_phase == "images":
        ways.append("train.image_every null")
    if plan.peak_phase == "validation":
        ways.append("a smaller restore.tile")
    tail = train.tail_micro_batch
    if has_tail(config) and plan.precision != "fp16" and micro > 1 and (tail is None or tail > 1):
        ways.append("train.tail_micro_batch 1")
    for part in recomputable(config):
        if getattr(train.checkpointing, part) != "on":
            ways.append(f"train.checkpointing.{part} on")
    if micro > 1:
        smaller = [str(n) for n in reversed(divisors(train.effective_batch)) if n < micro]
        ways.append(f"train.micro_batch {' or '.join(smaller)}")
    if train.ema_decay and train.ema_device != "cpu" and plan.device != "cpu":
        ways.append("train.ema_device cpu")
    if plan.categories.get("optimizer", 0.0) >= SMALLEST_WORTH:
        ways += [
            f"optim.{name}.name adamw8bit"
            for name in PHASES[recipe]
            if config.optim.for_phase(name).name == "adamw"
        ]
    return ways


def fitting_micro(config, device=None, *, processes: int = 1, **options) -> tuple[int, str] | None:
    """Return the largest micro batch whose traced plan fits, and why; None where nothing limits.

    Only where train.micro_batch is null; it divides each process's share of the effective batch.
    Raises `check`'s ValueError where not even one sample fits. Takes a trace for the whole batch,
    and a few more where that does not fit; `options` are `check`'s.
    """
    train = config.train
    if train.micro_batch is not None or limit(config, device) is None:
        return None
    if not options.get("worker"):
        with memory.Worker() as worker:
            options["worker"] = worker
            return fitting_micro(config, device, processes=processes, **options)
    sizes = divisors(train.effective_batch // processes)
    verdicts: dict[int, Verdict] = {}

    def fits(micro: int) -> bool:
        chosen = config.with_changes({"train.micro_batch": micro})
        verdicts[micro] = examine(chosen, device, **options)
        return verdicts[micro].fits

    if fits(sizes[-1]):
        best = sizes[-1]
    elif len(sizes) == 1 or not fits(sizes[0]):
        chosen = config.with_changes({"train.micro_batch": sizes[0]})
        raise ValueError(refusal(chosen, verdicts[sizes[0]]))
    else:
        low, high = 0, len(sizes) - 1  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
        best = sizes[low]
    larger = next((m for m in sizes if m > best), None)
    reason = f"train.micro_batch is null: {verdicts[best].line}"
    if larger:
        reason += f"; {larger} would need {size(verdicts[larger].needed_gib)}"
    return best, reason


def measured(config, plan: memory.Plan, row: dict, card: gpus.Card | None = None) -> list[str]:
    """Return lines on what a run took against its plan; [] where the row has no GPU memory.

    `row` is the last of train.jsonl, whose memory columns are the peaks since the start. The first
    line is for information; each further one is a drift beyond DRIFT, with the likely cause.
    """
    allocated, reserved = row.get("memory/allocated_gib"), row.get("memory/reserved_gib")
    if allocated is None or reserved is None:
        return []
    over = overhead(card, config.paths.runs).allocated_gib if card else 0.0
    expandable = allocates_expandable()
    planned = plan.peak_gib + over
    asked = (plan.reserved_expandable_gib if expandable else plan.reserved_gib) + over
    more, wider = allocated / planned - 1, reserved / asked - 1
    lines = [
        f"memory at its peak: allocated {size(allocated)}, planned {size(planned)} ({more:+.1%}); "
        f"reserved {size(reserved)}, planned {size(asked)} ({wider:+.1%})"
    ]
    if more > DRIFT:
        lines.append(
            f"allocated memory is {more:.0%} above the plan. Likely: workspaces of cuDNN or "
            "cuBLAS, or another attention kernel than planned (darkroom.plan.verify measures them)"
        )
    elif more < -DRIFT:
        lines.append(
            f"allocated memory is {-more:.0%} below the plan. Likely: the peak's phase "
            f"({plan.peak_phase}) did not come yet, or an out-of-memory error made the micro batch "
            "smaller (decisions.jsonl)"
        )
    elif wider > DRIFT:
        cure = (
            ""
            if expandable
            else ": set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, which "
            f"needs {size(plan.reserved_expandable_gib + over)}"
        )
        lines.append(
            f"reserved memory is {wider:.0%} above the plan, allocated is not. Likely: "
            f"fragmentation{cure}"
        )
    return lines


def size(gib: float) -> str:
    """Return GiB for people: three digits, MiB where they are few."""
    return f"{gib:.3g} GiB" if gib >= 0.1 else f"{gib * 1024:.3g} MiB"
