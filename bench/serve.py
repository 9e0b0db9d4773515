"""The server under load: how long clients wait and how many regions a second, in batches and one region at a time.

    python -m bench.serve                                    the tiny model of the tests: what is around a model
    python -m bench.serve --model runs/quickstart            a real one
    python -m bench.serve --clients 1 4 --seconds 1 --requests 50     shows that it runs

Each client sends its next request when it has its answer. Every answer is compared with the predictor's: nothing lost,
the order kept. Then the server's memory over many requests.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dynrefer.errors import Parser, run_command

WAYS = {"one region a call": ["--max-batch", "1", "--max-wait-ms", "0"], "batches": []}
STEPS = 5
PICTURES = 16  # different ones, each with regions of its own


@contextmanager
def server(model: str, *settings: str) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server of its own."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "dynrefer.cli", "serve", "--model", model, "--name", "model", "--port", "0"]
        command += ["--timeout", "600"]  # the plain way takes long
        process = subprocess.Popen([*command, *settings], stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            while process.poll() is None:
                log.seek(0)
                lines = log.read().splitlines()
                if lines and (found := json.loads(lines[0])).get("event") == "listening":
                    break
                time.sleep(0.1)
            else:
                raise SystemExit(f"the server ended: {lines}")
            yield found["address"], process.pid
        finally:
            process.terminate()
            process.wait(60)


def requests_of(model: Any, regions: int) -> list[tuple[bytes, list[tuple[str, str]]]]:
    """(body, id and caption of every region, as the predictor says them) of each picture."""
    from PIL import Image

    from dynrefer.predictor import RegionPredictor

    made = []
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        patches = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(patches).resize((384, 288), Image.Resampling.NEAREST))
        low = rng.uniform(0, 1, (regions, 2)) * [250, 150]
        boxes = np.concatenate([low, low + rng.uniform(20, 130, (regions, 2))], 1).round(1).tolist()
        ids = [f"{number}-{region}" for region in range(regions)]
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        asked = [{"id": name, "box": box} for name, box in zip(ids, boxes, strict=True)]
        body = {"images": [{"image": base64.b64encode(file.getvalue()).decode(), "regions": asked}]}
        results = RegionPredictor(model)(picture, boxes, ids=ids)
        made.append((json.dumps(body).encode(), [(result.id, result.caption) for result in results]))
    return made


async def load(address: str, made: list, clients: int, seconds: float = 0.0, requests: int = 0) -> list[float]:
    """Seconds of every request, of so many clients at once, for so long or until there are so many."""
    import httpx2

    times: list[float] = []
    until, left = time.monotonic() + seconds, iter(range(requests))

    async def client(number: int) -> None:
        headers = {"content-type": "application/json"}
        async with httpx2.AsyncClient(base_url=address, timeout=300, trust_env=False, headers=headers) as session:
            while next(left, None) is not None if requests else time.monotonic() < until:
                body, expected = made[number % len(made)]
                number += 1
                began = time.perf_counter()
                answer = await session.post("/v1/regions", content=body)
                times.append(time.perf_counter() - began)
                if answer.status_code != 200:
                    raise SystemExit(f"status {answer.status_code}: {answer.text}")
                found = [(one["id"], one["caption"]) for one in answer.json()["images"][0]["regions"]]
                if found != expected:
                    raise SystemExit(f"another answer: {found}, expected {expected}")

    await asyncio.gather(*[client(number) for number in range(clients)])
    return times


def rss(pid: int) -> float:
    """Megabytes of a process."""
    import psutil

    return psutil.Process(pid).memory_info().rss / 2**20


def cpu_seconds(pid: int) -> float:
    """Of a process, by its own count: other work on the machine divides out."""
    import psutil

    return sum(psutil.Process(pid).cpu_times()[:2])


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="run, model folder or hub id; the tiny one of the tests where not given")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="at once, one row each")
    parser.add_argument("--regions", type=int, default=4, help="of a request, in one picture")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--requests", type=int, default=5000, help="over which the memory is watched; 0: not")
    return run_command("bench.serve", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    import torch

    import dynrefer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            from tests import tiny_dynrefer

            model, processor = tiny_dynrefer.model()
            model.processor = processor
            model.save_pretrained(folder)
        name = args.model or folder
        made = requests_of(dynrefer.load(name, device="cpu"), args.regions)
        print("| clients | way | p50 ms | p90 ms | p99 ms | requests | regions/s | regions/CPU s | ratio |")
        print("|---|---|---|---|---|---|---|---|---|")
        rates: dict[int, float] = {}
        for way, settings in WAYS.items():
            with server(name, "--device", "cpu", *settings) as (address, pid):
                for clients in args.clients:
                    asyncio.run(load(address, made, clients, requests=clients))  # warm up
                    began, worked = time.perf_counter(), cpu_seconds(pid)
                    times = asyncio.run(load(address, made, clients, seconds=args.seconds))
                    regions = len(times) * args.regions
                    rate, cpu_rate = regions / (time.perf_counter() - began), regions / (cpu_seconds(pid) - worked)
                    rates.setdefault(clients, cpu_rate)
                    cells = [f"{1000 * value:,.0f}" for value in np.percentile(times, [50, 90, 99])]
                    cells += [f"{len(times):,}", f"{rate:,.0f}", f"{cpu_rate:,.0f}", f"{cpu_rate / rates[clients]:.2f}"]
                    print(f"| {clients} | {way} | {' | '.join(cells)} |", flush=True)
        if args.requests:
            with server(name, "--device", "cpu") as (address, pid):
                used = []
                for _ in range(STEPS):
                    asyncio.run(load(address, made, 8, requests=-(-args.requests // STEPS)))
                    used.append(f"{rss(pid):,.0f}")
            print(f"\nMB of the server after each fifth of {args.requests:,} requests: {', '.join(used)}")


if __name__ == "__main__":
    sys.exit(main())
