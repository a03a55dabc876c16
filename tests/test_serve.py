"""The service as a real process under real HTTP: answers, limits, hostile uploads, its end."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import hostile_uploads as hostile
import numpy as np
import psutil
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import service
from darkroom import adapters, images, restore
from darkroom.serve import header
from PIL import Image

HOSTILE = hostile.requests()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    service.train(folder)
    return folder


@pytest.fixture(scope="module")
def served(root):
    with service.Service(root) as running:
        yield running


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def slow() -> bytes:
    return hostile.form(hostile.picture(160), num_inference_steps="100")


def waiting(running: service.Service, count: int) -> None:
    """Wait until so many requests are in flight."""
    for _ in range(500):
        if running.health()["in_flight"] == count:
            return
        time.sleep(0.02)
    raise AssertionError(running.health())


class Asking(threading.Thread):
    """A request in a thread of its own, and its answer."""

    def __init__(self, running: service.Service, body: bytes) -> None:
        super().__init__()
        self.running, self.body = running, body
        self.start()

    def run(self) -> None:
        self.answer = self.running.ask("POST", "/restore", hostile.FORM, self.body)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("adapter", "weights"),
    [("", {}), ("one", {"one": 1}), ("one:0.5, two:-0.25", {"one": 0.5, "two": -0.25})],
)
def test_an_upload_is_restored_as_the_library_does(served, root, kind, adapter, weights):
    file = hostile.picture(41, kind)
    body = hostile.form(file, adapter=adapter, num_inference_steps="3")
    status, headers, answer = served.ask("POST", "/restore", hostile.FORM, body)
    assert (status, headers["content-type"]) == (200, "image/png"), answer
    changes = {"restore.num_steps": 3, "restore.tile": 512}
    base = restore.run_config(str(root / "runs" / "base"), changes)
    bank = adapters.Bank(base, {name: str(root / "runs" / name) for name in ("one", "two")})
    bank.use(weights)
    expected = restore.restore_picture(bank.trained, images.decode(file, "x").array, "request")
    found = pixels(answer)
    assert found.shape == (41, 41, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1  # threads may sum in another order


def test_json_and_upload_give_the_same_picture(served):
    asked = {"adapter": {"two": 0.5}, "num_inference_steps": 4}
    answers = []
    for adapter in ({"two": 0.5}, "two:0.5"):
        body = hostile.document(**(asked | {"adapter": adapter}))
        status, _, answer = served.ask("POST", "/restore/json", hostile.JSON, body)
        answers.append(json.loads(answer))
        assert status == 200
    body = hostile.form(hostile.picture(), adapter="two:0.5", num_inference_steps="4")
    upload = served.ask("POST", "/restore", hostile.FORM, body)[2]
    for answer in answers:
        assert base64.b64decode(answer["image"]) == upload
        assert (answer["width"], answer["height"]) == (32, 32)
        assert (answer["adapter"], answer["num_inference_steps"]) == ({"two": 0.5}, 4)


def test_adapters_and_steps_are_chosen_by_request_and_none_lingers(served):
    def ask(**fields) -> bytes:
        status, _, answer = served.ask(
            "POST", "/restore", hostile.FORM, hostile.form(hostile.picture(), **fields)
        )
        assert status == 200, answer
        return answer

    plain, one = ask(), ask(adapter="one")
    assert ask(adapter="none") == ask(num_inference_steps="25") == plain
    different = [ask(adapter="two"), ask(adapter="one:0.5"), ask(num_inference_steps="7")]
    assert len({plain, one, *different}) == 5


def test_a_picture_of_one_pixel_and_of_an_odd_shape_are_restored(served):
    for width, height in ((1, 1), (3, 57), (130, 2)):
        encoded = io.BytesIO()
        Image.new("L", (width, height), 90).save(encoded, format="PNG")
        body = hostile.form(encoded.getvalue(), num_inference_steps="1")
        status, _, answer = served.ask("POST", "/restore", hostile.FORM, body)
        assert status == 200 and pixels(answer).shape == (height, width, 3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"optimize": True, "dpi": (300, 300)}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "subsampling": 2, "comment": b"\xff\xda" * 1000}),
        ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xda" * 100, "restart_marker_blocks": 1}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0"}),
    ],
)
def test_a_header_is_read_as_the_decoder_reads_it(kind, options):
    for size in ((1, 1), (97, 3), (250, 301)):
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(noise).save(encoded, format=kind, **options)
        content = encoded.getvalue() + b"\xff\xda\xff\xda" * 1000  # as a film behind a photo
        assert header.size(content) == (kind, *size)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_with_the_reason(served, name):
    path, headers, body = HOSTILE[name]
    status, _, answer = served.ask("POST", path, headers, body)
    assert 400 <= status < 500, answer
    said = json.loads(answer)
    assert set(said) == {"error", "allowed"} and all(said.values())
    assert "object at" not in said["error"] and "/site-packages" not in said["error"]


def test_the_service_lives_after_all_of_them_and_has_opened_none_of_their_paths(served, tmp_path):
    for path, headers, body in HOSTILE.values():
        served.ask("POST", path, headers, body)
    name = f"../../../../../../../../{tmp_path}/made.png"
    for file in (name, str(tmp_path / "made.png")):
        status, _, answer = served.ask(
            "POST", "/restore", hostile.FORM, hostile.form(hostile.picture(), file)
        )
        assert status == 200 and pixels(answer).shape == (32, 32, 3)
    assert not list(tmp_path.iterdir())
    assert served.process.poll() is None
    opened = {file.path for file in psutil.Process(served.process.pid).open_files()}
    assert opened == {str(served.log)}
    assert "Traceback" not in served.log.read_text()
    assert served.health()["in_flight"] == 0


def test_it_describes_its_requests(served):
    paths = json.loads(served.ask("GET", "/openapi.json")[2])["paths"]
    for path, media in (("/restore", "multipart/form-data"), ("/restore/json", "application/json")):
        schema = paths[path]["post"]["requestBody"]["content"][media]["schema"]
        assert set(schema["properties"]) == {"image", "num_inference_steps", "adapter"}
        assert schema["properties"]["num_inference_steps"]["default"] == 25


def test_it_listens_on_this_machine_alone_and_answers_no_other_origin(served):
    process = psutil.Process(served.process.pid)
    listening = {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    origin = {"Origin": "http://example.org", "Access-Control-Request-Method": "POST"}
    for method, path in (("GET", "/health"), ("OPTIONS", "/restore")):
        _, headers, _ = served.ask(method, path, origin)
        assert not [name for name in headers if name.startswith("access-control")]


def test_prometheus_reads_what_was_counted(served):
    from prometheus_client.parser import text_string_to_metric_families

    def counted() -> dict[tuple, float]:
        status, headers, text = served.ask("GET", "/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(text.decode())
        return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}

    before = counted()
    served.ask(*("POST", "/restore", hostile.FORM, hostile.form(hostile.picture(), adapter="two")))
    served.ask(*("POST", "/restore", hostile.FORM, hostile.form(b"")))
    served.ask("GET", f"/{time.time()}")
    after = counted()

    def grown(*key) -> float:
        return after[key] - before.get(key, 0)

    assert grown("darkroom_requests_total", "/restore", "200") == 1
    assert grown("darkroom_requests_total", "/restore", "422") == 1
    assert grown("darkroom_requests_total", "404", "other") == 1
    assert grown("darkroom_adapter_requests_total", "two") == 1
    assert grown("darkroom_restore_seconds_count") == 1
    assert after["darkroom_merged_weights_bytes",] > 0
    assert after["process_resident_memory_bytes",] > 2**20


def test_a_full_queue_answers_429_and_sigterm_finishes_what_runs(root):
    with service.Service(root, "--queue", "1") as running:
        first = Asking(running, slow())
        waiting(running, 1)
        second = Asking(running, slow())
        waiting(running, 2)
        for _ in range(3):
            status, headers, answer = running.ask("POST", "/restore", hostile.FORM, slow())
            assert status == 429 and json.loads(answer)["error"] == "the queue is full"
            assert 1 <= int(headers["retry-after"]) <= 60
        assert running.ask("GET", "/health")[0] == 200
        running.process.send_signal(signal.SIGTERM)
        first.join()
        second.join()
        assert first.answer[0] == 200 and pixels(first.answer[2]).shape == (160, 160, 3)
        assert second.answer[0] == 503
        assert json.loads(second.answer[2])["error"] == "the service is stopping"
        assert running.process.wait(30) in (0, -signal.SIGTERM)
        assert "Finished server process" in running.log.read_text()
        with pytest.raises(ConnectionRefusedError):
            running.ask("GET", "/health")


@pytest.fixture(scope="module")
def strict(root):
    options = ["--seconds", "0.3", "--upload-seconds", "1", "--max-steps", "1000"]
    options += ["--max-upload-mib", "0.1", "--max-pixels", "40000", "--queue", "3"]
    with service.Service(root, *options) as running:
        yield running


def test_what_takes_too_long_is_stopped_and_the_next_one_is_served(strict):
    long = hostile.form(hostile.picture(128), num_inference_steps="1000")
    asking = [Asking(strict, long) for _ in range(3)]
    for one in asking:
        one.join()
    statuses = [one.answer[0] for one in asking]
    assert set(statuses) <= {503, 504} and 504 in statuses
    quick = hostile.form(hostile.picture(8), num_inference_steps="1")
    for _ in range(20):  # the first may still wait behind one that is about to stop
        if strict.ask("POST", "/restore", hostile.FORM, quick)[0] == 200:
            break
    else:
        raise AssertionError(strict.health())


def test_the_limits_are_those_of_the_command(strict):
    limits = strict.health()["limits"]
    assert (limits["pixels"], limits["queue_length"], limits["steps"]) == (40000, 3, 1000)
    big = hostile.form(hostile.picture(201), num_inference_steps="1")
    status, _, answer = strict.ask("POST", "/restore", hostile.FORM, big)
    assert status == 413 and "at most" in json.loads(answer)["allowed"]


def raw(running: service.Service, content: bytes) -> bytes:
    """Send bytes as they are and return all that comes until the first answer is there."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(content)
        return connection.recv(65536)


