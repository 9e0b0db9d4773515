"""Pictures of regions with what people and the model say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynrefer.data.records import Region, RegionRecords, RegionResult
from dynrefer.pages import picture_uri

PICTURE_PIXELS = 420  # longer side of an embedded picture
PICTURE_ASPECT = 4 / 3  # of the frame that a card's picture is fitted into, as in style.css
MAX_LETTERS = 600  # of a caption on a card
MAX_ATTRIBUTES = 5  # predicted ones shown on a card


@dataclass(frozen=True)
class Chip:
    """A word. kind: "right", "wrong", "missed" by the model, or "open", of which nobody knows."""

    name: str
    kind: str
    score: float | None = None


class Cards:
    """The cards of regions. Each picture is embedded once a card."""

    def __init__(
        self,
        records: RegionRecords,
        results: Mapping[str, RegionResult],
        items: Mapping[str, Mapping[str, float]],
        tag_threshold: float,
    ):
        self.records, self.results, self.items, self.tag_threshold = records, results, items, tag_threshold
        self.index = {region.id: index for index, region in enumerate(records)}
        self.sure = any(result.score for result in results.values())  # else the predictions came without scores

    def card(self, region_id: str) -> dict[str, Any]:
        """What page.html shows of a region. said: the answer, "" for an empty one, None without a prediction."""
        region = self.records[self.index[region_id]]
        result = self.results.get(region_id)
        answer = None if result is None else result.caption or (result.category["name"] if result.category else "")
        numbers = {
            name: value
            for name, value in self.items.get(region_id, {}).items()
            if not name.startswith("BLEU") and name != "category accuracy"  # which its chip shows
        }
        if result is not None and self.sure:
            numbers["confidence"] = result.score
        height, width = region.image_hw
        return {
            "id": region_id,
            "said": None if answer is None else _cut(answer),
            "numbers": numbers,
            "references": [_cut(caption) for caption in region.captions],
            "chips": _chips(region, result, self.tag_threshold),
            "uri": _picture_uri(self.records.image_path(self.index[region_id])),
            "image_hw": region.image_hw,
            "fit": "width" if width / height > PICTURE_ASPECT else "height",
            "box": region.box,
            "views": _view_boxes(region, result),
        }


def different(ids: Sequence[str], results: Mapping[str, RegionResult], number: int) -> list[str]:
    """The first `number` ids of which the model says different things."""
    first: dict[tuple, str] = {}
    for region_id in ids:
        result = results.get(region_id, RegionResult(region_id, []))
        said = result.caption, result.category and result.category["name"]
        first.setdefault(said if any(said) else (region_id,), region_id)
    return list(first.values())[:number]


def _cut(caption: str) -> str:
    return caption if len(caption) <= MAX_LETTERS else f"{caption[:MAX_LETTERS]}… ({len(caption):,} letters)"


def _view_boxes(region: Region, result: RegionResult | None) -> dict[float, list[float]]:
    """{scale: box in the image} of the views around the region."""
    height, width = region.image_hw
    scales = dict.fromkeys(result.extra.get("scales", ()) if result else ())
    whole = (0, 0, width, height)
    return {t: [b + t * (w - b) for b, w in zip(region.box, whole, strict=True)] for t in scales if t > 0}


def _picture_uri(path: Path) -> str | None:
    """The picture as a data: address, None where it cannot be read: a predictions file is scored without pictures."""
    from PIL import Image

    from dynrefer.images import open_image

    try:
        picture = Image.fromarray(open_image(path))
    except ValueError:
        return None
    factor = PICTURE_PIXELS / max(picture.size)
    size = [max(1, round(side * factor)) for side in picture.size]
    if factor < 1:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    elif factor > 1.2:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return picture_uri(picture)


def _chips(region: Region, result: RegionResult | None, tag_threshold: float) -> dict[str, list[Chip]]:
    """{"category", "tags", "attributes": words}, those of which there are any."""
    lines: dict[str, list[Chip]] = {}
    if region.category is not None or (result and result.category):
        said = result.category if result else None
        right = said is not None and said["name"] == region.category
        kind = "right" if right else "open" if region.category is None else "wrong"
        lines["category"] = [Chip(said["name"], kind, said["score"])] if said else []
        if not right and region.category is not None:
            lines["category"].append(Chip(region.category, "missed"))
    tags = [tag for tag in result.tags if tag["score"] >= tag_threshold] if result else []  # a file lists them all
    if tags or region.tags:
        kinds = dict.fromkeys(region.tags or (), "right")
        other = "open" if region.tags is None else "wrong"
        lines["tags"] = [Chip(tag["name"], kinds.get(tag["name"], other), tag["score"]) for tag in tags]
        said = {tag["name"] for tag in tags}
        lines["tags"] += [Chip(tag, "missed") for tag in kinds if tag not in said]
    attributes = result.attributes if result else []
    true = [name for name, value in region.attributes.items() if value == 1]
    shown = attributes[: max(MAX_ATTRIBUTES, len(true))] if attributes else []
    if shown or true:
        kinds = {1: "right", -1: "wrong", None: "open"}
        lines["attributes"] = [
            Chip(item["name"], kinds[region.attributes.get(item["name"])], item["score"]) for item in shown
        ]
        said = {item["name"] for item in shown}
        lines["attributes"] += [Chip(name, "missed") for name in true if name not in said]
    return lines
