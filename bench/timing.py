"""Ways to do the same, timed in turns: what slows the machine down for a while slows all of them down."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

Work = Callable[[], float]  # does the work once, returns how many units of it


@dataclass(frozen=True)
class Budget:
    """How long to measure: at least `rounds` turns of all ways, and until each has had `seconds` on average."""

    seconds: float = 2.0
    rounds: int = 5


@dataclass(frozen=True)
class Result:
    """Units of work a second of every way, the plain one first, and lines to print below."""

    rates: dict[str, float]
    unit: str
    notes: list[str] = field(default_factory=list)


class MissingPackage(Exception):
    """A package that only one benchmark needs is not installed."""


def compare(ways: dict[str, Work], budget: Budget) -> dict[str, float]:
    """Units of work a second of every way, the median over the turns, after one warm-up each."""
    for work in ways.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    start, turn = time.perf_counter(), 0
    while turn < budget.rounds or time.perf_counter() - start < budget.seconds * len(ways):
        for name, work in ways.items():
            began = time.perf_counter()
            done = work()
            rates[name].append(done / (time.perf_counter() - began))
        turn += 1
    return {name: median(values) for name, values in rates.items()}


def report(name: str, title: str, result: Result) -> str:
    """The lines of one benchmark."""
    plain = next(iter(result.rates.values()))
    lines = [f"{name}: {title}"]
    for way, rate in result.rates.items():
        lines.append(f"  {way:<22} {rate:>12,.0f} {result.unit:<12} x{rate / plain:.2f}")
    return "\n".join(lines + [f"  {note}" for note in result.notes])
