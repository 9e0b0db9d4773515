"""Runs that are killed at random and resumed, beside one that never stopped: `python -m bench.kills --kills 20`.

Each case trains a small model to its end, then once more with `kill -9` at random moments, some of them while a
checkpoint is written. A killed run goes on with loop.resume=auto. In the end its log and tensors must be those of the
other run: the rows of log.jsonl (all but `seconds` and `regions_per_second`), and byte by byte the weights of the last
checkpoint and of best/, the averaged weights, the optimizer's state and the random generators'.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from dynrefer.errors import Parser, run_command

ROOT = Path(__file__).resolve().parents[1]
RUN = "run"
NOT_COMPARED = ("seconds", "regions_per_second")
PATIENCE = 300.0  # seconds without a new step, after which a run is given up
VIT = "{model_type: vit, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
VIT += "image_size: 64, patch_size: 16, hidden_dropout_prob: 0.1}"
# the quickstart's own model, with its own losses and bfloat16, in small
SMALL = (
    "data.batch_size=12",
    "optim.warmup_steps=4",
    "optim.lr=3e-3",
    "loop.num_threads=1",
    "loop.cpu=true",
    "loop.save_every=2",
    "loop.eval_every=5",
    "loop.ema=0.5",
    "eval.metric=loss",
    "log.tensorboard=false",
    "log.every=1000",
    "model.decoder_dropout=0.1",
    "model.num_query_tokens=4",
    "model.tokenizer={vocab_size: 200}",
    "model.qformer.hidden_dropout_prob=0.1",
)


@dataclass(frozen=True)
class Case:
    processes: int = 1
    settings: tuple[str, ...] = ()


CASES = {
    "quickstart": Case(),
    "vit": Case(settings=(f"model.vision.config={VIT}", "data.num_workers=1", "loop.precision=fp32")),
    "two processes": Case(processes=2, settings=("loop.accumulation=2",)),
}


@dataclass
class Kill:
    """One kill: the steps that the log had, the step that the next start went on from (None: from the beginning)."""

    at: int
    resumed_from: int | None = None
    saving: bool = False  # a checkpoint was being written


@dataclass
class Outcome:
    kills: list[Kill] = field(default_factory=list)
    steps: int = 0
    different: list[str] = field(default_factory=list)  # rows and files


def compare_killed(case: Case, folder: Path, world: Path, kills: int, steps: int, seed: int = 0) -> Outcome:
    """Both runs of a case, below `folder`. world: records and word lists, as data_prep.world writes them."""
    chance, outcome = random.Random(seed), Outcome()
    settings = (*SMALL, *case.settings, f"loop.steps={steps}", *_places(world))
    straight, killed = folder / "straight" / RUN, folder / "killed" / RUN
    _finish(_start(case, straight, settings), straight)
    outcome.steps = rows_of(straight)[-1]["step"]
    while len(outcome.kills) < kills:
        processes = _start(case, killed, settings)
        begun = newest_checkpoint(killed)
        left = (steps - (begun or 0)) / (kills - len(outcome.kills) + 1)
        target = (begun or 0) + max(1, round(left * chance.uniform(0.2, 1.8)))
        alive = _wait_for_step(processes, killed, min(target, steps - 1))
        time.sleep(chance.uniform(0, 0.15))
        if outcome.kills:
            outcome.kills[-1].resumed_from = begun
        if not alive or not all(process.is_alive() for process in processes):
            break  # it was quicker than we
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join()
        saving = any(killed.glob("checkpoints/.step-*.tmp"))
        outcome.kills.append(Kill(max((row["step"] for row in rows_of(killed)), default=0), saving=saving))
    begun = newest_checkpoint(killed)
    _finish(_start(case, killed, settings), killed)
    if outcome.kills:
        outcome.kills[-1].resumed_from = begun
    outcome.different = differences(straight, killed)
    return outcome


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two run folders: rows of the log, tensors of the last checkpoint and of best/."""
    rows, others = rows_of(one), rows_of(other)
    found = [] if len(rows) == len(others) else [f"log.jsonl: {len(rows)} rows and {len(others)}"]
    for row, another in zip(rows, others, strict=False):
        if row != another:
            names = sorted(name for name in row.keys() | another.keys() if row.get(name) != another.get(name))
            found.append(f"log.jsonl: step {row['step']}: {', '.join(names)}")
    last = f"checkpoints/step-{newest_checkpoint(one):08d}"
    for place in (last, "best"):
        files = {
            path.relative_to(run)
            for run in (one, other)
            for path in (run / place).rglob("*")
            if path.suffix in (".safetensors", ".pt")
        }
        assert files, f"{one / place}: no tensors to compare"
        for name in sorted(files):
            both = (one / name).is_file() and (other / name).is_file()
            if not both or (one / name).read_bytes() != (other / name).read_bytes():
                found.append(str(name))
    return found


