"""What the pipeline's models are asked, in words of our own, and how their answers are read.

The order and the intent of every step are Omni-RGPT's (arXiv 2501.08326, section 4 and supplement): a caption of each
numbered region that begins with its noun; questions that a true caption answers with yes; five answers, of which only a
definite no takes a statement away; a caption, a summary and a conversation to learn from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from data_prep.regvid.desk import Question
from data_prep.regvid.shots import Shot
from dynrefer.errors import cut

ONLY_JSON = "Write JSON and nothing else, in exactly the form that was shown."
NO_ANSWER = {"", "none", "null", "unclear", "n/a"}
# of the drawing, of which a caption must not speak
DRAWN = re.compile(
    r"\b(outlin\w*|contour\w*|highlighted|overlay\w*|label(?:l?ed)? with (?:the )?number|numbered)\b", re.I
)
CHOICES = ("Definitely yes", "Possibly yes", "Possibly no", "Definitely no", "Not sure")
DENIED = "D"

# beginnings times endings: 32 ways of asking for everything, and 32 for a summary
DETAILED = tuple(
    f"{start} {rest}"
    for start in (
        "Describe <region> in detail:",
        "Tell me everything that can be seen of <region>,",
        "Give a full account of <region>,",
        "Write a thorough description of <region>,",
        "Please describe <region> carefully,",
        "I want to know all about <region>,",
        "Explain at length what is shown of <region>,",
        "Look closely at <region> and describe it,",
    )
    for rest in (
        "how it looks, what it does and where it is.",
        "from its appearance to its motion and its surroundings.",
        "including what happens to it in this video.",
        "with its actions in the order in which they happen.",
    )
)
BRIEF = tuple(
    f"{start} {rest}"
    for start in (
        "Describe <region>",
        "Summarize <region>",
        "What is <region>, and what does it do? Answer",
        "Tell me about <region>",
        "Say what <region> does",
        "Caption <region>",
        "Characterize <region>",
        "What can be seen of <region>? Answer",
    )
    for rest in ("in one sentence.", "briefly.", "in a few words.", "in a single short sentence.")
)


class Unreadable(ValueError):
    """An answer is not of the form that was asked for, also when it was asked for once more."""


# ------------------------------------------------------------------------------------------------ nouns and captions


def noun_question(texts: Sequence[str]) -> Question:
    told = "\n".join(f"- {cut(text, 300)}" for text in texts[:3])
    return Question(
        "editor",
        (
            f"These texts refer to one person, animal or thing in a video:\n{told}\n\nWhich noun names it? Answer with "
            "the noun alone, one to three words in lower case, without an article.",
        ),
        "brown dog",
    )


def read_noun(text: str) -> str:
    noun = " ".join(text.strip().strip(".\"'").split()).lower()
    if not noun or len(noun.split()) > 5:
        raise Unreadable(f"noun {cut(text)!r}")
    return noun


def caption_question(shots: Sequence[Shot], nouns: Mapping[int, str], words: int) -> Question:
    listed = "\n".join(f"[{number}]: {noun}" for number, noun in nouns.items())
    frames = [part for n, shot in enumerate(shots) for part in (f"Frame {n + 1}:", shot)]
    return Question(
        "captioner",
        (
            "These are frames of one video in the order of time. Some regions are outlined, and a number stands in "
            "each.",
            *frames,
            f"The numbers stand for:\n{listed}\n\nDescribe each of them by itself, in about {words} words of plain "
            "prose:\n"
            "- Begin with its noun, as it is listed.\n"
            "- Say how it moves and what it does over time, then where it is and how it stands to things around it, "
            "then how it looks and what scene it is in.\n"
            "- Say only what the frames show. Guess nothing, and say nothing of what cannot be made out.\n"
            "- The outlines and numbers were drawn in afterwards: never speak of them, nor of their colours, nor of "
            "frames or pictures.\n"
            "- Where a region cannot be made out clearly enough, write null in place of a description.\n\n"
            "Answer with a JSON object that has every number as a key, such as "
            '{"0": "Dog that runs from the left ...", "3": null}.',
        ),
        json.dumps({str(number): "word " * words for number in nouns}),
    )


def read_captions(text: str, numbers: Sequence[int]) -> dict[int, str | None]:
    """Number -> its caption, None where the model cannot tell. Unreadable where a number has none of both."""
    found = read_json(text, dict)
    captions = {}
    for number in numbers:
        if str(number) not in found:
            raise Unreadable(f"no description of {number} in {cut(text)!r}")
        said = found[str(number)]
        if said is not None and not isinstance(said, str):
            raise Unreadable(f"description of {number}: {cut(str(said))!r}")
        said = " ".join((said or "").split())
        captions[number] = None if said.lower().strip(". ") in NO_ANSWER else said
    return captions


# ------------------------------------------------------------------------------------------------ the check


def split_question(caption: str) -> Question:
    return Question(
        "editor",
        (
            "Turn a description into questions that check it. Take every single thing that it states, such as an "
            "action, a direction, a place, a colour, a number, a thing beside it, and ask about that one thing, so "
            "that the answer is yes where the description is true. Leave out what the description does not state. "
            "Every question must be understood by itself: name what it is about.\n\n"
            'Description: Man in a white shirt who picks up a red cup and walks to the left behind a table.\n["Does a '
            'man wear a white shirt?", "Does the man in the white shirt pick up a cup?", "Is the cup that the man '
            'picks up red?", "Does the man in the white shirt walk to the left?", "Does the man walk behind a '
            'table?"]\n\n'
            "Description: Puppy that lies on its back on a sofa.\n"
            '["Is there a puppy?", "Does the puppy lie on its back?", "Is the puppy on a sofa?"]\n\n'
            f"Description: {caption}\nAnswer with the JSON list of its questions.",
        ),
        json.dumps([f"Does the man in the white shirt pick up cup {number}?" for number in range(9)]),
    )


def read_questions(text: str) -> list[str]:
    found = read_json(text, list)
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise Unreadable(f"questions {cut(text)!r}")
    return list(dict.fromkeys(one.strip() for one in found))


def check_question(shots: Sequence[Shot], questions: Sequence[str], first: bool = False) -> Question:
    """first: of a caption; an estimate takes it that the first statement is denied."""
    choices = "\n".join(f"({letter}) {text}" for letter, text in zip("ABCDE", CHOICES, strict=True))
    several = len(questions) > 1
    asked = "\n".join(f"{n + 1}. {question}" for n, question in enumerate(questions)) if several else questions[0]
    answer = (
        f"Answer with a JSON list of {len(questions)} letters, one a question in order."
        if several
        else "Answer with the letter alone."
    )
    return Question(
        "checker",
        (
            "These are frames of one video in the order of time.",
            *shots,
            f"Answer from the frames alone.\n{asked}\n\n{choices}\n\n{answer}",
        ),
        json.dumps([*(DENIED if first else "A"), *"A" * (len(questions) - 1)]) if several else DENIED if first else "A",
    )


def read_letters(text: str, count: int) -> list[str]:
    """One of A to E for each question."""
    if count > 1:
        found = [str(one).strip("() .").upper()[:1] for one in read_json(text, list)]
    else:
        match = re.match(r"\W*([A-E])(?:[).:,]|\s*$)", text) or re.search(r"\(([A-E])\)", text)
        by_words = [letter for letter, words in zip("ABCDE", CHOICES, strict=True) if words.lower() in text.lower()]
        found = [match[1]] if match else by_words[:1]
    if len(found) != count or not set(found) <= set("ABCDE"):
        raise Unreadable(f"{count} letters expected, {cut(text)!r}")
    return found


def rewrite_question(caption: str, noun: str, denied: Sequence[str]) -> Question:
    told = "\n".join(f"- {question}" for question in denied) or "- nothing"
    return Question(
        "editor",
        (
            "A description of something in a video was checked. Some of its statements are wrong: the answer to the "
            "questions below is no. Write the description anew without those statements. Keep everything else and its "
            f'wording, add nothing, and still begin with "{noun}". Leave out as well whatever is said of drawn '
            "outlines, their colours, numbers or frames. Where nothing is left, write null.\n\n"
            "Description: Man in a white shirt who picks up a red cup and walks to the left behind a table.\n"
            "- Is the cup that the man picks up red?\n- Does the man walk behind a table?\n"
            "New description: Man in a white shirt who picks up a cup and walks to the left.\n\n"
            f"Description: {caption}\n{told}\nAnswer with the new description alone.",
        ),
        caption,
    )


def read_rewritten(text: str) -> str | None:
    said = " ".join(text.strip().strip('"').removeprefix("New description:").split())
    return None if said.lower().strip(". ") in NO_ANSWER else said


# ------------------------------------------------------------------------------------------------ instructions


def brief_question(caption: str) -> Question:
    return Question(
        "writer",
        (
            "Summarize this description of something in a video in one sentence of fewer than 20 words: what it is and "
            f"what it does above all. Add nothing.\n\nDescription: {caption}\nAnswer with the sentence alone.",
        ),
        "word " * 18,
    )


def read_brief(text: str) -> str:
    said = " ".join(text.strip().strip('"').split())
    if not said or len(said.split()) > 30:
        raise Unreadable(f"summary {cut(text)!r}")
    return said


def talk_question(captions: Mapping[int, str]) -> Question:
    told = "\n".join(f"[{number}]: {caption}" for number, caption in captions.items())
    return Question(
        "writer",
        (
            "Below, things in one video are described, each with its number. Write a conversation between somebody who "
            "watches the video and asks about them, and an assistant who sees the video and answers.\n"
            "- Three to six questions with their answers: about what something is, how it looks, where it is, what it "
            "does, in which order, why, and how things stand to each other.\n"
            "- A question names things by their numbers in brackets alone, such as [0], never by what they are. At "
            "least one number stands in each.\n"
            "- An answer speaks in whole sentences and has no number in brackets.\n"
            "- Ask only what the descriptions answer with certainty, and answer nothing beyond them. Nobody speaks of "
            "descriptions.\n\n"
            f'{told}\n\nAnswer with a JSON list, such as [{{"question": "What does [0] do?", "answer": "It ..."}}].',
        ),
        json.dumps([{"question": "What does [0] do before it leaves?", "answer": "word " * 20}] * 4),
    )


def read_talk(text: str, numbers: Sequence[int]) -> tuple[list[tuple[str, str]], int]:
    """(question, answer)s, in which [0] has become <region0>, and how many were left out: without a number, with one
    that is not there, with one in the answer."""
    turns, bad = [], 0
    for entry in read_json(text, list):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("question", "answer")):
            raise Unreadable(f"conversation {cut(str(entry))!r}")
        question, answer = (" ".join(entry[key].split()) for key in ("question", "answer"))
        named = {int(number) for number in re.findall(r"\[(\d+)\]", question)}
        if not named or not named <= set(numbers) or not answer or "<region" in question:
            bad += 1
        elif re.search(r"\[\d+\]|<region", answer):
            bad += 1
        else:
            turns.append((re.sub(r"\[(\d+)\]", r"<region\1>", question), answer))
    return turns, bad


# ------------------------------------------------------------------------------------------------ answers in JSON


def read_json(text: str, kind: type) -> dict | list:
    """The first JSON object or list of an answer, whatever stands around it. Unreadable where there is none."""
    decoder, opening = json.JSONDecoder(), "{" if kind is dict else "["
    start = text.find(opening)
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find(opening, start + 1)
            continue
        if isinstance(value, kind):
            return value
        start = text.find(opening, start + 1)
    raise Unreadable(f"no JSON {'object' if kind is dict else 'list'} in {cut(text)!r}")
