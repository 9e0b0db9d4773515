r"""Visual Genome regions -> record files: dense captioning in DenseCap's splits, and two region captioning test sets.

    python -m data_prep.visual_genome --set 1.2 --split test --regions region_descriptions.json \
        --image-data image_data.json --splits densecap_splits.json --images visual_genome --out data/vg1.2/test.jsonl
    python -m data_prep.visual_genome --set 1.2 --split train --regions region_descriptions.json \
        --image-data image_data.json --splits densecap_splits.json --images visual_genome --out data/vg1.2/train.jsonl \
        --exclude data/refcocog/val.jsonl data/refcocog/test.jsonl data/ovad/test.jsonl
    python -m data_prep.visual_genome --set glamm --split test --captions test_caption.json \
        --images visual_genome --out data/vg_glamm/test.jsonl
    python -m data_prep.visual_genome --set grit --split test --captions test.json \
        --images visual_genome --out data/vg_grit/test.jsonl

Where the files come from:

    images        homes.cs.washington.edu/~ranjay/visualgenome: images.zip and images2.zip (15 GB together), unpacked
                  into one folder as VG_100K and VG_100K_2, or with all pictures in it
    1.2, coco     the same place, version 1.2: region_descriptions.json (some 700 MB) and image_data.json
    1.0           the same place, version 1.0: region_descriptions.json and image_data.json
    splits        github.com/jcjohnson/densecap: info/densecap_splits.json
    glamm         GLaMM's test_caption.json: GRiT's test images with one region each, about 5,000; protocol "V1", which
                  GLaMM, Osprey, Alpha-CLIP, ControlCap and DynRefer report
    grit          GRiT's test.json and train.json (github.com/JialianW/GRiT, VG_preprocessed_annotations): all regions
                  in DenseCap's cleaning; test is protocol "V2", which ASM, TAP and DINO-X report

What comes out of 1.0, 1.2 and coco: the regions of DenseCap's train (77,398 images), val (5,000) or test (5,000); coco
keeps the images of 1.2 that come from COCO. Phrases are lower-cased without punctuation, those of more than 15 words
are dropped, boxes lie in (1, 1, W, H). A phrase of which nothing is left is dropped in train; in val and test its
region stays, without a caption, since it is still a thing to be found. glamm and grit are taken as they are: grit's
test has 232,935 regions of 5,000 images, its train 77,396 images. A record's size is that of the picture itself; where
the annotations say another, it is counted, and refused when that is common.

About half of the images are COCO images, also of RefCOCO's, COCO's and OVAD's test sets. Those are left out of training
parts: name the test sets' records with --exclude.

Licence: annotations CC BY 4.0; photographs of their Flickr owners (YFCC100M and COCO).
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

from data_prep.box_formats import BoxReader
from data_prep.captioned_boxes import read_captioned_boxes
from data_prep.converter import arguments, excluded_images, write
from data_prep.counts import Tally, check_counts, tell
from data_prep.densecap import MAX_WORDS, SPLITS, clamp_box, clean_phrase, read_splits
from dynrefer.boxes import check_image_hw
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_items
from dynrefer.data.records import Region
from dynrefer.errors import run_command
from dynrefer.images import read_image_hw

DENSECAP_SETS = ("1.0", "1.2", "coco")
CAPTION_SETS = ("glamm", "grit")
# What the files must hold, besides the images of SPLITS. Of 1.0 there are copies with 108,249 and with 108,077 images.
DESCRIBED = {"1.2": {"images": 108_077}, "coco": {"images": 108_077}}  # region_descriptions.json, whatever the split
CAPTIONED = {("grit", "test"): {"regions": 232_935, "images": 5_000}, ("grit", "train"): {"images": 77_396}}
MAX_OTHER_SIZE = 0.01  # of the images: more are another copy of the pictures, not slips of the annotations
LICENCE = "Annotations: Visual Genome, CC BY 4.0; photographs: their Flickr owners"
SHARED = "test sets of COCO images: RefCOCO, RefCOCO+, RefCOCOg, COCO val2017, OVAD"


class Photo(NamedTuple):
    """An entry of image_data.json. path: folder and name in the official archives; coco_id: None = not of COCO."""

    path: str
    image_hw: tuple[int, int]
    coco_id: int | None


def read_photos(path: Path) -> dict[int, Photo]:
    """The images of image_data.json (1.0 calls their id "id", 1.2 "image_id") by their ids."""
    photos: dict[int, Photo] = {}
    for entry in read_items(path, "item"):
        try:
            image_id = entry["image_id"] if "image_id" in entry else entry["id"]
            name = "/".join(str(entry["url"]).split("/")[-2:])
            photo = Photo(name, check_image_hw((entry["height"], entry["width"])), entry["coco_id"])
            if not name.endswith(f"/{image_id}.jpg") or not isinstance(photo.coco_id, int | None):
                raise ValueError(f"url {entry['url']!r}, coco_id {photo.coco_id!r}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: {str(entry)[:200]}: not an entry of image_data.json ({type(error).__name__}: {error})"
            ) from error
        photos[image_id] = photo
    return photos


class Pictures:
    """Where the pictures lie and how large they really are. root: the folder that records' image paths start from."""

    def __init__(self, images: ImageFolder, root: Path, tally: Tally):
        self._images, self._root, self._tally = images, root, tally
        self._found: dict[str, tuple[str, tuple[int, int]] | None] = {}
        self._other_size: list[str] = []

    def get(self, name: str, recorded_hw: tuple[int, int], where: str) -> tuple[str, tuple[int, int]] | None:
        """(path for a record, (height, width)) of a picture; None, counted, where the file is damaged. name: as the
        official archives have it, or bare. ValueError where there is no such file."""
        if name not in self._found:
            self._found[name] = self._look(name, recorded_hw, where)
        return self._found[name]

    def _look(self, name: str, recorded_hw: tuple[int, int], where: str) -> tuple[str, tuple[int, int]] | None:
        base = name.rpartition("/")[2]
        path = self._images.find(name, f"VG_100K/{base}", f"VG_100K_2/{base}", base)
        if path is None:
            raise ValueError(
                f"{where}: image {base!r} is neither in {self._images.folder} nor in its VG_100K or VG_100K_2; unpack "
                "images.zip and images2.zip into one folder"
            )
        try:
            image_hw = read_image_hw(self._root / path)
        except ValueError as error:
            self._tally.leave_out("images", "its file is damaged", str(error))
            return None
        if image_hw != recorded_hw:
            self._other_size.append(f"{path} is {image_hw}, recorded {recorded_hw}")
        return path, image_hw

    def check(self) -> None:
        """Counts the pictures of another size than recorded; ValueError where they are too many to be slips."""
        if self._other_size:
            self._tally["images of another size than recorded"] = len(self._other_size)
        if len(self._other_size) > MAX_OTHER_SIZE * len(self._found):
            raise ValueError(
                f"{len(self._other_size)} of {len(self._found)} images have another size than the annotations say: "
                f"{self._other_size[0]} (height, width); convert with the images as released, not resized ones"
            )


