"""A request's pictures and regions -> a job in the queue -> its answers, for every form of request alike."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dynrefer.data.example import Example
from dynrefer.fetch import NotFetched, fetch, is_address
from dynrefer.models.options import make_options
from dynrefer.predictor import RegionPredictor

from .batching import Answer, Batcher, Job
from .client_options import client_options
from .inputs import file_bytes, header, pixels_of, read_regions
from .logs import log
from .metrics import Metrics
from .schema import RegionIn
from .settings import MEGABYTE, Refusal, Settings, invalid, too_large

Value = TypeVar("Value")
BYTES_A_PIXEL = 4  # while a picture is decoded and until its regions are described


class Memory:
    """Bytes that requests hold; used on the event loop only."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0

    def take(self, size: int) -> None:
        """Refusal 429 where there is no room now, 413 where there never is."""
        if size > self.limit:
            raise too_large(f"{size:,} bytes of pictures; this server holds {self.limit:,}, send fewer at once")
        if self.used + size > self.limit:
            raise Refusal(
                429, "the server's memory for pictures is full; try again later", "memory_full", retry_after=1
            )
        self.used += size

    def give(self, size: int) -> None:
        self.used -= size


@dataclass
class Visit:
    """A request on its way: what the gate knows of it.

    size: of its body, which the application takes away. gone: the client has left. code: of the error that it got.
    notes: for the log.
    """

    id: str
    body: bytes | bytearray = b""
    size: int = 0
    code: str | None = None
    began: float = field(default_factory=time.monotonic)  # read to its last byte
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One picture of a request: data URI, base64 or address; its regions, "alpha", or None: its alpha."""

    picture: str
    regions: list[RegionIn] | str | None
    where: str  # in the request


@dataclass(frozen=True)
class Running:
    """A job in the queue, and its pictures' sizes."""

    job: Job
    image_hws: list[tuple[int, int]]
    read_seconds: float


