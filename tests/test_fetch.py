"""Addresses: only those of listed hosts, only public ones, and only what a picture needs."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from dynrefer import fetch as module
from dynrefer.fetch import NotFetched, check_address, fetch, is_public, resolve
from dynrefer.images import open_image
from dynrefer.predictor import RegionPredictor
from tests.serving import encoded, error_of, gate_of, post, regions_body
from tests.test_predictor import FakeModel
from tests.tiny_dynrefer import picture

HOSTS = ("images.example.com",)


def refusal(call, *arguments):
    with pytest.raises(NotFetched) as caught:
        call(*arguments)
    return caught.value


@pytest.mark.parametrize(
    "address",
    [
        "https://other.example.com/a.png",
        "https://images.example.com.evil.com/a.png",
        "https://evil.com/images.example.com",
        "https://images.example.com@evil.com/a.png",
        "https://me:word@images.example.com/a.png",
        "https://images.example.com:22/a.png",
        "https://images.example.com:99999/a.png",
        "https://evil.com#images.example.com",
        "https://evil.com\\@images.example.com/",
        "https:///a.png",
        "https://[::1/a.png",
        "https://images.example.com/a b.png",
        "https://images.example.com/a\r\nHost: evil.com",
    ],
)
def test_other_addresses_are_refused(address):
    assert str(refusal(check_address, address, "images[0]", HOSTS)).startswith("images[0]: ")


def test_an_address_of_a_listed_host_is_taken():
    found = check_address("HTTPS://Images.Example.com/a.png?size=3#top", "images[0]", HOSTS)
    assert found == ("https", "images.example.com", 443, "/a.png?size=3")
    assert check_address("http://images.example.com.:80", "images[0]", HOSTS) == ("http", HOSTS[0], 80, "/")


@pytest.mark.parametrize(
    "ip",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    ],
)
def test_private_addresses_are_not_public(ip):
    assert not is_public(ip)
    assert is_public("93.184.216.34") and is_public("2606:2800:220:1::1")


def test_a_host_is_refused_when_one_of_its_addresses_is_private(monkeypatch):
    def found(*ips):
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ips]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries)

    found("93.184.216.34", "10.0.0.1")
    assert "private network" in str(refusal(resolve, "images.example.com", 443, "images[0]"))
    found("93.184.216.34")
    assert resolve("images.example.com", 443, "images[0]") == "93.184.216.34"


def test_a_private_host_is_refused_through_the_server():
    gate = gate_of(allow_hosts=("localhost",))
    error = error_of(post(gate, regions_body([4, 4, 40, 30], image="http://localhost/a.png")), 400)
    assert error["message"] == "images[0]: the host 'localhost' is in a private network"
    assert error["code"] == "no_fetching"
    assert gate.service.memory.used == 0


class Host(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Host"]))
        content = encoded(picture())
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path == "/drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            with contextlib.suppress(OSError):  # given up
                for _ in range(40):
                    time.sleep(0.05)
                    self.wfile.write(b"X-A: b\r\n")
            return
        self.send_response(200 if self.path in ("/a.png", "/large", "/short", "/packed") else 404)
        if self.path == "/short":
            self.send_header("Content-Length", str(len(content) + 9))
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(content * (500 if self.path == "/large" else 1))

    def log_message(self, *args):
        pass


@pytest.fixture
def host(monkeypatch):
    """A listed, seemingly public host: this machine, on another port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(module.PORTS, "http", server.server_port)
    monkeypatch.setattr(module, "is_public", lambda ip: True)
    monkeypatch.setattr(module, "resolve", lambda host, port, where: "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def get(path, max_bytes=100_000, timeout=5.0):
    return fetch(f"http://images.example.com{path}", "images[0]", HOSTS, max_bytes, timeout)


def test_a_picture_is_fetched_from_the_checked_address(host):
    assert get("/a.png") == encoded(picture())
    gate = gate_of(allow_hosts=HOSTS)
    answer = post(gate, regions_body([4, 4, 40, 30], image="http://images.example.com/a.png"))
    assert answer.status_code == 200 and answer.json()["images"][0]["width"] == 100
    assert host.seen[0] == ("/a.png", f"images.example.com:{host.server_port}")


def test_the_predictor_fetches_from_allowed_hosts_only(host):
    address = "http://images.example.com/a.png"
    found = RegionPredictor(FakeModel(), allow_hosts=HOSTS)(address, [[0, 0, 5, 5]])
    assert found.image == address and found[0].box == [0, 0, 5, 5]
    for name, hosts, message in (
        (address, (), "addresses are not fetched; download it, or allow its host"),
        (address, ["other.example.com"], "pictures are not fetched from 'images.example.com'"),
        ("http://images.example.com/missing", HOSTS, "status 404"),
    ):
        with pytest.raises(ValueError, match=f"^image {name}: .*{message}"):
            RegionPredictor(FakeModel(), allow_hosts=hosts)(name, [[0, 0, 5, 5]])
    with pytest.raises(ValueError, match=f"^image {address}: addresses are not fetched"):
        open_image(address)
    with pytest.raises(ValueError, match="^allow_hosts: 'a.com'; give a list"):
        RegionPredictor(FakeModel(), allow_hosts="a.com")


def test_redirects_large_short_packed_and_missing_files_are_refused(host):
    assert "redirects are not followed" in str(refusal(get, "/moved"))
    assert "status 404" in str(refusal(get, "/missing"))
    assert refusal(get, "/large", 50_000).code == "too_large"
    assert "bytes" in str(refusal(get, "/short")) or "IncompleteRead" in str(refusal(get, "/short"))
    assert "packs the file" in str(refusal(get, "/packed"))
    assert [path for path, _ in host.seen if path == "/a.png"] == []


def test_a_slow_host_is_given_up(host):
    assert "(not within 0.3 s)" in str(refusal(get, "/drip", 1000, 0.3))


def test_pictures_that_come_slowly_do_not_outlast_the_request(monkeypatch):
    monkeypatch.setattr("dynrefer.serve.service.fetch", lambda *arguments: time.sleep(0.2) or encoded(picture()))
    gate = gate_of(allow_hosts=HOSTS, timeout=0.1)
    answer = post(gate, {"images": regions_body([4, 4, 40, 30], image="https://images.example.com/a")["images"] * 9})
    assert "pictures were not read within 0.1 s" in error_of(answer, 504)["message"]
    assert gate.service.memory.used == 0


def test_a_host_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "resolve", lambda host, port, where: "127.0.0.1")
    monkeypatch.setitem(module.PORTS, "http", 9)
    assert "cannot be fetched from images.example.com" in str(refusal(get, "/a.png"))
