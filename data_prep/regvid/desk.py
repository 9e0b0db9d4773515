"""Where questions are asked: at most so many at once, every answer kept in a file before it is used, and none asked
twice; or where they are only counted, to say what they will cost."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from data_prep.regvid.settings import Role
from data_prep.regvid.shots import Shot
from dynrefer.endpoint import NoAnswer
from dynrefer.files import read_jsonl

LETTERS_A_TOKEN = 4  # of English, for the estimate
FRAME_TOKENS = 8  # that a chat's own form takes


@dataclass(frozen=True)
class Question:
    """role: who is asked. parts: texts and frames. typical: an answer as long as usual, which the estimate counts and
    goes on with."""

    role: str
    parts: tuple[str | Shot, ...]
    typical: str

    def key(self, role: Role) -> str:
        parts = [part if isinstance(part, str) else [part.name] for part in self.parts]
        return hashlib.sha256(json.dumps([role.model, role.max_tokens, parts]).encode()).hexdigest()

    def tokens(self, role: Role) -> tuple[int, int]:
        """About how many are read and written."""
        read = sum(text_tokens(part) if isinstance(part, str) else role.picture_tokens for part in self.parts)
        return read + FRAME_TOKENS, min(text_tokens(self.typical), role.max_tokens)

    def content(self) -> list:
        return [part if isinstance(part, str) else part.pixels() for part in self.parts]


def text_tokens(text: str) -> int:
    return -(-len(text) // LETTERS_A_TOKEN)


def money(cost: float) -> str:
    """
    >>> money(1234.5), money(0.01234), money(0)
    ('1,234.50', '0.0123', '0')
    """
    return f"{cost:,.2f}" if cost >= 1 else f"{cost:.3g}"


class Refused(Exception):
    """A model will not answer this question, whoever asks again."""


class Stopped(Exception):
    """Another thread has stopped the run."""


class Journal:
    """Answers of earlier runs and of this one, by question. A line is written, and on the disk, before an answer is
    used; a killed run's torn last line is dropped."""

    def __init__(self, path: Path):
        self.path = path
        self.answers: dict[str, dict] = {}
        self.lock = threading.Lock()
        if path.is_file():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                os.truncate(path, len(whole[0]) + len(whole[1]))
            for line, entry in read_jsonl(path):
                if not isinstance(entry, dict) or not {"key", "role", "text", "tokens"} <= entry.keys():
                    raise ValueError(f"{path}:{line}: no answer of a model; the file is damaged, remove that line")
                self.answers[entry["key"]] = entry

    def keep(self, entry: dict) -> None:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        with self.lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self.answers[entry["key"]] = entry

    def costs(self, roles: Mapping[str, Role]) -> float:
        """Of all answers that it holds, at today's prices."""
        return sum(roles[e["role"]].cost(tuple(e["tokens"])) for e in self.answers.values() if e["role"] in roles)


class Desk:
    """Asks models. roles: by name; `budget`: the most that all answers of the journal may cost."""

    asks = True

    def __init__(self, roles: Mapping[str, Role], journal: Journal, budget: float | None = None):
        self.roles, self.journal, self.budget = roles, journal, budget
        self.endpoints = {name: role.endpoint(name) for name, role in roles.items()} if self.asks else {}
        self.free = {name: threading.Semaphore(role.parallel) for name, role in roles.items()}
        self.calls, self.read, self.written = Counter(), Counter(), Counter()
        self.waiting: dict[str, Future] = {}
        self.stopped = False
        self._spent = journal.costs(roles)
        self._lock = threading.Lock()

    def ask(self, question: Question) -> str:
        """Refused where the model will not answer; ValueError where the budget is used up; NoAnswer where the model
        cannot be reached."""
        key = question.key(self.roles[question.role])
        with self._lock:
            entry = self.journal.answers.get(key)
            mine = entry is None and key not in self.waiting
            future = self.waiting.setdefault(key, Future()) if entry is None else None
        if mine:
            try:
                future.set_result(self._send(question, key))
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    self.waiting.pop(key)
        entry = future.result() if entry is None else entry
        if entry.get("refused"):
            raise Refused(entry["refused"])
        return entry["text"]

    def _send(self, question: Question, key: str) -> dict:
        role = self.roles[question.role]
        expected = role.cost(question.tokens(role))
        with self.free[question.role]:
            with self._lock:
                if self.stopped:
                    raise Stopped
                if self.budget is not None and self._spent + expected > self.budget:
                    raise ValueError(
                        f"budget {self.budget:g}: answers cost {self._spent:.4g} so far and the next would go beyond "
                        "it; what is known is kept, raise budget and the same command goes on"
                    )
                self._spent += expected
            entry = {"key": key, "role": question.role, "model": role.model}
            try:
                reply = self.endpoints[question.role].ask(question.content())
                tokens = reply.tokens if any(reply.tokens) else question.tokens(role)
                entry |= {"text": reply.text, "tokens": list(tokens)}
            except NoAnswer as error:
                if not error.refused:
                    raise
                entry |= {"text": "", "tokens": [0, 0], "refused": str(error)}
            self.journal.keep(entry)
            with self._lock:
                self._spent += role.cost(tuple(entry["tokens"])) - expected
                self._count(question.role, entry["tokens"])
        return entry

    def _count(self, name: str, tokens) -> None:
        self.calls[name] += 1
        self.read[name] += tokens[0]
        self.written[name] += tokens[1]

    def stop(self) -> None:
        """No question is asked any more; those on the way are answered and kept."""
        self.stopped = True

    def lines(self) -> list[str]:
        """What was asked, a line a role, and in all."""
        lines, total = [], 0.0
        for name, role in self.roles.items():
            cost = role.cost((self.read[name], self.written[name]))
            total += cost
            lines.append(
                f"{name:>10}  {self.calls[name]:>9,} questions, {self.read[name]:>13,} tokens read, "
                f"{self.written[name]:>11,} written, costs {money(cost)}  {role.model}"
            )
        return [*lines, f"{'in all':>10}  {sum(self.calls.values()):>9,} questions, costs {money(total)}"]


class Estimate(Desk):
    """Asks nobody: known answers are taken, for others a typical one, and they are counted."""

    asks = False

    def ask(self, question: Question) -> str:
        role = self.roles[question.role]
        entry = self.journal.answers.get(question.key(role))
        if entry is not None:
            if entry.get("refused"):
                raise Refused(entry["refused"])
            return entry["text"]
        with self._lock:
            self._count(question.role, question.tokens(role))
        return question.typical

    def cost(self) -> float:
        return sum(role.cost((self.read[name], self.written[name])) for name, role in self.roles.items())
