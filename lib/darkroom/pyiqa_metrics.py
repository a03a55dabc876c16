"""Any other metric by pyiqa's name, when its weight files are here; imported when one is asked for.

pyiqa is licensed for non-commercial use (PolyForm Noncommercial 1.0.0). It downloads what is
missing and loads a file put there by hand without looking at its content; here a missing file is
reported with the path where it belongs, and a file is held against the hash in its name first.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import torch

from .measurement import Absent, Metric, check, round_to_8bit
from .perceptual import WeightsMissing, checked, hash_in_name
from .torchvision_ops import ensure_torchvision


class _Wanted(Exception):
    """A metric asked for a file that is not here."""

    def __init__(self, path: Path, origin: str) -> None:
        super().__init__(f"{path.name} is not here; put it at {path} (published at {origin})")
        self.path = path


def find(name: str, device: str | torch.device = "cpu") -> Metric | Absent:
    """Return pyiqa's metric of this name, or Absent; raises ValueError for an unknown name."""
    ensure_torchvision()
    try:
        import pyiqa
    except ImportError as error:
        return Absent(name, f"pyiqa, which would compute it, cannot be imported ({error})")
    if name not in pyiqa.list_models():
        raise _unknown(name)
    try:
        with _no_download(), torch.random.fork_rng(devices=[]):
            metric = pyiqa.create_metric(name, device=torch.device(device))
    except _Wanted as wanted:
        return Absent(name, str(wanted), wanted.path)
    except WeightsMissing as error:
        return Absent(name, str(error))
    except Exception as error:  # a metric without its files fails in its own way
        return _explain(name, error)
    return Metric(name, bool(metric.lower_better), _range(metric.score_range), _score(metric))


def lower_better(name: str) -> bool:
    """Return whether less of pyiqa's metric of this name is better; raises as `find` does."""
    ensure_torchvision()
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    if name not in DEFAULT_CONFIGS:
        raise _unknown(name)
    return bool(DEFAULT_CONFIGS[name].get("lower_better", False))


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"there is no metric {name!r}; ours are psnr_y, ssim_y, psnr_rgb, ssim_rgb and lpips, "
        "the others are named as in pyiqa.list_models()"
    )


def _score(metric):
    references = metric.metric_mode == "FR"

    @torch.no_grad()
    def score(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        check(prediction, target)
        images = [round_to_8bit(image.float()) for image in (prediction, target)]
        # one image at a time: some of pyiqa's metrics mix the images of a batch
        pairs = zip(*(image.split(1) for image in images), strict=True)
        values = [metric(x, y) if references else metric(x) for x, y in pairs]
        return torch.stack([v.double().reshape(()).cpu() for v in values])

    return score


def _range(text: str | None) -> tuple[float, float]:
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text or "")]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (float("-inf"), float("inf"))


def _explain(name: str, error: BaseException) -> Absent:
    """Return why a metric could not be built: the file that some cause of the error wanted."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _Wanted | WeightsMissing):
            return Absent(name, str(cause), getattr(cause, "path", None))
        if isinstance(cause, LocalEntryNotFoundError):
            cache = Path(constants.HF_HUB_CACHE)
            reason = f"a file of the Hugging Face hub is not in its cache {cache} ({error})"
            return Absent(name, reason, cache)
        cause = cause.__cause__ or cause.__context__
    return Absent(name, f"pyiqa cannot build it ({type(error).__name__}: {error})")


@contextlib.contextmanager
def _no_download():
    """Within, a download raises _Wanted, and torch.load checks the hash in a file's name first."""
    import huggingface_hub.constants
    import pyiqa.utils.download_util as downloads

    load = torch.load

    def checked_load(file, *args, **kwargs):
        if isinstance(file, str | Path):
            checked(Path(file), hash_in_name(Path(file).name)).require("the metric")
        return load(file, *args, **kwargs)

    def wanted(url, destination, *_args, **_kwargs):
        raise _Wanted(Path(destination), url)

    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(io.StringIO()):
        for owner, name, value in (
            (torch, "load", checked_load),
            (torch.hub, "download_url_to_file", wanted),
            (downloads, "download_url_to_file", wanted),
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
