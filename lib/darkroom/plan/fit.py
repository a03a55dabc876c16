"""A budget in, a config out: every choice of levers weighed by its law, the best ones traced whole.

The effective batch is kept exactly. What is planned for is the peak of live bytes plus what a trace
cannot see on the card; `needed_gib` is that sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..config import names
from . import budget, gpus, laws, levers, memory, overhead

GIB = 2**30
REFERENCE = "A100-40G"  # whose peaks order the choices where only a size is known
FRAGMENTATION = 0.02  # of the live bytes: the gap to reserved memory with expandable segments
TRIES = 6  # choices traced whole before the search gives up


@dataclass
class Fit:
    """What fits: all choices as `frame`, the best of them as `pareto`, one as `recommended`.

    `recommended` is a Config, None where nothing fits, `plan` its trace, `proofs` all that were
    traced; `verdict` says in words what was found.
    """

    config: object
    card: gpus.Card
    budget_gib: float
    hours: float | None
    frame: object
    choices: list[levers.Choice]
    verdict: str = ""
    recommended: object | None = None
    plan: memory.Plan | None = None
    proofs: dict = field(default_factory=dict)

    @cached_property
    def pareto(self):
        """Polars frame: the choices that no other beats in memory and time, the largest first.

        Choices that cost more than time (8-bit moments, no norms of terms) only go on where the
        others end. `step_down` says what changes from the row above, `saves_gib` and `costs` what
        that is worth; `costs` is a share of the least time of a step.
        """
        import polars as pl

        frame = self.frame.sort("level", "seconds_at_least", "needed_gib", "changes")
        best = frame["needed_gib"].cum_min().shift(1, fill_value=float("inf"))
        front = frame.filter(frame["needed_gib"] < best - 1e-3)
        rows, before = [], None
        for row in front.to_dicts():
            changes = self.changes[row["choice"]]
            words = levers.describe(changes, self.changes[before["choice"]] if before else {})
            saved = before["needed_gib"] - row["needed_gib"] if before else None
            costs = row["seconds_at_least"] / before["seconds_at_least"] - 1 if before else None
            rows.append({"step_down": words, "saves_gib": saved, "costs": costs})
            before = row
        return pl.concat([front, pl.DataFrame(rows, infer_schema_length=None)], how="horizontal")

    @cached_property
    def changes(self) -> dict[int, dict]:
        """The dotted keys of every choice, by its number in `frame`."""
        return {n: choice.changes(self.config) for n, choice in enumerate(self.choices)}

    def keep(self) -> Path | None:
        """Write the recommended config into the run's folder; None where nothing fits."""
        if self.recommended is None:
            return None
        folder = Path(self.config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return self.write(folder / f"{self.config.run}_{self.budget_gib:.0f}gib.yaml")

    def write(self, path: Path | str) -> Path:
        """Write the recommended config as a params file that trains as it is; returns its path.

        Raises ValueError where nothing fits, or where another config lies there.
        """
        import yaml

        if self.recommended is None:
            raise ValueError(self.verdict)
        path = Path(path)
        defaults = names.flat(type(self.config)().to_dict())
        values: dict = {"base": None, "run": path.stem}
        for key, value in names.flat(self.recommended.to_dict()).items():
            if value != defaults.get(key, ...) and key.split(".")[0] not in (
                *("base", "run", "paths", "override", "ablation"),
            ):
                names.put(values, key, value)
        for name in ("stages", "ablation"):
            section = self.recommended.to_dict()[name]
            if section != type(self.config)().to_dict()[name]:
                values[name] = section
        text = f"# {self.verdict}\n" + yaml.safe_dump(values, sort_keys=False)
        if path.exists() and path.read_text() != text:
            raise ValueError(f"{path} is there already: give another name, or move it away")
        path.write_text(text)
        return path


def fit(
    config,
    *,
    budget_gib: float | None = None,
    gpu: str | None = None,
    hours: float | None = None,
    also: dict[str, list] | None = None,
    precision: str | None = None,
) -> Fit:
    """Search the levers of a config for what fits a card, the effective batch kept.

    `budget_gib` or a card's name (`gpu`) say how much memory there is, by default the config's
    `budget`; `hours` rule out what takes longer at the very least. `also` adds dotted keys whose
    values may be chosen, such as {"model.lora_rank": [256, 128]}, although they change what is
    learned. The first call takes minutes and keeps its traces; later ones take seconds. Raises
    ValueError without a budget, PlanError where the run cannot be traced.
    """
    card = card_for(config, gpu, budget_gib)
    if card is None:
        raise ValueError(
            "there is no GPU here and no budget was given: say gpu='RTX 4090' or budget_gib=24, or "
            "set budget.gpu or budget.memory_gib"
        )
    hours = hours or config.budget.hours
    timed = card if card.tflops else gpus.card(REFERENCE)
    wanted = precision or card.precision(config.train.precision)
    found = laws.trace(config, timed, wanted, levers.structures(config, also, wanted))
    choices = list(levers.choices(config, also, wanted))
    frame = _weigh(config, found, card, choices)
    result = Fit(config, card, card.memory_gib, hours, frame, choices)
    _choose(result, wanted, timed is not card)
    return result


def card_for(config, gpu: str | None = None, budget_gib: float | None = None) -> gpus.Card | None:
    """Return the card to plan for: what is asked for here, else the config's budget, else the card
    of this machine; None where there is none of these."""
    import torch

    asked = {"budget.gpu": gpu, "budget.memory_gib": budget_gib}
    config = config.with_changes({k: v for k, v in asked.items() if v is not None})
    # a named card need not be the one in this machine
    found = budget.limit(config, torch.device("cpu")) or budget.limit(config)
    return found[0] if found else None


def _weigh(config, found: laws.Laws, card, choices):
    import polars as pl

    over = overhead.overhead(card, config.paths.runs).gib
    steps = config.train.steps
    rows = []
    for number, choice in enumerate(choices):
        outcome = found.outcome(choice)
        live, bound = outcome.peak / GIB, outcome.step
        seconds = bound.floor
        row = {
            "choice": number,
            "micro_batch": choice.micro,
            "accumulation": config.train.effective_batch // choice.micro,
            **{k.removeprefix("train.checkpointing."): str(v) for k, v in choice.structure},
            "average": "cpu" if choice.average_on_cpu else "card",
            "moments": "8 bit" if choice.eight_bit else "32 bit",
            "norms": choice.norms,
            "live_gib": live,
            "needed_gib": live * (1 + FRAGMENTATION) + over,
            "phase": outcome.phase,
            "tflop": bound.tflop,
            "seconds_at_least": seconds,
            "hours_at_least": steps * seconds / 3600 if steps else None,
            "level": choice.level,
            "analytic": choice.eight_bit or choice.average_on_cpu,
            "changes": len(levers.describe(choice.changes(config), {}).split(", ")),
        }
        rows.append({k.removeprefix("train."): v for k, v in row.items()})
    types = {"hours_at_least": pl.Float64, "tail_micro_batch": pl.String}
    types = {k: v for k, v in types.items() if k in rows[0]}
    return pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)


