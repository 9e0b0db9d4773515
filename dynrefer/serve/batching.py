"""Requests of several clients -> batches -> results: one thread runs the model, and nothing else touches it.

Regions wait in a bounded queue. Those with the same options share a batch; a request that does not fit into one gives
its place to the next after each of its batches, so that a large one does not hold up the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .settings import Refusal

if TYPE_CHECKING:
    from dynrefer.data.example import Example
    from dynrefer.data.records import RegionResult
    from dynrefer.models.options import Options
    from dynrefer.predictor import RegionPredictor

FAILED = 3  # batches one after another, none of which went through: the model itself is broken


@dataclass(frozen=True)
class Answer:
    """A region's result, the example that it is of, the tokens of its prompt and of its text, and whether the text was
    cut off."""

    example: int
    result: RegionResult
    prompt_tokens: int
    tokens: int
    cut_off: bool


class Job:
    """The regions of one request. Made on the event loop, which takes its answers in the order of the regions.

    examples: with their options. seed: of all random draws; such a job shares no batch.
    """

    def __init__(self, examples: Sequence[tuple[Example, Options]], seed: int | None = None):
        self.examples = list(examples)
        self.seed = seed
        own = "" if seed is None else f"{seed} of {id(self)}"
        self.keys = [f"{own}{options!r}" for _, options in self.examples]
        self.regions = sum(len(example) for example, _ in self.examples)
        self.waiting = self.regions  # not yet with the model
        self.submitted = time.monotonic()
        self.began: float | None = None
        self.model_seconds = 0.0
        self.checked = self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[list[Answer] | BaseException | None] = asyncio.Queue()
        self._at, self._start = 0, 0  # the next region: of which example, which one
        self._skip_empty()

    @property
    def key(self) -> str | None:
        """What the next regions must share with others of a batch; None when all are taken."""
        return self.keys[self._at] if self._at < len(self.examples) else None

    def take(self, room: int, joint: bool) -> Iterator[Part]:
        """Parts of one key, of at most `room` regions; a joint family's examples stay whole."""
        key = self.key
        while room > 0 and self.key == key is not None:
            example, options = self.examples[self._at]
            if joint and len(example) > room:
                return
            stop = min(self._start + room, len(example))
            positions = range(self._start, stop)
            yield Part(self, self._at, example.part(positions), options.for_regions(positions, len(example)))
            room -= len(positions)
            self.waiting -= len(positions)
            self._start = stop
            if stop == len(example):
                self._at, self._start = self._at + 1, 0
                self._skip_empty()

    def whole(self) -> int:
        """Regions of the next example."""
        return len(self.examples[self._at][0]) if self._at < len(self.examples) else 0

    def _skip_empty(self) -> None:
        while self._at < len(self.examples) and not len(self.examples[self._at][0]):
            self._at += 1

    def tell(self, news: list[Answer] | BaseException | None) -> None:
        """From the model's thread: answers, an error, or None for the end."""
        if not self.cancelled:
            try:
                self._loop.call_soon_threadsafe(self._arrived.put_nowait, news)
            except RuntimeError:  # the loop has ended, and the client with it
                self.cancelled = True

    async def answers(self) -> list[Answer] | None:
        """The next answers, None after the last; raises what the model said against the request."""
        news = await self._arrived.get()
        if isinstance(news, BaseException):
            raise news
        return news


@dataclass
class Part:
    """Regions of a job's example that go through the model together."""

    job: Job
    number: int
    example: Example
    options: Options


