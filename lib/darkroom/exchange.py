"""Weight files of other programs: read as tensors only, and matched to a network.

HYPIR's adapters (HYPIR_sd2.pth, state_dict.pth, ema_state_dict.pth) are one dict of tensors, named
`<module of the U-Net>.lora_A.default.weight` and `….lora_B.default.weight`, with alpha = rank.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from .paths import repo_root

PICKLED = (".pth", ".pt", ".bin")
SUFFIXES = (*PICKLED, ".safetensors")
OWN = ("generator.", "network.")  # what our checkpoints write before the restoring network's names
MODULE = re.compile(r"(.+)\.lora_[AB]\.default\.weight")
SAFE = "take it from its author as .safetensors, or as a torch.save of a plain dict of tensors"


# --- finding and reading --------------------------------------------------------------------------


def find_source(config) -> Path:
    """Return the weight file, or the folder of the run, that `model.init_from` names.

    Raises FileNotFoundError where there is neither, ValueError for a folder that is no run.
    """
    name = config.model.init_from
    if name.endswith(SUFFIXES) or any(place.is_file() for place in _places(name)):
        return locate(name, config.paths.models)
    folders = [f for f in (Path(name), Path(config.paths.runs) / name) if f.is_dir()]
    for folder in folders:
        if any((folder / "checkpoints").glob("step_????????")):
            return folder
    if folders:
        raise ValueError(
            f"model.init_from {name!r}: the folder {folders[-1]} is no run with a checkpoint"
            f"{hint(folders[-1])}"
        )
    raise FileNotFoundError(
        f"model.init_from {name!r} is neither a weight file ({', '.join(SUFFIXES)}) nor a run: "
        f"there is no folder {Path(config.paths.runs) / name}"
    )


def locate(name: str, models: Path | None = None) -> Path:
    """Return a weight file, named from here, from the repository's root or from `paths.models`.

    Raises FileNotFoundError with the places looked in, ValueError when the name is a folder's.
    """
    places = _places(name, models)
    for place in places:
        if place.is_file():
            return place
        if place.is_dir():
            raise ValueError(f"{place} is a folder, not a weight file{hint(place)}")
    looked = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise FileNotFoundError(f"there is no weight file {looked}")


def _places(name: str, models: Path | None = None) -> list[Path]:
    given = Path(name).expanduser()
    roots = [Path(), repo_root(), *([Path(models)] if models else [])]
    return [given] if given.is_absolute() else [root / given for root in roots]


def hint(folder: Path) -> str:
    """Return which weight files a folder holds that may have been meant, as the end of a line."""
    found = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())
    if not found:
        return ""
    best = next((p for p in found if p.name.startswith("ema")), found[0])
    listed = ", ".join(p.name for p in found[:4]) + (" …" if len(found) > 4 else "")
    return f"; it holds {listed}: name one of them, such as {best}"


def read_adapter(path: Path | str) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by HYPIR's names, in the file's dtype; see `read_tensors`.

    Prefixes (`module.`, those of our checkpoints) are taken off. Raises ValueError, too, when the
    file holds no adapter.
    """
    tensors = of_network(read_tensors(path))
    if not any(MODULE.fullmatch(name) for name in tensors):
        raise ValueError(_no_adapter(path, tensors))
    return tensors


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Return what a weight file holds, mapped from the disk; nothing in it is executed.

    Its content, not its suffix, says whether it is safetensors or a torch.save; an outer
    `state_dict` is opened. Raises FileNotFoundError and ValueError.
    """
    path = Path(path)
    if not path.is_file():
        path = locate(str(path))
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes): copy or download it again")
    if head[8:9] == b"{" and head[6:8] == b"\0\0":  # the length of the header, then the header
        return _read_safetensors(path)
    if not head.startswith((b"PK", b"\x80")):
        line = head.split(b"\n")[0][:60].decode("ascii", "replace")
        raise ValueError(
            f"{path} is neither safetensors nor a torch.save, whatever its suffix; it begins with "
            f"{line!r}. A download may have given a page or a pointer: get the file itself"
        )
    content = _read_pickled(path, zipped=head.startswith(b"PK"))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no tensors by name, but {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} holds more than tensors: {type(value).__name__} under {name!r}; {SAFE}"
            )
    return {name: value.detach() for name, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut short ({path.stat().st_size:,} bytes; {error}): copy or "
            "download it again"
        ) from None
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return tensors


def _read_pickled(path: Path, zipped: bool):
    try:
        with warnings.catch_warnings(action="ignore"):  # what they warn of is refused below
            if zipped and path.suffix != ".safetensors":  # which torch gives to another reader
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle raises whatever its bytes lead to
        reason = str(error)
        named = re.search(r"GLOBAL (\S+)", reason)
        if named or "TorchScript" in reason:
            what = f"it asks for {named[1]}" if named else "it is a TorchScript program"
            raise ValueError(
                f"{path} holds more than tensors ({what}); nothing in it was executed, and it is "
                f"not loaded: {SAFE}"
            ) from None
        line = (reason.splitlines() or [""])[0][:120]
        raise ValueError(
            f"{path} is damaged or cut short, or no torch.save ({path.stat().st_size:,} bytes; "
            f"{type(error).__name__}: {line}): copy or download it again"
        ) from None


# --- matching -------------------------------------------------------------------------------------


def is_own(names: Iterable[str]) -> bool:
    """Say whether names are those of our checkpoints, which hold several networks."""
    return any(name.startswith(OWN) for name in names)


def of_network(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the restoring network's tensors by its own names; other networks' are left out."""
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if not is_own(tensors):
        return dict(tensors)
    return {
        name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(OWN)
    }


