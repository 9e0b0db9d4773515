"""The process around the application: sockets, slow clients, and an end that finishes what it began.

On SIGTERM or Ctrl-C new requests are refused with 503, running ones are finished, at most `drain_timeout` seconds, and
the process ends with status 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import warnings
from typing import Any

import uvicorn
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from dynrefer.errors import INTERRUPTED

from . import logs
from .gate import Gate


def run_until_signal(gate: Gate, sock: socket.socket) -> int:
    """The exit status: 0, or 1 where the model did not come back from its last batch."""
    try:
        asyncio.run(serve(gate, sock))
    finally:
        ended = gate.service.close()
    if not ended:  # Python would wait for it, or crash beside it
        logs.log("ended while the model was working", level=logging.WARNING)
        os._exit(1)
    return 0


async def serve(gate: Gate, sock: socket.socket) -> None:
    """Until a signal comes; sock: from `bind`."""
    logs.set_up()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pictures have their own limit here
    await gate.service.warm_up()
    seconds = gate.settings.read_timeout
    config = uvicorn.Config(
        gate,
        http=type("Patient", (PatientProtocol,), {"seconds": seconds}),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # `Drained` has waited
    )
    where = sock.getsockname()
    logs.log("listening", address=f"http://{where[0]}:{where[1]}", model=gate.settings.name, key=gate.key is not None)
    await Drained(config, gate).serve([sock])
    logs.log("ended")


def bind(host: str, port: int) -> socket.socket:
    """A socket of the address, which does not listen yet. ValueError where it is taken or not this machine's, and for
    a port that none has."""
    if not 0 <= port < 65536:
        raise ValueError(f"port {port}: expected 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(*found[:3])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(found[4])
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another --port"
        ) from None
    return sock


LAST = 1.0  # seconds for the last refusals to leave


class Drained(uvicorn.Server):
    """Stops listening only when running requests are through."""

    def __init__(self, config: uvicorn.Config, gate: Gate):
        super().__init__(config)
        self.gate = gate
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._until is not None:  # asked a second time: whatever runs, in whatever thread
            os._exit(INTERRUPTED)
        self.gate.draining = True
        self._until = time.monotonic() + self.gate.settings.drain_timeout

    async def on_tick(self, counter: int) -> bool:
        if self._until is not None and not self.should_exit:
            if not counter or self._until is not None and not getattr(self, "_told", False):
                self._told = True
                logs.log("ending", running=self.gate.working)
            if self.gate.working and time.monotonic() > self._until:
                self.gate.service.batcher.give_up()
            self.should_exit = not self.gate.working or time.monotonic() > self._until + LAST
        return await super().on_tick(counter)


class PatientProtocol(H11Protocol):
    """Clients that send nothing, send a header a letter at a time, or take no answer are cut off after `seconds`."""

    seconds = 30.0
    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _stopped(self._head)
        elif self._head is None:
            self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self._write or self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write = _stopped(self._write)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._write = _stopped(self._head), _stopped(self._write)
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(self.seconds, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
