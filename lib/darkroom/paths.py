"""Where things lie and how files are written: repo root, run directory, its lock, atomic writes."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path


def repo_root() -> Path:
    """Return the folder that holds params/ and pyproject.toml; every relative path starts there.

    $DARKROOM_ROOT comes first, then the folders above this file, then those above the current one.
    Raises FileNotFoundError when none of them is a Darkroom repository.
    """
    named = os.environ.get("DARKROOM_ROOT")
    if named:
        root = Path(named).expanduser().resolve()
        if not root.is_dir():
            raise FileNotFoundError(f"DARKROOM_ROOT names {named}, which is not a folder")
        return root
    here, current = Path(__file__).resolve().parent, Path.cwd().resolve()
    for folder in (*here.parents, current, *current.parents):
        if (folder / "params").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise FileNotFoundError(
        f"no folder above {here} or {current} holds params/ and pyproject.toml: start inside the "
        "repository, or set DARKROOM_ROOT to it"
    )


def run_directory(config) -> Path:
    """Create the run's directory where missing and return it."""
    path = Path(config.run_dir)
    path.mkdir(parents=True, exist_ok=True)
    return path


class RunLocked(RuntimeError):
    """Another process writes this run; the message names it."""


_held: set[int] = set()


def _close_in_child() -> None:
    # a forked loader worker that outlives a killed trainer must not keep the run locked
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunLock:
    """Hold a run directory as its one writer: `with RunLock(run_dir): …`.

    An flock on `<run_dir>/lock`, which the kernel drops when the process ends, however it ends.
    Raises RunLocked, naming pid and host, when another process or this one already holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = Path(run_dir) / "lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise RunLocked(
                f"{self.path.parent} is being written by {holder or 'another process'}: wait for "
                "it, stop it, or give this run another name (`run`)"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(self, *_) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:
            _held.discard(descriptor)
            os.ftruncate(descriptor, 0)
            os.close(descriptor)


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old or the new one whole.

    `content` is the bytes, or a callable that writes to the path it is given: a temporary name in
    the same folder that ends in `.partial`, so a writer must not go by the suffix.
    The data are on the disk before the rename, and the rename before this returns.
    """
    path = Path(path)
    temporary, lock = _temporary(path)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    flush(path.parent)


def _temporary(path: Path) -> tuple[Path, int | None]:
    """Return a name to write to and the lock on it.

    The usual name is fixed, so that the next writer takes over what a killed one left; while
    somebody else is writing there, it is one of this thread's own.
    """
    usual = path.with_name(f".{path.name}.partial")
    lock = os.open(usual, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(usual)):  # else just renamed by its writer
            os.ftruncate(lock, 0)
            return usual, lock
    except OSError:
        pass
    os.close(lock)
    own = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    return path.with_name(f".{path.name}.{own}.partial"), None


def flush(path: Path) -> None:
    """Put a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
