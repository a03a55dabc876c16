"""Where numbers go: train.jsonl always, trackers through accelerate; the table of metric names.

Our names say phase and term (`loss/generator_l2`); trackers get the names that HYPIR users know
(`loss/G_mse`), so that their dashboards keep working.
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

TRACKER_NAMES = {
    "loss/generator_total": "loss/G_total",
    "loss/generator_l2": "loss/G_mse",
    "loss/generator_l1": "loss/G_l1",
    "loss/generator_charbonnier": "loss/G_charbonnier",
    "loss/generator_psnr": "loss/G_psnr",
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
    """Return a tracker's name for one of ours; `validation/Rain/psnr_y` is `val/Rain/PSNR`.

    Names without a counterpart stay. A module's gradient norms end in the term's own name there:
    `grad_norm/conv_out_gan` is `grad_norm/conv_out_disc`.
    """
    if name in TRACKER_NAMES:
        return TRACKER_NAMES[name]
    parts = name.split("/")
    if parts[0] == "grad_norm" and name.endswith("_gan"):
        return name.removesuffix("_gan") + "_disc"
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

    def write_csv(self) -> None:
        """Write the same rows beside the file as CSV, a column for every name that occurs."""
        import polars as pl

        from .paths import write_atomically

        if rows := self.read():
            table = pl.DataFrame(rows, infer_schema_length=None)
            write_atomically(self.path.with_suffix(".csv"), table.write_csv().encode())

    def append(self, row: dict, *, sync: bool = False) -> None:
        """Write one row; with `sync` it is on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            if sync:
                os.fsync(file.fileno())


class TrackerError(ValueError):
    """A configured tracker cannot be used here; the message names the way out."""


@dataclass(frozen=True)
class Check:
    """What a tracker would do in this run: whether it can start, and where its curves would go."""

    tracker: str
    ready: bool
    detail: str

    def __str__(self) -> str:
        return f"tracker {self.tracker}: {self.detail}"


def started(config) -> list[str]:
    """Return the trackers that a run starts beside train.jsonl; none where the mode is disabled."""
    if config.tracking.mode == "disabled":
        return []
    return [name for name in dict.fromkeys(config.tracking.report_to) if name != "jsonl"]


def check(config, *, network: bool = True) -> list[Check]:
    """Say for every configured tracker whether it can start here, and where its curves would go.

    Needs no account and no network, unless `tracking.mode` is cloud: then the server is called and
    the stored login tried, which takes seconds (`network=False` leaves that out).
    """
    return [_check(name, config, network) for name in started(config)]


def require(config, *, network: bool = True) -> None:
    """Raise TrackerError, before anything is trained, where a configured tracker cannot start."""
    wrong = [c for c in check(config, network=network) if not c.ready]
    if wrong:
        raise TrackerError("; ".join(map(str, wrong)))


class Trackers:
    """SwanLab, TensorBoard, W&B by accelerate, for one run; nothing where only jsonl is configured.

    A resumed run logs the steps after its checkpoint again. TensorBoard hides what it had of them
    (`purge_step`). In mode cloud SwanLab and W&B continue the same experiment, whose id the run
    directory keeps, and ignore steps that they have already. In the modes local and offline each
    start is a new experiment of the same name, which begins where the one before was saved.
    """

    def __init__(self, accelerator, config, step: int = 0) -> None:
        self.accelerator, self.names = accelerator, started(config)
        self.lines = [str(c) for c in check(config, network=False)]
        if self.names and accelerator.is_main_process:
            folder(config).mkdir(parents=True, exist_ok=True)
            # one project, one experiment a run; accelerate owns the settings of each tracker
            accelerator.init_trackers(config.tracking.project, init_kwargs=_options(config, step))

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers under the trackers' names for them."""
        if self.names:
            self.accelerator.log({tracker_name(k): v for k, v in values.items()}, step=step)

    def images(self, pictures: dict, step: int) -> None:
        """Log the previews, each (N, 3, H, W) in [0, 1], as 8-bit `image/lq`, `gt`, `G`, `G_ema`.

        Where weights are averaged, "restored" is `image/G_ema` and "raw" is `image/G`; else
        "restored" is `image/G`.
        """
        if not self.names:
            return
        averaged = "raw" in pictures
        names = {"lq": "lq", "gt": "gt", "raw": "G", "restored": "G_ema" if averaged else "G"}
        values = {
            f"image/{theirs}": (pictures[ours] * 255).round().byte().permute(0, 2, 3, 1).numpy()
            for ours, theirs in names.items()
            if ours in pictures
        }  # (N, H, W, 3)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(values, step=step, **layout)

    def close(self) -> None:
        """Write out what is waiting and end the experiments."""
        if self.names and self.accelerator.is_main_process:
            self.accelerator.end_training()


