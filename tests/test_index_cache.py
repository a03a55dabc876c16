"""A second index run touches what changed; a killed one continues; processes change nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from darkroom.index import scan
from polars.testing import assert_frame_equal
from small_sets import configured, hazy, indexed, pairs, picture, save

TESTS = Path(__file__).parent


@pytest.fixture
def measured(monkeypatch):
    """Record the files that are really opened and decoded."""
    opened, original = [], scan.measure_group

    def recording(group):
        opened.extend(Path(path).name for path, _ in group)
        return original(group)

    monkeypatch.setattr(scan, "measure_group", recording)
    return opened


def test_a_second_run_opens_nothing_and_says_the_same(tmp_path, measured):
    pairs(tmp_path / "set", "Haze", 4)
    first = indexed(tmp_path, "pairs", "set")
    assert len(measured) == 8
    measured.clear()
    second = indexed(tmp_path, "pairs", "set")
    assert measured == []
    assert_frame_equal(first, second)


def test_only_what_changed_is_opened_with_its_partner(tmp_path, measured):
    folder = pairs(tmp_path / "set", "Haze", 4) / "Haze"
    indexed(tmp_path, "pairs", "set")
    measured.clear()
    save(folder / "GT" / "001.png", picture(61))
    save(folder / "LQ" / "009.jpg", hazy(picture(9)))
    save(folder / "GT" / "009.png", picture(9))
    (folder / "LQ" / "002.jpg").unlink()
    (folder / "GT" / "002.png").unlink()
    frame = indexed(tmp_path, "pairs", "set")
    assert sorted(measured) == ["001.jpg", "001.png", "009.jpg", "009.png"]
    assert sorted(set(frame["image"])) == ["Haze/000", "Haze/001", "Haze/003", "Haze/009"]
    measured.clear()
    indexed(tmp_path, "pairs", "set")
    assert measured == []


def test_a_file_touched_without_a_change_is_looked_at_again(tmp_path, measured):
    for i in range(3):
        save(tmp_path / "set" / f"{i}.png", picture(i))
    before = indexed(tmp_path, "folder", "set")
    measured.clear()
    os.utime(tmp_path / "set" / "1.png", ns=(1, 1))
    after = indexed(tmp_path, "folder", "set")
    assert measured == ["1.png"]
    assert_frame_equal(before.drop("modified_ns"), after.drop("modified_ns"))


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, measured, monkeypatch):
    for i in range(3):
        save(tmp_path / "set" / f"{i}.png", picture(i))
    hidden = tmp_path / "set" / "1.png"
    real = open

    def refuse(path, *rest, **options):
        if str(path) == str(hidden):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    frame = indexed(tmp_path, "folder", "set")
    reason = frame.filter(pl.col("image") == "1")["reason"].item()
    assert reason == "cannot be read: Permission denied"
    monkeypatch.undo()
    assert set(indexed(tmp_path, "folder", "set")["status"]) == {"ok"}


def test_a_damaged_cache_is_measured_again(tmp_path):
    for i in range(3):
        save(tmp_path / "set" / f"{i}.png", picture(i))
    first = indexed(tmp_path, "folder", "set")
    (kept,) = (tmp_path / "runs" / ".index-cache").glob("*.parquet")
    kept.write_bytes(kept.read_bytes()[:100])
    assert_frame_equal(indexed(tmp_path, "folder", "set"), first)


def test_several_processes_measure_the_same_as_one(tmp_path, monkeypatch):
    pairs(tmp_path / "set", "Haze", 12)
    one = indexed(tmp_path, "pairs", "set")
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(scan, "IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(scan, "CHUNK_BYTES", 2**16)
    two = indexed(tmp_path, "pairs", "set", workers=2, **{"paths.runs": str(tmp_path / "again")})
    assert_frame_equal(one, two)


def test_the_number_of_processes_must_be_positive(tmp_path):
    save(tmp_path / "set" / "0.png", picture(0))
    with pytest.raises(ValueError, match="workers 0"):
        indexed(tmp_path, "folder", "set", workers=0)


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from darkroom import index
from darkroom.index import scan
from small_sets import configured

if __name__ == "__main__":
    scan.SECONDS_BETWEEN_PARTS, scan.CHUNK_BYTES, scan.IN_PROCESS_BYTES = 0.0, 2**16, 0
    index.build_index(
        configured(Path(sys.argv[1]), "folder", "set"), workers=int(sys.argv[3]), progress=False
    )
"""


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and int(fields[1]) == pid:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_loses_nothing_it_had_finished_and_continues(tmp_path, measured, workers):
    whole = picture(0, 1200, 900)
    for i in range(150):  # windows of one picture
        y, x = 50 * (i // 15), 50 * (i % 15)
        save(tmp_path / "set" / f"{i:03d}.png", whole[y : y + 400, x : x + 500], compress_level=1)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(TESTS), str(workers)]
    )
    cache, parts = tmp_path / "runs" / ".index-cache", []
    for _ in range(3000):
        parts = list(cache.glob("*/*.parquet"))
        if len(parts) >= 3:
            break
        time.sleep(0.01)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = sum(len(pl.read_parquet(p)) for p in cache.glob("*/*.parquet"))
    assert 3 <= kept < 150
    frame = indexed(tmp_path, "folder", "set")
    assert len(measured) == 150 - kept
    assert len(frame) == 150
    assert "excluded" not in set(frame["status"])
    assert not list(cache.glob("*/*.parquet"))
    for _ in range(500):  # the killed run's processes end with it
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            break
        time.sleep(0.02)
    assert not [p for p in children if Path(f"/proc/{p}").exists() and not _zombie(p)]


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_process_that_dies_does_not_end_the_run(tmp_path, monkeypatch):
    for i in range(20):
        save(tmp_path / "set" / f"{i:02d}.png", picture(i))
    monkeypatch.setattr(scan, "IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(scan, "CHUNK_BYTES", 2**15)
    monkeypatch.setattr(scan, "_prepare_worker", _die)
    frame = indexed(tmp_path, "folder", "set", workers=2)
    assert set(frame["status"]) == {"ok"}


def _die() -> None:
    os._exit(9)


def test_every_location_has_its_own_cache(tmp_path):
    pairs(tmp_path / "one", "Haze", 2)
    pairs(tmp_path / "two", "Haze", 2, first=10)
    config = configured(tmp_path, "pairs", "one", **{"validation.data": "two"})
    from darkroom import index

    index.build_index(config, progress=False)
    assert len(list((config.paths.runs / ".index-cache").glob("*.parquet"))) == 2
