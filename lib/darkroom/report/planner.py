"""Sliders over the memory plan in JupyterLab; in a log, a table of what each lever does alone."""

from __future__ import annotations

import html
from dataclasses import replace

from ..bar import in_lab
from ..plan import fit, gpus, laws, levers, overhead
from .style import BLUE, INK, MUTED, VERMILION
from .tables import Table

GIB = 2**30
SIZES = ("8 GiB", "12 GiB", "16 GiB", "24 GiB", "32 GiB", "40 GiB", "48 GiB", "80 GiB")
CROPS = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024)
RANKS = (4, 8, 16, 32, 64, 128, 192, 256, 384, 512)
SWITCHES = {
    "network": "recompute the network",
    "decoder": "recompute the decoder",
    "discriminator": "recompute the discriminator",
}


def panel(config, card=None, precision: str | None = None):
    """Return sliders for every lever of this config in Lab, the table of levers elsewhere.

    `card` is a name, a size or a Card. The first look at a structure traces it (seconds to a
    minute); every move after that is arithmetic.
    """
    card = gpus.card(card or fit.card_for(config) or SIZES[3])
    found = Answers(config, card, precision or card.precision(config.train.precision))
    return Panel(found).box if in_lab() else found.table()


class Answers:
    """What any choice of levers takes; traces a structure when it is first asked for."""

    def __init__(self, config, card, precision: str) -> None:
        self.config, self.card, self.precision = config, card, precision
        self.laws: dict[tuple, laws.Laws] = {}
        self.timed = card if card.tflops else gpus.card("A100-40G")
        self.structures = levers.structures(config, precision=precision)

    def outcome(
        self, choice: levers.Choice, crop: int | None = None, rank: int | None = None
    ) -> laws.Outcome:
        """Return a choice's outcome at another crop or rank."""
        if choice.structure not in self.laws:
            self.laws[choice.structure] = laws.trace(
                self.config, self.timed, self.precision, [choice.structure], ranks=True
            )
        return self.laws[choice.structure].outcome(choice, crop=crop, rank=rank)

    def own(self) -> levers.Choice:
        """Return the config's own values as a choice."""
        train = self.config.train
        values = {
            f"train.checkpointing.{k}": tuple(v) if isinstance(v, list) else v
            for k, v in train.checkpointing
        }
        values["train.tail_micro_batch"] = train.tail_micro_batch
        structure = tuple((k, values[k]) for k, _ in self.structures[0])
        first = self.config.optim.for_phase(levers.PHASES[self.config.model.recipe][0])
        return levers.Choice(
            structure,
            train.micro_batch or train.effective_batch,
            train.ema_device == "cpu",
            first.name == "adamw8bit",
            train.grad_norm_every is not None,
        )

    def needed(self, outcome: laws.Outcome) -> float:
        """Return the GiB that an outcome needs on the card."""
        return outcome.peak / GIB + overhead.overhead(self.card, self.config.paths.runs).gib

    def alone(self) -> list[tuple[str, levers.Choice]]:
        """Return the config's choice and every single step from it, by what is changed."""
        own = self.own()
        found = [("as configured", own)]
        for structure in self.structures:
            differ = [
                (k, v) for (k, v), (_, w) in zip(structure, own.structure, strict=True) if v != w
            ]
            tail = dict(structure).get("train.tail_micro_batch")
            if len(differ) == 1 and (tail is None or tail < own.micro):
                found.append((_said(*differ[0]), replace(own, structure=structure)))
        for micro in levers.divisors(self.config.train.effective_batch):
            if micro != own.micro and micro > (
                dict(own.structure).get("train.tail_micro_batch") or 0
            ):
                found.append((f"micro batch {micro}", replace(own, micro=micro)))
        if self.config.train.ema_decay:
            where = "card" if own.average_on_cpu else "computer's memory"
            found.append(
                (f"average in the {where}", replace(own, average_on_cpu=not own.average_on_cpu))
            )
        found.append(("8-bit moments (counted)", replace(own, eight_bit=True)))
        if own.norms:
            found.append(("no norms of terms", replace(own, norms=False)))
        return found

    def table(self) -> Table:
        """Return what each lever does alone, as a table."""
        import polars as pl

        found = [(words, self.outcome(choice)) for words, choice in self.alone()]
        base = found[0][1]
        scale, unit = (GIB, "GiB") if base.peak >= GIB else (2**20, "MiB")

        def turns(outcome: laws.Outcome) -> float:
            return max(v for k, v in outcome.phases.items() if k not in ("images", "validation"))

        rows = [
            {
                "lever": words,
                f"peak {unit}": outcome.peak / scale,
                "in": outcome.phase,
                f"largest turn {unit}": turns(outcome) / scale,
                "change": (turns(outcome) - turns(base)) / scale,
                "% more time, at least": 100 * (outcome.step.floor / base.step.floor - 1),
            }
            for words, outcome in found
        ]
        title = f"Each lever alone, for {self.card.name}; the effective batch stays"
        return Table(pl.DataFrame(rows), title, {"% more time, at least": 0})


def _said(key: str, value) -> str:
    if key.startswith("train.checkpointing."):
        part = key.rpartition(".")[2]
        return f"{part} {'recomputed' if value != 'off' else 'kept'}"
    return f"tail {value} at a time" if value else "no tail"