def densecap_regions(
    path: Path,
    photos: Mapping[int, Photo],
    image_ids: Set[int],
    pictures: Pictures,
    tally: Tally,
    *,
    name: str,
    split: str,
    excluded: Set[int | str] = frozenset(),
    subset: bool = False,
) -> Iterator[Region]:
    """Cleaned regions of one of DenseCap's splits, streamed from region_descriptions.json.

    name: one of DENSECAP_SETS. image_ids: of the split. excluded: COCO ids of images to leave out, and file names.
    """

    def found() -> Iterator[tuple]:
        seen: set[int] = set()
        for image_id, regions in _images(path, tally):
            if image_id not in image_ids:
                continue
            tally[f"{split} images of the split"] += 1
            where = f"{path}: image {image_id}"
            if (photo := photos.get(image_id)) is None:
                raise ValueError(f"{where} is not in image_data.json; are both files of the same version?")
            if name == "coco" and photo.coco_id is None:
                tally["images left out: not of COCO"] += 1
            elif photo.coco_id in excluded or f"{image_id}.jpg" in excluded:
                tally["images left out: in a test set that --exclude names"] += 1
            elif picture := pictures.get(photo.path, photo.image_hw, where):
                yield from _cleaned(regions, picture, split, seen, tally, where)

    reader = BoxReader(str(path), "xywh", tally)
    source, num_regions, image = f"visual-genome-{name}", 0, None
    for box, (where, region_id, phrase, (image_path, image_hw)) in reader.read(found()):
        box = clamp_box(box, image_hw)
        if box is None:
            tally.leave_out("regions", "its box covers nothing of (1, 1, W, H)", where)
            continue
        if image_path != image:
            tally[f"{split} images with regions"] += 1
            image = image_path
        num_regions += 1
        yield Region(
            id=f"vg-{region_id}",
            image=image_path,
            image_hw=image_hw,
            box=box,
            captions=(phrase,) if phrase else (),
            source=source,
            licence=LICENCE,
            split=split,
        )
    tally[f"{split} regions"] = num_regions
    found_counts = {"images": tally.pop("images in the file"), f"{split} images": tally[f"{split} images of the split"]}
    published = {**DESCRIBED.get(name, {}), f"{split} images": SPLITS[split]}
    check_counts(found_counts, published, f"{path}, Visual Genome {name}", subset)
    pictures.check()


