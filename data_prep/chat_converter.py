"""What converters to conversations share: conversations of a clip, the choice of a region, and files of them.

python -m data_prep.vidstg --selection   which region does a text mean?
python -m data_prep.answered             question files with their answers
python -m data_prep.regvid               conversations that models write
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_prep.counts import Tally, nothing
from dynrefer.data.chats import Chat, Turn, write_chats
from dynrefer.data.clips import ClipRegion

BY_NUMBER = "Answer with its number in brackets."


def selection_turn(text: str, num_regions: int, place: int, asks: bool = False) -> Turn:
    """Which of the regions a text means; the answer is its number. asks: whether the text is a question already.

    >>> selection_turn("the red cup", 2, 1)
    Turn(question='The regions: [0] <region0>, [1] <region1>. Which of them is "the red cup"?\\nAnswer with its number \
in brackets.', answer='[1]')
    """
    listed = ", ".join(f"[{number}] <region{number}>" for number in range(num_regions))
    text = " ".join(text.split()).rstrip("?. ")
    asked = f"{text[:1].upper()}{text[1:]}?" if asks else f'Which of them is "{text}"?'
    return Turn(f"The regions: {listed}. {asked}\n{BY_NUMBER}", f"[{place}]")


def chat_of_clip(chat_id: str, regions: Sequence[ClipRegion], turns: Sequence[Turn], kind: str | None = None) -> Chat:
    """A conversation about regions of one span of a video, at least one. kind: of conversation."""
    first = regions[0]
    return Chat(
        id=chat_id,
        image=first.video,
        image_hw=first.frame_hw,
        regions=tuple(regions),
        turns=tuple(turns),
        is_clip=True,
        num_frames=first.num_frames,
        prompt_frame=first.prompt_frame,
        end_frame=first.end_frame,
        frame_rate=first.frame_rate,
        category=kind,
        source=first.source,
        licence=first.licence,
        split=first.split,
    )


def write_conversations(out: Path, chats: Iterable[Chat], tally: Tally) -> int:
    """Writes a file of conversations, whole or not at all. A faulty one is left out and counted; ValueError where none
    is left."""
    if not out.name.endswith(".jsonl"):
        raise ValueError(f"--out {out}: expected a name that ends with .jsonl")

    def checked() -> Iterator[Chat]:
        for chat in chats:
            with tally.entries("conversations"):
                Chat.from_dict(chat.to_dict(), f"conversation {chat.id}")
                tally["conversations"] += 1
                tally["turns"] += len(chat.turns)
                tally["regions"] += len(chat.regions)
                yield chat
        if not tally["conversations"]:
            raise nothing(out, tally, "conversations")

    return write_chats(out, checked())