def rows_of(run: Path) -> list[dict]:
    """The whole lines of log.jsonl, without what depends on the clock."""
    try:
        text = (run / "log.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name not in NOT_COMPARED} for row in rows]


def newest_checkpoint(run: Path) -> int | None:
    """Its step."""
    steps = [int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/loop.json")]
    return max(steps, default=None)


def draw_world(folder: Path) -> Path:
    """A few scenes with regions, captions and word lists."""
    from data_prep.world.__main__ import main as draw

    with contextlib.redirect_stdout(io.StringIO()):
        status = draw(["--out", str(folder), "--train", "24", "--val", "4", "--test", "4", "--workers", "1"])
    assert status == 0, f"{folder}: the world was not drawn"
    return folder


def _places(world: Path) -> tuple[str, ...]:
    words = {"tags": "tags.txt", "attributes": "attributes.json", "categories": "categories.txt"}
    places = [f"model.words.{name}={world / file}" for name, file in words.items()]
    return (f"data.train={world / 'train.jsonl'}", f"data.val={world / 'val.jsonl'}", *places)


def _start(case: Case, run: Path, settings: tuple[str, ...]) -> list[BaseProcess]:
    """The processes of a run, forked from a server that has imported everything: a start takes a moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.run", "dynrefer.models", "dynrefer.models.dynrefer.modeling"])
    world = {}
    if case.processes > 1:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = str(sock.getsockname()[1])
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(case.processes)}
        world["LOCAL_WORLD_SIZE"] = str(case.processes)
    arguments = ["--config", str(ROOT / "configs/quickstart.yaml"), f"name={run.name}", f"output={run.parent}"]
    processes = []
    for rank in range(case.processes):
        own = {**world, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {})}
        run.parent.mkdir(parents=True, exist_ok=True)
        log = run.parent / f"process-{rank}.txt"
        command = [*arguments, "loop.resume=auto", *settings]
        processes.append(context.Process(target=_train, args=(command, own, str(log))))
        processes[-1].start()
    return processes


def _train(arguments: list[str], environment: dict[str, str], log: str) -> None:
    from train.run import command

    os.environ.update(environment)
    # as in a process that a launcher starts: a worker of a server of forks would outlive a kill
    multiprocessing.set_start_method("fork", force=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.exit(command(arguments))


def _wait_for_step(processes: list[BaseProcess], run: Path, step: int) -> bool:
    """Until the log has the step; False where a process has ended before."""
    seen, since = None, time.monotonic()
    while True:
        rows = rows_of(run)
        if rows and rows[-1]["step"] >= step:
            return True
        if not all(process.is_alive() for process in processes):
            _check(processes, run)
            return False
        if len(rows) != seen:
            seen, since = len(rows), time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise RuntimeError(f"{run}: no step for {PATIENCE:.0f} seconds; see {run.parent}/process-0.txt")
        time.sleep(0.005)


def _finish(processes: list[BaseProcess], run: Path) -> None:
    for process in processes:
        process.join()
    _check(processes, run)


def _check(processes: list[BaseProcess], run: Path) -> None:
    for rank, process in enumerate(processes):
        if process.exitcode:
            log = run.parent / f"process-{rank}.txt"
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] if log.exists() else []
            raise RuntimeError(f"{run}: a process ended with status {process.exitcode}: {' '.join(last)}; see {log}")


def main() -> int:
    parser = Parser(prog="python -m bench.kills", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; all if none")
    parser.add_argument("--kills", type=int, default=20, help="of each case (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default 0)")
    args = parser.parse_args()
    for name in args.cases:
        if name not in CASES:
            parser.error(f"no case {name!r}; there are {', '.join(CASES)}")
    return run_command("bench.kills", run, args, "stopped; what was written stays in the temporary folder")


def run(args: argparse.Namespace) -> int:
    print(f"{'case':<14} {'kills':>5} {'while saving':>12} {'steps lost':>10} {'steps':>5}  differences", flush=True)
    different = False
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    world = draw_world(folder / "world")
    for name in args.cases or CASES:
        steps = max(20, 3 * args.kills)
        outcome = compare_killed(CASES[name], folder / name.replace(" ", "-"), world, args.kills, steps, args.seed)
        kills = outcome.kills
        lost = sum(kill.at - (kill.resumed_from or 0) for kill in kills)
        saving = sum(kill.saving for kill in kills)
        said = "; ".join(outcome.different[:3]) + (f" ... ({len(outcome.different)})" if outcome.different[3:] else "")
        print(f"{name:<14} {len(kills):>5} {saving:>12} {lost:>10} {outcome.steps:>5}  {said or 'none'}", flush=True)
        different |= bool(outcome.different)
    if different:
        print(f"the runs that differ stand in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
