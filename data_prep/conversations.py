"""Conversations of users' own data in any of the usual spellings -> turns, and questions with their answers."""

import re
from collections.abc import Iterable, Iterator

IN_TEXT = "their boxes are written in the text"
IN_TEXT_STEP = (
    "its boxes are written in the text (as <|box_start|>, bbox_2d or <box>), where nothing says what their numbers "
    "count in; give them as lists, `objects` with bbox and bbox_type, or `bboxes`"
)
_BOXES = re.compile(  # Qwen's, JSON answers, InternVL's, Kosmos-2's and PaliGemma's, Shikra's
    r"<\|box_start\|>|\"?bbox(?:_2d)?\"?\s*:\s*\[|<box>\s*[\[(\d]|<patch_index_\d|<loc_?\d+>|\[\s*\d*\.?\d+(?:\s*,\s*\d*\.?\d+){3}\s*\]"
)

_SPEAKERS = {
    **dict.fromkeys(("human", "user", "USER"), "user"),
    **dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "ASSISTANT"), "assistant"),
    **dict.fromkeys(("system", "tool", "tool_call", "tool_response", "function_call", "observation"), "system"),
}


def read_turns(entry: dict, where: str) -> list[tuple[str, str]]:
    """(speaker, text) of a conversation in any of the usual spellings; speaker is "user", "assistant" or "system".

    conversations: [{from: human, value}, {from: gpt, value}]; messages: [{role: user, content}, ...], content also as
    [{type: text, text}, ...]; conversation: [{human, assistant}]; query and response with history.
    """
    if isinstance(turns := entry.get("conversations", entry.get("messages")), list):
        result = []
        for turn in turns:
            if not isinstance(turn, dict):
                raise ValueError(f"{where}: a turn of the conversation is {turn!r}; expected an object")
            speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
            if isinstance(text, list):  # parts: texts and pictures
                text = "".join(part.get("text", "") for part in text if isinstance(part, dict))
            if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(text, str):
                raise ValueError(
                    f"{where}: a turn of {speaker!r} saying {text!r}; expected a text of {', '.join(_SPEAKERS)}"
                )
            result.append((_SPEAKERS[speaker], text))
        return result
    pairs: list = []
    if isinstance(turns := entry.get("conversation"), list):
        pairs = [(turn.get("human"), turn.get("assistant")) for turn in turns if isinstance(turn, dict)]
    elif "query" in entry and "response" in entry:
        pairs = [*(entry.get("history") or []), (entry["query"], entry["response"])]
    if bad := [pair for pair in pairs if len(pair) != 2 or not all(isinstance(text, str) for text in pair)]:
        raise ValueError(f"{where}: question and answer {bad[0]!r}: expected two texts")
    return [turn for question, answer in pairs for turn in (("user", question), ("assistant", answer))]


def writes_boxes(texts: Iterable[str]) -> bool:
    """Whether a text has a box of numbers in it."""
    return any(_BOXES.search(text) for text in texts)


def read_questions(turns: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(question, answer) of a conversation; an answer to nothing is left out, and a question without an answer."""
    question = None
    for speaker, text in turns:
        if speaker == "user":
            question = text
        elif speaker == "assistant" and question is not None:
            yield question, text
            question = None
