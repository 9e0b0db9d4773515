r"""COCO JSON -> records: COCO, LVIS, PACO, Objects365, V3Det, Osprey's LVIS and PACO samples, and your own.

    python -m data_prep.coco --dataset coco --split val --annotations instances_val2017.json --images coco/val2017 \
        --out data/coco/val.jsonl
    python -m data_prep.coco --dataset lvis --split train --annotations lvis_v1_train.json --images coco \
        --out data/lvis/train.jsonl --exclude data/refcocog/val.jsonl data/refcocog/test.jsonl data/ovad/test.jsonl
    python -m data_prep.coco --dataset own --split train --annotations mine.json --box-format xywh --images photos \
        --out data/mine/train.jsonl

Where the files come from (annotations, then images):

    coco, coco2014      cocodataset.org: annotations_trainval2017.zip (241 MB); train2017.zip (18 GB), val2017.zip
    coco-captions       the same; one record an image, whose box is the whole image, with its (mostly five) captions
    lvis                lvisdataset.org: lvis_v1_train.json.zip, lvis_v1_val.json.zip; COCO's images
    paco                github.com/facebookresearch/paco: paco_lvis_v1.zip; COCO's images
    objects365          objects365.org, version 2: zhiyuan_objv2_train.json, zhiyuan_objv2_val.json; images 345 GB
    objects365v1        objects365.org, version 1
    v3det               github.com/V3Det/V3Det: v3det_2023_v1_train.json (289 MB), _val.json (63 MB); images 54 GB
    osprey-lvis, -paco  huggingface.co/datasets/sunshine-lwt/Osprey-ValData: {lvis,paco}_val_1k_category.json
    own                 yours: images (id, file_name, height, width), annotations (id, image_id, category_id, bbox or
                        segmentation) and categories (id, name). An annotation's texts become the record's: under
                        --text-key, or caption, description, phrase, sentence, text and the like, also in `attributes`.
                        --box-format says what bbox holds; a segmentation counts in pixels always.

Licences: COCO, LVIS, Objects365 and V3Det annotations CC BY 4.0; the photographs stay their owners' (mostly Flickr).

One annotation is one record: its category is the file's name for it, letter by letter, its mask the polygons or run
lengths. Crowd regions are left out unless --keep-crowd; what is left out is counted. What must come out stands in
`coco_datasets.py` and is checked; --subset converts a part knowingly, images that are not on disk left out. Beside
the records: categories.txt, categories.json (LVIS's frequencies and synonyms are in it), attributes.json (PACO).

Images are found under --images by their name in the file; COCO's also as train2017/NAME and val2017/NAME, so `coco`,
the folder of both, always works. COCO's photos, which LVIS and PACO train on too, are shared with the tests of RefCOCOg
and OVAD: name those records with --exclude.
"""

import argparse
import sys
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.box_formats import BoxReader, add_box_format
from data_prep.coco_datasets import DATASETS, Dataset, Labels
from data_prep.converter import arguments, excluded_images, image_key, image_keys, write, write_list
from data_prep.counts import BadEntry, Tally, Undecided, check_counts, tell
from data_prep.polygons import FEW_CORNERS, OUTSIDE, read_mask, turn
from data_prep.texts import TEXT_KEY, TextKeys, texts_of
from dynrefer.boxes import check_image_hw
from dynrefer.data.coco import box_of_mask, known_id
from dynrefer.data.image_folder import STORED_PIXELS, ImageFolder
from dynrefer.data.json_files import read_items
from dynrefer.data.records import Region
from dynrefer.errors import cut, run_command
from dynrefer.images import read_orientation

SHARED_WITH = "the tests of RefCOCOg and OVAD"
NO_TEXTS = ("id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd")  # keys of the format
CROWD = {"0": False, "1": True, "false": False, "true": True, "": False, "none": False, "nan": False}