class Batcher:
    """The queue and the thread.

    predictor: `describe` is called with at most max_batch regions, but for a joint family's larger examples. watch:
    called with (regions, jobs, seconds) after each batch.
    """

    def __init__(
        self,
        predictor: RegionPredictor,
        max_batch: int = 64,
        max_wait: float = 0.005,
        max_queue: int = 4096,
        watch: Callable[[int, int, float], None] = lambda regions, jobs, seconds: None,
        report: Callable[[BaseException], None] = lambda error: None,
    ):
        self.predictor, self.model = predictor, predictor.model
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.watch, self.report = watch, report
        self.failures = 0  # batches in a row that no request was to blame for
        self.rate = 0.0  # regions a second, lately
        self._jobs: deque[Job] = deque()
        self._busy: list[Job] = []  # of the batch that runs
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Regions in the queue."""
        with self._change:
            return sum(job.waiting for job in (*self._jobs, *self._busy) if not job.cancelled)

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and self.failures < FAILED

    def check_room(self, regions: int) -> None:
        """Refusal 429 where so many do not fit into the queue."""
        waiting = self.waiting
        if waiting + regions > self.max_queue:
            wait = waiting / self.rate if self.rate else 1.0
            raise Refusal(
                429,
                f"{waiting} regions are waiting, {regions} more do not fit into the queue of {self.max_queue}; "
                "try again later",
                "queue_full",
                retry_after=min(max(wait, 1.0), 60.0),
            )

    def submit(self, job: Job) -> None:
        """Puts a job into the queue; Refusal 429 where it is full, 503 where the server ends."""
        with self._change:
            if self._closed:
                raise _ending()
            self.check_room(job.waiting)
            job.submitted = time.monotonic()
            self._jobs.append(job)
            self._change.notify_all()

    def cancel(self, job: Job) -> None:
        """What waits of a job leaves the queue; what runs goes nowhere."""
        with self._change:
            job.cancelled = True
            if job in self._jobs:
                self._jobs.remove(job)

    def give_up(self, running: bool = True) -> None:
        """Takes nothing more, and refuses with 503 what waits; also what runs, so that nobody waits for it."""
        with self._change:
            self._closed = True
            jobs, self._jobs = [*self._jobs, *(self._busy if running else ())], deque()
            self._change.notify_all()
        for job in jobs:
            self._fail(job, _ending())

    def close(self, timeout: float = 5.0) -> bool:
        """Ends the thread after its batch, and says whether it has ended in time."""
        self.give_up(running=False)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # --- on the model's thread ---

    def _run(self) -> None:
        while self._work():
            pass

    def _work(self) -> bool:
        """One batch, once there is one; False when the batcher is closed."""
        parts = self._next_batch()
        if parts is None:
            return False
        began = time.monotonic()
        jobs = list(dict.fromkeys(part.job for part in parts))
        try:
            self._predict(parts, jobs)
        except BaseException as error:  # whatever it is, the thread goes on for the others
            self._blame(error)
            for job in jobs:
                self._fail(job, error)
        seconds = time.monotonic() - began
        regions = sum(len(part.example) for part in parts)
        if regions:
            self.rate = 0.8 * self.rate + 0.2 * regions / seconds if self.rate else regions / seconds
        for job in jobs:
            job.model_seconds += seconds
        self.watch(regions, len(jobs), seconds)
        self._after(jobs)
        return True

    def _next_batch(self) -> list[Part] | None:
        """Parts of jobs that share a key; None when the batcher is closed."""
        with self._change:
            while not self._jobs and not self._closed:
                self._change.wait()
            if self._closed:
                return None
            until = self._jobs[0].submitted + self.max_wait
            while self._jobs and self._ready() < self.max_batch and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
                if self._closed:
                    return None
            if not self._jobs:
                return []
            key, room, parts, joint = self._jobs[0].key, self.max_batch, [], self.model.joint
            for job in [job for job in self._jobs if job.key == key]:
                taken = list(job.take(max(room, job.whole()) if joint and not parts else room, joint))
                if key is None:  # nothing to describe: options are checked all the same
                    taken = [Part(job, 0, *job.examples[0])]
                if not taken:
                    continue
                parts += taken
                room -= sum(len(part.example) for part in taken)
                job.began = job.began or time.monotonic()
                self._jobs.remove(job)
                self._busy.append(job)
                if room <= 0:
                    break
            return parts

    def _ready(self) -> int:
        """Regions that could go together with the first ones."""
        if self._jobs[0].seed is not None:
            return self.max_batch
        key = self._jobs[0].key
        return sum(job.waiting for job in self._jobs if job.key == key)

    def _predict(self, parts: list[Part], jobs: list[Job]) -> None:
        good = []
        for job in jobs:
            try:
                for options in {} if job.checked else {repr(options): options for _, options in job.examples}.values():
                    self.model.check_options(options)
                job.checked = True
                good.append(job)
            except ValueError as error:
                self._fail(job, error)
        parts = [part for part in parts if part.job in good and not part.job.cancelled]
        try:
            self._describe(parts)
            self.failures = 0
        except Exception as error:
            if len({id(part.job) for part in parts}) == 1:
                self._blame(error)
                self._fail(parts[0].job, error)
                return
            for job in good:  # one request's error is not the others'
                own = [part for part in parts if part.job is job]
                try:
                    self._describe(own)
                    self.failures = 0
                except Exception as alone:
                    self._blame(alone)
                    self._fail(job, alone)

    def _describe(self, parts: list[Part]) -> None:
        if not parts:
            return
        first = parts[0].job
        with seeded(first.seed, first.regions - first.waiting):
            found = self.predictor.describe([(part.example, part.options) for part in parts])
        for part, results in zip(parts, found, strict=True):
            lengths = self.model.text_lengths(results, part.options)
            part.job.tell(
                [
                    Answer(part.number, result, result.prompt_tokens, *length)
                    for result, length in zip(results, lengths, strict=True)
                ]
            )

    def _blame(self, error: BaseException) -> None:
        if not isinstance(error, ValueError):
            self.failures += 1
            self.report(error)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.tell(error)
        job.cancelled = True

    def _after(self, jobs: list[Job]) -> None:
        """Jobs that have more regions stand in line again, the others are through."""
        with self._change:
            self._busy = []
            for job in jobs:
                if job.key is not None and not job.cancelled and not self._closed:
                    self._jobs.append(job)
                elif job.key is None:
                    job.tell(None)
                else:
                    job.tell(_ending())


def _ending() -> Refusal:
    return Refusal(503, "the server is ending; try again later", "ending", retry_after=5)


@contextmanager
def seeded(seed: int | None, done: int) -> Iterator[None]:
    """Within it torch draws what the seed says, for the same regions the same; afterwards as if nothing had been."""
    if seed is None:
        yield
        return
    import torch

    with torch.random.fork_rng():
        torch.manual_seed((seed * 1_000_003 + done) % 2**63)  # neighbouring seeds share nothing
        yield
