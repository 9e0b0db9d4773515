"""What the operator of a server sets, and the refusals that a client gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dynrefer.errors import cut

MEGABYTE = 2**20
MOST_SAID = 1000  # letters of a message, which may repeat what the client has sent
MOST_REGIONS = 10_000  # of a request, whatever the operator sets: they are checked all together
# status -> OpenAI's type of an error
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def limit(default: float, text: str) -> Any:
    """A field that is a flag of the command too, with this text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What an operator sets."""

    name: str  # of the model, as clients call it
    api_key: str | None = field(default=None, repr=False)  # that clients must send; None: no key
    allow_hosts: tuple[str, ...] = ()  # from which pictures are fetched; none: no address is fetched
    cors_origins: tuple[str, ...] = ()  # web pages of these origins may call the server
    max_batch: int = limit(64, "regions that go through the model together")
    max_wait_ms: float = limit(5.0, "milliseconds; a batch that is not full waits for more")
    max_queue: int = limit(4096, "regions that may wait")
    max_requests: int = limit(256, "requests that are worked on at once")
    max_regions: int = limit(1000, "regions of a request")
    max_images: int = limit(64, "pictures of a request")
    max_pixels: int = limit(50_000_000, "pixels of a picture")
    max_body_mb: float = limit(32.0, "of a request, in 2**20 bytes")
    max_memory_mb: float = limit(2048.0, "of all requests and their pictures, in 2**20 bytes")
    max_new_tokens: int = limit(512, "tokens of a text that a client may ask for")
    max_beams: int = limit(8, "beams that a client may ask for")
    max_words: int = limit(2000, "values in a request's options")
    timeout: float = limit(60.0, "seconds for a request, from its last byte on")
    read_timeout: float = limit(30.0, "seconds for a client to send a request, or to take an answer")
    fetch_timeout: float = limit(10.0, "seconds to fetch a picture")
    drain_timeout: float = limit(30.0, "seconds for running requests when the server is told to end")

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value < 1e12:
                raise ValueError(f"{name.replace('_', '-')} {value}: expected a number of at least 0")
        for name in ("max_batch", "max_queue", "max_requests", "max_regions", "max_images", "max_pixels", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: expected more than 0")
        if self.max_regions > MOST_REGIONS:
            raise ValueError(f"max-regions {self.max_regions}: expected at most {MOST_REGIONS}; send several requests")
        if self.max_regions > self.max_queue:
            raise ValueError(
                f"max-regions {self.max_regions} of a request are more than max-queue {self.max_queue} lets wait; "
                "make one smaller or the other larger"
            )
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api-key is empty; give a key, or leave it out for a server without one")

    @property
    def max_body(self) -> int:
        return int(self.max_body_mb * MEGABYTE)


class Refusal(Exception):
    """An answer other than 200, in OpenAI's form.

    message: one line for people; code: for programs; param: the place in the request; retry_after: seconds.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        line = cut(" ".join(str(self).split()), MOST_SAID)
        return {"error": {"message": line, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """400."""
    return Refusal(400, message, code, param)


def too_large(message: str, param: str | None = None) -> Refusal:
    """413."""
    return Refusal(413, message, "too_large", param)
