"""Regions for other programs: COCO JSON, YOLO label files and Label Studio tasks, of records and of predictions.

shown = [exported(region) for region in open_records("data/world/test.jsonl")]
write_coco("world.json", shown)

python -m data_prep.export data/world/test.jsonl --to coco --out world.json
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

import yaml

from dynrefer.data.brush import pack_brush
from dynrefer.data.records import Region, RegionResult
from dynrefer.files import atomic_path
from dynrefer.masks import to_mask
from dynrefer.outlines import one_polygon, polygon_area

NO_CATEGORY = "object"  # of a region without one, where the form asks for one
COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.\w+")
LOCAL_FILES = "/data/local-files/?d="  # Label Studio's address of files on its own disk
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Exported:
    """What is written of a region. image: its path, with forward slashes. box: xyxy pixels. mask: None, COCO run
    lengths or polygons. score: of a prediction, None of a record."""

    id: str
    image: str
    image_hw: tuple[int, int]
    box: tuple[float, float, float, float]
    mask: dict | list | None = None
    captions: tuple[str, ...] = ()
    category: str | None = None
    score: float | None = None
    split: str = ""


def exported(region: Region, result: RegionResult | None = None) -> Exported:
    """A record as it is written; with a result of it: what the model says, in the result's own box where it has one.

    The score is that of the category, or of the caption where there is none. The mask is the result's; the record's
    where the result is about the record's own box.
    """
    if result is None:
        shown = (region.box, region.mask, region.captions, region.category, None)
    else:
        box = tuple(map(float, result.box)) if result.box else region.box
        near = max(abs(a - b) for a, b in zip(box, region.box, strict=True)) < 0.01
        mask = result.mask if result.mask is not None else region.mask if near else None
        captions = (result.caption,) if result.caption else ()
        category = result.category["name"] if result.category else None
        score = result.category["score"] if result.category else result.score
        shown = (box, mask, captions, category, float(score))
    return Exported(region.id, PurePosixPath(region.image).as_posix(), region.image_hw, *shown, split=region.split)


def image_names(images: Iterable[str], root: str | os.PathLike = ".") -> tuple[str, dict[str, str]]:
    """(the folder that holds all images, {image: its name in there}). root: what the images' paths count from.

    >>> image_names(["../photos/a.jpg", "../photos/b/a.jpg"], root="/data/records")
    ('/data/photos', {'../photos/a.jpg': 'a.jpg', '../photos/b/a.jpg': 'b/a.jpg'})
    """
    places = {image: os.path.abspath(os.path.join(root, image)) for image in images}
    folder = os.path.commonpath([os.path.dirname(place) for place in places.values()] or [os.path.abspath(root)])
    return folder, {image: PurePosixPath(os.path.relpath(place, folder)).as_posix() for image, place in places.items()}


def category_names(shown: Iterable[Exported], known: Sequence[str] = ()) -> list[str]:
    """The known categories in their order, then the others sorted; `NO_CATEGORY` where some region has none."""
    found = {region.category or NO_CATEGORY for region in shown}
    return [*known, *sorted(found - set(known))]


def image_numbers(names: Iterable[str]) -> dict[str, int]:
    """{name: id}: COCO's own ids where all names are those of COCO's pictures, otherwise 1, 2, 3, ... in order."""
    names = list(dict.fromkeys(names))
    found = [match and int(match[1]) for match in (COCO_NAME.fullmatch(name.rpartition("/")[2]) for name in names)]
    if None in found or len(set(found)) < len(found):
        found = range(1, len(names) + 1)
    return dict(zip(names, found, strict=True))


# --- COCO ----------------------------------------------------------------------------------------------------------


def coco_document(
    shown: Sequence[Exported],
    categories: Sequence[str] | Mapping[str, int] = (),
    *,
    root: str | os.PathLike = ".",
    images: Iterable[str] | None = None,
) -> dict:
    """COCO's {"images", "annotations", "categories"}; a prediction's annotation has a score.

    A caption stands in `caption` and in `attributes.caption`, because tools drop one or the other; several in
    `captions` as well. categories: names in the order of their ids from 1, or {name: id}; further ones join them.
    root: what image paths count from. images: paths that decide names and ids, by default those of the regions.
    """
    ids = dict(categories) if isinstance(categories, Mapping) else {name: k for k, name in enumerate(categories, 1)}
    for name in category_names(shown, list(ids)):
        ids.setdefault(name, max(ids.values(), default=0) + 1)
    sizes = {region.image: region.image_hw for region in shown}
    _, names = image_names(sizes if images is None else images, root)
    numbers = image_numbers(names.values())
    return {
        "info": {"description": "regions and what is said of them"},
        "images": [
            {"id": numbers[names[image]], "file_name": names[image], "height": hw[0], "width": hw[1]}
            for image, hw in sizes.items()
        ],
        "annotations": [
            _coco_annotation(number, region, numbers[names[region.image]], ids[region.category or NO_CATEGORY])
            for number, region in enumerate(shown, 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def coco_results(document: dict) -> list[dict]:
    """The list of results that COCO's evaluators read, of the document of predictions.

    pycocotools takes results with a `caption` for captions of whole images and does not fill in what boxes need: area
    and iscrowd stand there.
    """
    keys = ("image_id", "category_id", "bbox", "segmentation", "area", "iscrowd", "score", "caption", "attributes")
    keys += ("region_id",)
    return [{key: entry[key] for key in keys if key in entry and entry[key] != []} for entry in document["annotations"]]


def write_coco(path: str | os.PathLike, content: dict | list) -> None:
    """Writes a document or a list of results; the file appears whole or not at all."""
    _write_json(path, content)


def _coco_annotation(number: int, region: Exported, image_id: int, category_id: int) -> dict:
    x1, y1, x2, y2 = region.box
    annotation: dict[str, Any] = {
        "id": number,
        "region_id": region.id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": _area(region),
        "segmentation": [] if region.mask is None else region.mask,
        "iscrowd": 0,
    }
    if region.captions:
        annotation |= {"caption": region.captions[0], "attributes": {"caption": region.captions[0]}}
    if len(region.captions) > 1:
        annotation["captions"] = list(region.captions)
    if region.score is not None:
        annotation["score"] = region.score
    return annotation


def _area(region: Exported) -> float:
    """Of the mask: COCO's, a polygon's own and the pixels of run lengths; of the box where there is none."""
    if isinstance(region.mask, dict):
        return float(to_mask(region.mask, region.image_hw).sum())
    if region.mask:
        polygons = region.mask if isinstance(region.mask[0], list | tuple) else [region.mask]
        return sum(map(polygon_area, polygons))
    return (region.box[2] - region.box[0]) * (region.box[3] - region.box[1])


# --- YOLO ----------------------------------------------------------------------------------------------------------


def yolo_line(region: Exported, number: int, polygon: bool, confidence: bool = False) -> str:
    """A line of a label file: class, then centre and size of the box or the corners of a polygon, as shares of the
    image. Without a mask the polygon is the box's. confidence: the score stands at the end."""
    height, width = region.image_hw
    if polygon:
        x1, y1, x2, y2 = region.box
        corners = [x1, y1, x2, y1, x2, y2, x1, y2]
        if region.mask is not None:
            corners = one_polygon(region.mask, region.image_hw)
        sides = (width, height) * (len(corners) // 2)
        numbers = [min(max(value / side, 0.0), 1.0) for value, side in zip(corners, sides, strict=True)]
    else:
        x1, y1, x2, y2 = region.box
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    if confidence and region.score is not None:
        numbers.append(region.score)
    return " ".join([str(number), *(f"{value:.12g}" for value in numbers)])


def write_yolo(
    folder: str | os.PathLike,
    shown: Sequence[Exported],
    categories: Sequence[str] = (),
    *,
    root: str | os.PathLike = ".",
    pictures: str = "link",
    polygons: bool | None = None,
    confidence: bool = False,
) -> Counter:
    """Writes a folder: labels/SPLIT/NAME.txt, images/SPLIT/NAME and data.yaml. Returns what is in it, and not.

    root: what image paths count from. pictures: "link" or "copy" them into it, or "none".
    polygons: of the masks, None = where every region has one. Captions and tags have no place in this form: counted.
    ValueError for a folder that holds other things, images in two splits, and two that would share a label file.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "data.yaml").is_file():
        raise ValueError(f"{folder} is a folder of other things; name a new one")
    names = category_names(shown, categories)
    _, files = image_names((region.image for region in shown), root)
    polygons = all(region.mask is not None for region in shown) if polygons is None else polygons
    lines: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    labels: dict[tuple[str, str], str] = {}
    counts = Counter({"regions": len(shown), "images": 0, "classes": len(names)})
    for region in shown:
        split = region.split or SPLITS[0]
        if splits.setdefault(region.image, split) != split:
            raise ValueError(f"image {region.image!r} is in splits {splits[region.image]!r} and {split!r}; export one")
        label = str(PurePosixPath(files[region.image]).with_suffix(".txt"))
        if labels.setdefault((split, label), region.image) != region.image:
            raise ValueError(
                f"images {labels[split, label]!r} and {region.image!r} would share the label file {label}; rename one"
            )
        lines.setdefault(region.image, []).append(
            yolo_line(region, names.index(region.category or NO_CATEGORY), polygons, confidence)
        )
        counts["captions left out, YOLO has no place for them"] += len(region.captions)
        counts["masks left out, boxes were asked for or some regions have none"] += (
            region.mask is not None and not polygons
        )
        counts[f"regions without a category, called {NO_CATEGORY!r}"] += region.category is None
    counts["images"] = len(lines)
    with atomic_path(folder) as temporary:
        for image, texts in lines.items():
            place = PurePosixPath(splits[image], files[image])
            label = temporary / "labels" / place.with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
            if pictures != "none":
                source, target = Path(root, image).resolve(), temporary / "images" / place
                if not source.is_file():
                    raise ValueError(f"image {source}: no such file; labels alone are written without the pictures")
                target.parent.mkdir(parents=True, exist_ok=True)
                if pictures == "copy":
                    shutil.copyfile(source, target)
                else:
                    target.symlink_to(source)
        found = set(splits.values())
        settings: dict[str, Any] = {split: f"images/{split}" for split in sorted(found)}
        settings.setdefault("train", settings.get("val", next(iter(settings.values()), "images/train")))
        settings.setdefault("val", settings["train"])  # YOLO's programs ask for both
        settings |= {"nc": len(names), "names": dict(enumerate(names))}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (temporary / "data.yaml").write_text(text, encoding="utf-8")
    return +counts


# --- Label Studio --------------------------------------------------------------------------------------------------


def label_studio_tasks(
    shown: Sequence[Exported], *, root: str | os.PathLike = ".", prefix: str = LOCAL_FILES, model: str = "dynrefer"
) -> list[dict]:
    """A task an image; its regions are annotations, predictions where they have a score.

    root: what image paths count from. prefix: what stands before an image's name in its address. model: what
    predictions say who made them. A polygon stays one, other masks are brushes, boxes rectangles; numbers are per cent
    of the image. Captions are the text of a region's TextArea.
    """
    _, names = image_names((region.image for region in shown), root)
    groups: dict[str, list[Exported]] = {}
    for region in shown:
        groups.setdefault(region.image, []).append(region)
    tasks = []
    for number, (image, regions) in enumerate(groups.items(), 1):
        results = [result for k, region in enumerate(regions) for result in _label_studio_region(region, f"r{k}")]
        task: dict[str, Any] = {"id": number, "data": {"image": f"{prefix}{names[image]}"}}
        if regions[0].score is None:
            task["annotations"] = [{"id": number, "was_cancelled": False, "ground_truth": False, "result": results}]
        else:
            mean = sum(region.score or 0.0 for region in regions) / len(regions)
            task["predictions"] = [{"model_version": model, "score": mean, "result": results}]
        tasks.append(task)
    return tasks


def label_studio_config(categories: Sequence[str]) -> str:
    """The labelling interface that the tasks need, XML."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in categories)
    tools = "".join(
        f'  <{tag} name="{name}" toName="image">\n{labels}  </{tag}>\n'
        for tag, name in (("RectangleLabels", "box"), ("PolygonLabels", "polygon"), ("BrushLabels", "brush"))
    )
    text = '  <TextArea name="caption" toName="image" perRegion="true" editable="true" placeholder="caption"/>\n'
    return f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{tools}{text}</View>\n'


def write_label_studio(path: str | os.PathLike, tasks: Sequence[dict], config: str) -> Path:
    """Writes the tasks, and the interface beside them as NAME.xml, whose path it returns."""
    path = Path(path)
    beside = path.with_suffix(".xml")
    _write_json(path, tasks)
    with atomic_path(beside) as temporary:
        temporary.write_text(config, encoding="utf-8")
    return beside


def _label_studio_region(region: Exported, name: str) -> list[dict]:
    height, width = region.image_hw
    common: dict[str, Any] = {"id": name, "to_name": "image", "origin": "manual", "image_rotation": 0}
    common |= {"original_width": width, "original_height": height}
    if region.score is not None:
        common |= {"score": region.score, "origin": "prediction"}
    labels = [] if region.category is None else [region.category]
    mask = region.mask
    if isinstance(mask, list) and mask and not isinstance(mask[0], list | tuple):
        mask = [mask]
    if mask is None:
        x1, y1, x2, y2 = region.box
        value: dict[str, Any] = {"x": 100 * x1 / width, "y": 100 * y1 / height, "rotation": 0}
        value |= {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
        kind, tool = "rectanglelabels", "box"
    elif isinstance(mask, list) and len(mask) == 1:
        points = list(zip(mask[0][0::2], mask[0][1::2], strict=True))
        value = {"points": [[100 * x / width, 100 * y / height] for x, y in points], "closed": True}
        kind, tool = "polygonlabels", "polygon"
    else:
        value = {"format": "rle", "rle": pack_brush(to_mask(mask, region.image_hw))}
        kind, tool = "brushlabels", "brush"
    results = [{**common, "type": kind, "from_name": tool, "value": {**value, kind: labels}}]
    if region.captions:
        text = {key: entry for key, entry in value.items() if key not in ("rle", "format")}
        results.append(
            {**common, "type": "textarea", "from_name": "caption", "value": {**text, "text": list(region.captions)}}
        )
    return results


def _write_json(path: str | os.PathLike, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
