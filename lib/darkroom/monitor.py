"""How fast a run goes and what it takes of the machine: columns of train.jsonl, and an alarm."""

from __future__ import annotations

import contextlib

import torch


class Monitor:
    """Speed and memory from one logged row to the next; a column is absent where nothing is known.

    `images` is the length of an epoch. Above `budget.alarm` of the card's memory the run's log says
    so, once.
    """

    def __init__(self, config, run, device: torch.device, images: int) -> None:
        self.run, self.device, self.images = run, device, images
        self.alarm, self.alarmed = config.budget.alarm, False
        self.before: tuple[float, float] | None = None

    def row(self, row: dict) -> dict[str, float]:
        """Return the columns of a row that holds `step`, `images` and `seconds`, of training alone.

        `time/samples_per_second` and `time/epoch_seconds` (at that speed) are since the row before;
        `memory/…` in GiB (2**30 bytes), on a GPU the allocator's peaks and what share of the card
        is in use now; `gpu/utilization_percent` from NVIDIA's driver.
        """
        import psutil

        found = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
        found |= self._speed(row["images"], row["seconds"])
        if self.device.type == "cuda":
            found |= self._card(row["step"])
        return found

    def _speed(self, images: float, seconds: float) -> dict[str, float]:
        before, self.before = self.before, (images, seconds)
        if before is None or seconds <= before[1] or images <= before[0]:
            return {}
        speed = (images - before[0]) / (seconds - before[1])
        return {"time/samples_per_second": speed, "time/epoch_seconds": self.images / speed}

    def _card(self, step: int) -> dict[str, float]:
        found = {
            "memory/allocated_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
            "memory/reserved_gib": torch.cuda.max_memory_reserved(self.device) / 2**30,
        }
        free, total = torch.cuda.mem_get_info(self.device)
        share = 1 - free / total
        found["memory/usage_percent"] = 100 * share
        if share > self.alarm and not self.alarmed:
            self.alarmed = True
            self.run.note(
                f"step {step}: {share:.0%} of the card's {total / 2**30:.1f} GiB are in use, above "
                f"budget.alarm {self.alarm:g}: what comes next (validation, pictures) may not fit"
            )
        with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # the driver may not say
            found["gpu/utilization_percent"] = float(torch.cuda.utilization(self.device))
        return found
