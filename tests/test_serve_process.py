"""The server as a process: signals, clients that vanish, crawl or talk nonsense, and real clients over real sockets."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from tests import tiny_dynrefer
from tests.serving import chat_body, error_of, events, regions_body, uri
from tests.tiny_dynrefer import BOXES, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
REPOSITORY = Path(__file__).resolve().parents[1]
BOX = [4, 4, 40, 30]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


class Server:
    """A process that listens. address: http://127.0.0.1:PORT"""

    def __init__(self, *arguments, log):
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments], stderr=file, stdout=file, cwd=REPOSITORY, env=ENVIRONMENT
            )
        while not (lines := [line for line in self.lines() if line["event"] == "listening"]):
            assert self.process.poll() is None, Path(log).read_text()
            time.sleep(0.05)
        self.address = lines[0]["address"]

    def lines(self):
        whole = [line for line in Path(self.log).read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]

    def wait_for(self, **fields):
        """Until a line of the log holds these."""
        while not any(line.items() >= fields.items() for line in self.lines()):
            assert self.process.poll() is None, Path(self.log).read_text()
            time.sleep(0.02)

    def post(self, body, path="/v1/regions"):
        return httpx2.post(self.address + path, json=body, timeout=60)

    def count(self, name):
        """A number of /metrics."""
        page = httpx2.get(f"{self.address}/metrics").text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)[1])

    def idle(self):
        while self.count("dynrefer_requests_in_flight") or self.count("dynrefer_held_bytes"):
            time.sleep(0.05)

    def raw(self, content=b""):
        """A connection on which this has been sent."""
        sock = socket.create_connection(("127.0.0.1", urlsplit(self.address).port), timeout=30)
        sock.sendall(content)
        return sock

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(30)