class Converter:
    """Records of one COCO JSON file. Images and categories are read at once, annotations streamed by `regions`.

    name: begins the records' ids, NAME-SPLIT-ID. exclude: keys of images to leave out (`converter.image_keys`). subset:
    counts may differ and images may be missing. strict: what would be left out as damaged is an error. text_keys: of
    one's own data, where texts stand; None for published data, whose texts are `caption` and `captions`. counts: what
    the file held and what was left out. Raises ValueError for a damaged file, another dataset's or another split's.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        split: str,
        path: Path,
        images: ImageFolder,
        *,
        exclude: Collection[int | str] = frozenset(),
        keep_crowd: bool = False,
        subset: bool = False,
        strict: bool = False,
        text_keys: Sequence[str] | None = None,
    ):
        if dataset.published and split not in dataset.published:
            raise ValueError(f"split {split!r}: {name} has {', '.join(dataset.published)}")
        self.name, self.dataset, self.split, self.path, self.images = name, dataset, split, path, images
        self.exclude, self.keep_crowd, self.subset = exclude, keep_crowd, subset
        self._file = str(path)
        self.counts = Tally(strict)
        self._own = text_keys is not None
        self._texts = TextKeys(self.counts, text_keys, NO_TEXTS) if self._own else None
        self.categories: list[dict] = []  # entries of the file
        self.attributes: list[dict] = []
        self._names: dict[int | str, str] = {}  # of the categories, by their ids
        self._labels: Labels | None = None
        self._images: dict[int | str, tuple[str, tuple[int, int]] | None] = {}  # id -> path and size, None = left out
        self._names: dict[str, str] = {}  # path -> the name that found it
        self._read_lists()
        self._check(early=True)

    def _read_lists(self) -> None:
        nested = self.dataset.form == "nested"
        for image in read_items(self.path, "item" if nested else "images.item"):
            self._add_image(image)
        self.counts["images"] = len(self._images)
        if not any(self._images.values()):
            why = self.counts.first or "look at --images and --exclude"
            why = why.removeprefix(f"{self.path}: ")
            raise ValueError(f"{self.path}: none of its {len(self._images):,} images is left; {why}")
        if nested:
            names = {name for entry in read_items(self.path, "item") for _, name in self._nested_annotations(entry)}
            self.categories = [{"name": name} for name in sorted(names)]
        elif self.dataset.form == "instances":
            self.categories = list(read_items(self.path, "categories.item"))
            for entry in self.categories:
                number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
                number = known_id(number)
                if not isinstance(name, str) or not name.strip() or number is None or number in self._names:
                    raise ValueError(f"{self.path}: category {cut(str(entry))}: expected a name, and an id of its own")
                self._names[number] = name.strip()
            if self._own and (root := self._root_category()) is not None:
                self.categories.remove(root)
                self.counts["categories left out, a root that no annotation has"] = 1
            if shared := len(self.categories) - len(self.category_names):
                self.counts["categories that share another's name"] = shared
        self.counts["categories"] = len(self.categories)
        if self.dataset.attributes:
            try:
                self.attributes, self._labels = self.dataset.attributes(self.path)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path}: its attributes are not of the form of {self.name} ({error!r})"
                ) from error
            self.counts["attributes"] = len(self.attributes)

    @property
    def category_names(self) -> list[str]:
        """Each once, in the file's order, without blanks around them."""
        return list(dict.fromkeys(entry["name"].strip() for entry in self.categories))

    def _root_category(self) -> dict | None:
        """The category that only holds the others together, as Roboflow writes it; None where there is none, or where
        an annotation has it."""
        for entry in self.categories:
            others = [other for other in self.categories if other is not entry]
            is_root = entry.get("supercategory") in (None, "", "none")
            if others and is_root and all(other.get("supercategory") == entry["name"] for other in others):
                number = known_id(entry["id"])
                annotations = (a for a in read_items(self.path, "annotations.item") if isinstance(a, dict))
                return entry if all(known_id(a.get("category_id")) != number for a in annotations) else None
        return None

    def _add_image(self, image: dict) -> None:
        with self.counts.entries("images"):
            try:
                number = known_id(image["id"])
                if number is None:
                    raise ValueError(f"id {image['id']!r} is no number and no text")
                if number in self._images:
                    raise Undecided("its id stands in the file twice")
                self._images[number] = None
                names = self.dataset.names(image)
                if not all(isinstance(name, str) for name in names):
                    raise ValueError(f"file_name {names[0]!r} is no text")
                image_hw = known_id(image["height"]), known_id(image["width"])
                if not type(image_hw[0]) is type(image_hw[1]) is int or min(image_hw) <= 0:
                    image_hw = check_image_hw((image["height"], image["width"]))
                found = self.images.find(*names)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                kind = Undecided if isinstance(error, Undecided) else BadEntry
                missing = "no key " if isinstance(error, KeyError) else ""
                raise kind(
                    f"{self.path}: image {cut(str(image))}: {missing}{error}; expected an object with id, file_name, "
                    "height and width, ids once each"
                ) from error
            where = f"{self._file}: image {number}"
            if self.exclude and image_key(names[0]) in self.exclude:
                self.counts["images left out, shared with --exclude"] += 1
            elif names[0].rpartition("/")[2] in self.dataset.lost:
                self.counts["images left out, lost by the dataset's makers"] += 1
            elif found is None and self.subset:
                self.counts["images left out, not in the folder"] += 1
            else:
                found = found or (self.images.path if self._own else self.images.whole)(names[0], where)
                if (other := self._names.setdefault(found, names[0])) != names[0]:
                    raise Undecided(
                        f"{where}: file_name {names[0]!r} would be {found}, and so would {other!r}; give each picture "
                        "the name that its file has"
                    )
                self.images.check_size(found, image_hw, where)
                self._images[number] = found, image_hw

    def _check(self, early: bool = False) -> None:
        """Published counts: of the lists first, of all at the end."""
        published = self.dataset.published
        for split, counts in published.items():
            if split != self.split and "images" in counts and counts["images"] == self.counts["images"]:
                raise ValueError(f"{self.path}: its {self.counts['images']:,} images are those of split {split!r}")
        known = published.get(self.split, {})
        if early:
            known = {key: count for key, count in known.items() if key in ("images", "categories", "attributes")}
        check_counts(self.counts, known, f"{self.path} ({self.name} {self.split})", self.subset)

    def regions(self) -> Iterator[Region]:
        """The file's records, in its order; what it held is checked behind the last."""
        forms = {"instances": self._instances, "captions": self._captions, "nested": self._nested}
        yield from forms[self.dataset.form]()
        self._check()

    def _instances(self) -> Iterator[Region]:
        for box, payload in self._boxes(self._annotations()):
            with self.counts.entries("annotations"):
                yield self._region(box, *payload)
        if self._texts is not None:
            self._texts.check(self._file)

    def _annotations(self) -> Iterator[tuple]:
        ids = array("q")  # 8 bytes each, of tens of millions
        texts: set[str] = set()  # ids that are no numbers, of people's own files
        with_annotations: set[int | str] = set()
        for key in ("annotations", "images with annotations", "annotations left out with their image"):
            self.counts[key] = 0
        self.counts["crowd regions left out"] = 0
        for annotation in read_items(self.path, "annotations.item"):
            self.counts["annotations"] += 1
            item = None
            with self.counts.entries("annotations"):
                number = self._id_of(annotation)
                if type(number) is int and abs(number) < 2**62:
                    ids.append(number)
                elif str(number) in texts:
                    raise Undecided(f"{self._file}: annotation id {number!r} stands in it twice; ids are unique")
                else:
                    texts.add(str(number))
                item = self._item(annotation, number, with_annotations)
            if item is not None:
                yield item
        self.counts["images with annotations"] = len(with_annotations)
        numbers = np.frombuffer(ids, np.int64)
        numbers.sort()
        if (repeated := numbers[1:][numbers[1:] == numbers[:-1]]).size:
            raise ValueError(f"{self._file}: annotation id {repeated[0]} stands in it twice; ids are unique")

    def _id_of(self, annotation: Any) -> int | str:
        if not isinstance(annotation, dict):
            raise BadEntry(f"{self._file}: annotation {cut(str(annotation))}: expected an object")
        if (number := known_id(annotation.get("id"))) is None:
            has = f"id {annotation['id']!r} is no number and no text" if "id" in annotation else "'id' is missing"
            raise BadEntry(f"{self._file}: annotation {cut(str(annotation))}: {has}; expected an id of its own")
        return number

    def _item(self, annotation: dict, number: int | str, with_annotations: set) -> tuple | None:
        """What `BoxReader.read` wants of an annotation; None where it is left out by rule."""
        where = f"{self._file}: annotation {number}"
        image_id = _id_in(annotation, "image_id", self._images, "images", where)
        category = self._names[_id_in(annotation, "category_id", self._names, "categories", where)]
        image = self._images[image_id]
        with_annotations.add(image_id)
        if image is None:
            self.counts["annotations left out with their image"] += 1
        elif _is_crowd(annotation.get("iscrowd"), where) and not self.keep_crowd:
            self.counts["crowd regions left out"] += 1
        else:
            return annotation.get("bbox") or None, image[1], where, (number, image, category, annotation, where)
        return None

    def _nested(self) -> Iterator[Region]:
        def items():
            for entry in read_items(self.path, "item"):
                if (image := self._images.get(known_id(entry["id"]), ())) == ():
                    continue  # left out above
                for k, (annotation, category) in enumerate(self._nested_annotations(entry)):
                    self.counts["annotations"] += 1
                    if image is None:
                        self.counts["annotations left out with their image"] += 1
                        continue
                    where = f"{self.path}: image {entry['id']}, annotation {k}"
                    number = f"{entry['id']}-{k}"
                    yield annotation.get("bbox"), image[1], where, (number, image, category, annotation, where)

        for box, payload in self._boxes(items()):
            with self.counts.entries("annotations"):
                yield self._region(box, *payload)

    def _nested_annotations(self, entry: dict) -> list[tuple[dict, str]]:
        """(annotation, category) of an image that holds its own."""
        annotations, names = entry.get("annotations"), entry.get("categories")
        if (
            not isinstance(annotations, list)
            or not isinstance(names, list)
            or len(annotations) != len(names)
            or not all(isinstance(annotation, dict) for annotation in annotations)
            or not all(isinstance(name, str) and name.strip() for name in names)
        ):
            raise ValueError(f"{self.path}: image {entry['id']}: expected annotations, and as many names in categories")
        return [(annotation, name.strip()) for annotation, name in zip(annotations, names, strict=True)]

    def _captions(self) -> Iterator[Region]:
        captions: dict[int | str, list[str]] = {}
        for annotation in read_items(self.path, "annotations.item"):
            self.counts["captions"] += 1
            with self.counts.entries("captions"):
                try:
                    number = known_id(annotation["image_id"])
                    self._images[number]
                    text = " ".join(annotation["caption"].split())
                except (KeyError, TypeError, AttributeError) as error:
                    raise BadEntry(
                        f"{self.path}: annotation {cut(str(annotation))}: expected a caption, and image_id of `images`"
                    ) from error
                captions.setdefault(number, []).append(text)
        for number, image in self._images.items():
            if image is None:
                continue
            if texts := tuple(filter(None, captions.get(number, ()))):
                path, (height, width) = image
                yield Region(
                    id=f"{self.name}-{self.split}-{number}",
                    image=path,
                    image_hw=(height, width),
                    box=(0.0, 0.0, float(width), float(height)),
                    captions=texts,
                    source=self.dataset.source,
                    licence=self.dataset.licence,
                    split=self.split,
                )
            else:
                self.counts["images left out, without a caption"] += 1

    def _boxes(self, items) -> Iterator:
        return BoxReader(self.path, self.dataset.box_format, self.counts).read(items)

    def _region(self, box, number, image, category, annotation, where) -> Region:
        path, image_hw = image
        left_out = self.counts[FEW_CORNERS] + self.counts[OUTSIDE]
        mask = read_mask(annotation.get("segmentation"), image_hw, where, self.counts)
        if self.counts.strict and self.counts[FEW_CORNERS] + self.counts[OUTSIDE] > left_out:
            text = "a polygon of fewer than three corners, or nothing of it in the image"
            raise ValueError(f"{where}: {text}: {cut(str(annotation['segmentation']))}")
        box = box or box_of_mask(mask, image_hw, where)
        if self.images.stored and (orientation := read_orientation(self.images.file(path))) > 1:
            box, mask, image_hw = turn(box, mask, orientation, image_hw)
            self.counts["regions turned with their pictures"] += 1
        captions = self._texts.read(annotation, where) if self._texts else _captions_of(annotation, where)
        region = Region(
            id=f"{self.name}-{self.split}-{number}",
            image=path,
            image_hw=image_hw,
            box=box,
            mask=mask,
            captions=tuple(captions),
            attributes=self._labels(annotation) if self._labels else {},
            category=category,
            source=self.dataset.source,
            licence=self.dataset.licence,
            split=self.split,
        )
        if self._own:
            self.counts["captions"] += len(captions)
            self.counts["regions without a caption"] += not captions
        return region


