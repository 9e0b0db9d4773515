r"""Captions, checked, and conversations about regions of clips, made by models behind addresses: RegVID-300k's way.

    python -m data_prep.regvid --config regvid.yaml --clips data/hcstvg/masklets.jsonl --out data/regvid --estimate
    python -m data_prep.regvid --config regvid.yaml --clips data/hcstvg/masklets.jsonl --out data/regvid budget=200

A YAML names four models by role, each with url, model, key, price; `--help` lists every setting. Steps: the captioner
describes numbered regions from frames; the editor turns a description into questions; the checker, another model,
answers them from bare frames; the editor takes away what is definitely denied; the writer makes a summary and a
conversation.

What it will cost is told before it starts; above `budget` it does not start, and stops where answers turn out longer.
OUT/answers.jsonl keeps every answer: the same command goes on after a kill, and asks nothing twice. When all clips are
done, OUT/captions.jsonl has the regions with their captions and OUT/chats.jsonl the conversations, both as training
reads them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep.counts import Tally, tell
from data_prep.regvid.desk import Desk, Estimate, Journal, money
from data_prep.regvid.pipeline import Results, count_up, groups_of, tell_all
from data_prep.regvid.settings import RegvidConfig
from data_prep.video_converter import write
from dynrefer.config import load_config, settings_help
from dynrefer.data.chats import write_chats
from dynrefer.data.clips import open_clips
from dynrefer.errors import Parser, run_command
from dynrefer.files import check_out

STOPPED = "stopped; answers are kept, the same command goes on"


def main(argv: Sequence[str] | None = None) -> int:
    epilog = f"settings, with their types and defaults:\n{settings_help(RegvidConfig)}"
    parser = Parser(
        prog="python -m data_prep.regvid",
        description=__doc__.splitlines()[0],
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML of settings")
    parser.add_argument("--clips", metavar="FILE", help="clip file, best with masks (setting clips)")
    parser.add_argument("--out", metavar="FOLDER", help="where answers, captions and conversations go (setting out)")
    parser.add_argument("--estimate", action="store_true", help="say what it will cost, ask nobody")
    parser.add_argument("--strict", action="store_true", help="a region without a caption is an error")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings beside the YAML, such as budget=50")
    return run_command("data_prep.regvid", _run, parser.parse_intermixed_args(argv), STOPPED)


def _run(args: argparse.Namespace) -> None:
    named = [f"{name}={value}" for name, value in (("clips", args.clips), ("out", args.out)) if value]
    cfg = load_config(RegvidConfig, args.config, [*args.settings, *named])
    out = Path(cfg.out)
    check_out(out)
    records = open_clips(cfg.clips)
    groups = groups_of(records, cfg.limit)
    regions = sum(map(len, groups))
    roles = {name: cfg.role(name) for name in cfg.asked()}
    journal = Journal(out / "answers.jsonl")
    print(f"{len(groups):,} clips with {regions:,} regions; {len(journal.answers):,} answers are known already")
    estimate = Estimate(roles, journal)
    for _ in tell_all(records, groups, estimate, cfg):
        pass
    print("still to be asked, about:\n" + "\n".join(estimate.lines()) if estimate.calls else "nothing is left to ask")
    spent, cost = journal.costs(roles), estimate.cost()
    if spent:
        print(f"known answers have cost {money(spent)}")
    if args.estimate:
        return
    if cfg.budget is not None and spent + cost > cfg.budget:
        raise ValueError(
            f"budget {cfg.budget:g}: about {money(spent + cost)} will be needed; raise it, or take fewer clips by limit"
        )
    desk = Desk(roles, journal, cfg.budget)
    told: list = [None] * len(groups)
    try:
        work = tell_all(records, groups, desk, cfg)
        for number, one in tqdm(work, desc="regvid", total=len(groups), unit="clip", disable=None):
            told[number] = one
    finally:
        if desk.calls:
            print("asked:\n" + "\n".join(desk.lines()))
    tally = Tally(args.strict)
    count_up(tally, told)
    results = Results(records, groups, told, os.path.relpath(records.root.absolute(), out.absolute()))
    write(out / "captions.jsonl", results.captioned(), tally)
    tally["conversations"] = write_chats(out / "chats.jsonl", results.conversations(cfg.seed))
    tell(out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