def scale(model) -> float:
    """Return what an adapter's product is multiplied with: alpha / rank; 1 in HYPIR's files."""
    if model.lora_rank is None or model.lora_alpha is None:
        return 1.0
    return model.lora_alpha / model.lora_rank


def rescaled(tensors: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """Return an adapter with B multiplied by `factor`."""
    if factor == 1:
        return tensors
    return {n: v.float() * factor if ".lora_B." in n else v for n, v in tensors.items()}


def check_start(config) -> None:
    """Raise what `model.init_from` is refused for, as far as is known before a network is built."""
    if config.model.init_from is None:
        return
    source = find_source(config)
    if source.is_file():
        check_adapter(of_network(read_tensors(source)), config.model, source)


def check_adapter(tensors: dict[str, torch.Tensor], model, source) -> None:
    """Raise ValueError when a file's adapter cannot be that of this `model` section.

    Needs no network: `tensors` as `of_network` returns them, `source` names them in the message.
    """
    shapes = {n: v.shape for n, v in tensors.items() if MODULE.fullmatch(n) and v.ndim > 1}
    ranks = sorted({shape[0 if ".lora_A." in n else 1] for n, shape in shapes.items()})
    adapts = model.size == "full" and model.lora_rank is not None
    if adapts and not shapes:
        raise ValueError(f"{_no_adapter(source, tensors)} (model.lora_rank is {model.lora_rank})")
    if not shapes:
        return
    about = f"{source} is an adapter ({len(shapes)} tensors, rank {', '.join(map(str, ranks))})"
    if model.size != "full":
        raise ValueError(
            f"{about}, and a network of model.size {model.size} takes none: set model.recipe: "
            f"one_step_gan, model.size: full, model.base and model.lora_rank: {ranks[-1]}"
        )
    if model.lora_rank is None:
        raise ValueError(
            f"{about}, and this run has no adapters (model.lora_rank is null): set "
            f"model.lora_rank: {ranks[-1]}"
        )
    if ranks != [model.lora_rank]:
        way = f"set model.lora_rank: {ranks[0]}" if len(ranks) == 1 else "all must have one rank"
        raise ValueError(f"{about}, and model.lora_rank is {model.lora_rank}: {way}")


def _no_adapter(source, tensors: dict[str, torch.Tensor]) -> str:
    first = next(iter(tensors), "nothing")
    return (
        f"{source} holds no adapter in HYPIR's format: none of its {len(tensors)} tensors is named "
        f"<module>.lora_A.default.weight; the first is {first}"
    )


@torch.no_grad()
def fill(network: nn.Module, tensors: dict[str, torch.Tensor], model, source) -> str:
    """Copy tensors into a network's adapter, or, where it has none, into all of it.

    The names must be exactly the network's; returns a few words on what was taken. Raises
    ValueError and leaves the network as it was.
    """
    check_adapter(tensors, model, source)
    known = dict(network.named_parameters())
    known = {n: p for n, p in known.items() if ".lora_" in n} or known
    _check_names(known, tensors, source)
    for name, value in tensors.items():
        if value.shape != known[name].shape:
            raise ValueError(
                f"{source} was made for another base than model.base {model.base!r}: {name} is "
                f"{tuple(value.shape)} in it and {tuple(known[name].shape)} in this network"
            )
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ValueError(
                f"{source} is of no use: {name} ({value.dtype}) is not all finite numbers"
            )
    for name, value in tensors.items():
        known[name].copy_(value)
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})
    cast = "" if kinds == ["float32"] else f", {', '.join(kinds)} cast to float32"
    rank = f", rank {model.lora_rank}" if any(".lora_" in name for name in known) else ""
    return f"{len(tensors)} tensors{rank}{cast}"


def _check_names(known: Iterable[str], given: Iterable[str], source) -> None:
    def modules(names) -> dict[str, None]:
        return dict.fromkeys(m[1] if (m := MODULE.fullmatch(n)) else n for n in names)

    known, given = set(known), set(given)
    if known == given:
        return
    parts = []
    for what, names in (("lacks", known - given), ("has, beside them,", given - known)):
        listed = list(modules(sorted(names)))
        if listed:
            more = " …" if len(listed) > 3 else ""
            parts.append(f"{what} {len(listed)} ({', '.join(listed[:3])}{more})")
    way = "Set model.size, model.width and model.recipe to those it was made with"
    if any(".lora_" in name for name in known):
        way = (
            "Set model.lora_modules or model.lora_blocks to what the file adapts, or model.base to "
            "the base it was made for"
        )
    raise ValueError(
        f"{source} is not for the {len(modules(known))} modules that this run trains: it "
        f"{' and '.join(parts)}. {way}"
    )
