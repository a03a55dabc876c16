"""Run directories, their lock, and files that are whole or absent."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from darkroom import paths

LIB = Path(paths.__file__).resolve().parents[1]


def python(code: str, *arguments: str, **options) -> subprocess.Popen:
    """Start a Python process that can import darkroom."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(LIB)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_repo_root_holds_params_and_pyproject(monkeypatch, tmp_path):
    monkeypatch.delenv("DARKROOM_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)  # papermill runs anywhere, Lab in notebooks/
    root = paths.repo_root()
    assert (root / "params" / "tiny.yaml").is_file()
    assert (root / "pyproject.toml").is_file()
    assert root == LIB.parent


def test_darkroom_root_names_another_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("DARKROOM_ROOT", str(tmp_path))
    assert paths.repo_root() == tmp_path.resolve()
    monkeypatch.setenv("DARKROOM_ROOT", str(tmp_path / "gone"))
    with pytest.raises(
        FileNotFoundError, match="DARKROOM_ROOT names .*gone, which is not a folder"
    ):
        paths.repo_root()


def test_a_run_directory_is_made_once_and_kept(tmp_path):
    config = SimpleNamespace(run_dir=tmp_path / "runs" / "a")
    made = paths.run_directory(config)
    (made / "train.log").write_text("kept")
    assert paths.run_directory(config) == made
    assert (made / "train.log").read_text() == "kept"


HOLD = """
    import sys, time
    from darkroom.paths import RunLock
    with RunLock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    holder = python(HOLD, str(tmp_path))
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(paths.RunLocked, match=rf"pid {holder.pid} on \S+: wait for it, stop it"),
            paths.RunLock(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with paths.RunLock(tmp_path):  # killed, so the kernel let go
        pass


def test_the_lock_can_be_taken_again_and_not_twice_in_one_process(tmp_path):
    for _ in range(2):
        with (
            paths.RunLock(tmp_path / "new"),
            pytest.raises(paths.RunLocked, match=f"pid {os.getpid()}"),
            paths.RunLock(tmp_path / "new"),
        ):
            pass


def test_a_forked_worker_that_outlives_its_trainer_does_not_hold_the_lock(tmp_path):
    code = """
        import os, sys, time
        from darkroom.paths import RunLock
        with RunLock(sys.argv[1]):
            if os.fork() == 0:
                print("forked", flush=True)
            time.sleep(60)
    """
    holder = python(code, str(tmp_path), start_new_session=True)
    try:
        assert holder.stdout.readline() == "forked\n"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with paths.RunLock(tmp_path):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)  # the forked one
        holder.communicate()


def test_bytes_and_callables_are_written_whole(tmp_path):
    paths.write_atomically(tmp_path / "a.json", b"one")
    paths.write_atomically(tmp_path / "a.json", lambda path: path.write_text("two"))
    assert (tmp_path / "a.json").read_text() == "two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    paths.write_atomically(tmp_path / "a.json", b"old")

    def half(path):
        path.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        paths.write_atomically(tmp_path / "a.json", half)
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_writer_killed_half_way_leaves_the_old_file_and_its_rest_is_cleaned_up(tmp_path):
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    code = """
        import pathlib, sys, time
        from darkroom.paths import write_atomically
        def half(path):
            path.write_bytes(b"ne")
            print("half", flush=True)
            time.sleep(60)
        write_atomically(pathlib.Path(sys.argv[1]), half)
    """
    writer = python(code, str(target))
    assert writer.stdout.readline() == "half\n"
    assert target.read_bytes() == b"old"
    paths.write_atomically(target, b"other")
    assert len(os.listdir(tmp_path)) == 2  # a living writer's partial file stays
    writer.kill()
    writer.communicate()
    paths.write_atomically(target, b"new")
    assert os.listdir(tmp_path) == ["a.json"] and target.read_bytes() == b"new"


def test_the_data_are_on_the_disk_before_the_rename_and_the_rename_before_the_return(
    tmp_path, monkeypatch
):
    events = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def traced_replace(old, new):
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    paths.write_atomically(tmp_path / "a", b"x")
    assert events == ["file", "rename", "folder"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        paths.write_atomically(tmp_path / "gone" / "a", b"x")


def test_paths_import_nothing_heavy():
    code = "import sys, darkroom.paths; print({'torch', 'numpy', 'pydantic'} & {*sys.modules})"
    assert python(code).communicate()[0].strip() == "set()"
