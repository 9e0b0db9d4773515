"""One record, one region: what is known about it and what a model says of it, with their checks; and many of them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from dynrefer.boxes import check_boxes, check_image_hw
from dynrefer.data.image_groups import ImageGroups, list_hashes
from dynrefer.masks import check_mask_record, mask_to_box, to_mask

CHECK_HINT = "`python -m data_prep.check FILE` lists every bad record"
REQUIRED = ("id", "image", "image_hw")
OPTIONAL = ("box", "mask", "captions", "tags", "attributes", "category", "source", "licence", "split")
KEYS = frozenset((*REQUIRED, *OPTIONAL))
NUMBERS = frozenset((int, float))


class Checked:
    """A record that is read from JSON types."""

    @classmethod
    def from_dict(cls, d: dict, where: str = "record") -> Self:
        """A checked record, see its class for what is required and what is filled in.

        Raises ValueError, beginning with `where` ("FILE:LINE"), for unknown or missing keys, wrong types, bad places
        and anything else than the class describes.
        """
        try:
            return cls._from_dict(d)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; {CHECK_HINT}") from error


@dataclass(frozen=True)
class Region(Checked):
    """One region of one image, with what is known about it.

    id: unique in its file. image: path, relative to the record file's folder. image_hw: (height, width) of the upright
    picture. box: (x1, y1, x2, y2) pixels, clipped to the image; that of the mask where none is given, and one of the
    two is required. mask: None, COCO run lengths or polygons.
    captions: reference captions, any number. tags: words that are true of it; None = not annotated (all others are
    false where they are). attributes: name -> 1 (has it) or -1 (has it not). category: one name or None.
    """

    id: str
    image: str
    image_hw: tuple[int, int]
    box: tuple[float, float, float, float]
    mask: dict | list | None = None
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] | None = None
    attributes: dict[str, int] = field(default_factory=dict)
    category: str | None = None
    source: str = ""
    licence: str = ""
    split: str = ""

    @classmethod
    def _from_dict(cls, d: dict) -> "Region":
        if not isinstance(d, dict):
            raise ValueError(f"{type(d).__name__} instead of a record; a record is a JSON object with {list(REQUIRED)}")
        if not d.keys() <= KEYS:
            unknown = sorted(map(str, d.keys() - KEYS))
            raise ValueError(f"unknown key {unknown}; a record has {[*REQUIRED, *OPTIONAL]}")
        if missing := [key for key in REQUIRED if d.get(key) is None]:
            raise ValueError(f"missing key {missing}; a record has at least {list(REQUIRED)} and box or mask")
        box, mask, tags = d.get("box"), d.get("mask"), d.get("tags")
        if box is None and mask is None:
            raise ValueError("neither box nor mask; a region has at least one of them")
        region_id, image_hw = text_of(d, "id", empty=False), _image_hw(d["image_hw"])
        if mask is not None:
            check_mask_record(mask, image_hw)
        values = {
            "id": region_id,
            "image": text_of(d, "image", empty=False),
            "image_hw": image_hw,
            "box": mask_box(mask, image_hw) if box is None else box_of(box, image_hw, region_id),
            "mask": mask,
            "captions": texts_of(d.get("captions") or (), "captions"),
            "tags": None if tags is None else texts_of(tags, "tags"),
            "attributes": _attributes(d.get("attributes") or {}),
            "category": None if d.get("category") is None else text_of(d, "category", empty=False),
            "source": text_of(d, "source"),
            "licence": text_of(d, "licence"),
            "split": text_of(d, "split"),
        }
        region = object.__new__(cls)
        object.__setattr__(region, "__dict__", values)  # a frozen dataclass sets field by field, which takes longer
        return region

    def to_dict(self) -> dict:
        """The record as JSON types, every key present; `Region.from_dict` reads it back."""
        return {
            "id": self.id,
            "image": self.image,
            "image_hw": list(self.image_hw),
            "box": list(self.box),
            "mask": self.mask,
            "captions": list(self.captions),
            "tags": None if self.tags is None else list(self.tags),
            "attributes": dict(self.attributes),
            "category": self.category,
            "source": self.source,
            "licence": self.licence,
            "split": self.split,
        }

    @property
    def example(self) -> str:
        """Regions of one image are read as one."""
        return self.image

    def to_mask(self) -> np.ndarray | None:
        """bool (H, W), or None where the region has only a box."""
        return None if self.mask is None else to_mask(self.mask, self.image_hw)


def is_number(value: object) -> bool:
    """Whether it is a finite number: True and False are none, nor is an integer that no float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