class Panel:
    """The widgets: a control a lever, and the answer as bars."""

    def __init__(self, answers: Answers) -> None:
        import ipywidgets as w

        self.answers, config = answers, answers.config
        own, train = answers.own(), config.train
        options = [c.name for c in gpus.table()] + list(SIZES)
        if answers.card.name not in options:
            options.insert(0, answers.card.name)
        wide = {"style": {"description_width": "190px"}, "layout": w.Layout(width="480px")}
        self.card = w.Dropdown(options=options, value=answers.card.name, description="card", **wide)
        self.micro = w.SelectionSlider(
            options=levers.divisors(train.effective_batch),
            value=own.micro,
            description=f"micro batch (of {train.effective_batch})",
            **wide,
        )
        crops = sorted({*CROPS, config.data.crop_size})
        self.crop = w.SelectionSlider(
            options=crops, value=config.data.crop_size, description="crop, pixels", **wide
        )
        controls = [self.card, self.micro, self.crop]
        self.rank = None
        if config.model.lora_rank:
            ranks = sorted({*RANKS, config.model.lora_rank})
            self.rank = w.SelectionSlider(
                options=ranks, value=config.model.lora_rank, description="LoRA rank", **wide
            )
            controls.append(self.rank)
        self.switches = {}
        values = dict(own.structure)
        for part, label in SWITCHES.items():
            if f"train.checkpointing.{part}" in values:
                on = values[f"train.checkpointing.{part}"] != "off"
                self.switches[part] = w.Checkbox(value=on, description=label, indent=True, **wide)
        self.tail = None
        if "train.tail_micro_batch" in values:
            tails = sorted({1, 2, values["train.tail_micro_batch"] or 1})
            self.tail = w.Dropdown(
                options=[("all", None), *((str(n), n) for n in tails)],
                value=values["train.tail_micro_batch"],
                description="decoded and judged at once",
                **wide,
            )
        self.average = w.Checkbox(
            value=own.average_on_cpu, description="average in the computer's memory", **wide
        )
        self.moments = w.Checkbox(
            value=own.eight_bit, description="moments in 8 bit (counted, not traced)", **wide
        )
        self.norms = w.Checkbox(value=own.norms, description="norms of loss terms", **wide)
        controls += [*self.switches.values(), *([self.tail] if self.tail else [])]
        controls += [self.average, self.moments, self.norms]
        self.answer = w.HTML()
        for control in controls:
            control.observe(lambda change: self.show(), "value")
        column = w.VBox(controls, layout=w.Layout(flex="0 0 500px"))
        # beside each other where the page is wide enough, else one below the other
        self.box = w.HBox([column, self.answer], layout=w.Layout(flex_flow="row wrap"))
        self.box.add_class("darkroom-planner")
        self.show()

    def choice(self) -> levers.Choice:
        """Return what the controls say."""
        own, structure = self.answers.own(), []
        for key, value in own.structure:
            part = key.rpartition(".")[2]
            if part in self.switches:
                on = self.switches[part].value
                value = ("on" if value == "off" else value) if on else "off"
            elif key == "train.tail_micro_batch":
                value = self.tail.value
            structure.append((key, value))
        return levers.Choice(
            tuple(structure),
            self.micro.value,
            self.average.value,
            self.moments.value,
            self.norms.value,
        )

    def show(self) -> None:
        """Answer for what the controls say; says so while a new structure is traced."""
        answers, choice = self.answers, self.choice()
        answers.card = gpus.card(self.card.value)
        if choice.structure not in answers.laws:
            self.answer.value = "<i>tracing this structure: seconds to a minute …</i>"
        try:
            rank = self.rank.value if self.rank else None
            outcome = answers.outcome(choice, self.crop.value, rank)
        except (ValueError, RuntimeError) as error:
            self.answer.value = f'<pre style="white-space:pre-wrap">{html.escape(str(error))}</pre>'
            return
        self.answer.value = bars(outcome, answers.needed(outcome), answers.card)


def bars(outcome: laws.Outcome, needed: float, card) -> str:
    """Return an outcome as HTML: the verdict, and a bar a phase against the card's memory."""
    fits = needed <= card.memory_gib
    verdict = "fits" if fits else "does not fit"
    top = 1.1 * max(card.memory_gib, needed)
    lines = [
        f'<div style="font-size:1.35em;color:{BLUE if fits else VERMILION}"><b>{needed:.1f} GiB of '
        f"{card.memory_gib:.4g}: {verdict}</b></div>"
        f'<div style="color:{MUTED}">peak {outcome.peak / GIB:.2f} GiB in '
        f"'{html.escape(outcome.phase)}', the rest is what a trace cannot see</div>"
    ]
    line = 100 * card.memory_gib / top
    for name, value in outcome.phases.items():
        width = 100 * value / GIB / top
        colour = VERMILION if name == outcome.phase and not fits else BLUE
        strength = 1.0 if name == outcome.phase else 0.45
        lines.append(
            '<div style="display:flex;align-items:center;font-size:0.9em">'
            f'<div style="width:230px;text-align:right;padding-right:8px;color:{INK}">'
            f'{html.escape(name)}</div><div style="position:relative;width:360px;height:13px">'
            f'<div style="width:{width:.1f}%;height:11px;background:{colour};'
            f'opacity:{strength}"></div><div style="position:absolute;left:{line:.1f}%;top:-1px;'
            f'height:15px;border-left:2px dashed {VERMILION}"></div></div>'
            f'<div style="padding-left:6px;color:{MUTED}">{value / GIB:.1f}</div></div>'
        )
    return "".join(lines)