def folder(config) -> Path:
    """Return the folder of what trackers write, `trackers` in the run directory."""
    return Path(config.run_dir) / "trackers"


def _check(name: str, config, network: bool) -> Check:
    """Look for the package; in mode cloud also for server and login."""
    section, where = config.tracking, folder(config)
    needed = {"swanlab": ["swanlab", "swanboard"] if section.mode == "local" else ["swanlab"]}
    missing = [m for m in needed.get(name, [name]) if importlib.util.find_spec(m) is None]
    if missing:
        return Check(
            name,
            False,
            f"the package {' and '.join(missing)} is not installed: `pip install "
            '"darkroom[trackers]"`, or set tracking.report_to to [jsonl] or [jsonl, tensorboard]',
        )
    goes = {
        "tensorboard": ("local", where / section.project, "`tensorboard --logdir` shows it"),
        "swanlab": {
            "local": ("local", where / "swanlab", "`swanlab watch` shows it"),
            "offline": ("offline", where / "swanlab", "`swanlab sync` uploads it"),
            "cloud": ("cloud", where / "swanlab", "on its server, too"),
        }.get(section.mode),
        # W&B has no dashboard of its own on this machine
        "wandb": ("cloud", where / "wandb", "on its server, too")
        if section.mode == "cloud"
        else ("offline", where / "wandb", "`wandb sync` uploads it"),
    }
    mode, path, then = goes[name]
    if mode == "cloud" and network and (problem := _connect(name)):
        return Check(
            name,
            False,
            f"{problem}. Log in once (`{name} login`, or set {name.upper()}_API_KEY), or set "
            "tracking.mode to offline, or tracking.report_to to [jsonl]",
        )
    return Check(
        name,
        True,
        f"project {section.project}, experiment {config.run}, mode {mode}, folder {path} ({then})",
    )


def _connect(name: str) -> str | None:
    """Call a tracker's server and try the login that it finds; returns what went wrong, or None."""
    import urllib.error
    import urllib.request

    try:
        if name == "swanlab":
            import swanlab

            server = swanlab.Settings().api_host
        else:
            import wandb

            server = wandb.setup().settings.base_url
        try:
            urllib.request.urlopen(server, timeout=5).close()
        except urllib.error.HTTPError:
            pass  # an answer all the same
        except OSError as error:
            return f"{server} cannot be reached ({error})"
        if name == "swanlab":
            swanlab.login(save=False)
            return None
        return None if wandb.login(prompt=False, verify=True) else "no API key was found"
    except Exception as error:  # what a tracker raises is its own; training must not start
        return f"{type(error).__name__}: {error}".rstrip(". ")


def _options(config, step: int) -> dict[str, dict]:
    """Return what each tracker's own init is given beside the project."""
    where, cloud = folder(config), config.tracking.mode == "cloud"
    again = {"id": _experiment(where), "resume": "allow"} if cloud else {}
    shared = {"config": config.to_dict(), **again}
    return {
        "tensorboard": {"purge_step": step + 1} if step else {},
        "swanlab": {
            "name": config.run,
            "mode": "online" if cloud else config.tracking.mode,
            "log_dir": str(where / "swanlab"),
            **shared,
        },
        "wandb": {
            "name": config.run,
            "mode": "online" if cloud else "offline",
            "dir": str(where),  # it makes the folder wandb there
            "allow_val_change": True,
            **shared,
        },
    }


def _experiment(where: Path) -> str:
    """Return the id under which a server knows this run, drawn at its first start."""
    path = where / "id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text()