RESULT_TYPES = {
    "box": list,
    "caption": str,
    "tags": list,
    "attributes": list,
    "categories": list,
    "mask": (dict, type(None)),
    "extra": dict,
    "scales": list,
}
_FIRST: Any = object()  # of a result's category: the first of its categories


@dataclass
class RegionResult:
    """What a model says about one region.

    box: xyxy pixels. score: exp of the caption's summed log probabilities. tags, attributes, categories: [{"name",
    "score"}], best first (attributes: all that were scored). category: the first of the categories, or None where no
    category is sure enough; given alone, it is the only one. mask: COCO run lengths, or None. extra: what is shown and
    never scored, such as the views' "scales". All numbers are finite.
    """

    id: str
    box: list[float]
    caption: str = ""
    score: float = 0.0
    tags: list[dict] = field(default_factory=list)
    attributes: list[dict] = field(default_factory=list)
    category: dict | None = _FIRST
    categories: list[dict] = field(default_factory=list)
    mask: dict | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    prompt_tokens = 0  # that a language model read before it wrote; for a server's count, in no file

    def __post_init__(self):
        if self.category is _FIRST:
            self.category = self.categories[0] if self.categories else None
        elif self.category is not None and not self.categories:
            self.categories = [self.category]

    @property
    def scales(self) -> list[float]:
        """The views' scales, of a family that has views."""
        return self.extra.get("scales", [])

    def to_dict(self) -> dict:
        """JSON types, one line of a prediction file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, d: dict, where: str = "prediction") -> "RegionResult":
        """The result of one line of a prediction file; only id is required, `scales` of version 0.3.0 go into `extra`.
        ValueError begins with `where`."""
        if not isinstance(d, dict) or not isinstance(d.get("id"), str):
            raise ValueError(f"{where}: expected a JSON object with a text 'id', got {str(d)[:100]}")
        for key in ("id", "caption"):
            try:
                whole_text(str(d.get(key, "")), key)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        known = [*cls.__dataclass_fields__, "scales"]
        if unknown := d.keys() - set(known):
            raise ValueError(f"{where}: unknown key {sorted(map(str, unknown))}; a prediction has {known}")
        whose = f" of {d['id']}" if d["id"] else ""
        for key, kind in RESULT_TYPES.items():
            if key in d and not isinstance(d[key], kind):
                name = "run lengths or null" if key == "mask" else kind.__name__
                raise ValueError(f"{where}: {key} {d[key]!r}{whose}: expected {name}")
        if not is_number(score := d.get("score", 0.0)):
            raise ValueError(f"{where}: score {score!r}{whose}: expected a finite number")
        for key in ("box", "scales"):
            values = d.get(key, [])
            if not all(map(is_number, values)) or (key == "box" and len(values) not in (0, 4)):
                rule = "four finite numbers" if key == "box" else "finite numbers"
                raise ValueError(f"{where}: {key} {values!r}{whose}: expected {rule}")
        category = d.get("category")
        for key, values in (
            *((k, d.get(k, [])) for k in ("tags", "attributes", "categories")),
            ("category", [] if category is None else [category]),
        ):
            for value in values:
                if not (
                    isinstance(value, dict) and isinstance(value.get("name"), str) and is_number(value.get("score"))
                ):
                    rule = '{"name": a text, "score": a finite number}'
                    raise ValueError(f"{where}: {key} {value!r}{whose}: expected {rule}")
        values = {key: value for key, value in d.items() if key != "scales"}
        if d.get("scales"):
            values["extra"] = {"scales": d["scales"]} | values.get("extra", {})
        return cls(**{"box": [], **values})


class RegionRecords(Sequence):
    """Regions of one file, in its order. `root` is the folder that image paths are relative to."""

    def __init__(self, path: Path, regions: Sequence[Region]):
        self.path, self.root = Path(path), record_root(Path(path))
        self._regions = regions

    def __len__(self) -> int:
        return len(self._regions)

    def __getitem__(self, index: int) -> Region:
        return self._regions[index]

    def fetch(self, indices: Sequence[int]) -> list[tuple[Path, Region]]:
        """(where its image lies, the record) of every index."""
        return [(self.root / region.image, region) for region in (self[index] for index in indices)]

    def image_path(self, index: int) -> Path:
        """Where the image of one region lies."""
        return self.fetch([range(len(self))[index]])[0][0]

    def images(self) -> list[str]:
        """The image of every record, (N,), without reading the rest of them where the format allows it."""
        return [region.image for region in self._regions]

    def image_names(self) -> list[str]:
        """Every image once, in the order of `image_groups`."""
        return list(dict.fromkeys(self.images()))

    def image_groups(self) -> ImageGroups:
        """Indices that share an image, a list an image, in file order."""
        numbers: dict[str, int] = {}
        return ImageGroups.from_codes(
            np.array([numbers.setdefault(image, len(numbers)) for image in self.images()], np.int32)
        )

    def example_groups(self) -> ImageGroups:
        """Indices that make an example together, a list an example: those of one image, or of the same frames of one
        video."""
        numbers: dict[Any, int] = {}
        return ImageGroups.from_codes(
            np.array([numbers.setdefault(region.example, len(numbers)) for region in self], np.int32)
        )

    def licences(self) -> Counter:
        """{(source, licence): number of its records}; what stands behind a colon in a source is left out."""
        return licences_of((region.source, region.licence) for region in self)

    def subset(self, indices: Sequence[int]) -> "RegionRecords":
        """Some of the records, in the order given."""
        return RegionRecords(self.path, [self[index] for index in indices])

    def _ids(self) -> tuple:
        """What `repeated` wants to know of the file's ids."""
        ids = [region.id for region in self._regions]
        return (lambda: list_hashes(ids)), len(ids), ids.__getitem__


