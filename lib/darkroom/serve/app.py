"""The HTTP side: admit, read within the limits, wait for the worker, answer.

Requests admitted at once are counted before anything of them is read, so that what they hold in
memory is bounded, too; the next one gets 429.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..adapters import Bank
from . import asked, header
from .counters import Counters
from .limits import Limits, Refused
from .worker import Done, Job, OutOfTime, Worker

PATHS = ("/restore", "/restore/json", "/health", "/metrics")


class Service:
    """The bank's worker, the requests in flight and what is counted."""

    def __init__(self, bank: Bank, limits: Limits, default_steps: int) -> None:
        self.bank, self.limits, self.default_steps = bank, limits, default_steps
        self.worker, self.counters = Worker(bank), Counters()
        self.in_flight = 0
        self.counters.admitted.set(limits.queue_length + 1)

    @contextmanager
    def admitted(self):
        """Hold one of the places; raises Refused (429 with the seconds to wait) without one."""
        if self.worker.stopping:
            raise Refused(503, "the service is stopping", "another try in a moment", 5)
        most = self.limits.queue_length + 1
        if self.in_flight >= most:
            wait = min(60, max(1, math.ceil(self.worker.seconds * self.in_flight / 2)))
            allowed = f"{self.limits.queue_length} requests waiting and one running"
            raise Refused(429, "the queue is full", allowed, wait)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def restore(self, request: Request, read) -> tuple[asked.Asked, Done]:
        """Answer a request that `read` (`asked.form` or `asked.document`) understands."""
        started, limits = time.perf_counter(), self.limits
        with self.admitted():
            try:
                async with asyncio.timeout(limits.upload_seconds):
                    wanted = await read(request, limits, self.default_steps)
            except TimeoutError:
                allowed = f"{limits.upload_seconds:g} seconds to send it"
                raise Refused(408, "the request did not arrive in time", allowed) from None
            job = self._job(wanted)
            self.worker.submit(job)
            done = await self._answer(request, job)
        names = [name for name, _ in self.bank.key(wanted.weights)]
        label = "several" if len(names) > 1 else "".join(names) or "none"
        self.counters.adapters.labels(label).inc()
        self.counters.request_seconds.observe(time.perf_counter() - started)
        self.counters.restore_seconds.observe(done.seconds)
        return wanted, done

    def _job(self, wanted: asked.Asked) -> Job:
        """Check a picture's header and the adapters; raises Refused."""
        try:
            self.bank.key(wanted.weights)
        except ValueError as error:
            listing = ", ".join([*self.bank.adapters, "none"])
            raise Refused(422, str(error)[:200], f"one or several of {listing}") from None
        _, width, height = header.size(wanted.content)
        multiple, factor = self.bank.recipe.multiple, self.bank.config.restore.upscale
        sides = (math.ceil(side * factor / multiple) * multiple for side in (width, height))
        if (padded := math.prod(sides)) > self.limits.pixels:
            wrong = f"the picture has {width}x{height} pixels ({padded} enlarged and padded)"
            raise Refused(413, wrong, f"at most {self.limits.pixels} pixels")
        deadline = time.monotonic() + self.limits.request_seconds
        return Job(wanted.content, (width, height), wanted.weights, wanted.steps, deadline)

    async def _answer(self, request: Request, job: Job) -> Done:
        """Wait for a job until it is done, out of time, or nobody waits for it any more."""
        future = asyncio.wrap_future(job.future)
        future.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, if not awaited
        gone = asyncio.create_task(_disconnected(request))
        seconds = self.limits.request_seconds
        try:
            await asyncio.wait({future, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if gone.done():
                raise ClientDisconnect
        except OutOfTime:
            pass
        finally:
            gone.cancel()
            job.abandoned.set()
            if waiting := job.future.cancel():
                job.content = b""  # the job stays in the queue until its turn
        if waiting:
            wrong = f"the request waited {seconds:g} seconds for its turn"
            raise Refused(503, wrong, "another try in a moment", 5)
        wrong = f"the restoration was not done after {seconds:g} seconds, waiting included"
        raise Refused(504, wrong, "a smaller picture or fewer num_inference_steps")

    def health(self) -> dict:
        """Return what is served, and the limits."""
        trained = self.bank.trained
        return {
            "status": "stopping" if self.worker.stopping else "ok",
            "base": {"run": trained.config.run, "step": trained.step, "digest": self.bank.digest},
            "adapters": {n: {"run": a.run, "step": a.step} for n, a in self.bank.adapters.items()},
            "device": str(trained.device),
            "in_flight": self.in_flight,
            "num_inference_steps": self.default_steps,
            "limits": vars(self.limits),
        }

    def metrics(self) -> bytes:
        """Return Prometheus' text."""
        self.counters.in_flight.set(self.in_flight)
        self.counters.merged.set(self.worker.merged_bytes)
        self.counters.merges.set(self.worker.merges)
        return self.counters.text()


async def _disconnected(request: Request) -> None:
    """Return once the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(status: int, error: str, allowed: str, retry: int | None = None) -> JSONResponse:
    headers = {"Retry-After": str(retry)} if retry else None
    return JSONResponse({"error": error, "allowed": allowed}, status, headers)


def build(service: Service) -> FastAPI:
    """Return the application: POST /restore and /restore/json, GET /health and /metrics."""

    @asynccontextmanager
    async def lifespan(_):
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(title="Darkroom", lifespan=lifespan, docs_url=None, redoc_url=None)
    limits, default = service.limits, service.default_steps

    @app.post(
        "/restore",
        response_class=Response,
        openapi_extra=_takes("multipart/form-data", "binary", limits, default),
    )
    async def upload(request: Request) -> Response:
        """Restore the file in the form field `image`; answers with a PNG."""
        _, done = await service.restore(request, asked.form)
        headers = {"X-Restore-Seconds": f"{done.seconds:.4f}"}
        return Response(done.png, media_type="image/png", headers=headers)

    @app.post("/restore/json", openapi_extra=_takes("application/json", "byte", limits, default))
    async def exchange(request: Request) -> JSONResponse:
        """Restore the base64 file in `image`; answers with a PNG in base64, and how it was made."""
        wanted, done = await service.restore(request, asked.document)
        answer = {
            "image": base64.b64encode(done.png).decode(),
            "width": done.width,
            "height": done.height,
            "adapter": wanted.weights,
            "num_inference_steps": wanted.steps,
            "seconds": done.seconds,
        }
        return JSONResponse(answer)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Say what is served, within which limits; 503 while stopping."""
        about = service.health()
        return JSONResponse(about, 200 if about["status"] == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return Prometheus' text."""
        return Response(service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_middleware(_Counted, counters=service.counters)
    _answer_errors(app)
    return app


def _takes(media: str, file: str, limits: Limits, default_steps: int) -> dict:
    """Return how /openapi.json describes a request."""
    steps = {"type": "integer", "minimum": 1, "maximum": limits.steps, "default": default_steps}
    adapter = {"type": "string", "description": "a name, motion:0.5,scan:0.5, or none"}
    properties = {
        "image": {"type": "string", "format": file},
        "num_inference_steps": steps,
        "adapter": adapter,
    }
    schema = {"type": "object", "required": ["image"], "properties": properties}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


class _Counted:
    """Counts every answer by path and status."""

    def __init__(self, app, counters: Counters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope, receive, send) -> None:
        async def counting(message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in PATHS else "other"
                self.counters.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)


def _answer_errors(app: FastAPI) -> None:
    """Answer what goes wrong in JSON."""

    @app.exception_handler(Refused)
    async def refused(_, error: Refused) -> JSONResponse:
        return _problem(error.status, error.error, error.allowed, error.retry)

    @app.exception_handler(ClientDisconnect)
    async def gone(_, error) -> JSONResponse:
        return _problem(499, "the client has gone", "an answer is only sent to who waits for it")

    @app.exception_handler(HTTPException)
    async def unknown(_, error: HTTPException) -> JSONResponse:
        allowed = "POST /restore, POST /restore/json, GET /health, GET /metrics"
        return _problem(error.status_code, str(error.detail), allowed)

    @app.exception_handler(Exception)
    async def failed(_, error) -> JSONResponse:  # the log has the traceback
        return _problem(500, "the service failed", "another picture; the reason is in its log")