def _choose(result: Fit, precision: str, reference: bool) -> None:
    """Trace the fastest choices that should fit, until one does."""
    frame, limit = result.frame, result.budget_gib
    inside = frame.filter(frame["needed_gib"] <= limit)
    if result.hours and frame["hours_at_least"].null_count() == 0:
        inside = inside.filter(inside["hours_at_least"] <= result.hours)
    order = inside.sort("level", "seconds_at_least", "changes", "needed_gib")
    over = overhead.overhead(result.card, result.config.paths.runs).gib
    missed = 0.0  # how much more than the law said a trace with the allocator's model needs
    for row in order.to_dicts():
        if row["needed_gib"] + missed > limit or len(result.proofs) == TRIES:
            continue
        config = result.config.with_changes(result.changes[row["choice"]])
        plan = memory.trace(config, precision=precision, keep=True)
        needed = plan.reserved_expandable_gib + over
        result.proofs[row["choice"]] = plan
        if needed <= limit:
            result.recommended, result.plan = config, plan
            result.verdict = _fits(result, row, needed, reference)
            return
        missed = max(missed, needed - row["needed_gib"])
    result.verdict = _too_small(result)


def _fits(result: Fit, row: dict, needed: float, reference: bool) -> str:
    words = levers.describe(result.changes[row["choice"]], {})
    said = (
        f"Fitted to {result.budget_gib:g} GiB ({result.card.name}): needs {needed:.1f} GiB, "
        f"planned from a trace; effective batch {result.config.train.effective_batch} = "
        f"{row['accumulation']} x {row['micro_batch']}; {words}."
    )
    if row["hours_at_least"] is not None and not reference:
        said += f" At least {row['hours_at_least']:.1f} h; a probe on the card tells more."
    return said


def _too_small(result: Fit) -> str:
    """Say what the smallest budget is, and what holds it."""
    smallest = result.frame.sort("needed_gib", "seconds_at_least").row(0, named=True)
    need = max(smallest["needed_gib"], result.budget_gib * (1 + FRAGMENTATION))
    if smallest["needed_gib"] <= result.budget_gib:
        fastest = result.frame.filter(result.frame["needed_gib"] <= result.budget_gib)
        hours = fastest["hours_at_least"].min()
        if result.hours and hours and hours > result.hours:
            return (
                f"Nothing fits {result.budget_gib:g} GiB and {result.hours:g} h: the fastest "
                f"choice takes at least {hours:.1f} h for {result.config.train.steps:,} steps. "
                "Lower train.steps or data.crop_size, or take a faster card."
            )
    words = levers.describe(result.changes[smallest["choice"]], {})
    return (
        f"Nothing fits {result.budget_gib:g} GiB at effective batch "
        f"{result.config.train.effective_batch}: the smallest budget is {need:.1f} GiB ({words}), "
        f"held by the phase '{smallest['phase']}'. Lower data.crop_size, model.lora_rank or the "
        "trunk: they change what is learned, so they are yours to choose."
    )
