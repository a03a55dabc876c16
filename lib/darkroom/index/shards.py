"""WebDataset shards as a source: by the table beside them, or by their own headers, read once.

A sample is all members `<key>.<extension>` of one key: `lq.png` and `gt.png` are a pair, one
picture alone is an image to degrade; `json` and `txt` say more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from .. import tar
from ..paths import write_atomically
from .listing import IndexSourceError, Listing, canonical_type, side_of
from .trees import SPLITS, SUFFIXES

TABLE = "shards.parquet"
VERSION = 1  # of both tables: another number forgets what was kept
TEXT_BYTES = 2**20  # a longer .json or .txt is not read
WORDS = ("name", "split", "degradation", "prompt")  # read from a sample's .json


def schema() -> dict:
    """Return the columns of `shards.parquet`, a row a picture.

    key, kind (image, lq, gt), member (its name in the tar), shard (its name in the folder),
    shard_bytes, offset and size (bytes), content_hash, then image, split, degradation and prompt
    as in the index.
    """
    import polars as pl

    names = (
        "key", "kind", "member", "shard", "shard_bytes", "offset", "size", "content_hash",
        "image", "split", "degradation", "prompt",
    )  # fmt: skip
    numbers = ("shard_bytes", "offset", "size")
    return {n: pl.Int64 if n in numbers else pl.String for n in names}


def list_shards(root: Path, config) -> Listing:
    """List the pictures in the shards of a folder.

    Those that `shards.parquet` names are taken from it, and held against its sizes and hashes;
    the headers of others are read once and kept in `<paths.runs>/.index-cache`.
    """
    if root.name.endswith(".partial"):
        raise IndexSourceError(f"{root} is unfinished: run the same `make shards` again first")
    places = sorted(p for p in root.rglob("*.tar") if _visible(p, root))
    names = {p.relative_to(root).as_posix(): p for p in places}
    table = read_table(root)
    if not places and table is None:
        raise IndexSourceError(
            f"{root} holds no .tar file: data.source shards reads WebDataset shards, which "
            "`make shards` writes from any other source"
        )
    listing = Listing(str(root), num_found=len(places))
    if table is not None:
        _recorded(listing, table, root, _prompt_key(config))
        names = {n: p for n, p in names.items() if n not in set(table["shard"])}
    if names:
        _foreign(listing, names, config, root)
    return listing


def read_table(root: Path):
    """Return `shards.parquet` as a frame, or None where there is none."""
    import polars as pl

    place = root / TABLE
    if not place.is_file():
        return None
    try:
        table = pl.read_parquet(place)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise IndexSourceError(
            f"{place} cannot be read ({error}): copy it again, or delete it and the shards are "
            "indexed by their headers"
        ) from error
    if dict(table.schema) != schema():
        raise IndexSourceError(
            f"{place} has the columns {', '.join(table.columns)}, not those of this version: "
            "delete it and the shards are indexed by their headers"
        )
    return table


def _prompt_key(config) -> str | None:
    key = config.data.prompt_key
    return None if key == "none" else key  # HYPIR's word for it


def _visible(place: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in place.relative_to(root).parts)


def _recorded(listing: Listing, table, root: Path, prompt_key: str | None) -> None:
    """List what the table says, with a problem for what its shard does not hold any more."""
    stats = {name: _stat(root / name) for name in table["shard"].unique()}
    pairs = {r["key"]: _path(root, r) for r in table.to_dicts() if r["kind"] == "gt"}
    for row in table.to_dicts():
        size, modified = stats[row["shard"]]
        problem = None
        if size is None:
            problem = f"the shard {row['shard']} is missing: {tar.WAY_OUT}"
        elif size < row["offset"] + row["size"]:
            problem = (
                f"the shard {row['shard']} is cut off at byte {size} of {row['shard_bytes']}, "
                f"before the end of {row['member']}: {tar.WAY_OUT}"
            )
        kind = row["kind"]
        listing.add(
            _path(root, row), kind, row["image"], split=row["split"],
            pair=None if kind == "image" else row["image"],
            partner=pairs.get(row["key"]) if kind == "lq" else None,
            degradation=row["degradation"], prompt=row["prompt"] if prompt_key else "",
            bytes=None if problem else row["size"], modified_ns=modified,
            problem=problem, written_hash=row["content_hash"],
        )  # fmt: skip


def _path(root: Path, row: dict) -> str:
    place = str((root / row["shard"]).absolute())
    return tar.path_of(tar.Member(place, row["offset"], row["size"], row["member"]))


def _stat(place: Path) -> tuple[int | None, int | None]:
    try:
        found = os.stat(place)
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


# --- shards made by others ------------------------------------------------------------------------


def _foreign(listing: Listing, names: dict[str, Path], config, root: Path) -> None:
    """List shards without a table: headers as kept from the last time, or read now."""
    key = _prompt_key(config)
    digest = hashlib.blake2b(f"{VERSION} {key} {root}".encode(), digest_size=8).hexdigest()
    place = Path(config.paths.runs) / ".index-cache" / f"shards-{digest}.json"
    kept, found = _kept(place), {}
    for name, path in names.items():
        stat = list(_stat(path))
        known = kept.get(name)
        rows = known["rows"] if known and known["stat"] == stat else _scan(path, name, key)
        found[name] = {"stat": stat, "rows": rows}
    if found != kept:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(found).encode())
    rows = [{"modified_ns": f["stat"][1], **row} for f in found.values() for row in f["rows"]]
    if key not in (None, "prompt") and rows and not any(row["prompt"] for row in rows):
        raise IndexSourceError(
            f"no sample in {root} has a prompt under {key} (data.prompt_key) in its .json, or a "
            ".txt: name the key that holds it, or set data.prompt_key to null"
        )
    _name(rows)
    listing.rows += rows


def _kept(place: Path) -> dict:
    try:
        return json.loads(place.read_bytes())
    except (OSError, ValueError):  # absent, or damaged: read again
        return {}


def _name(rows: list[dict]) -> None:
    """Give every sample its name where those in the .json are its own, and settle the splits."""
    whole = [row for row in rows if not row["problem"]]
    named = Counter(row["name"] for row in whole if row["role"] != "lq")
    own = None not in named and max(named.values(), default=0) == 1
    settled = {row["split"] for row in whole} == {"train", "val"}
    for row in rows:
        name = row.pop("name")
        row["image"] = name if own and name else row["image"]
        row["pair"] = row["image"] if row["pair"] else None
        row["split"] = row["split"] if settled else None


def _scan(path: Path, shard: str, prompt_key: str | None) -> list[dict]:
    """Return the rows of one shard, and one more for a shard that is damaged."""
    try:
        members, problem = tar.scan(path)
    except OSError as error:
        members, problem = [], f"the shard cannot be read: {error.strerror}"
    samples: dict[str, dict[str, list[tar.Member]]] = {}
    for member in members:
        folder, base = os.path.split(os.path.normpath(member.name))
        stem, _, extension = base.partition(".")
        if stem and extension:
            sample = samples.setdefault(os.path.join(folder, stem), {})
            sample.setdefault(_kind(extension.lower()), []).append(member)
    rows = []
    for number, (key, sample) in enumerate(samples.items()):
        cut = problem if number == len(samples) - 1 else None
        rows += _sample(f"{shard.removesuffix('.tar')}/{key}", sample, shard, prompt_key, cut)
    if problem:
        rows.append(_row(str(path.absolute()), "image", shard, problem=problem))
    return rows


def _kind(extension: str) -> str:
    """Return what a member is by its extension: image, lq, gt, json, txt, or other."""
    first, _, last = extension.rpartition(".")
    if extension in ("json", "txt"):
        return extension
    if f".{last}" not in SUFFIXES:
        return "other"
    return side_of(first) or "other" if first else "image"


def _row(path: str, role: str, image: str, **more) -> dict:
    names = ("pair", "partner", "split", "degradation", "prompt", "bytes", "problem", "name")
    return {"path": path, "role": role, "image": image, **dict.fromkeys(names), **more}


def _sample(image: str, sample: dict, shard: str, prompt_key, cut: str | None) -> list[dict]:
    """Return the rows of one key; `cut` is what is wrong with the end of its shard."""
    words, problem = {}, cut
    if cut is None:
        try:
            words = _words(sample, prompt_key)
        except (OSError, ValueError) as error:
            problem = f"its .json or .txt cannot be read: {error}"
    pictures = {kind: sample[kind] for kind in ("image", "gt", "lq") if kind in sample}
    if [*pictures] == ["gt"]:
        pictures = {"image": pictures["gt"]}  # a clean picture alone: to be degraded
    many = [kind for kind, members in pictures.items() if len(members) > 1]
    if many:
        problem = problem or f"{len(pictures[many[0]])} {many[0].upper()} files share this key"
    elif "image" in pictures and len(pictures) > 1:
        problem = problem or "a picture stands beside the LQ or GT of this key"
    elif [*pictures] == ["lq"]:
        problem = problem or "no GT partner with this key"
    words.setdefault("split", _split_of(shard))
    gt = pictures.get("gt")
    rows = []
    for kind, members in pictures.items():
        for member in members:
            rows.append(_row(
                tar.path_of(member), kind, image, pair=None if kind == "image" else image,
                partner=tar.path_of(gt[0]) if kind == "lq" and gt and not problem else None,
                bytes=None if cut else member.size, problem=problem, **words,
            ))  # fmt: skip
    return rows


def _words(sample: dict, prompt_key: str | None) -> dict:
    """Return name, split, degradation and prompt of a sample, where it says them."""
    found: dict = {}
    for member in sample.get("json", [])[:1]:
        document = json.loads(_text(member))
        if not isinstance(document, dict):
            raise ValueError(f"{member.name} holds {type(document).__name__}, not an object")
        found = {k: v for k, v in document.items() if k in WORDS and isinstance(v, str)}
        found.pop("prompt", None)
        if prompt_key and isinstance(document.get(prompt_key), str):
            found["prompt"] = document[prompt_key]
        found["degradation"] = canonical_type(found.get("degradation"))
        if split := SPLITS.get(found.pop("split", "").casefold()):
            found["split"] = split
    for member in sample.get("txt", [])[:1] if prompt_key else ():
        found.setdefault("prompt", _text(member).strip())
    return found


def _text(member: tar.Member) -> str:
    if member.size > TEXT_BYTES:
        raise ValueError(f"{member.name} has {member.size} bytes, more than {TEXT_BYTES}")
    return tar.read(member).decode()


def _split_of(shard: str) -> str | None:
    """Return the split of a shard named train-00000.tar or below a folder val, else None."""
    *folders, name = shard.casefold().split("/")
    words = [*folders, name.removesuffix(".tar").rstrip("0123456789").rstrip("-_")]
    return next((SPLITS[word] for word in words if word in SPLITS), None)
