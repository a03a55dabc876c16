"""Files inside tar archives, read by position: a member has a path and is a file like any other.

`shard:/data/train-00000.tar@1536+20480/00000012-sky.gt.png` names the archive, the byte at which
the member's content starts, its length, and the member.
"""

from __future__ import annotations

import errno
import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

BLOCK = 512  # bytes; a member's header stands in the block before its content
NUM_OPEN = 64  # descriptors kept by each process
WAY_OUT = "copy this shard again from where it is whole, or write the shards anew"

_PATH = re.compile(r"shard:(/.+)@(\d+)\+(\d+)/(.+)", re.DOTALL)


class ShardError(OSError):
    """A member that is not where the index says; the message names shard, member and way out."""

    def __init__(self, *arguments) -> None:
        # one argument is the message; pickled and copied errors come with (errno, message)
        super().__init__(*((errno.EIO, *arguments) if len(arguments) == 1 else arguments))


class Member(NamedTuple):
    """Where a file lies in which archive."""

    archive: str  # absolute path
    offset: int  # of its content, in bytes
    size: int  # bytes
    name: str


class _Descriptor:
    """An open archive, closed when nobody reads it any more."""

    def __init__(self, archive: str) -> None:
        self.number = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        self.place = os.fstat(self.number)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_open: dict[str, _Descriptor] = {}  # pread moves no file position, so a fork may share them


def path_of(member: Member) -> str:
    """Return the path under which `images.read_bytes` finds a member."""
    return f"shard:{member.archive}@{member.offset}+{member.size}/{_plain(member.name)}"


def find(path: str | Path) -> Member | None:
    """Return the member that a path names, or None where it is a file's."""
    found = _PATH.fullmatch(str(path))
    return Member(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def read(member: Member) -> bytes:
    """Return the bytes of a member, after a look at its header.

    Raises ShardError where the archive is missing, ends too early or holds something else there.
    """
    where = f"{member.name} in {member.archive}"
    try:
        place = os.stat(member.archive)
        if place.st_size < member.offset + member.size:
            raise ShardError(
                f"{where}: the shard is cut off at byte {place.st_size}, and the member ends at "
                f"{member.offset + member.size}: {WAY_OUT}"
            )
        file = _descriptor(member.archive, place)
        header = os.pread(file.number, BLOCK, member.offset - BLOCK)
        found = os.pread(file.number, member.size, member.offset)
    except ShardError:
        raise
    except OSError as error:
        raise ShardError(f"{where}: {error.strerror}: {WAY_OUT}") from error
    if len(found) != member.size or not _is_header_of(header, member):
        raise ShardError(
            f"{where}: the shard has changed, another member stands at byte {member.offset}: "
            f"{WAY_OUT}"
        )
    return found


def _descriptor(archive: str, place: os.stat_result) -> _Descriptor:
    """Return the open archive; opened anew where another file has taken its name."""
    file = _open.pop(archive, None)
    if file is None or not os.path.samestat(file.place, place):
        file = _Descriptor(archive)
    _open[archive] = file  # the last one used is the last one dropped
    while len(_open) > NUM_OPEN:
        _open.pop(next(iter(_open)), None)
    return file


def _plain(name: str) -> str:
    return os.path.normpath(name).lstrip("/")


def _is_header_of(header: bytes, member: Member) -> bool:
    """Say whether a block names this member and its size (POSIX.1-2017, pax, "ustar")."""
    try:
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return False
    if len(member.name) >= 100 or not member.name.isascii():
        return size == member.size  # a part of the name stands here, the whole one before
    name = header[:100].partition(b"\0")[0].decode("latin-1")
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{header[345:500].partition(bytes(1))[0].decode('latin-1')}/{name}"
    return size == member.size and _plain(name) == _plain(member.name)


def scan(archive: Path) -> tuple[list[Member], str | None]:
    """Return the files in an uncompressed tar, by its headers alone, and what is wrong with it.

    A member that the archive ends in the middle of is returned, too. Raises OSError.
    """
    members: list[Member] = []
    place, problem = str(archive.absolute()), None
    size = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as file:
            for info in file:
                if info.isreg() and not info.issparse():
                    members.append(Member(place, info.offset_data, info.size, info.name))
                file.members = []  # tarfile would keep them all
    except tarfile.TarError as error:
        problem = f"the shard is cut off or no uncompressed tar ({error}): {WAY_OUT}"
    if members and members[-1].offset + members[-1].size > size:
        problem = f"the shard is cut off at byte {size}, in {members[-1].name}: {WAY_OUT}"
    elif problem is None and not _ends(archive, size):
        problem = f"the shard is cut off at byte {size}, without the mark of its end: {WAY_OUT}"
    return members, problem


def _ends(archive: Path, size: int) -> bool:
    """Say whether a tar ends in a block of zeros, as all whole ones do."""
    with open(archive, "rb") as file:
        file.seek(max(0, size - BLOCK))
        return file.read() == bytes(BLOCK)
