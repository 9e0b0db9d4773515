"""Pictures from addresses, of hosts that the user or the operator of a server has listed.

The host's name is resolved once, every address is checked, and the connection goes to the checked address: a name
that resolves to another one later gains nothing. No redirects, no proxies, no user names, the usual ports only.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from dynrefer.errors import cut, shown

PORTS = {"http": 80, "https": 443}
CHUNK = 2**16
MAX_BYTES = 2**26  # of a picture's file
TIMEOUT = 10.0  # seconds for it


class NotFetched(ValueError):
    """Why an address gives no picture. code: "no_fetching" (not allowed), "fetch_failed", "too_large", or
    "invalid_value" (no address)."""

    def __init__(self, text: str, code: str = "invalid_value"):
        super().__init__(text)
        self.code = code


def is_address(source: object) -> bool:
    """Whether a picture is given by an address on the web."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(
    address: str, where: str, hosts: Sequence[str], max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT
) -> bytes:
    """The file at an address of one of these hosts; NotFetched, beginning with `where`, where that is not allowed, or
    the file is not there, too large or too slow."""
    scheme, host, port, target = check_address(address, where, hosts)
    until = time.monotonic() + timeout
    ip = resolve(host, port, where)
    connection = _Pinned(host, port, ip, timeout, ssl.create_default_context() if scheme == "https" else None)
    watch = threading.Timer(timeout, connection.cut)
    watch.start()
    try:
        connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status != 200:
            moved = "; redirects are not followed" if 300 <= response.status < 400 else ""
            raise NotFetched(f"{where}: {host} answers with status {response.status}{moved}", "fetch_failed")
        if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
            raise NotFetched(f"{where}: {host} packs the file; give the file itself", "fetch_failed")
        parts, size = [], 0
        while part := response.read1(CHUNK):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise NotFetched(f"{where}: the file at {host} is larger than {max_bytes:,} bytes", "too_large")
        if time.monotonic() >= until:  # cut off: what came may be a part
            raise TimeoutError
        length = response.getheader("Content-Length")
        if length and length.isdecimal() and int(length) != size:
            raise NotFetched(f"{where}: {host} sent {size} of {length} bytes", "fetch_failed")
        return b"".join(parts)
    except (OSError, http.client.HTTPException) as error:
        late = isinstance(error, TimeoutError) or time.monotonic() >= until
        what = f"not within {timeout:g} s" if late else cut(str(error) or type(error).__name__, 200)
        raise NotFetched(f"{where}: the file cannot be fetched from {host} ({what})", "fetch_failed") from None
    finally:
        watch.cancel()
        connection.close()


def check_address(address: str, where: str, hosts: Sequence[str]) -> tuple[str, str, int, str]:
    """(scheme, host, port, path and query) of an address on one of the hosts; NotFetched for any other."""
    if not hosts:
        raise NotFetched(f"{where}: addresses are not fetched; give the file itself", "no_fetching")
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise NotFetched(f"{where}: {shown(address)} is no address") from None
    scheme = parts.scheme.lower()
    if scheme not in PORTS or not host or parts.username is not None or parts.password is not None:
        raise NotFetched(f"{where}: {shown(address)}; expected https://HOST/PATH without a user name")
    if host not in {name.lower().rstrip(".") for name in hosts}:
        raise NotFetched(f"{where}: pictures are not fetched from {shown(host)}; give the file itself", "no_fetching")
    if port not in (None, PORTS[scheme]):
        raise NotFetched(f"{where}: port {port}; {scheme} is fetched from port {PORTS[scheme]} only")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(letter) <= 32 or ord(letter) > 126 for letter in target):
        raise NotFetched(f"{where}: the path holds a space or a letter outside ASCII; write it as %20, ...")
    return scheme, host, PORTS[scheme], target


def resolve(host: str, port: int, where: str) -> str:
    """The first IP address of a host, all of which are public; NotFetched otherwise."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotFetched(f"{where}: the host {shown(host)} is not found", "fetch_failed") from None
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise NotFetched(f"{where}: the host {shown(host)} is in a private network", "no_fetching")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address can be that of a server on the internet, also where IPv6 wraps an IPv4 one.

    >>> [is_public(ip) for ip in ("93.184.216.34", "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped:
            return is_public(str(wrapped))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class _Pinned(http.client.HTTPConnection):
    """Connects to one IP address, and speaks to it as the host."""

    def __init__(self, host: str, port: int, ip: str, timeout: float, context: ssl.SSLContext | None = None):
        super().__init__(host, port, timeout=timeout)
        self._ip, self._tls = ip, context

    def connect(self) -> None:
        self.sock = socket.create_connection((self._ip, self.port), self.timeout)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """Whoever waits for the host waits no longer."""
        with contextlib.suppress(OSError, AttributeError):  # not yet connected, or closed
            self.sock.shutdown(socket.SHUT_RDWR)
