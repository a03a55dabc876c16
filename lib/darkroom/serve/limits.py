"""What a request may cost, and how one that would cost more is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may cost; every one is an option of the command."""

    upload_bytes: int = 20 * 2**20
    """Bytes of a picture file."""
    pixels: int = 2**22
    """Pixels of a picture, its sides rounded up to what the network takes."""
    steps: int = 100
    """Network calls of a restoration."""
    queue_length: int = 16
    """Requests that may wait behind the one that is computed."""
    upload_seconds: float = 20.0
    """Time for a request to arrive."""
    request_seconds: float = 120.0
    """Time for an answer, waiting included, from when the request has arrived."""


class Refused(Exception):
    """A request that is answered with an error: an HTTP status, what was wrong, what is allowed."""

    def __init__(self, status: int, error: str, allowed: str, retry: int | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.allowed = status, error, allowed
        self.retry = retry  # seconds after which it is worth trying again
