"""A model that answers at once or slowly, and clients of a server in this process.

python -m tests.serving [SECONDS [LIMIT=VALUE ...]]     serves that model, each batch takes so long
"""

import asyncio
import base64
import io
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx2
import numpy as np
from PIL import Image

from dynrefer.data.records import RegionResult
from dynrefer.models.family import FamilyModel
from dynrefer.models.options import LOCAL, Options
from dynrefer.serve.app import create_app
from dynrefer.serve.settings import Settings


@dataclass(frozen=True)
class StubOptions(Options):
    """Some of those that text families have."""

    num_beams: int | None = None
    max_new_tokens: int | None = None  # longest text, in words
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    words: list | None = None  # what captions end with
    machine: str | None = field(default=None, metadata=LOCAL)


class StubModel(FamilyModel):
    """Captions are `ID at BOX` in the words of the options. batches: the ids of each that came, with its options."""

    Options = StubOptions
    answers = frozenset({"caption"})
    device = "cpu"

    def __init__(self, seconds=0.0, joint=False):
        self.seconds, self.joint = seconds, joint
        self.batches, self.threads, self.fail = [], set(), {}
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.processor = SimpleNamespace(samples=self.samples, collate=self.collate, results=lambda e, o: len(e))

    def samples(self, example, options, generators, train):
        return [{"id": region.id, "box": region.box, "hw": example.image.shape[:2]} for region in example.regions]

    def collate(self, samples):
        batch = SimpleNamespace(samples=list(samples))
        batch.to = lambda device: batch
        return batch

    def check_options(self, options):
        if options.words == ["bad"]:
            raise ValueError("words: 'bad' is none of this model's")

    def predict(self, batch, options):
        self.batches.append(([sample["id"] for sample in batch.samples], options))
        self.threads.add(threading.current_thread().name)
        self.started.set()
        assert self.go_on.wait(30)
        time.sleep(self.seconds if len(self.batches) > 1 else 0)  # the first is the server's own
        for sample in batch.samples:
            if error := self.fail.get(sample["id"]):
                raise error
        ending = " ".join(options.words or ())
        results = [
            RegionResult(one["id"], list(one["box"]), f"{one['id']} at {one['box'][0]:g} {ending}".strip(), 0.5)
            for one in batch.samples
        ]
        for result in results:
            result.prompt_tokens = 7
        return results

    def text_lengths(self, results, options):
        counts = [len(result.caption.split()) for result in results]
        return [(count, options.max_new_tokens is not None and count >= options.max_new_tokens) for count in counts]


def gate_of(model=None, options=None, **limits):
    """The application around a model; batches do not wait for more where nothing else is said."""
    settings = Settings(**{"name": "stub", "max_wait_ms": 0.0, **limits})
    return create_app(model or StubModel(), settings, options)


def ask(gate, method, path, **request):
    """One answer, over a loop of its own. request: of httpx2."""

    async def one():
        transport = httpx2.ASGITransport(gate)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            return await client.request(method, path, **request)

    return asyncio.run(one())


def post(gate, body, path="/v1/regions", **request):
    return ask(gate, "POST", path, json=body, **request)


def error_of(answer, status):
    """The error of an answer of this status: complete, and one line."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and "\n" not in error["message"]
    assert "Traceback" not in answer.text
    return error


def encoded(pixels, kind="PNG", **settings):
    """A picture's file. pixels: an array, or a PIL image."""
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **settings)
    return file.getvalue()


def uri(pixels, kind="PNG", **settings):
    content = pixels if isinstance(pixels, bytes) else encoded(pixels, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def regions_body(*regions, image=None, **more):
    """A request about regions of one picture, 100 wide and 80 high."""
    return {"images": [{"image": uri(blank()) if image is None else image, "regions": list(regions)}], **more}


def blank(height=80, width=100):
    return np.zeros((height, width, 3), np.uint8)


def chat_body(text='{"bbox_2d": [4, 4, 40, 30]}', image=None, **more):
    """A chat about one picture."""
    picture = {"type": "image_url", "image_url": {"url": uri(blank()) if image is None else image}}
    content = [picture, {"type": "text", "text": text}] if text else [picture]
    return {"model": "stub", "messages": [{"role": "user", "content": content}], **more}


def events(text):
    """The objects of server-sent events, and whether the last one is [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1] == "[DONE]"


if __name__ == "__main__":
    from dynrefer.serve.process import bind, run_until_signal

    seconds = float(sys.argv[1]) if sys.argv[1:] else 0.0
    limits = {name: float(value) for name, value in (pair.split("=") for pair in sys.argv[2:])}
    gate = gate_of(StubModel(seconds), **{name: int(v) if v == int(v) else v for name, v in limits.items()})
    sys.exit(run_until_signal(gate, bind("127.0.0.1", 0)))
