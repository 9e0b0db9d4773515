"""Omni-RGPT from nothing on the embedded world in motion, and what it owes to each of its parts.

    python -m train.motion                         # all rows, about two and a half hours on two cores
    python -m train.motion --rows main --minutes-main 5

Each row is a training of its own, by minutes of training steps on the same machine. Its steps are counted out first, so
that the learning rate ends with the time. A row that is done is not done again: after a kill the same command goes on
where it was. The last things are two tables of right answers by kind of question: all rows beside the main model in
their time, and other ways to name a region beside marks without the guide head, since they go without it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import dynrefer
from dynrefer.data.record_files import open_records
from dynrefer.data.records import RegionRecords
from dynrefer.errors import Parser, run_command
from dynrefer.files import read_jsonl, read_text, write_json
from eval.benchmarks import get_task
from eval.evaluate import evaluate
from eval.metrics.answers import NAME
from eval.metrics.base import Scores
from eval.pair import paired
from eval.statistics import interval, samples

CONFIG = "configs/omni_world.yaml"
TASK = get_task("motion")
MAIN, COMPARED, UNGUIDED, OTHERS = "main", "marks_15", "no_guide", ("words", "pooled")
TRIAL_STEPS, SKIPPED = 30, 10  # steps that tell the speed; the first of them are slower


@dataclass(frozen=True)
class Row:
    """says: in the table; settings: over those of the configuration."""

    says: str
    settings: tuple[str, ...] = ()
    main: bool = False  # it has the time of the main model


GUIDED = ("losses.guide=0.5",)
ROWS = {
    MAIN: Row("marks, guide head, 4 frames; twice the time", GUIDED, main=True),
    COMPARED: Row("marks, guide head, 4 frames", GUIDED),
    UNGUIDED: Row("without guide head", ("model.guide=false",)),
    "words": Row("coordinates in words", ("model.guide=false", "model.regions=words")),
    "pooled": Row("RoI features", ("model.guide=false", "model.regions=pooled")),
    "one_frame": Row("1 frame", (*GUIDED, "model.num_frames=1")),
    "own": Row("own marks only", (*GUIDED, "model.marks=own")),
}


class Trainer:
    """Runs `train.run` for rows. processes: of each training; minutes: of the main row and of the others."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.output = args, Path(args.output)

    def command(self, row: str, *settings: str) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.args.processes), "-m"]
        given = [f"output={self.output}", f"data.train={self.args.data}/train-chats.jsonl", *self.args.settings]
        launcher = launcher if self.args.processes > 1 else ["-m"]
        return [
            sys.executable,
            *launcher,
            "train.run",
            "--config",
            self.args.config,
            *given,
            *ROWS[row].settings,
            *settings,
        ]

    def run(self, row: str, *settings: str) -> None:
        done = subprocess.run(self.command(row, *settings), env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise ValueError(
                f"row {row}: its training ended with status {done.returncode}; see above, then start again"
            )

    def steps(self, row: str, minutes: float) -> int:
        """How many fit into the time, by a trial; kept, so that a resumed run has the same schedule."""
        path = self.output / f"{row}.steps.json"
        if not path.exists():
            name = f"{row}-trial"
            self.run(row, f"name={name}", f"loop.steps={TRIAL_STEPS}", "loop.save_every=0", "loop.overwrite=true")
            lines = [line for _, line in read_jsonl(self.output / name / "log.jsonl")]
            ends = [line["seconds"] for line in lines if "seconds" in line][SKIPPED:]  # since the start
            each = statistics.median(after - before for before, after in pairwise(ends))
            write_json(path, {"seconds": each, "minutes": minutes})
        told = json.loads(read_text(path))
        if told["minutes"] != minutes:
            raise ValueError(
                f"row {row}: it was begun with {told['minutes']} minutes; remove {self.output}, or go on so"
            )
        return max(1, int(60 * minutes / told["seconds"]))

    def train(self, row: str) -> None:
        minutes = self.args.minutes_main if ROWS[row].main else self.args.minutes
        steps = self.steps(row, minutes)
        self.run(row, f"name={row}", f"loop.steps={steps}", f"loop.minutes={minutes}", "loop.resume=auto")

    def scores(self, row: str, questions: RegionRecords) -> Scores:
        """Of a row, which is trained first where it is not done."""
        folder = self.output / row
        if not (done := folder / "done").exists():
            self.train(row)
            done.touch()
        out = folder / "predictions" / TASK.name
        return evaluate(dynrefer.load(folder, device="cpu"), TASK, questions, out, num_workers=0)[0]


def _run(args: argparse.Namespace) -> None:
    trainer, questions = Trainer(args), open_records(f"{args.data}/test-questions.jsonl")
    found = {row: trainer.scores(row, questions) for row in args.rows}
    tables = [beside(COMPARED if COMPARED in found else args.rows[0], list(found))]
    if UNGUIDED in found and len(rows := [row for row in found if row in OTHERS]):
        tables.append(beside(UNGUIDED, rows))
    cells = [table({ROWS[row].says: found[row] for row in rows}) for rows in tables]
    clips = len({question.image for question in questions})
    for rows in cells:
        print(
            f"\n{len(questions)} questions about {clips} clips; + or -: more or less right answers than the first row"
        )
        print(markdown(rows, commonest(questions)))
    write_json(trainer.output / "table.json", cells)


def beside(first: str, rows: list[str]) -> list[str]:
    """Rows with the one first that the others are compared with."""
    return [first, *(row for row in rows if row != first)]


def table(found: Mapping[str, Scores]) -> dict[str, dict[str, dict]]:
    """{row: {score: {"accuracy", "interval", and but for the first row "more": its difference to that one, "p"}}}"""
    first = next(iter(found.values()))
    rows: dict[str, dict[str, dict]] = {}
    for row, scores in found.items():
        draws = samples(scores.resamplings, scores.groups)
        differences = {} if scores is first else paired(scores, first)
        rows[row] = {}
        for name, accuracy in scores.corpus.items():
            cell = {"accuracy": accuracy, "interval": interval(draws[name], accuracy)}
            if name in differences and "interval" in differences[name]:
                own = differences[name]
                cell |= {"more": own["difference"], "more_interval": own["interval"], "p": own["p"]}
            rows[row][name] = cell
    return rows


def commonest(questions: RegionRecords) -> dict[str, float]:
    """{score: what it would be if the commonest answer of each kind were always given}."""
    kinds = dict.fromkeys(kind for question in questions for kind in question.kinds)
    said = {kind: Counter(q.answer for q in questions if kind in q.kinds).most_common(1)[0][1] for kind in kinds}
    asked = {kind: sum(kind in question.kinds for question in questions) for kind in kinds}
    shares = {f"{NAME}/{kind}": said[kind] / asked[kind] for kind in kinds}
    return {NAME: sum(said.values()) / sum(asked.values()), **shares}


def markdown(rows: Mapping[str, Mapping[str, dict]], shares: Mapping[str, float]) -> str:
    """Shares of right answers with intervals, and whether they differ from the first row's."""
    lines = [["", *(name.rpartition("/")[2] for name in shares)], ["---"] * (len(shares) + 1)]
    lines.append(["always the commonest answer", *(f"{share:.3f}" for share in shares.values())])
    for row, cells in rows.items():
        shown = []
        for name in shares:
            (low, high), (less, more) = cells[name]["interval"], cells[name].get("more_interval") or (0, 0)
            sign = " +" if less > 0 else " -" if more < 0 else ""
            shown.append(f"{cells[name]['accuracy']:.3f} ({low:.3f} to {high:.3f}){sign}")
        lines.append([row, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m train.motion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/motion", help="folder that data_prep.moving_world has written")
    parser.add_argument("--output", default="runs/motion", help="folder of the runs")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--minutes-main", type=float, default=30, help="of training, of the row main")
    parser.add_argument("--minutes", type=float, default=15, help="of training, of every other row")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="of a training")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE", help="over those of the configuration"
    )
    return run_command("train.motion", _run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
