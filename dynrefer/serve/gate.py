"""What every request passes before and after the application: key, size, time, the log and the count.

The body is read here, to its end and within limits, so that the application never waits for a slow client; whoever
leaves early is noticed here too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
import uuid
from typing import Any

import orjson
from starlette.middleware.cors import CORSMiddleware

from .logs import log
from .service import Gone, Service, Visit
from .settings import Refusal, Settings, too_large

WITH_BODY = ("/v1/regions", "/v1/chat/completions")
PATHS = (*WITH_BODY, "/v1/models", "/health", "/ready", "/metrics", "/openapi.json", "/docs")
QUIET = ("/health", "/ready", "/metrics")  # asked every few seconds: not logged while they answer 200
REQUEST_ID = re.compile(r"[\w.-]{1,64}")
VISIT = "visit"  # key of a scope
LEFT = 499  # in log and counts: nobody was there to read an answer


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: Any, service: Service, settings: Settings):
        self.app, self.service, self.settings = app, service, settings
        self.key = None if settings.api_key is None else _digest(settings.api_key.strip().encode())
        self.working = 0  # requests for the model
        self.draining = False
        service.metrics.gauge("dynrefer_requests_in_flight", "for the model", lambda: self.working)
        self._entry: Any = self._pass
        if settings.cors_origins:  # outermost, so that a page reads refusals too
            self._entry = CORSMiddleware(
                self._pass,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (self._entry if scope["type"] == "http" else self.app)(scope, receive, send)

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        visit = scope[VISIT] = Visit(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        answer = _Answer(send, visit)
        began = time.monotonic()
        watch: asyncio.Task | None = None
        problem: BaseException | None = None
        held = [0, 0]  # bytes, places among those that are worked on
        try:
            self._check(scope, headers)
            if scope["method"] == "POST" and scope["path"] in WITH_BODY:
                visit.body = await self._read(receive, headers, held)
                visit.size, visit.began = len(visit.body), time.monotonic()
                if self.working >= self.settings.max_requests:
                    raise Refusal(
                        429,
                        f"{self.working} requests are worked on; try again later",
                        "too_many_requests",
                        retry_after=1,
                    )
                self.working += 1
                held[1] = 1
                watch = asyncio.create_task(_watch(receive, visit))
                receive = _replay(visit)
            await self.app(scope, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except Gone:
            pass
        except Exception as error:
            problem = error
            if answer.status is None:
                await answer.refuse(Refusal(500, "the server made a mistake; its log says which", "internal_error"))
        finally:
            if watch is not None:
                watch.cancel()
            self.service.memory.give(held[0])
            self.working -= held[1]
            self._note(scope, visit, answer.status or LEFT, time.monotonic() - began, problem)

    def _check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Of what is known before the body. The key comes first: without it nobody learns anything else."""
        if not scope["path"].startswith("/v1/"):
            return
        if self.key is not None and scope["method"] != "OPTIONS":
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(_digest(key.strip()), self.key):
                raise Refusal(
                    401, "no key, or a wrong one; send the header Authorization: Bearer KEY", "invalid_api_key"
                )
        if scope["method"] != "POST" or scope["path"] not in WITH_BODY:
            return
        if self.draining:
            raise Refusal(503, "the server is ending; try again later", "ending", retry_after=5)
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            named = kind.decode("latin-1")[:60]
            raise Refusal(415, f"content-type {named!r}; send application/json", "unsupported_media_type")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415, "a packed body; send it without content-encoding", "unsupported_media_type")

    async def _read(self, receive: Any, headers: dict[bytes, bytes], held: list[int]) -> bytearray:
        """The body; held[0] counts its bytes as they come, so that announcing many takes no room."""
        limit, body, size = self.settings.max_body, bytearray(), 0
        announced = headers.get(b"content-length", b"")
        too_much = too_large(f"a body of more than {limit:,} bytes; send fewer or smaller pictures at once")
        too_many = announced.isdigit() and (len(announced) > 15 or int(announced) > limit)
        try:
            async with asyncio.timeout(self.settings.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit or too_many:  # read on for a while: who still sends hears no answer
                        body.clear()
                        if size > 4 * limit or not message.get("more_body"):
                            raise too_much
                    else:
                        self.service.memory.take(len(part))
                        held[0] += len(part)
                        body += part
                    if not message.get("more_body"):
                        return body
        except TimeoutError:
            raise Refusal(
                408, f"the request did not come within {self.settings.read_timeout:g} s; send it faster", "too_slow"
            ) from None

    def _note(self, scope: Any, visit: Visit, status: int, seconds: float, problem: BaseException | None) -> None:
        path = next(
            (known for known in PATHS if scope["path"] == known or scope["path"].startswith(f"{known}/")), "other"
        )
        metrics = self.service.metrics
        metrics.requests.labels(path, str(status)).inc()
        metrics.seconds.labels(path).observe(seconds)
        if status >= 400:
            metrics.refused.labels(visit.code or str(status)).inc()
        if path in QUIET and status < 400:
            return
        log(
            "request",
            problem,
            id=visit.id,
            client=(scope.get("client") or [None])[0],
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            **({"code": visit.code} if visit.code else {}),
            bytes=visit.size,
            seconds=round(seconds, 4),
            **visit.notes,
        )


class _Answer:
    """`send` of a request: adds its id, and knows its status."""

    def __init__(self, send: Any, visit: Visit):
        self.send, self.visit = send, visit
        self.status: int | None = None

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], (b"x-request-id", self.visit.id.encode())]}
        await self.send(message)

    async def refuse(self, refusal: Refusal) -> None:
        self.visit.code = refusal.code
        body = orjson.dumps(refusal.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers()}
        if refusal.status in (408, 413, 503):
            headers["connection"] = "close"
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refusal.status, "headers": lines})
        await self({"type": "http.response.body", "body": body})


async def _watch(receive: Any, visit: Visit) -> None:
    """Notices when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    visit.gone.set()


def _replay(visit: Visit) -> Any:
    """`receive` for the application: nothing more to read, and later that the client has left."""

    async def receive() -> dict[str, Any]:
        await visit.gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _digest(key: bytes) -> bytes:
    """Of equal length for keys of any, so that comparing tells nothing of it."""
    return hashlib.sha256(key).digest()