def _images(path: Path, tally: Tally) -> Iterator[tuple[int, list]]:
    """(image id, its regions) of region_descriptions.json, every image once."""
    seen: set[int] = set()
    for entry in read_items(path, "item"):
        if not isinstance(entry, dict) or not isinstance(entry.get("regions"), list):
            raise ValueError(
                f"{path}: {str(entry)[:200]}: expected an image id and regions; is it region_descriptions?"
            )
        image_id = entry.get("id", entry.get("image_id"))
        if type(image_id) is not int or image_id in seen:
            raise ValueError(f"{path}: image id {image_id!r}: expected a whole number that stands there once")
        seen.add(image_id)
        tally["images in the file"] += 1
        yield image_id, entry["regions"]


def _cleaned(
    regions: list[dict], picture: tuple[str, tuple[int, int]], split: str, seen: set[int], tally: Tally, where: str
) -> Iterator[tuple]:
    """What `BoxReader.read` wants of an image's regions, those that cleaning leaves."""
    for region in regions:
        try:
            region_id = region["region_id"] if "region_id" in region else region["id"]
            phrase = clean_phrase(region["phrase"])
            numbers = [region["x"], region["y"], region["width"], region["height"]]
            known = region_id in seen
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where}: {str(region)[:200]}: expected region_id, x, y, width, height and phrase "
                f"({type(error).__name__}: {error})"
            ) from error
        if phrase.count(" ") >= MAX_WORDS:
            tally[f"regions left out: more than {MAX_WORDS} words"] += 1
        elif not phrase and split == "train":
            tally["regions left out: a phrase without a word"] += 1
        elif known:
            tally.leave_out("regions", "its id stood there before", f"{where}: region {region_id}")
        else:
            seen.add(region_id)
            if not phrase:
                tally["regions without a caption"] += 1
            here = f"{where}: region {region_id}"
            yield numbers, picture[1], here, (here, region_id, phrase, picture)


