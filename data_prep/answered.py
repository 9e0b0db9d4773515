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
from dynrefer.data.chats import Chat, Turn
from dynrefer.data.questions import Question
from dynrefer.data.record_files import open_records
from dynrefer.errors import Parser, run_command
from dynrefer.mentions import NUMBERED

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORMS = {  # what answers -> how it is asked, as benchmarks ask it by default (eval/asking.py)
    "letters": "{question}\n{choices}\nAnswer with the option's letter from the given choices directly.",
    "words": "{question}",
    "numbers": f"{{question}}\n{BY_NUMBER}",
}
SPAN = ("num_frames", "prompt_frame", "end_frame", "frame_rate")


def chat_of(question: Question, form: str, names: bool, prefix: str) -> Chat | None:
    """The conversation of a question, None where its answer is not known. form: of FORMS; names: whether a region's
    category stands before its mention; prefix: from the new file's folder to the questions'."""
    known = question.answer is not None and question.answer >= 0 if question.choices else bool(question.answers)
    if not known:
        return None
    if question.choices:
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
        text = FORMS[form].replace("{choices}", listed).replace("{question}", question.question)
        answer = LETTERS[question.answer] if form == "letters" else question.choices[question.answer]
    else:
        text, answer = question.question, question.answers[0]
    if names:
        text = NUMBERED.sub(lambda mention: named(mention[0], question.regions[int(mention[1])].category), text)
    image, clip = os.path.normpath(f"{prefix}/{question.image}"), question.clip
    moved = {"video": image} if clip else {"image": image}
    return Chat(
        id=question.id,
        image=image,
        image_hw=question.image_hw,
        regions=tuple(replace(region, id=f"{question.id}/{n}", **moved) for n, region in enumerate(question.regions)),
        turns=(Turn(text, answer),),
        is_clip=clip is not None,
        **({} if clip is None else {key: getattr(clip, key) for key in SPAN}),
        category="question",
        source=question.source,
        licence=question.licence,
        split=question.split,
    )


def named(mention: str, category: str | None) -> str:
    return f"{category} {mention}" if category else mention


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
