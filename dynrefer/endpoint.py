"""A language model behind an address that speaks the chat completions protocol, as vLLM, SGLang, llama.cpp and others
serve it: one question, with pictures where it has some, and one answer."""

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from PIL import Image

LONGEST_WAIT = 120.0  # seconds that a server may tell us to wait
NETWORK = (OSError, http.client.HTTPException)

Content = str | Sequence[str | np.ndarray]  # a text, or texts and pictures (H, W, 3) or (H, W) uint8 in order


class NoAnswer(RuntimeError):
    """refused: the server has read the question and will not answer it, whoever asks again; others may be answered."""

    def __init__(self, text: str, refused: bool = False):
        super().__init__(text)
        self.refused = refused


@dataclass(frozen=True)
class Reply:
    """text: the answer. tokens: of the question and of the answer, as the server counts them; (0, 0) where it does not.
    finish: why it ends, "length" where there was no room for more."""

    text: str
    tokens: tuple[int, int] = (0, 0)
    finish: str = ""


@dataclass(frozen=True)
class Endpoint:
    """url: up to and with "/v1"; model: the name under which it is served; key: sent as bearer token if given.

    Decoding is greedy. A server that is busy (429, 5xx) or cannot be reached is asked `attempts` times, after `wait`,
    twice, four times as many seconds, or after as many as it says.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    max_tokens: int = 300
    attempts: int = 6
    wait: float = 1.0
    role: ClassVar[str] = "model"  # what errors call it

    def ask(self, content: Content) -> Reply:
        """NoAnswer where none comes within `timeout` seconds, or one that is no text."""
        message = {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens}
        message["messages"] = [{"role": "user", "content": content if isinstance(content, str) else parts(content)}]
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            request = urllib.request.Request(address, json.dumps(message).encode(), headers)
            answer = json.loads(self._sent(request))
            choice = answer["choices"][0]
            if not isinstance(text := choice["message"]["content"], str):
                # a model that thinks may have used up its tokens
                raise ValueError(f"message content {text!r} (max_tokens {self.max_tokens}); expected a text")
            usage = answer.get("usage") or {}
            tokens = tuple(int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
            return Reply(text, tokens, str(choice.get("finish_reason") or ""))
        except (*NETWORK, ValueError, LookupError, TypeError, AttributeError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code in (400, 413, 415, 422)
            said = f", {_said(error)}" if isinstance(error, urllib.error.HTTPError) else ""
            raise NoAnswer(
                f"the {self.role} {self.model!r} at {address} gave no answer: {error!r}{said}", refused
            ) from error

    def _sent(self, request: urllib.request.Request) -> bytes:
        for attempt in range(1, self.attempts + 1):
            asked_to_wait = None
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                if attempt == self.attempts or not (error.code == 429 or error.code >= 500):
                    raise
                asked_to_wait = error.headers.get("Retry-After", "")
                error.close()
            except NETWORK:
                if attempt == self.attempts:
                    raise
            seconds = self.wait * 2 ** (attempt - 1)
            if asked_to_wait and asked_to_wait.isdecimal():
                seconds = min(max(seconds, float(asked_to_wait)), LONGEST_WAIT)
            time.sleep(seconds)
        raise ValueError(f"attempts {self.attempts}: expected at least 1")


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says of a refusal, in a line."""
    try:
        return " ".join(error.read(500).decode("utf-8", "replace").split())[:300]
    except NETWORK:
        return ""


def parts(content: Sequence[str | np.ndarray]) -> list[dict]:
    """Texts and pictures as the protocol has them."""
    return [{"type": "text", "text": part} if isinstance(part, str) else _picture(part) for part in content]


def _picture(picture: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