def captioned_regions(
    path: Path,
    pictures: Pictures,
    tally: Tally,
    *,
    name: str,
    split: str,
    photos: Mapping[int, Photo] | None = None,
    excluded: Set[int | str] = frozenset(),
    subset: bool = False,
) -> Iterator[Region]:
    """Regions of GLaMM's or GRiT's caption file, captions as they stand.

    name: one of CAPTION_SETS. photos: of image_data.json, for the COCO ids that `excluded` is compared with.
    """

    def found() -> Iterator[tuple]:
        nonlocal num_in_file
        for annotation, image in read_captioned_boxes(path):
            num_in_file += 1
            where = f"{path}: annotation {annotation['id']}"
            image_id = image.name.rpartition("/")[2].removesuffix(".jpg")
            photo = photos.get(int(image_id)) if photos and image_id.isdecimal() else None
            if photos and photo is None:
                raise ValueError(f"{where}: image {image.name!r} is not in image_data.json; is it of Visual Genome?")
            used.add(annotation["image_id"])
            if (photo and photo.coco_id in excluded) or f"{image_id}.jpg" in excluded:
                tally["regions left out: of images in a test set that --exclude names"] += 1
            elif picture := pictures.get(photo.path if photo else image.name, image.image_hw, where):
                yield annotation["bbox"], picture[1], where, (annotation, picture)

    used: set = set()  # ids of images
    num_in_file = num_regions = 0
    source = f"visual-genome-{name}"
    for box, (annotation, (image_path, image_hw)) in BoxReader(str(path), "xywh", tally).read(found()):
        caption = annotation["caption"].strip()
        if not caption:
            tally["regions without a caption"] += 1
        num_regions += 1
        yield Region(
            id=f"vg-{name}-{split}-{annotation['id']}",
            image=image_path,
            image_hw=image_hw,
            box=box,
            captions=(caption,) if caption else (),
            source=source,
            licence=LICENCE,
            split=split,
        )
    tally.update({f"{split} regions": num_regions, f"{split} images in the file": len(used)})
    in_file = {"regions": num_in_file, "images": len(used)}
    check_counts(in_file, CAPTIONED.get((name, split), {}), str(path), subset)
    if name == "glamm" and in_file["regions"] != in_file["images"]:
        raise ValueError(
            f"{path}: {in_file['regions']:,} regions of {in_file['images']:,} images, but GLaMM's test_caption.json "
            "has one an image; is it GRiT's file (--set grit)?"
        )
    pictures.check()


def main(argv: list[str] | None = None) -> int:
    parser = arguments("visual_genome", "Visual Genome regions -> record files", shared_with=SHARED)
    parser.add_argument("--set", choices=(*DENSECAP_SETS, *CAPTION_SETS), required=True, help="see the file's head")
    parser.add_argument("--split", choices=tuple(SPLITS), required=True)
    parser.add_argument("--regions", type=Path, metavar="FILE", help="region_descriptions.json (1.0, 1.2, coco)")
    parser.add_argument("--image-data", type=Path, metavar="FILE", help="image_data.json (and wherever --exclude is)")
    parser.add_argument("--splits", type=Path, metavar="FILE", help="densecap_splits.json (1.0, 1.2, coco)")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="test_caption.json (glamm), test.json (grit)")
    parser.add_argument("--strict", action="store_true", help="a faulty region or picture is an error")
    return run_command("data_prep.visual_genome", convert, parser.parse_args(argv))


def convert(args: argparse.Namespace) -> None:
    """Writes the records that the command line asks for and prints what was counted."""
    densecap = args.set in DENSECAP_SETS
    if not densecap and args.split not in {"glamm": ("test",), "grit": ("train", "test")}[args.set]:
        raise ValueError(f"--set {args.set} has no {args.split} split")
    excluded = excluded_images(args, SHARED) if args.split == "train" or args.exclude else set()
    needed = ["regions", "image_data", "splits"] if densecap else ["captions", *(["image_data"] if excluded else [])]
    if missing := [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]:
        raise ValueError(f"--set {args.set} --split {args.split} needs {', '.join(missing)}; see the file's head")
    tally = Tally(args.strict)
    pictures = Pictures(ImageFolder(args.images, args.out, args.image_prefix), args.out.absolute().parent, tally)
    photos = read_photos(args.image_data) if args.image_data else None
    common = {"name": args.set, "split": args.split, "excluded": excluded, "subset": args.subset}
    if densecap:
        image_ids = read_splits(args.splits, args.subset)[args.split]
        regions = densecap_regions(args.regions, photos, image_ids, pictures, tally, **common)
    else:
        regions = captioned_regions(args.captions, pictures, tally, photos=photos, **common)
    write(args.out, regions, tally)
    tell(args.out, tally.told())


if __name__ == "__main__":
    sys.exit(main())
