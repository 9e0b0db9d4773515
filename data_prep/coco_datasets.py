"""The data sets that come as COCO JSON: a row each, with what must come out of their files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynrefer.data.coco import coco_names
from dynrefer.data.json_files import read_items

PHOTOS = "photographs: their owners' terms (Flickr)"

# what an annotation says about attributes: name -> 1 (has it) or -1 (has it not), the others unknown
Labels = Callable[[dict], dict[str, int]]


def file_names(image: dict) -> tuple[str, ...]:
    """Where an image may lie under --images: as the file says."""
    return (image["file_name"],)


def patch_names(image: dict) -> tuple[str, ...]:
    """Objects365 says images/v1/patch8/NAME where its archives unpack to patch8/NAME."""
    name = image["file_name"]
    return (name, "/".join(name.split("/")[-2:]))


def node_names(image: dict) -> tuple[str, ...]:
    """V3Det says images/NODE/NAME; --images may be its folder or the `images` in it."""
    name = image["file_name"]
    return (name, name.removeprefix("images/"))


def paco_attributes(path: Path) -> tuple[list[dict], Labels]:
    """PACO's attributes, and the labels of an annotation.

    Objects and parts were asked for all colours, patterns, materials and the transparency of what annotators could see:
    a kind with an answer is complete, so its other words are absent; one without, or marked unknown, is unknown.
    """
    words = {attribute["id"]: attribute["name"] for attribute in read_items(path, "attributes.item")}
    kinds: dict[str, list[int]] = next(read_items(path, "attr_type_to_attr_idxs"))
    if unknown := {number for numbers in kinds.values() for number in numbers} - words.keys():
        raise ValueError(f"{path}: attr_type_to_attr_idxs names attribute {min(unknown)}, which `attributes` lacks")
    names, entries = {}, []
    for kind, numbers in kinds.items():
        text = kind.replace("_", " ")
        for number in numbers:
            names[number] = f"{text}:{words[number].replace('_', ' ')}"
            entries.append({"id": number, "name": names[number], "type": text, "is_has_att": "is"})

    def labels(annotation: dict) -> dict[str, int]:
        has = annotation.get("attribute_ids") or []
        if not isinstance(has, list) or not all(type(number) is int and number in words for number in has):
            raise ValueError(f"{path}: annotation {annotation['id']}: attribute_ids {has}; ids of `attributes`")
        has = set(has)
        return {
            names[number]: 1 if number in has else -1
            for kind, numbers in kinds.items()
            if not annotation.get(f"unknown_{kind}") and not has.isdisjoint(numbers)
            for number in numbers
        }

    return entries, labels


@dataclass(frozen=True)
class Dataset:
    """One kind of COCO JSON.

    form: "instances" (images, annotations, categories), "captions" (images, annotations with a caption) or "nested"
    (a list of images with their annotations and category names). published: split -> what its file holds. box_format:
    None = the user says. names: names of an image under --images, the first that exists counts. attributes: reads
    the file's attributes. shared: training images are in the tests of others. lost: images no download has.
    """

    source: str
    licence: str
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    form: str = "instances"
    box_format: str | None = "xywh"
    names: Callable[[dict], tuple[str, ...]] = file_names
    attributes: Callable[[Path], tuple[list[dict], Labels]] | None = None
    shared: bool = False
    lost: frozenset[str] = frozenset()


COCO_LICENCE = f"annotations: CC BY 4.0, COCO Consortium; {PHOTOS}"
DATASETS = {
    "coco": Dataset(
        "coco-2017",
        COCO_LICENCE,
        {
            "train": {
                "images": 118287,
                "categories": 80,
                "annotations": 860001,
                "images with annotations": 117266,
            },
            "val": {"images": 5000, "categories": 80, "annotations": 36781, "images with annotations": 4952},
        },
        names=coco_names,
        shared=True,
    ),
    "coco2014": Dataset(
        "coco-2014",
        COCO_LICENCE,
        {
            "train": {"images": 82783, "categories": 80, "annotations": 604907},
            "val": {"images": 40504, "categories": 80, "annotations": 291875},
        },
        names=coco_names,
        shared=True,
    ),
    "coco-captions": Dataset(
        "coco-captions-2017",
        COCO_LICENCE,
        {"train": {"images": 118287, "captions": 591753}, "val": {"images": 5000, "captions": 25014}},
        form="captions",
        names=coco_names,
        shared=True,
    ),
    "lvis": Dataset(
        "lvis-1.0",
        f"annotations: CC BY 4.0, LVIS; {PHOTOS}",
        {
            "train": {"images": 100170, "categories": 1203, "annotations": 1270141},
            "val": {"images": 19809, "categories": 1203, "annotations": 244707},
            "minival": {"images": 4809, "categories": 1203},  # MDETR's
        },
        names=coco_names,
        shared=True,
    ),
    "paco": Dataset(
        "paco-lvis-1.0",
        f"annotations: Meta Platforms, PACO's terms; {PHOTOS}",
        {  # objects and parts
            "train": {"images": 45790, "categories": 531, "annotations": 217117 + 395071},
            "val": {"images": 2410, "categories": 531, "annotations": 10794 + 20945},
            "test": {"images": 9443, "categories": 531, "annotations": 45861 + 86041},
        },
        names=coco_names,
        attributes=paco_attributes,
        shared=True,
    ),
    "objects365": Dataset(
        "objects365-2",
        f"annotations: CC BY 4.0, Objects365; {PHOTOS}",
        {
            "train": {"images": 1742292, "categories": 365, "annotations": 25407598},
            "val": {"images": 80000, "categories": 365},
        },
        names=patch_names,
        lost=frozenset(f"objects365_{name}.jpg" for name in ("v1_00320532", "v1_00320534", "v2_00908726")),
    ),
    "objects365v1": Dataset(
        "objects365-1",
        f"annotations: CC BY 4.0, Objects365; {PHOTOS}",
        {"train": {"categories": 365}, "val": {"categories": 365}},
        names=patch_names,
    ),
    "v3det": Dataset(
        "v3det-2023-1",
        f"annotations: CC BY 4.0, V3Det; {PHOTOS}",
        {"train": {"images": 183354, "categories": 13204}, "val": {"images": 29821, "categories": 13204}},
        names=node_names,
    ),
    "osprey-lvis": Dataset(
        "osprey-lvis-1k",
        f"annotations: CC BY 4.0, LVIS; {PHOTOS}",
        {"val": {"annotations": 4004}},
        form="nested",
        names=coco_names,
    ),
    "osprey-paco": Dataset(
        "osprey-paco-1k",
        f"annotations: Meta Platforms, PACO's terms; {PHOTOS}",
        {"val": {"annotations": 4263}},
        form="nested",
        names=coco_names,
    ),
    "own": Dataset("own", "", box_format=None),
}
