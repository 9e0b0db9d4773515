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
                        segmentation) and categories (id, name). An annotation's `caption` or `captions` become the
                        record's. --box-format says what bbox holds; a segmentation counts in pixels always.

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
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.box_formats import BoxReader, add_box_format
from data_prep.coco_datasets import DATASETS, Dataset, Labels
from data_prep.converter import (
    ImageFolder,
    arguments,
    excluded_images,
    image_key,
    image_keys,
    write,
    write_list,
)
from data_prep.counts import check_counts, tell
from data_prep.json_files import read_items
from dynrefer.boxes import check_image_hw
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.masks import check_mask_record, mask_to_box, rle_to_box, to_mask

SHARED_WITH = "the tests of RefCOCOg and OVAD"


class Converter:
    """Records of one COCO JSON file. Images and categories are read at once, annotations streamed by `regions`.

    name: begins the records' ids, NAME-SPLIT-ID. exclude: keys of images to leave out (`converter.image_keys`). subset:
    counts may differ and images may be missing. strict: what would be left out as damaged is an error. counts: what the
    file held and what was left out. Raises ValueError for a damaged file, another dataset's or another split's.
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
    ):
        if dataset.published and split not in dataset.published:
            raise ValueError(f"split {split!r}: {name} has {', '.join(dataset.published)}")
        self.name, self.dataset, self.split, self.path, self.images = name, dataset, split, path, images
        self.exclude, self.keep_crowd, self.subset, self.strict = exclude, keep_crowd, subset, strict
        self._file = str(path)
        self.counts: Counter[str] = Counter()
        self.categories: list[dict] = []  # entries of the file
        self.attributes: list[dict] = []
        self._labels: Labels | None = None
        self._images: dict[int | str, tuple[str, tuple[int, int]] | None] = {}  # id -> path and size, None = left out
        self._read_lists()
        self._check(early=True)

    def _read_lists(self) -> None:
        nested = self.dataset.form == "nested"
        for image in read_items(self.path, "item" if nested else "images.item"):
            self._add_image(image)
        self.counts["images"] = len(self._images)
        if not any(self._images.values()):
            raise ValueError(
                f"{self.path}: none of its {len(self._images):,} images is left; look at --images and --exclude"
            )
        if nested:
            names = {name for entry in read_items(self.path, "item") for _, name in self._nested_annotations(entry)}
            self.categories = [{"name": name} for name in sorted(names)]
        elif self.dataset.form == "instances":
            self.categories = list(read_items(self.path, "categories.item"))
            ids: set[int | str] = set()
            for entry in self.categories:
                number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
                if not isinstance(number, int | str) or number in ids or not isinstance(name, str) or not name.strip():
                    raise ValueError(f"{self.path}: category {str(entry)[:100]}: expected a name, and an id of its own")
                ids.add(number)
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

    def _add_image(self, image: dict) -> None:
        try:
            number, names = image["id"], self.dataset.names(image)
            image_hw = image["height"], image["width"]
            if not type(image_hw[0]) is type(image_hw[1]) is int or min(image_hw) <= 0:
                check_image_hw(image_hw)
            where = f"{self._file}: image {number}"
            if number in self._images:
                raise ValueError("its id stands in the file twice")
            found = self.images.find(*names)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{self.path}: image {str(image)[:100]}: {type(error).__name__} {error}; expected an object with id, "
                "file_name, height and width, ids once each"
            ) from error
        self._images[number] = None
        if self.exclude and image_key(names[0]) in self.exclude:
            self.counts["images left out, shared with --exclude"] += 1
        elif names[0].rpartition("/")[2] in self.dataset.lost:
            self.counts["images left out, lost by the dataset's makers"] += 1
        elif found is None and self.subset:
            self.counts["images left out, not in the folder"] += 1
        else:
            found = found or self.images.path(names[0], where)
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
            yield self._region(box, *payload)

    def _annotations(self) -> Iterator[tuple]:
        file, images = self._file, self._images
        names = {entry["id"]: entry["name"].strip() for entry in self.categories}
        ids = array("q")  # 8 bytes each, of tens of millions
        texts: set[str] = set()  # ids that are no numbers, of people's own files
        with_annotations: set[int | str] = set()
        num_crowds = num_without_image = 0
        for annotation in read_items(self.path, "annotations.item"):
            try:
                number, image_id = annotation["id"], annotation["image_id"]
                image, category = images[image_id], names[annotation["category_id"]]
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{file}: annotation {str(annotation)[:100]}: {error} is missing; expected id, bbox, image_id of "
                    "`images` and category_id of `categories`"
                ) from error
            if type(number) is int and abs(number) < 2**62:
                ids.append(number)
            elif str(number) in texts:
                raise ValueError(f"{file}: annotation id {number!r} stands in it twice; ids are unique")
            else:
                texts.add(str(number))
            with_annotations.add(image_id)
            if image is None:
                num_without_image += 1
            elif annotation.get("iscrowd") and not self.keep_crowd:
                num_crowds += 1
            else:
                where = f"{file}: annotation {number}"
                yield annotation.get("bbox"), image[1], where, (number, image, category, annotation, where)
        self.counts["annotations"] = len(ids) + len(texts)
        self.counts["images with annotations"] = len(with_annotations)
        self.counts["annotations left out with their image"] = num_without_image
        self.counts["crowd regions left out"] = num_crowds
        numbers = np.frombuffer(ids, np.int64)
        numbers.sort()
        if (repeated := numbers[1:][numbers[1:] == numbers[:-1]]).size:
            raise ValueError(f"{file}: annotation id {repeated[0]} stands in it twice; ids are unique")

    def _nested(self) -> Iterator[Region]:
        def items():
            for entry in read_items(self.path, "item"):
                image = self._images[entry["id"]]
                for k, (annotation, category) in enumerate(self._nested_annotations(entry)):
                    self.counts["annotations"] += 1
                    if image is None:
                        self.counts["annotations left out with their image"] += 1
                        continue
                    where = f"{self.path}: image {entry['id']}, annotation {k}"
                    number = f"{entry['id']}-{k}"
                    yield annotation.get("bbox"), image[1], where, (number, image, category, annotation, where)

        for box, payload in self._boxes(items()):
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
            try:
                self._images[annotation["image_id"]]
                text = " ".join(annotation["caption"].split())
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path}: annotation {str(annotation)[:100]}: expected a caption, and image_id of `images`"
                ) from error
            captions.setdefault(annotation["image_id"], []).append(text)
            self.counts["captions"] += 1
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
        return BoxReader(self.path, self.dataset.box_format, self.counts, self.strict).read(items)

    def _region(self, box, number, image, category, annotation, where) -> Region:
        path, image_hw = image
        mask = annotation.get("segmentation") or None
        if mask is not None:
            mask = self._mask(mask, image_hw, where)
        return Region(
            id=f"{self.name}-{self.split}-{number}",
            image=path,
            image_hw=image_hw,
            box=box or _box_of(mask, image_hw, where),
            mask=mask,
            captions=_captions_of(annotation, where) if "caption" in annotation or "captions" in annotation else (),
            attributes=self._labels(annotation) if self._labels else {},
            category=category,
            source=self.dataset.source,
            licence=self.dataset.licence,
            split=self.split,
        )

    def _mask(self, mask: object, image_hw: tuple[int, int], where: str) -> dict | list | None:
        """The mask as a record holds it; None where all its polygons have fewer than three corners."""
        if isinstance(mask, list):
            polygons = [mask] if isinstance(mask[0], int | float) else mask
            mask = [polygon for polygon in polygons if not isinstance(polygon, list) or len(polygon) >= 6]
            if len(mask) < len(polygons):
                if self.strict:
                    raise ValueError(f"{where}: a polygon of fewer than three corners, {polygons}")
                self.counts["polygons left out, fewer than three corners"] += len(polygons) - len(mask)
            if not mask:
                return None
        try:
            check_mask_record(mask, image_hw)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return mask


def _box_of(mask: dict | list | None, image_hw: tuple[int, int], where: str) -> tuple[float, ...]:
    """The box of an annotation without one."""
    if mask is None:
        raise ValueError(f"{where}: neither a bbox nor a segmentation; an annotation has at least one of them")
    try:
        box = rle_to_box(mask) if isinstance(mask, dict) else mask_to_box(to_mask(mask, image_hw))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if box is None:
        raise ValueError(f"{where}: no bbox, and no pixel in its segmentation")
    return tuple(box.tolist())


def _captions_of(annotation: dict, where: str) -> tuple[str, ...]:
    captions = annotation.get("captions") or annotation.get("caption") or []
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"{where}: captions {str(captions)[:100]}: expected a text or a list of texts")
    return tuple(filter(None, (" ".join(text.split()) for text in captions)))


def convert(converter: Converter, out: Path) -> None:
    """Writes the records, their word lists beside them, and tells what was counted."""
    lists: dict[str, Sequence] = {}
    if converter.categories:
        lists |= {"categories.txt": converter.category_names, "categories.json": converter.categories}
    if converter.attributes:
        lists["attributes.json"] = converter.attributes
    for check_only in (True, False):
        if not check_only:
            converter.counts["records"] = write(out, converter.regions())
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
    parser.add_argument("--strict", action="store_true", help="stop at what would be left out as damaged")
    return run_command("data_prep.coco", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    name, dataset = args.dataset, DATASETS[args.dataset]
    own = {key: getattr(args, key) for key in ("box_format", "name", "source", "licence")}
    if name == "own":
        name = args.name or args.annotations.name.split(".")[0]
        dataset = Dataset(args.source or args.annotations.name, args.licence or "", box_format=args.box_format)
    elif given := [key for key, value in own.items() if value is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')}: {name} has its own; it is for --dataset own")
    if dataset.shared and args.split == "train":
        exclude = excluded_images(args, SHARED_WITH)
    else:
        exclude = image_keys(args.exclude or ())
    images = ImageFolder(args.images, args.out)
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
    )
    convert(converter, args.out)


if __name__ == "__main__":
    sys.exit(main())