def licences_of(pairs: Iterable[tuple[str | None, str | None]]) -> Counter:
    return Counter(((source or "").partition(":")[0], licence or "") for source, licence in pairs)


def record_root(path: Path) -> Path:
    """The folder that image paths in a record file are relative to: the one it lies in."""
    return path.absolute().parent


def no_split(path: Path, split: str, names: Iterable[str]) -> str:
    return f"record file {path}: no records of split {split!r}; it has {sorted(set(map(str, names)))}"


def text_of(d: dict, key: str, empty: bool = True) -> str:
    value = d.get(key)
    if value is None:
        value = ""
    if not isinstance(value, str) or not (empty or (value and not value.isspace())):
        raise ValueError(f"{key} {value!r}: expected text" + ("" if empty else " that is not empty"))
    return whole_text(value, key)


def whole_text(text: str, key: str) -> str:
    """The text; ValueError where it holds half of a character, which no file in UTF-8 can."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            rule = "half of a character in it (a surrogate without its other half); was it cut there?"
            raise ValueError(f"{key} {text!r:.200}: {rule}") from None
    return text


def check_whole(region: Region) -> None:
    """ValueError where one of a region's texts holds half of a character."""
    texts = [("id", region.id), ("image", region.image), ("category", region.category or "")]
    texts += [("captions", text) for text in region.captions] + [("tags", text) for text in region.tags or ()]
    texts += [("attribute", name) for name in region.attributes]
    for key, text in texts:
        whole_text(text, f"region {region.id!r}: {key}")


def texts_of(values: object, key: str) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{key} {values!r}: expected a list of texts")
    for value in values:
        if not isinstance(value, str) or not value or value.isspace():
            raise ValueError(f"{key}: {value!r} among them; expected texts that are not empty")
        whole_text(value, key)
    return tuple(values)


def _attributes(values: object) -> dict[str, int]:
    if not isinstance(values, dict):
        raise ValueError(f"attributes {values!r}: expected an object, name -> 1 (has it) or -1 (has it not)")
    for name, value in values.items():
        if not name or name.isspace() or type(value) is not int or value not in (1, -1):
            raise ValueError(f"attribute {name!r}: {value!r}; expected a name with 1 (has it) or -1 (has it not)")
        whole_text(name, "attribute")
    return dict(values)


def _image_hw(value: object) -> tuple[int, int]:
    if type(value) is list and len(value) == 2:  # the common case, without a call
        height, width = value
        if type(height) is int and type(width) is int and 0 < height < 2**31 and 0 < width < 2**31:
            return height, width
    return check_image_hw(value)


def box_of(box: object, image_hw: tuple[int, int], region_id: str) -> tuple[float, float, float, float]:
    numbers = box if isinstance(box, (list, tuple)) else ()
    if len(numbers) != 4 or not NUMBERS.issuperset(map(type, numbers)):
        raise ValueError(f"box {box!r} of region {region_id}: expected four numbers, [x1, y1, x2, y2] in pixels")
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except OverflowError:
        raise ValueError(f"box of region {region_id}: a number is too large") from None
    if 0 <= x1 < x2 <= image_hw[1] and 0 <= y1 < y2 <= image_hw[0]:  # the common case, without arrays
        return x1, y1, x2, y2
    return tuple(check_boxes([numbers], image_hw, [region_id])[0].tolist())


def mask_box(mask: object, image_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    return tuple(mask_to_box(to_mask(mask, image_hw)).tolist())
