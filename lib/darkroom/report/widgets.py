"""The live view of a training in JupyterLab: bar, curves, newest pictures, and buttons.

How the buttons work while the cell trains: JupyterLab (4.4 and later) sends widget messages over a
subshell, a second thread of the kernel (ipykernel 7 and later), so a click is handled at once. A
click only writes a word to the run's `control` file, which the trainer reads once a step. Where
there is no subshell, or no notebook at all, `echo stop > runs/<run>/control` does the same.
"""

from __future__ import annotations

import html
import time

from ..bar import in_lab
from ..paths import write_atomically
from ..stopwatch import clock

BUTTONS = {
    "pause": ("Pause", "pause", "Wait after this step"),
    "resume": ("Resume", "play", "Go on after a pause"),
    "validate": ("Validate now", "check", "Score the validation images after this step"),
    "save": ("Save", "save", "Write a checkpoint after this step"),
    "stop": ("Stop", "stop", "Save and end the run; the same call continues it"),
}
ANSWERS = {
    "pause": "pausing after this step, until Resume or Stop",
    "resume": "going on",
    "validate": "validating after this step",
    "save": "saving after this step",
    "stop": "stopping after this step",
}
BAR_SECONDS = 0.5  # between two updates of the bar
PICTURE_SECONDS = 4.0  # and at least between two drawings of the curves
DRAWING_SHARE = 0.05  # of the run's time may go into drawing


def reporter(config):
    """Return the live view in Lab, None (the trainer's quiet lines) everywhere else."""
    return Live(config) if in_lab() else None


class Live:
    """Shows a training in the output of the cell that runs it; the trainer calls its methods."""

    def __init__(self, config) -> None:
        self.run_dir = config.run_dir
        self.run = config.run
        self.rows: list[dict] = []
        self.scores = self.asked = self.forecast = ""
        self.left: tuple[float, float] | None = None  # seconds left, and when that was said
        self.handles: dict[str, object] = {}
        self.box = None
        self.drawn = self.told = 0.0
        self.pause = PICTURE_SECONDS

    # --- what the trainer calls -----------------------------------------------------------------

    def start(self, total: int, step: int) -> None:
        """Show bar, buttons and an empty place for curves; earlier rows of the run come back."""
        from IPython.display import HTML, display

        self.total, self.first, self.step = total, step, step
        self.began = self.drawn = time.monotonic()
        self.rows = self._earlier(step)
        self.handles["bar"] = display(HTML(self._bar()), display_id=True)
        self.box = self._buttons()
        if self.box is not None:
            display(self.box)
        for name in ("curves", "pictures"):
            self.handles[name] = display(HTML(""), display_id=True)

    def update(self, row: dict) -> None:
        """Take the row of a finished step; draw when enough time has passed."""
        row = dict(row)
        self.forecast = row.pop("forecast", self.forecast)
        left = row.pop("left_seconds", None)
        self.left = None if left is None else (left, time.monotonic())
        self.rows.append(row)
        self.step = row["step"]
        if self.asked and not (self.run_dir / "control").exists():
            self.asked = ""  # the trainer has taken the request
        now = time.monotonic()
        if now - self.told > BAR_SECONDS:
            self._tell()
            self.told = now
        if now - self.drawn > self.pause:
            self._draw()

    def images(self, step: int, pictures: dict) -> None:
        """Show the newest restored training crops."""
        from .triplets import previews

        self._show("pictures", previews(pictures, step))

    def validated(self, step: int, frame) -> None:
        """Say the newest scores under the bar."""
        from ..selection import means

        scores = [
            f"{name.removeprefix('validation/')} {value:.3f}"
            for name, value in means(frame).items()
            if name.count("/") == 1
        ]
        self.scores = f"validated at step {step:,}: " + ", ".join(scores)
        self._tell()

    def close(self, status: str) -> None:
        """Show the last state and disable the buttons."""
        self.asked = status
        if not self.handles:
            return
        self._tell()
        if self.rows:
            self._draw()
        if self.box is not None:
            self.box.layout.display = "none"

    # --- how it shows ---------------------------------------------------------------------------

    def _earlier(self, step: int) -> list[dict]:
        from ..tracking import Rows

        return [r for r in Rows(self.run_dir / "train.jsonl").read() if r["step"] <= step]

    def _bar(self) -> str:
        done = self.step / max(1, self.total)
        seconds = time.monotonic() - self.began
        taken = self.step - self.first
        rate = taken / seconds if seconds > 0 else 0
        parts = [f"{self.run}: step {self.step:,} of {self.total:,}", clock(seconds)]
        if taken and self.step < self.total:
            parts += [f"{clock(self._left(rate))} left", f"{rate:.2f} steps/s"]
        if self.rows:
            losses = [(k, v) for k, v in self.rows[-1].items() if k.endswith("_total")]
            parts += [
                f"{k.removeprefix('loss/').removesuffix('_total')} {v:.4g}" for k, v in losses
            ]
        note = " · ".join(part for part in (self.asked, self.scores, self.forecast) if part)
        fill = f"width:{100 * done:.1f}%;height:100%;background:#0072B2;border-radius:4px"
        return (
            '<div style="max-width:1000px"><div style="height:10px;background:#e3e6ea;'
            f'border-radius:4px"><div class="darkroom-bar" style="{fill}"></div></div>'
            f'<div style="font-variant-numeric:tabular-nums">{html.escape(" · ".join(parts))}</div>'
            f'<div style="color:#6a717b">{html.escape(note)}&nbsp;</div></div>'
        )

    def _left(self, rate: float) -> float:
        """Return the trainer's estimate of the seconds left, less what has passed since."""
        if self.left is None:
            return (self.total - self.step) / rate
        seconds, said = self.left
        return max(0.0, seconds - (time.monotonic() - said))

    def _tell(self) -> None:
        from IPython.display import HTML

        self._show("bar", HTML(self._bar()))

    def _draw(self) -> None:
        import polars as pl

        from .curves import live

        started = time.monotonic()
        self._show("curves", live(pl.DataFrame(self.rows, infer_schema_length=None), self.total))
        self.drawn = time.monotonic()
        self.pause = max(PICTURE_SECONDS, (self.drawn - started) / DRAWING_SHARE)

    def _show(self, place: str, content) -> None:
        handle = self.handles.get(place)
        if handle is not None:
            handle.update(content)

    def _buttons(self):
        try:
            from ipywidgets import Button, HBox
        except ImportError:
            return None
        buttons = []
        for word, (label, icon, hint) in BUTTONS.items():
            button = Button(description=label, icon=icon, tooltip=hint)
            button.add_class(f"darkroom-{word}")
            button.on_click(lambda _, word=word: self.ask(word))
            _answer_on_subshell(button)
            buttons.append(button)
        return HBox(buttons)

    def ask(self, word: str) -> None:
        """Write a word to the run's control file; buttons call it on the kernel's other thread."""
        if word not in BUTTONS:
            raise ValueError(f"{word!r} is no request; there are {', '.join(BUTTONS)}")
        write_atomically(self.run_dir / "control", word.encode())
        self.asked = ANSWERS[word]
        self._tell()


def _answer_on_subshell(widget) -> None:
    """Let a widget's messages be handled on the subshell that Lab sends them to.

    ipykernel 7.4 hands them back to the shell that opened the widget, which is the one that trains.
    """
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = lambda _data, sent_to: sent_to
