r"""Question files with their answers -> conversations, for training on what benchmarks of the same kind ask.

    python -m data_prep.answered --questions data/vcr/train.jsonl --out data/vcr/answered.jsonl

Question files are what `data_prep.vcr`, `.causal_vidqa`, `.selection` and other converters of benchmarks write (their
training splits). Every question becomes a conversation of one turn, worded as `eval.run` asks it by default: choices
are listed with letters and a letter answers. With --form words a choice itself does, such as yes; with --form numbers a
region's number, [3]. A question without choices is answered with the first of its answers. Questions whose answer is
not public are left out and counted. --names puts a region's category before its mention.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.chat_converter import BY_NUMBER, write_conversations
from data_prep.counts import Tally, tell
from dynrefer.data.chats import Chat
from dynrefer.data.questions import Question
from dynrefer.data.record_files import open_records
from dynrefer.data.wording import Wording
from dynrefer.errors import Parser, run_command

FORMS = {  # what answers -> how it is asked, as benchmarks ask it
    "letters": Wording(),
    "words": Wording("words", "{question}"),
    "numbers": Wording("words", f"{{question}}\n{BY_NUMBER}"),
}
FREE = Wording("open", "{question}")


def chat_of(question: Question, form: str, names: bool, prefix: str) -> Chat | None:
    """The conversation of a question, None where its answer is not known. form: of FORMS; names: whether a region's
    category stands before its mention; prefix: from the new file's folder to the questions'."""
    wording = replace(FORMS[form] if question.choices else FREE, names=names)
    image = os.path.normpath(f"{prefix}/{question.image}")
    moved = {"video": image} if question.clip else {"image": image}
    worded = replace(
        question,
        image=image,
        regions=tuple(replace(region, id=f"{question.id}/{n}", **moved) for n, region in enumerate(question.regions)),
        question=wording.text(question),
        choices=wording.labels(question),
    )
    chat = worded.told
    return None if chat is None else replace(chat, category="question")


def chats(questions: Sequence, form: str, names: bool, prefix: str, tally: Tally) -> Iterator[Chat]:
    """In the order of the questions. ValueError for records that are none."""
    for question in questions:
        if not isinstance(question, Question):
            raise ValueError(f"record {question.id}: not a question; give a question file")
        with tally.entries("questions"):
            chat = chat_of(question, form, names, prefix)
            if chat is None:
                tally["questions left out: their answer is not public"] += 1
            else:
                yield chat


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.answered", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=Path, required=True, help="question file")
    parser.add_argument("--form", choices=FORMS, default="letters", help="what answers (letters)")
    parser.add_argument("--names", action="store_true", help="a region's category stands before its mention")
    parser.add_argument("--out", type=Path, required=True, help="file of conversations to write, .jsonl")
    parser.add_argument("--strict", action="store_true", help="a faulty question is an error, instead of left out")
    return run_command("data_prep.answered", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    tally = Tally(args.strict)
    records = open_records(args.questions)
    prefix = os.path.relpath(records.root.absolute(), args.out.absolute().parent)
    write_conversations(args.out, chats(records, args.form, args.names, prefix, tally), tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
