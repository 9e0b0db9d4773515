"""`POST /v1/chat/completions`: OpenAI's form of a request about regions, and of its answer, in one piece or streamed.

A region is named in the text of a message as JSON, `{"bbox_2d": [x1, y1, x2, y2]}`, in the field `regions`, or by the
alpha channel of its picture. The answer's text is one line a region; its field `regions` holds the structured results,
with boxes in pixels.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from dynrefer.boxes import BOX_FORMATS
from dynrefer.data.records import RegionResult
from dynrefer.errors import shown

from .batching import Answer
from .client_options import sampling
from .schema import BoxFormat, RegionIn, Regions, ResultOut, Strict, short
from .service import Asked, Gone, Service
from .settings import Refusal, invalid

NAMED_BOX = re.compile(r'"bbox_2d"\s*:\s*\[([^\[\]]*)\]')
NAMED_FORMAT = re.compile(r'"box_format"\s*:\s*"([^"]{0,40})"')
# settings of OpenAI's that would change the answer and are not offered: the values that change nothing
HARMLESS: dict[str, tuple] = {
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "stop": (None, []),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
}
MOST_LETTERS = 1_000_000  # of a text: boxes are looked for in it
NO_INSTRUCTION = "the text was read for boxes only: this model describes regions and follows no instruction"


class ImageUrl(Strict):
    url: str = Field(description="data URI of a JPEG, PNG, WebP, GIF, BMP or TIFF file; an address if allowed")
    detail: str | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: Annotated[str, short(MOST_LETTERS, "letters")]


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    """One of the conversation; an assistant's may hold whatever an answer held."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[str, short(MOST_LETTERS, "letters")]
        | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
        | None
    ) = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object"]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Strict):
    model: str = Field(max_length=1000)
    messages: Annotated[list[Message], Field(min_length=1)]
    regions: Regions | list[Regions] | None = Field(
        None, description='boxes and masks of the picture, or "alpha"; one such list a picture where there are several'
    )
    box_format: BoxFormat | None = Field(
        None, description="of all boxes of the request; xyxy, in pixels, where left out"
    )
    options: dict[str, Any] = Field({}, description="of the model, as in /v1/regions")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: ResponseFormat | None = Field(None, description="json_object: the text is the structured results")
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: Annotated[Any, WithJsonSchema({})] = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class ResultOfImage(ResultOut):
    image: int = Field(description="number of the picture in the message, from 0")


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    regions: list[ResultOfImage]
    notes: list[str]


# --- request -> pictures with regions ---