@pytest.fixture
def start(tmp_path):
    """Starts servers, and ends them with the test."""
    servers = []

    def start(*arguments):
        servers.append(Server(*arguments, log=tmp_path / f"log{len(servers)}"))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def request_bytes(body, **headers):
    content = json.dumps(body).encode()
    lines = ["POST /v1/regions HTTP/1.1", "Host: server", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in {"Content-Length": len(content), **headers}.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def read_all(sock):
    """What comes until the server closes; an abort closes too."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(start):
    server = start("tests.serving", "1.5")
    running = server.raw(request_bytes(regions_body(BOX)))
    while not server.count("dynrefer_requests_in_flight"):
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(event="ending")
    refused = server.post(regions_body(BOX))
    assert error_of(refused, 503)["code"] == "ending" and refused.headers["retry-after"] == "5"
    assert httpx2.get(f"{server.address}/ready").status_code == 503
    assert httpx2.get(f"{server.address}/health").status_code == 200
    answer = b""
    while b"}}" not in answer:
        answer += running.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 OK") and b"0:0 at 4" in answer
    assert server.process.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        server.raw()
    assert server.lines()[-1]["event"] == "ended" and "Traceback" not in Path(server.log).read_text()


def test_sigterm_finishes_a_stream(start):
    server = start("tests.serving", "0.4", "max_batch=1")
    body = chat_body("", regions=[BOX] * 4, stream=True)
    with httpx2.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=60) as answer:
        parts = answer.iter_text()
        text = next(parts)
        server.process.send_signal(signal.SIGTERM)
        text += "".join(parts)
    pieces, done = events(text)
    assert done and [piece["regions"][0]["id"] for piece in pieces if "regions" in piece] == [
        f"0:{n}" for n in range(4)
    ]
    assert server.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(start):
    server = start("tests.serving", "600")
    running = server.raw(request_bytes(regions_body(BOX)))
    while not server.count("dynrefer_requests_in_flight"):
        time.sleep(0.02)
    server.process.send_signal(signal.SIGINT)
    server.wait_for(event="ending")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 130 and read_all(running) == b""


def test_what_does_not_end_in_time_is_left(start):
    server = start("tests.serving", "600", "drain_timeout=0.5")
    running = server.raw(request_bytes(regions_body(BOX)))
    while not server.count("dynrefer_requests_in_flight"):
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 1
    assert b'"code":"ending"' in read_all(running) and "Traceback" not in Path(server.log).read_text()
    assert server.lines()[-1]["event"] == "ended while the model was working"


def test_clients_that_vanish_leave_nothing_behind(start):
    server = start("tests.serving", "0.3")
    whole = request_bytes(regions_body(BOX))
    chat = json.dumps(chat_body(stream=True)).encode()
    stream = whole.partition(b"\r\n")[2].partition(b"\r\n\r\n")[0]
    stream = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(chat), stream)
    stream = b"POST /v1/chat/completions HTTP/1.1\r\n" + stream + b"\r\n\r\n" + chat
    for content in (whole, whole[:50], whole[:-20], stream, b"\x16\x03\x01\x00", b"GET\r\n\r\n", b""):
        server.raw(content).close()
    server.wait_for(status=499, event="request")
    server.idle()
    assert server.post(regions_body(BOX)).status_code == 200
    assert "Traceback" not in Path(server.log).read_text()


def test_clients_that_crawl_are_cut_off(start):
    server = start("tests.serving", "0", "read_timeout=0.5")
    silent = server.raw()
    half_a_head = server.raw(b"POST /v1/regions HTTP/1.1\r\nHos")
    half_a_body = server.raw(request_bytes(regions_body(BOX))[:-20])
    assert read_all(silent) == read_all(half_a_head) == b""
    answer = read_all(half_a_body)
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"too_slow"' in answer
    # answers that nobody takes: more than the sockets' buffers hold
    body = regions_body(*[{"id": "x" * 190, "box": BOX} for _ in range(1000)])
    deaf = server.raw()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(OSError):
        for _ in range(40):
            deaf.sendall(request_bytes(body))
    server.idle()
    assert server.post(regions_body(BOX)).status_code == 200
    with contextlib.suppress(OSError):
        read_all(deaf)
    assert "Traceback" not in Path(server.log).read_text()


def test_nonsense_is_answered_and_the_server_stays(start):
    server = start("tests.serving", "0", "max_body_mb=1")
    for content in (
        b"hello\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        sock = server.raw(content)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock)[:10] in (b"HTTP/1.1 4", b"")
    big = server.raw(request_bytes({}, **{"Content-Length": 10**15}))
    big.sendall(b" " * 2_000_000)
    big.shutdown(socket.SHUT_WR)
    read_all(big)
    answer = httpx2.post(f"{server.address}/v1/regions", json={"images": "A" * 3_000_000}, timeout=30)
    assert error_of(answer, 413)["code"] == "too_large", "the client has sent all, and reads why"
    assert server.post(regions_body(BOX)).status_code == 200


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    model, processor = tiny_dynrefer.model()
    folder = str(tmp_path_factory.mktemp("tiny") / "tiny")
    model.processor = processor
    model.save_pretrained(folder)
    return folder


def test_the_command_serves_a_saved_model_to_the_official_client(start, tiny_folder):
    server = start("dynrefer.cli", "serve", "num_beams=1", "--model", tiny_folder, "--port", "0", "--name", "stub")
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    messages = chat_body(image=uri(picture()))["messages"]
    regions = {"regions": [list(box) for box in BOXES]}
    whole = client.chat.completions.create(model="stub", messages=messages, extra_body=regions)
    stream = client.chat.completions.create(model="stub", messages=messages, stream=True, extra_body=regions)
    pieces = list(stream)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content and text.count("\n") == 3
    assert [one["box"] for one in whole.regions] == [list(box) for box in BOXES]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing(start, tmp_path):
    pytest.importorskip("schemathesis", reason="pip install schemathesis")
    server = start("tests.serving", "0")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{server.address}/openapi.json"]
        + ["--checks", f"{checks},negative_data_rejection,unsupported_method", "-n", "20", "--seed", "1"]
        + ["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.post(regions_body(BOX)).status_code == 200
    assert "Traceback" not in Path(server.log).read_text()