class Service:
    """The model behind the queue, and the threads that read pictures.

    options: the server's own, below those of a request.
    """

    def __init__(self, model: Any, settings: Settings, options: Mapping[str, Any] | None = None):
        self.model, self.settings = model, settings
        self.options = make_options(model.Options, options or {})
        model.check_options(self.options)
        self.metrics = Metrics()
        self.memory = Memory(int(settings.max_memory_mb * MEGABYTE))
        self.batcher = Batcher(
            RegionPredictor(model, max_regions=settings.max_batch),
            settings.max_batch,
            settings.max_wait_ms / 1000,
            settings.max_queue,
            self.metrics.batch_done,
            lambda error: log("the model failed", error),
        )
        self.readers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "read")
        self.fetchers = ThreadPoolExecutor(8, "fetch")
        self.metrics.gauge("dynrefer_queue_regions", "regions that wait", lambda: self.batcher.waiting)
        self.metrics.gauge("dynrefer_held_bytes", "of requests and pictures", lambda: self.memory.used)

    async def warm_up(self) -> None:
        """One region through the model, so that the first request is as quick as the others. Raises what the model
        says against it."""
        regions = read_regions([RegionIn(box=[0.0, 0.0, 32.0, 32.0])], (32, 32), "xyxy", 0, "warm-up")
        job = Job([(Example.of_picture(np.zeros((32, 32, 3), np.uint8), regions), self.options)])
        self.batcher.submit(job)
        while await job.answers() is not None:
            pass

    def close(self) -> bool:
        """Ends the threads; False where the model did not come back."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.fetchers.shutdown(wait=False, cancel_futures=True)
        return self.batcher.close()

    async def on_thread(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """Off the event loop, which the other clients need."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work, *arguments)

    @asynccontextmanager
    async def running(
        self,
        visit: Visit,
        asked: Sequence[Asked],
        box_format: str,
        options: Mapping[str, Any],
        seed: int | None = None,
        where: str = "options",
    ) -> AsyncIterator[Running]:
        """Within it the request's job is in the queue; afterwards nothing of it is."""
        settings, held, job = self.settings, 0, None
        chosen = client_options(options, self.options, settings, where)
        if len(asked) > settings.max_images:
            raise too_large(f"{len(asked)} images; this server takes up to {settings.max_images} a request", "images")
        count = sum(len(one.regions) if isinstance(one.regions, list) else 1 for one in asked)
        if count > settings.max_regions:
            raise too_large(f"{count} regions; this server takes up to {settings.max_regions} a request", "regions")
        self.batcher.check_room(count)
        visit.notes |= {"images": len(asked), "regions": count}
        try:
            examples, image_hws = [], []
            for number, one in enumerate(asked):
                content = await self._content(one)
                self.memory.take(len(content))
                held += len(content)
                size = await self.on_thread(header, content, one.where, settings.max_pixels)
                self.memory.take(needed := BYTES_A_PIXEL * size.width * size.height)
                held += needed
                example = await self.on_thread(_example, one, content, box_format, number)
                try:
                    own = chosen.for_image(number, len(asked)) if len(asked) > 1 else chosen
                    own.for_regions(range(len(example)), len(example))
                except ValueError as error:
                    raise invalid(f"{where}: {error}", where) from None
                image_hws.append(example.image.shape[:2])
                examples.append((example, own))
                if visit.gone.is_set():
                    raise Gone
                if time.monotonic() > visit.began + settings.timeout:
                    raise Refusal(
                        504, f"its pictures were not read within {settings.timeout:g} s; send fewer", "timeout"
                    )
            job = Job(examples, seed)
            del examples, example
            self.batcher.submit(job)
            yield Running(job, image_hws, time.monotonic() - visit.began)
        finally:
            self.memory.give(held)
            if job is not None:
                self.batcher.cancel(job)
                if job.began is not None:
                    self.metrics.waited.observe(job.began - job.submitted)
                    visit.notes |= {"waited_s": round(job.began - job.submitted, 4)}
                visit.notes |= {"model_s": round(job.model_seconds, 4)}

    async def _content(self, one: Asked) -> bytes:
        if not is_address(one.picture):
            return await self.on_thread(file_bytes, one.picture, one.where)
        settings = self.settings
        if not settings.allow_hosts:
            text = f"{one.where}: this server fetches no addresses; send the file as data:image/png;base64,..."
            raise Refusal(400, text, "no_fetching", one.where)
        arguments = (one.picture, one.where, settings.allow_hosts, settings.max_body, settings.fetch_timeout)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.fetchers, fetch, *arguments)
        except NotFetched as error:
            raise Refusal(413 if error.code == "too_large" else 400, str(error), error.code, one.where) from None

    async def answers(self, visit: Visit, job: Job) -> AsyncIterator[list[Answer]]:
        """Answers as they come, in the order of the regions. Refusal 400 for what the model says against the request,
        503 and 504 when it takes too long; Gone when the client leaves."""
        until = visit.began + self.settings.timeout
        gone, news = asyncio.ensure_future(visit.gone.wait()), None
        try:
            while True:
                news = asyncio.ensure_future(job.answers())
                done, _ = await asyncio.wait(
                    (news, gone), timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
                )
                if news not in done:
                    self.batcher.cancel(job)
                    raise Gone if gone in done else _late(job, self.settings.timeout)
                try:
                    found = news.result()
                except (Refusal, ValueError) as error:
                    raise error if isinstance(error, Refusal) else invalid(str(error)) from None
                except Exception:
                    raise Refusal(
                        500, "the model failed on this request; the server's log says why", "model_failed"
                    ) from None
                if found is None:
                    return
                yield found
        finally:
            gone.cancel()
            if news is not None:
                news.cancel()


class Gone(Exception):
    """The client has left: nobody reads an answer."""


def _example(one: Asked, content: bytes, box_format: str, number: int) -> Example:
    """On a reader's thread: the decoded picture with its regions."""
    alpha = {"alpha": True, None: None}.get(one.regions, False) if not isinstance(one.regions, list) else False
    pixels, mask = pixels_of(content, one.where, alpha)
    given = one.regions if isinstance(one.regions, list) else mask
    if given is None:
        raise invalid(
            f"{one.where}: no regions; give boxes or masks, or a mask in the picture's alpha channel", one.where
        )
    regions = read_regions(given, pixels.shape[:2], box_format, number, one.where)
    return Example.of_picture(pixels, regions, one.where)


def _late(job: Job, seconds: float) -> Refusal:
    if job.began is None:
        return Refusal(
            503, f"no turn within {seconds:g} s: the server is busy; try again later", "busy", retry_after=10
        )
    return Refusal(504, f"not finished within {seconds:g} s; send fewer regions at once", "timeout")
