"""A stand-in for a server of language models: answers chat completions as a test says, and keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ChatServer:
    """answer: what is asked (`Asked`) -> a text, or (status, body, headers) for anything else than a good answer. most:
    how many questions were in it at once."""

    answer: Callable[["Asked"], Any]
    url: str = ""
    asked: list["Asked"] = field(default_factory=list)
    most: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict, headers: dict) -> tuple[int, dict, dict]:
        content = body["messages"][0]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        asked = Asked(body["model"], text, [p["image_url"]["url"] for p in parts if p["type"] == "image_url"], headers)
        with self._lock:
            self.asked.append(asked)
            self._open += 1
            self.most = max(self.most, self._open)
        said = self.answer(asked)
        with self._lock:
            self._open -= 1
        if isinstance(said, tuple):
            return said
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(said.split())}
        return 200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": usage}, {}


@dataclass
class Asked:
    model: str
    text: str
    pictures: list[str]  # data addresses
    headers: dict


@contextmanager
def chat_server(answer: Callable[[Asked], Any]) -> Iterator[ChatServer]:
    server = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, headers = server.reply(body, dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield server
        http.shutdown()
