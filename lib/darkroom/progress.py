"""How a training shows its progress where there is no notebook: a line now and then."""

from __future__ import annotations

import sys

from .stopwatch import clock


class Quiet:
    """A line at the start, at every tenth of the run and at the end; fit for logs."""

    def __init__(self, stream=None) -> None:
        self.stream = stream or sys.stdout

    def start(self, total: int, step: int) -> None:
        self.total, self.next = total, step
        self._say(f"training steps {step} to {total}")

    def update(self, row: dict) -> None:
        """Take a finished step's row; `left_seconds` and, once, `forecast` stand in it, too."""
        if "forecast" in row:
            self._say(row["forecast"])
        if row["step"] < self.next:
            return
        self.next = row["step"] + max(1, self.total // 10)
        losses = ", ".join(
            f"{k.removeprefix('loss/')} {v:.4f}" for k, v in row.items() if k.endswith("_total")
        )
        left = f", {clock(row['left_seconds'])} left" if "left_seconds" in row else ""
        self._say(f"step {row['step']}/{self.total}  {row['seconds']:.0f} s{left}  {losses}")

    def validated(self, step: int, frame) -> None:
        from .selection import means

        scores = ", ".join(f"{k} {v:.3f}" for k, v in means(frame).items() if k.count("/") == 1)
        self._say(f"step {step}  {scores}")

    def images(self, step: int, pictures: dict) -> None:
        pass

    def close(self, status: str) -> None:
        self._say(f"training {status}")

    def _say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)
