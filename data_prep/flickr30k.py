r"""Flickr30k Entities (human boxes with human phrases) -> record files, images beside them.

    python -m data_prep.flickr30k --annotations Annotations --sentences Sentences --images flickr30k-images \
        --ids train.txt --out data/flickr30k
    python -m data_prep.flickr30k --jsonl train.jsonl.gz --images train_images_160.tar --holdout 0.05 \
        --out data/flickr30k
    python -m data_prep.flickr30k --jsonl dev.jsonl --images dev_images --out data/flickr30k_dev --split val \
        --tags data/flickr30k/tags.txt --image-size 160

Writes OUT/SPLIT.jsonl, OUT/images/ and the word lists OUT/tags.txt, attributes.txt and categories.txt. One record is
one box: its captions are the phrases people used for it, its category the coarse type (none where the phrases have
several), its tags the frequent words of the phrases, its attributes the colours named in them (a colour nobody
named is unknown, not absent). Its source ends with all of its coarse types: "flickr30k-entities:clothing+other". Boxes
with phrases that name a group of boxes are left out unless --groups keep.
"""

import argparse
import hashlib
import io
import os
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from data_prep.counts import tell
from data_prep.phrase_words import phrase_words
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region
from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path, read_jsonl, read_text
from dynrefer.images import open_image

