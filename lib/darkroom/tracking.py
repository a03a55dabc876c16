"""Where numbers go: train.jsonl always, trackers through accelerate; the table of metric names.

Our names say phase and term (`loss/generator_l2`); trackers get the names that HYPIR users know
(`loss/G_mse`), so that their dashboards keep working.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

TRACKER_NAMES = {
    "loss/generator_total": "loss/G_total",
    "loss/generator_l2": "loss/G_mse",
    "loss/generator_l1": "loss/G_l1",
    "loss/generator_charbonnier": "loss/G_charbonnier",
    "loss/generator_ssim": "loss/G_ssim",
    "loss/generator_lpips": "loss/G_lpips",
    "loss/generator_vgg": "loss/G_vgg",
    "loss/generator_gan": "loss/G_disc",
    "loss/discriminator_total": "loss/D",
    "logits/real": "loss/D_logits_real",
    "logits/fake": "loss/D_logits_fake",
    "validation/psnr_y": "val/PSNR",
    "validation/ssim_y": "val/SSIM",
    "validation/lpips": "val/LPIPS",
    "validation/final_score": "val/Final_Score",
}


def tracker_name(name: str) -> str:
    """Return a tracker's name for one of ours; `validation/Rain/psnr_y` is `val/Rain/PSNR`."""
    if name in TRACKER_NAMES:
        return TRACKER_NAMES[name]
    parts = name.split("/")
    if parts[0] == "validation" and len(parts) == 3:
        metric = TRACKER_NAMES.get(f"validation/{parts[2]}", f"val/{parts[2]}").split("/")[1]
        return f"val/{parts[1]}/{metric}"
    return name


class Rows:
    """An append-only JSONL file of one row a step."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def read(self) -> list[dict]:
        """Return all whole rows; a last line that a kill cut short is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def mend(self) -> None:
        """Drop a last line that a kill or a full disk cut short; the next row would join it."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._write(self.read())

    def _write(self, rows: list[dict]) -> None:
        from .paths import write_atomically

        write_atomically(self.path, "".join(json.dumps(r) + "\n" for r in rows).encode())

    def rewind(self, step: int) -> None:
        """Drop rows after `step`, which a resume will write again."""
        if self.path.exists():
            self._write([r for r in self.read() if r["step"] <= step])

    def append(self, row: dict, *, sync: bool = False) -> None:
        """Write one row; with `sync` it is on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            if sync:
                os.fsync(file.fileno())


class Trackers:
    """SwanLab, TensorBoard, W&B … by accelerate; nothing when only jsonl is configured."""

    def __init__(self, accelerator, config) -> None:
        self.accelerator = accelerator
        self.names = [n for n in config.tracking.report_to if n != "jsonl"]
        if self.names:
            # one project, one experiment a run; accelerate owns the settings of each tracker
            accelerator.init_trackers(config.tracking.project, init_kwargs=_options(config))

    def log(self, values: dict[str, float], step: int) -> None:
        if self.names:
            self.accelerator.log({tracker_name(k): v for k, v in values.items()}, step=step)

    def close(self) -> None:
        if self.names:
            self.accelerator.end_training()


def _options(config) -> dict[str, dict]:
    return {
        "swanlab": {"experiment_name": config.run, "mode": config.tracking.mode},
        "wandb": {
            "name": config.run,
            "mode": "online" if config.tracking.mode == "cloud" else "offline",
        },
    }


def memory_row(device) -> dict[str, float]:
    """Return process RSS and, on a GPU, the allocator's allocated and reserved peaks, in GiB."""
    import psutil
    import torch

    row = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        row["memory/allocated_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        row["memory/reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return row
