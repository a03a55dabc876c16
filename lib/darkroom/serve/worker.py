"""The one thread that computes: it takes jobs from a queue, one at a time, in their order."""
# H height, W width

from __future__ import annotations

import io
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from .. import images, restore
from ..adapters import Bank
from . import header
from .limits import Refused

SEED_KEY = "request"  # the noise is the same for every request: the same upload, the same answer


class OutOfTime(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Job:
    """A checked request, and the future of its answer."""

    content: bytes
    size: tuple[int, int]  # width and height, of the file's header
    weights: dict[str, float]
    steps: int
    deadline: float  # of time.monotonic
    future: Future = field(default_factory=Future)
    abandoned: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Done:
    """An answer: a PNG, and how long it took without the waiting."""

    png: bytes
    width: int
    height: int
    seconds: float


class Worker:
    """Owns the bank of adapters: nothing else may switch it or run its network."""

    def __init__(self, bank: Bank) -> None:
        self.bank, self.seconds = bank, 1.0  # a running mean of a job's seconds
        self.stopping, self.merged_bytes, self.merges = False, 0, 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._job: Job | None = None
        self._trained: dict[int, object] = {}
        bank.network.register_forward_pre_hook(self._in_time)
        self._thread = threading.Thread(target=self._run, name="restore", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; how many wait is the caller's to limit."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish what runs, refuse what waits, and end the thread."""
        self.stopping = True
        self._jobs.put(None)
        self._thread.join()

    def _in_time(self, *_) -> None:
        """Stop a job between two calls of the network once its time is over."""
        job = self._job
        if job and (job.abandoned.is_set() or time.monotonic() > job.deadline):
            raise OutOfTime

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            self._job = job
            try:
                if self.stopping:
                    raise Refused(503, "the service is stopping", "another try in a moment", 5)
                done = self._restore(job)
                self.seconds += 0.2 * (done.seconds - self.seconds)
            except BaseException as error:
                job.future.set_exception(error)
            else:
                job.future.set_result(done)
            self._job = job = None

    def _restore(self, job: Job) -> Done:
        started = time.perf_counter()
        picture = decode(job.content, job.size)
        self.bank.use(job.weights)
        self.merged_bytes, self.merges = self.bank.cached_bytes, self.bank.merges
        try:
            restored = restore.restore_picture(self._with_steps(job.steps), picture, SEED_KEY)
        except restore.TooLarge as error:
            raise Refused(413, error.reason, "a smaller picture") from None
        png = encode(restored)
        height, width = restored.shape[:2]
        return Done(png, width, height, time.perf_counter() - started)

    def _with_steps(self, steps: int):
        """Return the trained base with a config that restores in so many steps."""
        if steps not in self._trained:
            trained = self.bank.trained
            config = trained.config.with_changes({"restore.num_steps": steps})
            self._trained[steps] = replace(trained, config=config)
        return self._trained[steps]


def decode(content: bytes, size: tuple[int, int]):
    """Return a picture as uint8 (H, W, 3); raises Refused where it is not what its header says."""
    from PIL import Image

    allowed = f"{header.ALLOWED} that is whole"
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as opened:
            found = opened.size
    except Exception as error:  # PIL's plugins raise OSError, ValueError, SyntaxError and others
        wrong = f"the picture does not decode ({type(error).__name__})"
        raise Refused(422, wrong, allowed) from None
    if found != size:
        raise Refused(422, f"the picture says it has {size} and {found} pixels", allowed)
    try:
        return images.decode(content, "picture").array
    except images.UnreadableImage as error:
        raise Refused(422, f"the picture cannot be read: {error.reason[:120]}", allowed) from None


def encode(picture) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="PNG")
    return encoded.getvalue()