def test_a_request_that_does_not_arrive_is_given_up(strict):
    head = "POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    head += f"Content-Type: {hostile.FORM['Content-Type']}\r\n\r\n"
    assert raw(strict, head.encode() + b"half").startswith(b"HTTP/1.1 408 ")
    assert strict.health()["in_flight"] == 0


def test_bytes_are_counted_where_no_length_is_announced(strict):
    head = "POST /restore HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += f"Content-Type: {hostile.FORM['Content-Type']}\r\n\r\n"
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    assert raw(strict, head.encode() + chunk * 6).startswith(b"HTTP/1.1 413 ")
    assert strict.health()["in_flight"] == 0


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["TLS", "no HTTP", "negative length", "long length", "long header"],
)
def test_what_is_no_http_gets_400_and_the_service_lives(strict, content):
    assert raw(strict, content + b"\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert strict.ask("GET", "/health")[0] == 200


def test_a_client_that_goes_away_frees_its_place(served):
    head = f"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: {len(slow())}\r\n"
    head += f"Content-Type: {hostile.FORM['Content-Type']}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + slow())
        waiting(served, 1)
    waiting(served, 0)
    assert served.ask("POST", "/restore", hostile.FORM, hostile.form(hostile.picture()))[0] == 200


@pytest.mark.slow
def test_clients_that_go_away_while_they_wait_leave_nothing_in_memory(served):
    def opened(body: bytes) -> socket.socket:
        head = f"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: {hostile.FORM['Content-Type']}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", served.port))
        connection.sendall(head.encode() + body)
        return connection

    process, size = psutil.Process(served.process.pid), 5 * 2**20
    large = hostile.picture(400)
    served.ask("POST", "/restore", hostile.FORM, hostile.form(large, num_inference_steps="2"))
    with opened(
        hostile.form(large, num_inference_steps="100")
    ):  # it runs as long as the others try
        waiting(served, 1)
        before = process.memory_info().rss
        for _ in range(40):
            with opened(hostile.form(hostile.picture() + bytes(size))):
                waiting(served, 2)
            waiting(served, 1)
        grown = process.memory_info().rss - before
    waiting(served, 0)
    assert grown < 40 * size / 2
    assert served.ask("POST", "/restore", hostile.FORM, hostile.form(hostile.picture()))[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nothing"], "is not a run"),
        (["--adapter", "x=base"], "has no adapter"),
        (["--adapter", "x"], "'x' is not NAME=RUN"),
        (["--queue", "0"], "0 is not above 0"),
    ],
)
def test_what_cannot_be_served_is_said_and_not_begun(root, options, message):
    start = [sys.executable, "-m", "darkroom.serve", "--run", str(root / "runs" / "base")]
    ended = subprocess.run([*start, *options], capture_output=True, text=True, cwd=root)
    assert ended.returncode in (1, 2) and message in ended.stderr
    assert "Traceback" not in ended.stderr