def read_chat(request: ChatRequest) -> tuple[list[Asked], str, list[str]]:
    """(pictures with regions, box format, notes) of the newest user message with a picture; Refusal 400 where a picture
    is missing or the regions do not fit. Boxes may also stand in a later message, as in a conversation about one
    picture; the newest count."""
    for name, harmless in HARMLESS.items():
        if (value := getattr(request, name)) not in harmless:
            raise invalid(
                f"{name} {shown(value)}: this server does not offer it; leave it out", name, "unsupported_value"
            )
    pictures: list[tuple[str, str]] = []
    boxes: list[list[RegionIn]] = []
    named, formats, words = False, set(), False
    for number, message in enumerate(request.messages):
        if message.role != "user":
            continue
        parts = (
            [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content or []
        )
        if any(isinstance(part, ImagePart) for part in parts):
            pictures, boxes, named = [], [], False
        early: list[RegionIn] = []
        for place, part in enumerate(parts):
            where = f"messages[{number}].content[{place}]"
            if isinstance(part, ImagePart):
                pictures.append((part.image_url.url, where))
                boxes.append(early)
                early = []
                continue
            found = _boxes_of(part.text, where)
            formats |= set(NAMED_FORMAT.findall(part.text))
            words = words or re.search(r"[^\W\d_]", re.sub(r'"[^"]*"|```json', "", part.text)) is not None
            if not found:
                continue
            if len(pictures) == len(boxes) == 0:
                early += found
            elif not any(isinstance(each, ImagePart) for each in parts) and not early:
                if len(pictures) > 1:
                    raise invalid(f"{where}: boxes in a message without a picture, after one with several", where)
                boxes[-1] = found  # the newest count
            else:
                boxes[-1] = boxes[-1] + found
            named = True
    if not pictures:
        raise invalid(
            'messages: no picture of a user; send {"type": "image_url", "image_url": {"url": "data:image/..."}}',
            "messages",
        )
    regions: list[Any] = [each if named else None for each in boxes]
    if request.regions is not None:
        regions = _of_field(request.regions, len(pictures))
    asked = [Asked(url, own, where) for (url, where), own in zip(pictures, regions, strict=True)]
    return asked, _box_format(request.box_format, formats), [NO_INSTRUCTION] if words else []


def _boxes_of(text: str, where: str) -> list[RegionIn]:
    found = []
    for numbers in NAMED_BOX.findall(text):
        try:
            box = [float(each) for each in numbers.split(",")]
        except ValueError:
            box = []
        if len(box) != 4:
            raise invalid(f"{where}: bbox_2d [{numbers[:60]}]; expected four numbers", where, "invalid_region")
        found.append(RegionIn(bbox_2d=box))
    return found


def _of_field(given: Any, num_pictures: int) -> list[Any]:
    """One picture's regions an entry."""
    several = isinstance(given, list) and given and not isinstance(given[0], RegionIn)
    if not several:
        given = [given]
    if len(given) != num_pictures:
        raise invalid(
            f"regions: {len(given)} lists for {num_pictures} pictures; give one list a picture, in their order",
            "regions",
        )
    return list(given)


def _box_format(given: str | None, named: set[str]) -> str:
    if given is not None or not named:
        return given or "xyxy"
    if len(named) > 1 or not named <= set(BOX_FORMATS):
        raise invalid(
            f"box_format {shown(sorted(named))} in the text; expected one of {', '.join(BOX_FORMATS)}", "box_format"
        )
    return named.pop()


def chat_options(service: Service, request: ChatRequest) -> tuple[dict[str, Any], int | None]:
    """(the model's options, seed) of a request."""
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise invalid("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    settings, seed = sampling(
        service.model.Options, request.temperature, request.top_p, next(iter(limits), None), request.seed
    )
    if twice := sorted(settings.keys() & request.options.keys()):
        raise invalid(f"options: {twice[0]} is given by a field of the request too; give one of them", "options")
    return {**request.options, **settings}, seed


# --- answers ---


def spoken(result: RegionResult) -> str:
    """What a result says in a line: its text, or its category where the model writes none."""
    if result.caption or result.score > 0:  # a caption may be empty, with the probability of that
        return " ".join(result.caption.split())
    return result.category["name"] if result.category else "unknown"


class Writer:
    """Text of the answers as they come: one line a region, or one JSON object. several: lines say of which region."""

    def __init__(self, as_json: bool, several: bool):
        self.as_json, self.several, self.count = as_json, several, 0
        self.prompt_tokens, self.tokens, self.cut_off = 0, 0, False

    def piece(self, answer: Answer) -> tuple[str, dict[str, Any]]:
        """(text, structured result) of the next region."""
        result = {"image": answer.example, **answer.result.to_dict()}
        if self.as_json:
            text = ("," if self.count else '{"regions":[') + orjson.dumps(result).decode()
        else:
            text = (
                ("\n" if self.count else "") + (f"{answer.result.id}: " if self.several else "") + spoken(answer.result)
            )
        self.count += 1
        self.prompt_tokens += answer.prompt_tokens
        self.tokens += answer.tokens
        self.cut_off = self.cut_off or answer.cut_off
        return text, result

    def end(self) -> str:
        return "" if not self.as_json else "]}" if self.count else '{"regions":[]}'

    @property
    def finish_reason(self) -> str:
        return "length" if self.cut_off else "stop"

    @property
    def usage(self) -> dict[str, int]:
        """Tokens that the model's language model read, and those that it wrote."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


def whole(name: str, model: str, writer: Writer, answers: list[Answer], notes: list[str]) -> dict[str, Any]:
    """A `chat.completion`."""
    pieces = [writer.piece(answer) for answer in answers]
    message = {"role": "assistant", "content": "".join(text for text, _ in pieces) + writer.end(), "refusal": None}
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": writer.finish_reason, "logprobs": None}],
        "usage": writer.usage,
        "regions": [result for _, result in pieces],
        "notes": notes,
    }


async def stream(
    name: str,
    model: str,
    writer: Writer,
    answers: AsyncIterator[list[Answer]],
    notes: list[str],
    with_usage: bool,
    failed: Callable[[Exception], Refusal],
) -> AsyncIterator[bytes]:
    """`chat.completion.chunk`s as server-sent events: one a region when its batch is through, the end, the usage."""
    base = {"id": name, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**base, "choices": [choice], **({"usage": None} if with_usage else {}), **more})

    try:
        yield event({"role": "assistant", "content": ""}, notes=notes)
        async for some in answers:
            for answer in some:
                text, result = writer.piece(answer)
                yield event({"content": text}, regions=[result])
        if end := writer.end():
            yield event({"content": end})
        yield event({}, writer.finish_reason)
        if with_usage:
            yield _event({**base, "choices": [], "usage": writer.usage})
    except Gone:
        return
    except Exception as error:  # the status is sent already
        yield _event(failed(error).body())
    yield b"data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
