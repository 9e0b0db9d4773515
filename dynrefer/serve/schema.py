"""What `POST /v1/regions` takes and gives, as the OpenAPI page shows it, and one line for a request that is not so."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from dynrefer.boxes import BOX_FORMATS
from dynrefer.errors import cut, shown, suggestion

from .settings import MOST_REGIONS, Refusal, invalid, too_large

MOST_VALUES = 500_000  # lists, objects and numbers in a request: parsing them must not hold up the others
OVER = "over_limit"  # kind of an error
BoxFormat = Literal[BOX_FORMATS]
Box = Annotated[list[float], Field(min_length=4, max_length=4)]


class Strict(BaseModel):
    """Numbers are numbers, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RunLengths(Strict):
    """COCO's run lengths, down the columns."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="[height, width] of the picture")]
    counts: str | list[int]


class RegionIn(Strict):
    """A region of a picture: a box, a mask, or both."""

    id: str | None = Field(None, max_length=200, description="comes back with the result; IMAGE:REGION where left out")
    box: Box | None = Field(None, description="four numbers in the request's box_format")
    bbox_2d: Box | None = Field(None, description="the same as box")
    mask: RunLengths | str | list[float] | list[list[float]] | None = Field(
        None,
        description="COCO run lengths, polygons [[x1, y1, x2, y2, ...], ...] in pixels, or a PNG (data URI, base64)",
    )


def _region(value: Any) -> Any:
    return {"box": value} if isinstance(value, list) else value


def short(most: int, what: str) -> BeforeValidator:
    """Refuses what is longer before its items are looked at. The page does not say so: it is no rule but a limit."""

    def check(value: Any) -> Any:
        if isinstance(value, (str, list)) and len(value) > most:
            raise PydanticCustomError(OVER, f"{len(value)} {what}, at most {most}")
        return value

    return BeforeValidator(check)


class _OrBox:
    """Four numbers alone are a box: for the page."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        four = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
        return {"anyOf": [handler(core), four]}


Regions = (
    Annotated[list[Annotated[RegionIn, BeforeValidator(_region), _OrBox()]], short(MOST_REGIONS, "regions")]
    | Literal["alpha"]
)


class ImageIn(Strict):
    """A picture with its regions."""

    image: str = Field(
        description="data URI or base64 of a JPEG, PNG, WebP, GIF, BMP or TIFF file; an address if allowed"
    )
    regions: Regions = Field(description='boxes and masks; "alpha": one region, where the picture is not transparent')
    id: str | None = Field(None, max_length=200, description="comes back with the results")


# a red square of 8 x 8 pixels, for the page's example
SQUARE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8oaHBgA0wMeAAg1MCAOA4ASjhBhuDAAAAAElF"
    "TkSuQmCC"
)


class RegionsRequest(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"images": [{"image": SQUARE, "regions": [[1, 1, 7, 6], {"id": "a", "box": [0, 2, 8, 8]}]}]}]
        }
    )
    model: str | None = Field(None, max_length=1000, description="the server's model; may be left out")
    images: Annotated[list[ImageIn], Field(min_length=1), short(MOST_REGIONS, "images")]
    box_format: BoxFormat = Field(
        "xyxy", description="of all boxes; pixels without a suffix, -unit 0..1, -1000 0..1000"
    )
    options: dict[str, Any] = Field({}, description="of the model, for instance num_beams; GET /v1/models lists them")


# --- answers ---


class Scored(BaseModel):
    name: str
    score: float


class ResultOut(BaseModel):
    """What the model says about a region. Which fields are filled depends on the model, see GET /v1/models."""

    id: str
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the upright picture, clipped to it")
    caption: str
    score: float = Field(description="probability of the caption")
    tags: list[Scored]
    attributes: list[Scored]
    category: Scored | None
    categories: list[Scored]
    mask: RunLengths | None
    extra: dict[str, Any]


class ImageOut(BaseModel):
    id: str
    width: int
    height: int
    regions: list[ResultOut] = Field(description="in the order of the request")


class RegionsUsage(BaseModel):
    images: int
    regions: int
    completion_tokens: int


class RegionsAnswer(BaseModel):
    id: str
    object: Literal["regions"]
    created: int
    model: str
    images: list[ImageOut] = Field(description="in the order of the request")
    usage: RegionsUsage
    timings: dict[str, float] = Field(description="seconds: reading, waiting, model, total")


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is not 200."""

    error: ErrorFields


# --- one line for what does not fit ---

Request = TypeVar("Request", bound=BaseModel)
KINDS = re.compile(
    r"^(list\[|literal\[|function-|constrained-|[A-Z]|(str|float|int|bool|text|image_url)$)"
)  # not keys of a request


def parse(kind: type[Request], body: bytes | bytearray) -> Request:
    """A request's body; Refusal 400 or 413 names the place that is wrong and the rule."""
    if sum(map(body.count, (b"[", b"{", b","))) > MOST_VALUES:
        raise too_large(f"the request holds more than {MOST_VALUES:,} values; send fewer regions at once")
    if not body.strip():
        raise invalid("the body is empty; send JSON, see /docs", code="invalid_json")
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is no JSON: {cut(str(error), 200)}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise invalid(f"the body is a JSON {type(values).__name__}; expected an object, see /docs", code="invalid_json")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _refusal(error: ValidationError, kind: type[BaseModel]) -> Refusal:
    """Of several ways to read a value, the one that came farthest says what is wrong."""
    found = error.errors(include_url=False, include_context=False)
    first = max(found, key=lambda each: (each["type"] == OVER, len(each["loc"]), each["type"] == "extra_forbidden"))
    parts = [part for part in first["loc"] if isinstance(part, int) or not KINDS.match(part)]
    if first["type"] == "extra_forbidden" and parts[-1:] != [first["loc"][-1]]:
        parts.append(first["loc"][-1])  # the client's key, whatever it is called
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{cut(part, 60)}" for part in parts).lstrip(".")
    if first["type"] == "extra_forbidden":
        name = str(parts[-1])
        known = {key for each in (kind, RegionIn, ImageIn, RunLengths) for key in each.model_fields}
        return invalid(f"unknown key {shown(name)} ({where}).{suggestion(name, known)} /docs lists the keys.", where)
    if first["type"] == OVER:
        return too_large(f"{where}: {first['msg']}", where)
    if first["type"] == "missing":
        return invalid(f"{where} is missing; /docs lists the keys", where, "missing_value")
    rule = first["msg"][:1].lower() + first["msg"][1:]
    return invalid(f"{where or 'the request'}: {cut(rule, 300)}; got {shown(first['input'])}", where or None)