def _is_crowd(value: Any, where: str) -> bool:
    text = str(value).strip().lower().removesuffix(".0")
    if text not in CROWD:
        raise BadEntry(f"{where}: iscrowd {cut(repr(value))}: expected 0 or 1")
    return CROWD[text]


def _id_in(annotation: dict, key: str, known: Collection[int | str], place: str, where: str) -> int | str:
    """The id of another entry that an annotation names; BadEntry where there is none."""
    if key not in annotation:
        raise BadEntry(f"{where}: {key!r} is missing; expected {key} of `{place}`", f"no {key}")
    if (number := known_id(annotation[key])) is None or number not in known:
        text = f"{where}: {key} {cut(repr(annotation[key]))} is not there; expected {key} of `{place}`"
        raise BadEntry(text, f"their {key} is not of `{place}`")
    return number


def _captions_of(annotation: dict, where: str) -> list[str]:
    key = "captions" if annotation.get("captions") else "caption"
    return texts_of(annotation.get(key), key, where)


def convert(converter: Converter, out: Path) -> None:
    """Writes the records, their word lists beside them, and tells what was counted."""
    lists: dict[str, Sequence] = {}
    if converter.categories:
        lists |= {"categories.txt": converter.category_names, "categories.json": converter.categories}
    if converter.attributes:
        lists["attributes.json"] = converter.attributes
    for check_only in (True, False):
        if not check_only:
            converter.counts["records"] = write(out, converter.regions(), converter.counts)
        for name, entries in lists.items():
            write_list(out.absolute().parent / name, entries, check_only)
    tell(out, {name: count for name, count in converter.counts.items() if count})


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("coco", __doc__.splitlines()[0], SHARED_WITH)
    parser.add_argument("--dataset", required=True, choices=DATASETS, help="whose file it is")
    parser.add_argument("--split", default="train", help="train (default), val, test; anything for your own data")
    parser.add_argument("--annotations", type=Path, required=True, help="the .json or .json.gz")
    add_box_format(parser, required=False)
    parser.add_argument("--name", help="own data: what the records' ids begin with (default: the file's name)")
    parser.add_argument("--source", help="own data: where they come from, for the records (default: the file's name)")
    parser.add_argument("--licence", help="own data: licence that the records say")
    parser.add_argument("--keep-crowd", action="store_true", help="keep regions marked iscrowd, groups of many things")
    parser.add_argument("--strict", action="store_true", help="stop at what would be left out as faulty")
    parser.add_argument("--stored-pixels", action="store_true", help=STORED_PIXELS)
    parser.add_argument("--text-key", nargs="+", metavar="KEY", help=TEXT_KEY)
    return run_command("data_prep.coco", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    name, dataset = args.dataset, DATASETS[args.dataset]
    own = {key: getattr(args, key) for key in ("box_format", "name", "source", "licence", "text_key")}
    text_keys = None
    if name == "own":
        name, text_keys = args.name or args.annotations.name.split(".")[0], args.text_key or ()
        dataset = Dataset(args.source or args.annotations.name, args.licence or "", box_format=args.box_format)
    elif given := [key for key, value in own.items() if value is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')}: {name} has its own; it is for --dataset own")
    if dataset.shared and args.split == "train":
        exclude = excluded_images(args, SHARED_WITH)
    else:
        exclude = image_keys(args.exclude or ())
    images = ImageFolder(args.images, args.out, args.image_prefix, args.stored_pixels)
    converter = Converter(
        name,
        dataset,
        args.split,
        args.annotations,
        images,
        exclude=exclude,
        keep_crowd=args.keep_crowd,
        subset=args.subset,
        strict=args.strict,
        text_keys=text_keys,
    )
    convert(converter, args.out)


if __name__ == "__main__":
    sys.exit(main())
