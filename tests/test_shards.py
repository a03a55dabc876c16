"""Shards: written whole or not at all, read by position, and damaged ones say so."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_runs
import torch
from darkroom import data, images, index, loader, shards, tar, validate
from darkroom.config import ConfigError, load_config
from darkroom.report import figures
from small_sets import configured, hazy, indexed, pairs, picture, save

SMALL = 40_000  # bytes: a few pictures a shard


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with pictures, their index's config, and the shards made of them."""
    root = tmp_path_factory.mktemp("shards")
    small_runs.write_pictures(root / "pictures", count=12)
    frame = index.build_index(load_config(**small_runs.sections(root)), workers=1, progress=False)
    shards.write_shards(frame, root / "sharded", max_bytes=SMALL)
    return root


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def usable(frame) -> set:
    """Return what training sees of an index, whatever the paths."""
    columns = ("image", "role", "split", "degradation", "prompt", "content_hash", "width", "height")
    return set(frame.filter(pl.col("status") != "excluded").select(columns).iter_rows())


def foreign(path: Path, members: dict[str, bytes], **options) -> Path:
    """Write a tar as others do: by Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1_700_000_000, "somebody"
            file.addfile(info, io.BytesIO(content))
    return path


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    from PIL import Image

    kept = io.BytesIO()
    Image.fromarray(array).save(kept, format=kind)
    return kept.getvalue()


def train(root: Path, run: str, **override):
    options = {"train.steps": 3, "train.save_every": None, "validation.every": 3} | override
    done = subprocess.run(
        small_runs.command(root, run=run, **options), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return small_runs.losses(root / "runs" / run)


SHARDED = {"data.source": "shards"}


def test_training_from_shards_is_bit_for_bit_training_from_the_folder(root):
    place = {"data.train": str(root / "sharded"), **SHARDED}
    first = train(root, "from_folder")
    second = train(root, "from_shards", **place, **{"data.workers": 2})
    assert len(first) == 3 and first == second
    weights = [small_runs.final_weights(root / "runs" / f"from_{x}") for x in ("folder", "shards")]
    assert weights[0] and weights[0] == weights[1]
    scores = [
        validate.read(root / "runs" / f"from_{x}").select("image", "degradation", "psnr_y").rows()
        for x in ("folder", "shards")
    ]
    assert scores[0] and scores[0] == scores[1]
    assert train(root, "other_seed", seed=7) != first


def test_tarfile_reads_our_shards_and_finds_the_files_as_they_were(root):
    folder = root / "sharded"
    tars = [name for name in names_in(folder) if name.endswith(".tar")]
    assert len(tars) > 2 and {name.split("-")[0] for name in tars} == {"train", "val"}
    found = {}
    for name in tars:
        assert (folder / name).stat().st_size <= SMALL
        with tarfile.open(folder / name, "r:") as file:
            members = {m.name: file.extractfile(m).read() for m in file}
            assert all((m.mtime, m.uid, m.uname) == (0, 0, "") for m in file.getmembers())
        keys = [member.partition(".")[0] for member in members]
        assert keys == sorted(keys)  # the members of a sample stand together
        for member, content in members.items():
            if member.endswith(".json"):
                words = json.loads(content)
                found[words["name"]] = members[member.replace(".json", ".gt.png")]
                assert words["split"] == name.split("-")[0]
    originals = {p.stem: p.read_bytes() for p in (root / "pictures").iterdir()}
    assert found == originals


def test_the_same_index_gives_the_same_bytes_and_is_kept_the_second_time(root, tmp_path):
    frame = index.build_index(load_config(**small_runs.sections(root)), workers=1, progress=False)
    shards.write_shards(frame.reverse(), tmp_path / "again", max_bytes=SMALL)
    assert contents(tmp_path / "again") == contents(root / "sharded")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "again").iterdir()}
    shards.write_shards(frame, tmp_path / "again", max_bytes=SMALL)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "again").iterdir()} == before
    with pytest.raises(ValueError, match="holds something else already: name another, or give"):
        shards.write_shards(frame, tmp_path / "again", max_bytes=10 * SMALL)
    shards.write_shards(frame, tmp_path / "again", max_bytes=10 * SMALL, force=True)
    assert names_in(tmp_path / "again") == ["shards.parquet", "train-00000.tar", "val-00000.tar"]
    (tmp_path / "again" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds more than shards \(thesis.txt"):
        shards.write_shards(frame, tmp_path / "again", max_bytes=SMALL, force=True)
    assert (tmp_path / "again" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("source", ["folder", "pairs", "parquet", "charts", "photographs"])
def test_every_source_has_the_same_index_from_its_shards(tmp_path, source):
    place, options = None, {}
    if source == "folder":
        place = "pictures"
        for i in range(5):
            save(tmp_path / place / f"some.folder {i % 2}" / f"é.{i}.png", picture(i))
        (tmp_path / place / "broken.png").write_bytes(b"no picture")
    elif source == "pairs":
        place = pairs(pairs(tmp_path / "pairs"), "Rain", first=10).name
        options = {"data.types": ["Haze"]}
    elif source == "parquet":
        pairs(tmp_path / "files")
        place = "table.parquet"
        rows = [(f"files/Haze/LQ/{i:03d}.jpg", f"files/Haze/GT/{i:03d}.png") for i in range(4)]
        table = pl.DataFrame(rows, schema=["lq_path", "gt_path"], orient="row")
        table.with_columns(prompt=pl.lit("a street, Übung")).write_parquet(tmp_path / place)
    elif source == "charts":
        options = {"data.chart_size": 64, "data.num_charts": 6, "data.crop_size": 64}
    frame = indexed(tmp_path, source, place, **options)
    shards.write_shards(frame, tmp_path / "sharded")
    options = {k: v for k, v in options.items() if k == "data.types"}
    again = indexed(tmp_path, "shards", "sharded", **options)
    assert usable(again) == usable(frame) and len(usable(frame))
    for split in ("train", "val"):
        first, second = index.samples(frame, split), index.samples(again, split)
        assert index.index_hash(first) == index.index_hash(second)
        assert first["image"].to_list() == second["image"].to_list()
        for a, b in zip(first["gt_path"], second["gt_path"], strict=True):
            assert images.read_bytes(a) == images.read_bytes(b)
    # shards of shards are the same shards
    shards.write_shards(again, tmp_path / "copied")
    assert contents(tmp_path / "copied") == contents(tmp_path / "sharded")


def test_without_their_table_our_shards_give_the_same_samples(root, tmp_path):
    for path in (root / "sharded").glob("*.tar"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    assert usable(indexed(tmp_path, "shards", "bare")) == usable(
        indexed(tmp_path, "shards", str(root / "sharded"))
    )


def test_a_shard_of_others_is_indexed_by_its_headers(tmp_path):
    deep = "a_long_folder_name/" * 8
    foreign(tmp_path / "others" / "part-0.tar", {
        "./one.jpg": encoded(picture(0), "JPEG"),
        "./one.json": json.dumps({"prompt": "first", "text": "other"}).encode(),
        "two.gt.png": encoded(picture(1)),
        "two.lq.png": encoded(hazy(picture(1))),
        "two.json": json.dumps({"degradation": "haze", "prompt": None}).encode(),
        f"{deep}three.PNG": encoded(picture(2)),
        f"{deep}three.txt": "dritter Tag ü\n".encode(),
        "vier_ä.png": encoded(picture(3)),
        "five.lq.png": encoded(picture(4)),
        "six.png": encoded(picture(5)), "six.jpg": encoded(picture(6), "JPEG"),
        "seven.png": encoded(picture(7)), "seven.json": b"{",
        "eight.cls": b"3", "README": b"no sample",
        "nine.png": b"no picture",
    })  # fmt: skip
    foreign(tmp_path / "others" / "part-1.tar", {"one.png": encoded(picture(8))},
            format=tarfile.GNU_FORMAT)  # fmt: skip
    frame = indexed(tmp_path, "shards", "others")
    rows = {(r["image"], r["role"]): r for r in frame.to_dicts()}
    ok = {k for k, r in rows.items() if r["status"] != "excluded"}
    assert ok == {
        ("part-0/one", "image"), ("part-0/two", "gt"), ("part-0/two", "lq"),
        (f"part-0/{deep}three", "image"), ("part-0/vier_ä", "image"), ("part-1/one", "image"),
    }  # fmt: skip
    assert rows["part-0/one", "image"]["prompt"] == "first"
    assert rows[f"part-0/{deep}three", "image"]["prompt"] == "dritter Tag ü"
    assert rows["part-0/two", "lq"]["degradation"] == "Haze"
    reasons = {image: r["reason"] for (image, _), r in rows.items()}
    assert reasons["part-0/five"] == "no GT partner with this key"
    assert reasons["part-0/six"] == "2 IMAGE files share this key"
    assert reasons["part-0/seven"].startswith("its .json or .txt cannot be read")
    assert "not a picture format" in reasons["part-0/nine"]
    assert np.array_equal(images.read_image(rows["part-0/vier_ä", "image"]["path"]), picture(3))
    other = indexed(tmp_path, "shards", "others", **{"data.prompt_key": "text"})
    assert "other" in other["prompt"].to_list()
    with pytest.raises(ValueError, match="no sample .* has a prompt under caption"):
        foreign(tmp_path / "bare" / "x.tar", {"a.png": encoded(picture(0))})
        indexed(tmp_path, "shards", "bare", **{"data.prompt_key": "caption"})


def test_headers_of_others_are_read_once_and_again_when_a_shard_changed(tmp_path, monkeypatch):
    place = foreign(
        tmp_path / "others" / "a.tar", {f"{i}.png": encoded(picture(i)) for i in (0, 1)}
    )
    foreign(tmp_path / "others" / "b.tar", {"2.png": encoded(picture(2))})
    first, scanned, scan = indexed(tmp_path, "shards", "others"), [], tar.scan
    monkeypatch.setattr(tar, "scan", lambda path: scanned.append(path.name) or scan(path))
    assert indexed(tmp_path, "shards", "others").equals(first) and scanned == []
    foreign(place, {f"{i}.png": encoded(picture(i)) for i in (0, 3, 4)})
    assert len(indexed(tmp_path, "shards", "others")) == 4 and scanned == ["a.tar"]


@pytest.mark.parametrize("table", [True, False])
def test_a_truncated_shard_loses_what_lies_behind_the_cut_and_says_so(root, tmp_path, table):
    folder = tmp_path / "cut"
    folder.mkdir()
    for path in (root / "sharded").iterdir():
        if table or path.suffix == ".tar":
            (folder / path.name).write_bytes(path.read_bytes())
    whole = indexed(tmp_path, "shards", "cut")
    members, _ = tar.scan(folder / "train-00000.tar")
    at = [m for m in members if m.name.endswith(".png")][1]
    os.truncate(folder / "train-00000.tar", at.offset + at.size // 2)
    frame = indexed(tmp_path, "shards", "cut")
    lost = {
        r["path"] for r in whole.to_dicts()
        if "train-00000" in r["path"] and tar.find(r["path"]).offset >= at.offset
    }  # fmt: skip
    assert lost and usable(frame) == usable(whole.filter(~pl.col("path").is_in(lost)))
    excluded = frame.filter(pl.col("status") == "excluded")
    assert len(excluded) and all("the shard" in reason for reason in excluded["reason"])
    assert all("copy this shard again" in reason for reason in excluded["reason"])
    key = at.name.partition(".")[0]
    assert any(key in (reason or "") for reason in excluded["reason"])
    # and a run that had indexed it before names shard, member and the way out
    config = configured(tmp_path, "shards", "cut", **{"data.crop_size": 32})
    dataset = data.TrainingSet(index.samples(whole, "train"), config)
    with pytest.raises(data.SampleError) as caught:
        for batch in loader.load(dataset, [[("network", n)] for n in range(11)], workers=0):
            assert torch.isfinite(batch.lq).all()
    message = str(caught.value)
    assert "train-00000.tar" in message and "cut off at byte" in message and "copy this" in message


def test_a_shard_that_was_changed_is_not_read_as_if_it_were_the_old_one(root, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in (root / "sharded").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = indexed(tmp_path, "shards", "changed")
    shard = folder / "train-00000.tar"
    path = next(p for p in whole["path"] if "train-00000" in p)
    assert images.read_bytes(path)
    content = bytearray(shard.read_bytes())
    member = tar.find(path)
    content[member.offset + member.size // 2] ^= 1  # one bit of the picture
    (folder / "new").write_bytes(content)
    os.replace(folder / "new", shard)  # under a descriptor that is open
    frame = indexed(tmp_path, "shards", "changed")
    row = frame.filter(pl.col("path") == path).to_dicts()[0]
    assert row["status"] == "excluded"
    assert "its bytes are not those that were written there" in row["reason"]
    moved = bytes(512) + bytes(content)[:-512]  # every member lies a block later
    shard.write_bytes(moved)
    with pytest.raises(tar.ShardError, match="the shard has changed, another member stands"):
        images.read_bytes(path)
    with pytest.raises(images.UnreadableImage, match=r"train-00000\.tar: the shard has changed"):
        images.read_image(path)
    shard.unlink()
    with pytest.raises(tar.ShardError, match="No such file"):
        images.read_bytes(path)
    frame = indexed(tmp_path, "shards", "changed")
    gone = frame.filter(pl.col("path").str.contains("train-00000"))["reason"]
    assert len(gone) and all(r.startswith("the shard train-00000.tar is missing") for r in gone)


KILLED = """
import os, signal, sys
from darkroom import index, paths, shards
from darkroom.config import load_config
import polars as pl
calls, last = [0], int(sys.argv[2])
def counted(function):
    def wrapper(*args, **kwargs):
        calls[0] += 1
        if calls[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
frame = pl.read_parquet(sys.argv[1])
for name in ("fsync", "rename", "replace"):
    setattr(os, name, counted(getattr(os, name)))
shards._add = counted(shards._add)
shards.write_shards(frame, sys.argv[3], max_bytes=int(sys.argv[4]))
print(calls[0])
"""


def test_a_killed_writing_leaves_nothing_that_looks_finished_and_goes_on(root, tmp_path):
    config = load_config(**small_runs.sections(root))
    frame = index.build_index(config, workers=1, progress=False)
    frame.write_parquet(tmp_path / "frame.parquet")

    def write(folder: str, last: int):
        return subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path / "frame.parquet", str(last),
             tmp_path / folder, str(SMALL)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    num_calls = int(write("whole", 0).stdout)
    assert contents(tmp_path / "whole") == contents(root / "sharded")
    for last in (1, num_calls // 3, 2 * num_calls // 3, num_calls - 2):
        assert write(f"killed{last}", last).returncode == -signal.SIGKILL
        assert not (tmp_path / f"killed{last}").exists()
        with pytest.raises(ValueError, match="does not exist"):
            indexed(tmp_path, "shards", f"killed{last}")
        partial = tmp_path / f".killed{last}.partial"
        with pytest.raises(ValueError, match="is unfinished: run the same"):
            indexed(tmp_path, "shards", partial.name)
        kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.rows")}
        done = write(f"killed{last}", 0)
        assert done.returncode == 0, done.stderr
        if kept and last < num_calls - 10:
            assert int(done.stdout) < num_calls  # what was finished is not written again
        assert contents(tmp_path / f"killed{last}") == contents(root / "sharded")
        assert not partial.exists()


def test_what_an_interrupted_writing_left_of_other_images_is_not_used(root, tmp_path):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "plan").write_text("another")
    (partial / "train-00000.tar").write_bytes(b"another")
    (partial / "train-00000.rows").write_text("[]")
    (partial / "train-00099.tar").write_bytes(b"another")
    frame = index.build_index(load_config(**small_runs.sections(root)), workers=1, progress=False)
    shards.write_shards(frame, tmp_path / "out", max_bytes=SMALL)
    assert contents(tmp_path / "out") == contents(root / "sharded")


def test_a_picture_that_changed_since_the_index_is_not_written(tmp_path):
    place = small_runs.write_pictures(tmp_path / "pictures", count=3)
    frame = indexed(tmp_path, "folder", "pictures")
    save(place / "picture_1.png", picture(9))
    with pytest.raises(ValueError, match=r"picture_1\.png has changed since it was indexed"):
        shards.write_shards(frame, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_is_read_by_position_in_forked_processes_and_after_many_others(tmp_path):
    content = {f"{n}.png": bytes([n]) * (n + 1) for n in range(200)}
    places = [foreign(tmp_path / f"{i}.tar", content) for i in range(tar.NUM_OPEN + 3)]
    paths = [tar.path_of(m) for place in places for m in tar.scan(place)[0][::50]]
    expected = [images.read_bytes(p) for p in paths]
    assert expected == [content[tar.find(p).name] for p in paths]
    assert len(os.listdir("/proc/self/fd")) < tar.NUM_OPEN + 40
    child = os.fork()
    if child == 0:
        os._exit(0 if all(images.read_bytes(p) == e for p, e in zip(paths, expected)) else 1)  # noqa: B905
    again = [images.read_bytes(p) for p in paths]
    assert os.waitpid(child, 0)[1] == 0 and again == expected
    for path in ("shard:relative.tar@512+3/a.png", "shard:/x.tar@a+3/a.png", "/x.tar@512+3/a.png"):
        assert tar.find(path) is None


def test_errors_of_shards_survive_the_way_from_a_loader_process():
    error = tar.ShardError("a.png in x.tar: cut off")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is tar.ShardError and again.strerror == error.strerror


def test_a_table_for_other_programs_names_files_and_not_members(tmp_path):
    pairs(tmp_path / "pairs")
    shards.write_shards(indexed(tmp_path, "pairs", "pairs"), tmp_path / "sharded")
    frame = indexed(tmp_path, "shards", "sharded")
    index.write_parquet(frame, tmp_path / "table.parquet", layout="paired")
    table = pl.read_parquet(tmp_path / "table.parquet")
    rows = index.samples(frame, "train")
    assert len(table) == len(rows)
    for side in ("lq_path", "gt_path"):
        for file, member in zip(table[side], rows[side], strict=True):
            assert Path(file).read_bytes() == images.read_bytes(member)


def test_the_notebook_of_the_index_works_on_shards(root, tmp_path):
    config = configured(tmp_path, "shards", str(root / "sharded"), **{"data.crop_size": 32})
    frame = index.build_index(config, workers=1, progress=False)
    for shown in (
        figures.summary(frame),
        figures.resolutions(frame, config.data.crop_size),
        figures.contact_sheet(frame),
        figures.degradations(config, frame),
        figures.problems(frame),
    ):
        assert repr(shown)


def test_shards_serve_as_validation_beside_another_source_and_keep_their_split(root, tmp_path):
    small_runs.write_pictures(tmp_path / "own", count=30)
    for n in range(12):
        (tmp_path / "own" / f"picture_{n}.png").unlink()
    whole = indexed(tmp_path, "shards", str(root / "sharded"))
    override = {"validation.data": str(root / "sharded")}
    frame = indexed(tmp_path, "folder", "own", **override)
    assert index.samples(frame, "val").equals(index.samples(whole, "val"))
    assert len(index.samples(frame, "train")) == 18


def test_a_missing_or_empty_place_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match="`data.train` names no folder of shards: set it"):
        configured(tmp_path, "shards", None)
    with pytest.raises(ValueError, match="which does not exist"):
        indexed(tmp_path, "shards", "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .tar file.*make shards"):
        indexed(tmp_path, "shards", "empty")
    (tmp_path / "shards.tar").touch()
    with pytest.raises(ValueError, match="needs a folder"):
        indexed(tmp_path, "shards", "shards.tar")
    (tmp_path / "zipped").mkdir()
    with tarfile.open(tmp_path / "zipped" / "a.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match="no uncompressed tar"):
        indexed(tmp_path, "shards", "zipped")


def test_the_keys_of_a_table_without_effect_on_shards_are_named():
    config = load_config(
        base=None, run="x",
        override={
            "data.source": "shards", "data.train": "x", "data.lq_key": "a", "data.prompt_key": "b"
        },
    )  # fmt: skip
    lines = [line for line in config.warnings if "data." in line]
    assert lines == ['without effect: data.lq_key: "a" (data.source is shards)']


def test_the_command_writes_shards_of_a_params_file(root, tmp_path):
    params = tmp_path / "x.yaml"
    params.write_text(
        f"base: null\nrun: x\ndata: {{source: folder, train: {root}/pictures, crop_size: 32}}\n"
        f"paths: {{runs: {tmp_path}/runs}}\n"
    )
    command = [sys.executable, "-m", "darkroom.shards", tmp_path / "out", "--base", params]
    done = subprocess.run([*command, "--size", "0.1MiB"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 images, 12 files in" in done.stdout
    assert usable(indexed(tmp_path, "shards", "out"))
    for size in ("many", "0", "3 apples"):
        refused = subprocess.run([*command, "--size", size], capture_output=True, text=True)
        assert refused.returncode == 2 and "KiB, MiB or GiB" in refused.stderr