SOURCE = "flickr30k-entities"
LICENCE = "Annotations: Flickr30k Entities, research use; photographs: their Flickr owners, research and education only"
CATEGORIES = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
COLOURS = {  # word -> attribute
    **{name: name for name in "black white red blue green yellow orange pink purple brown gray tan beige".split()},
    **{"silver": "silver", "turquoise": "turquoise", "gold": "gold", "golden": "gold", "grey": "gray"},
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class SourceRegion:
    """One box of the source. box: xyxy in the original photo's pixels; num_boxes: 1 when the phrases name only it."""

    box: list[float]
    num_boxes: int
    types: tuple[str, ...]
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Photo:
    """One photo of the source. width, height: the size that its boxes count in; where: file and line, for errors."""

    id: str
    file: str
    width: int
    height: int
    regions: tuple[SourceRegion, ...]
    where: str


def convert(
    photos: Iterable[Photo],
    images: "ImageStore",
    out: Path,
    *,
    split: str = "train",
    image_size: int | None = None,
    holdout: float = 0.0,
    groups: str = "drop",
    tags: list[str] | None = None,
    min_tag_count: int = 20,
) -> dict[str, int]:
    """Writes the record files and returns what was counted, by name.

    image_size: squash written images to so many pixels a side; None = as they are. holdout: fraction of the photos, by
    a hash of their ids, that go to val.jsonl. tags: the tag list; None = words that at least min_tag_count training
    regions have. Raises ValueError for damaged or missing input; no record file is written then.
    """
    counts: Counter[str] = Counter()
    records: dict[str, list[Region]] = {split: []} | ({"val": []} if holdout else {})
    (out / "images").mkdir(parents=True, exist_ok=True)
    seen: dict[str, str] = {}
    for photo in photos:
        if (first := seen.setdefault(photo.id, photo.where)) != photo.where:
            raise ValueError(f"{photo.where}: photo {photo.id} stands in {first} already")
        kept = [k for k, region in enumerate(photo.regions) if _is_kept(region, groups, counts)]
        if not kept:
            counts["photos without a region"] += 1
            continue
        name, image_hw = images.write(photo, out / "images", image_size)
        part = "val" if holdout and is_held_out(photo.id, holdout) else split
        for k in kept:
            records[part].append(_record(photo, k, name, image_hw, part))
        counts[f"{part} photos"] += 1
    for part, regions in records.items():
        if not regions:
            raise ValueError(f"no {part} regions in {len(seen)} photos; check the input, --ids, --groups and --holdout")
    if tags is None:
        words = Counter(word for region in records[split] for word in set(phrase_words(region.captions)))
        tags = sorted((word for word, count in words.items() if count >= min_tag_count), key=lambda w: (-words[w], w))
    known = set(tags)
    for part, regions in records.items():
        regions = [
            replace(region, tags=tuple(w for w in dict.fromkeys(phrase_words(region.captions)) if w in known))
            for region in regions
        ]
        counts[f"{part} regions"] = write_records(out / f"{part}.jsonl", regions)
        counts[f"{part} phrases"] = sum(len(region.captions) for region in regions)
        counts[f"{part} regions with one category"] = sum(region.category is not None for region in regions)
        counts[f"{part} regions with a colour"] = sum(bool(region.attributes) for region in regions)
    lists = {"tags": tags, "attributes": sorted(set(COLOURS.values())), "categories": CATEGORIES}
    for name, words in lists.items():
        with atomic_path(out / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return {**counts, "tags in the list": len(tags)}


def is_held_out(photo_id: str, fraction: float) -> bool:
    """The same answer for a photo whatever else is converted."""
    return int(hashlib.sha256(photo_id.encode()).hexdigest()[:8], 16) < fraction * 16**8


def read_photos(path: str | os.PathLike) -> Iterator[Photo]:
    """Photos of the JSONL(.gz) format, one a line; ValueError names file and line of what is wrong."""
    for line, d in read_jsonl(path):
        where = f"{path}:{line}"
        try:
            regions = tuple(
                SourceRegion(_numbers(r["box"]), _count(r["n_boxes"]), _strings(r["types"]), _strings(r["phrases"]))
                for r in d["regions"]
            )
            photo = Photo(str(d["id"]), d["file"], _count(d["width"]), _count(d["height"]), regions, where)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: not a photo of this format ({type(error).__name__}: {error}); expected id, file, width, "
                "height and regions of box, n_boxes, types and phrases"
            ) from error
        yield photo


def read_release(annotations: Path, sentences: Path, ids: list[str] | None = None) -> Iterator[Photo]:
    """Photos of the official release: Annotations/ID.xml and Sentences/ID.txt. ids: only these; None = all."""
    for folder in (annotations, sentences):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; unpack the release's annotations.zip first")
    ids = sorted(path.stem for path in annotations.glob("*.xml")) if ids is None else ids
    if not ids:
        raise ValueError(f"{annotations}: no .xml files in it")
    for photo_id in ids:
        xml, text = annotations / f"{photo_id}.xml", sentences / f"{photo_id}.txt"
        file, width, height, boxes = _read_xml(xml)
        phrases = _read_sentences(text)
        num_boxes = Counter(chain for chains in boxes.values() for chain in chains)  # boxes of a chain
        regions = tuple(
            SourceRegion(
                list(box),
                max(num_boxes[chain] for chain in chains),
                tuple(sorted({kind for chain in chains for kinds, _ in phrases.get(chain, ()) for kind in kinds})),
                tuple(phrase for chain in chains for _, phrase in phrases.get(chain, ())),
            )
            for box, chains in boxes.items()
        )
        yield Photo(photo_id, file, width, height, regions, str(xml))


def _read_xml(path: Path) -> tuple[str, int, int, dict[tuple[float, ...], list[str]]]:
    """(file name, width, height, box -> its chains). Objects that are scenes or have no box are no regions."""
    try:
        root = ElementTree.parse(path).getroot()
        size = root.find("size")
        boxes: dict[tuple[float, ...], list[str]] = {}
        for thing in root.iter("object"):
            corners = thing.find("bndbox")
            if corners is None:
                if "1" not in (thing.findtext("scene"), thing.findtext("nobndbox")):
                    raise ValueError("an object has neither a bndbox nor a scene or nobndbox flag")
                continue
            box = tuple(float(corners.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax"))
            for low, high in ((0, 2), (1, 3)):  # a box of one pixel: both corners are that pixel, counted from 1
                if box[low] == box[high]:
                    box = (*box[:low], box[low] - 1, *box[low + 1 :])
            chains = boxes.setdefault(box, [])
            chains.extend(name.text.strip() for name in thing.iter("name") if name.text and name.text not in chains)
        file = root.findtext("filename") or f"{path.stem}.jpg"
        return file, int(size.findtext("width")), int(size.findtext("height")), boxes
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; every photo has one, check --annotations and --ids") from None
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not an annotation of this release, or cut off ({error})") from error


def _read_sentences(path: Path) -> dict[str, list[tuple[list[str], str]]]:
    """Chain -> [(types, phrase)] of "[/EN#123/people/other A man] sits on [/EN#0/notvisual it] ." lines."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; every photo has one, check --sentences and --ids") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    phrases: dict[str, list[tuple[list[str], str]]] = {}
    for line, sentence in enumerate(text.splitlines(), 1):
        found = re.findall(r"\[/EN#([^/\s\]]+)((?:/[^/\s\]]+)*)\s+([^\[\]]*)\]", sentence)
        if len(found) != sentence.count("[/EN#"):
            raise ValueError(f"{path}:{line}: a phrase is not of the form [/EN#chain/type words]: {sentence[:100]!r}")
        for chain, kinds, phrase in found:
            phrases.setdefault(chain, []).append((kinds.strip("/").split("/"), phrase))
    return phrases


class ImageStore:
    """The source's photos: a folder, or a .tar whose members are read only as plain files with harmless names."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}
        if self.path.is_dir():
            return
        if not self.path.is_file():
            raise ValueError(f"images {path}: no such folder or tar file")
        with _damaged_tar(self.path):
            self._tar = tarfile.open(self.path)
            end = 0
            for member in self._tar:
                self._add(member)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            self._tar.fileobj.seek(end)
            if self._tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise EOFError("no end mark after the last member")  # cut between members, which tarfile accepts
        if not self._members:
            raise ValueError(f"images {path}: no .jpg or .png in the tar file")

    def _add(self, member: tarfile.TarInfo) -> None:
        parts = Path(member.name).parts
        if member.name.startswith("/") or ".." in parts or not (member.isfile() or member.isdir()):
            kind = "a link or device" if not (member.isfile() or member.isdir()) else "an absolute path or '..'"
            raise ValueError(f"images {self.path}: member {member.name!r} is {kind}; only plain files are unpacked")
        if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES) and not parts[-1].startswith("._"):
            if parts[-1] in self._members:
                raise ValueError(f"images {self.path}: two files are called {parts[-1]!r}")
            self._members[parts[-1]] = member

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    def read(self, photo: Photo) -> bytes:
        """The encoded photo; ValueError where there is none."""
        if not isinstance(photo.file, str) or Path(photo.file).name != photo.file or photo.file in ("", ".", ".."):
            raise ValueError(f"{photo.where}: file {photo.file!r}: expected a plain file name")
        if self._tar is None:
            try:
                return (self.path / photo.file).read_bytes()
            except OSError as error:
                raise ValueError(f"{photo.where}: image {self.path / photo.file} cannot be read ({error})") from error
        if photo.file not in self._members:
            raise ValueError(
                f"{photo.where}: image {photo.file!r} is not in {self.path} (cut off, or of another split?)"
            )
        with _damaged_tar(self.path):
            return self._tar.extractfile(self._members[photo.file]).read()

    def write(self, photo: Photo, folder: Path, image_size: int | None) -> tuple[str, tuple[int, int]]:
        """Writes the photo into `folder`, squashed to a square where image_size is given. Returns its name there and
        the (height, width) that the file really has, EXIF rotation applied."""
        data = self.read(photo)
        try:
            pixels = open_image(data)  # all of it: a truncated photo stops here
        except ValueError as error:
            raise ValueError(f"{photo.where}: image {photo.file}: {error}") from error
        name = photo.file
        if image_size is not None and pixels.shape[:2] != (image_size, image_size):
            name = f"{Path(photo.file).stem}.jpg"
            squashed = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            squashed.save(buffer, "JPEG", quality=75)  # as the 160-pixel photos that are handed around
            data, pixels = buffer.getvalue(), pixels[:0]
        if not (folder / name).is_file() or (folder / name).read_bytes() != data:
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(data)
        return name, (image_size, image_size) if not len(pixels) else pixels.shape[:2]


@contextmanager
def _damaged_tar(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"images {path}: not a tar file, or damaged or cut off ({error}); copy it again") from error


def _is_kept(region: SourceRegion, groups: str, counts: Counter[str]) -> bool:
    if groups == "drop" and region.num_boxes > 1:
        counts["boxes of groups left out"] += 1
        return False
    if not any(phrase.strip() for phrase in region.phrases):
        counts["boxes without a phrase left out"] += 1
        return False
    return True


def _record(photo: Photo, k: int, image_name: str, image_hw: tuple[int, int], split: str) -> Region:
    """The record of one box, scaled from the original photo's size to the written file's."""
    region = photo.regions[k]
    scale = (image_hw[1] / photo.width, image_hw[0] / photo.height) * 2
    captions = [" ".join(phrase.split()) for phrase in region.phrases if phrase.strip()]
    colours = {COLOURS[word]: 1 for word in re.findall(r"[a-z]+", " ".join(captions).lower()) if word in COLOURS}
    # "a white man" says something else than "a white shirt", and a group's colours are not each member's
    has_colours = region.num_boxes == 1 and "people" not in region.types
    d = {
        "id": f"{photo.id}_{k}",
        "image": f"images/{image_name}",
        "image_hw": list(image_hw),
        "box": [side * factor for side, factor in zip(region.box, scale, strict=True)],
        "captions": captions,
        "attributes": colours if has_colours else {},
        "category": region.types[0] if len(region.types) == 1 else None,
        "source": f"{SOURCE}:{'+'.join(region.types)}",
        "licence": LICENCE,
        "split": split,
    }
    return Region.from_dict(d, photo.where)


def _numbers(values: list) -> list[float]:
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"box {values!r}: expected four numbers")
    return [float(value) for value in values]


def _count(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r}: expected a whole number of at least 1")
    return value


def _strings(values: list) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r}: expected a list of texts")
    return tuple(values)


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"--ids {path}: no such file; expected one photo id a line")
    ids = [line.strip().removesuffix(".jpg") for line in read_text(path, "--ids").splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"--ids {path}: no ids in it")
    return list(dict.fromkeys(ids))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.flickr30k", description=__doc__.splitlines()[0])
    parser.add_argument("--jsonl", type=Path, help="photos, one a line (.jsonl or .jsonl.gz)")
    parser.add_argument("--annotations", type=Path, help="official release: folder of ID.xml")
    parser.add_argument("--sentences", type=Path, help="official release: folder of ID.txt")
    parser.add_argument("--images", type=Path, required=True, help="folder or .tar of the photos")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--ids", type=Path, help="only these photos, one id a line (the release's train.txt, val.txt)")
    parser.add_argument("--split", default="train", help="name of the split and its file (default train)")
    parser.add_argument("--image-size", type=int, help="squash the written images to so many pixels a side")
    parser.add_argument("--holdout", type=float, default=0.0, help="fraction of the photos that go to val.jsonl")
    parser.add_argument("--groups", choices=("drop", "keep"), default="drop", help="boxes whose phrases name a group")
    parser.add_argument("--tags", type=Path, help="tag list of another split, one word a line (default: count words)")
    parser.add_argument("--min-tag-count", type=int, default=20, help="regions that a tag must have (default 20)")
    return run_command("data_prep.flickr30k", _run, parser.parse_args(arguments))


def _run(args: argparse.Namespace) -> None:
    official = args.annotations is not None and args.sentences is not None
    if (args.jsonl is None) != official or (args.jsonl is not None and (args.annotations or args.sentences)):
        raise ValueError("give either --jsonl FILE, or --annotations and --sentences")
    if not 0 <= args.holdout < 1:
        raise ValueError(f"--holdout {args.holdout}: expected a fraction, 0 <= F < 1")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", args.split) or (args.holdout and args.split == "val"):
        raise ValueError(f"--split {args.split!r}: expected a plain name, and not 'val' together with --holdout")
    if args.image_size is not None and args.image_size < 1:
        raise ValueError(f"--image-size {args.image_size}: expected at least 1 pixel")
    ids = None if args.ids is None else _read_ids(args.ids)
    tags = None
    if args.tags is not None:
        if not args.tags.is_file():
            raise ValueError(f"--tags {args.tags}: no such file; the training split's conversion writes tags.txt")
        tags = list(dict.fromkeys(read_text(args.tags, "--tags").split()))
    if official:
        photos = read_release(args.annotations, args.sentences, ids)
    else:
        wanted = None if ids is None else set(ids)
        photos = (photo for photo in read_photos(args.jsonl) if wanted is None or photo.id in wanted)
    images = ImageStore(args.images)
    try:
        counts = convert(
            photos,
            images,
            args.out,
            split=args.split,
            image_size=args.image_size,
            holdout=args.holdout,
            groups=args.groups,
            tags=tags,
            min_tag_count=args.min_tag_count,
        )
    finally:
        images.close()
    tell(args.out, counts)


if __name__ == "__main__":
    sys.exit(main())
