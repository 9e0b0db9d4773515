"""Pictures, folders, COCO files or records -> one file of results, for `dynrefer describe ... --out`.

What is asked becomes a record file, and `predictions.predict` answers it: a killed job goes on, and several processes
share it.

    results.jsonl            one result a line, as every file of predictions
    results.records.jsonl    the regions that were asked, as records; none where the user gave records
    results.coco.json        COCO's form of it, where that is asked for
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dynrefer.data.coco import annotation_region, coco_names, known_id
from dynrefer.data.export import coco_document, coco_results, exported, image_names, write_coco
from dynrefer.data.image_folder import ImageFolder
from dynrefer.data.json_files import read_items
from dynrefer.data.record_files import write_records
from dynrefer.data.records import Region, RegionRecords, RegionResult, check_whole
from dynrefer.errors import cut, shown
from dynrefer.files import atomic_path, check_out, read_text
from dynrefer.images import open_with_alpha, read_image_hw
from dynrefer.regions import Asked, asked_regions
from dynrefer.results import with_mask

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMS = (".coco.json", ".jsonl")
ANOTHER = "use another --out, or --overwrite"


@dataclass(frozen=True)
class Job:
    """Where a job's files lie, and what of its input the results name.

    out: as the user gave it; predictions, records: the files of results and of regions. image_ids: picture of a record
    -> its id in the user's COCO file, categories: that file's, name -> id; empty of other inputs.
    """

    out: Path
    predictions: Path
    records: Path
    image_ids: Mapping[str, int | str] = field(default_factory=dict)
    categories: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_coco(self) -> bool:
        return self.out != self.predictions


def job_at(out: str | os.PathLike, records: str | os.PathLike | None = None) -> Job:
    """The job that writes `out`; ValueError for a name that says no form, OSError where it cannot be written.
    records: the user's own."""
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name the file to write, for instance {out / 'results.jsonl'}")
    ending = next((form for form in FORMS if out.name.endswith(form) and out.name != form), None)
    if ending is None:
        raise ValueError(f"--out {out}: expected a name that ends in .jsonl, or in .coco.json for COCO's form")
    check_out(out.parent)
    stem = out.name.removesuffix(ending)
    own = out.with_name(f"{stem}.records.jsonl")
    return Job(out, out.with_name(f"{stem}.jsonl"), own if records is None else Path(records))


# --- what is asked ----------------------------------------------------------------------------------------------------


def find_pictures(sources: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(pictures, other files that lie beside them) of paths of pictures and of folders, in the order given.

    Of a folder all pictures in it and below it count, sorted by name; what begins with a dot does not. ValueError for
    what is not there, a folder without pictures, and a picture that is named twice.
    """
    found: list[Path] = []
    others: list[Path] = []
    for source in sources:
        path = Path(source)
        if not path.is_dir():
            found.append(path)
            continue
        inside = [path / name for name in sorted(_below(path))]
        pictures = [file for file in inside if file.suffix.lower() in PICTURES]
        if not pictures:
            what = f"{len(inside)} other files, such as {inside[0].name!r}" if inside else "it is empty"
            raise ValueError(f"folder {source}: no pictures in it ({', '.join(PICTURES)}), {what}")
        found += pictures
        others += [file for file in inside if file.suffix.lower() not in PICTURES]
    places: dict[str, Path] = {}
    for path in found:
        if not path.is_file():
            raise ValueError(f"image {path}: no such file or folder; give paths of pictures, or of folders of them")
        if (first := places.setdefault(os.path.abspath(path), path)) is not path:
            raise ValueError(f"image {path} is named twice, before as {first}; name each picture once")
    return found, others


def _below(folder: Path) -> Iterator[str]:
    """Names of all files in a folder and below it, without hidden ones; OSError where one cannot be listed."""

    def stop(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in files if not name.startswith("."))


def ask_pictures(
    pictures: Sequence[Path], root: Path, kind: str = "image", sam: Any = None, asked: Asked | None = None
) -> list[Region]:
    """Regions of pictures as records of a file in the folder `root`.

    kind: "image", the whole picture; "all", what `sam` finds in it; "alpha", its alpha channel. asked: of the only
    picture what else is pointed at. A region is named as its picture below the folder of all pictures, with its number
    unless it is the whole picture. ValueError names a picture that cannot be read, of several the first, and how many
    there are.
    """
    names = [os.path.relpath(os.path.abspath(path), root.absolute()) for path in pictures]
    _, titles = image_names(names, root)
    sizes = _sizes(pictures)
    regions: list[Region] = []
    bar: Iterable = zip(pictures, names, sizes, strict=True)
    if kind == "all":
        from tqdm import tqdm

        bar = tqdm(bar, total=len(pictures), unit="picture", desc="find regions")
    for path, name, (height, width) in bar:
        title = titles[name]
        if asked is None and kind == "image":
            regions.append(Region(title, name, (height, width), (0.0, 0.0, float(width), float(height))))
            continue
        try:
            pixels, alpha = open_with_alpha(path)
            found, _ = asked_regions(asked or Asked(regions=kind), pixels, 0, alpha=alpha, sam=sam)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith("image ") else f"image {path}: {text}") from error
        regions += [replace(region, id=f"{title}:{k}", image=name) for k, region in enumerate(found)]
    for region in regions:
        check_whole(region)
    if not regions:
        raise ValueError("no regions found in these pictures; point at some, or describe whole ones, --regions image")
    return regions


def _sizes(pictures: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) of each picture, from its header."""
    sizes, bad = [], []
    for path in pictures:
        try:
            sizes.append(read_image_hw(path))
        except ValueError as error:
            bad.append(str(error))
    if bad:
        count = f"; so are {len(bad) - 1} more of {len(pictures)}" if len(bad) > 1 else ""
        raise ValueError(f"{bad[0]}{count}; mend or remove such files, nothing is left out without a word")
    return sizes


def ask_coco(
    path: Path, folder: Path | None, root: Path, prefix: str = ""
) -> tuple[list[Region], dict[str, int | str], dict[str, int]]:
    """(regions, picture -> its id, category name -> id) of a COCO file's annotations, each named by its id.

    folder: where the pictures lie, the file's own where None; prefix: what their names in the file begin with there and
    not in the folder. root: folder that records name pictures from. ValueError for annotations that are damaged,
    doubled or of no image, and pictures that are missing, damaged or of another size.
    """
    if not path.is_file():
        raise ValueError(f"--coco {path}: no such file")
    images = ImageFolder(path.parent if folder is None else folder, root / "records.jsonl", prefix)
    listed: dict[int | str, dict] = {}
    for image in read_items(path, "images.item"):
        number = known_id(image.get("id")) if isinstance(image, dict) else None
        if number is None or not (image.get("file_name") or image.get("coco_url")):
            raise ValueError(f"{path}: image {cut(str(image))}: expected an id, and file_name or coco_url")
        if listed.setdefault(number, image) is not image:
            raise ValueError(f"{path}: image id {number!r} stands in it twice; ids are unique")
    regions: list[Region] = []
    places: dict[int | str, tuple[str, tuple[int, int]]] = {}
    owners: dict[str, int | str] = {}
    ids: set[str] = set()
    for annotation in read_items(path, "annotations.item"):
        number = known_id(annotation.get("id")) if isinstance(annotation, dict) else None
        if number is None:
            raise ValueError(f"{path}: annotation {cut(str(annotation))}: expected an object with an id of its own")
        if str(number) in ids:
            raise ValueError(f"{path}: annotation id {number!r} stands in it twice; ids are unique")
        ids.add(str(number))
        image = known_id(annotation.get("image_id"))
        if image not in listed:
            raise ValueError(f"{path}: annotation {number}: image_id {shown(annotation.get('image_id'))} is no image")
        if image not in places:
            name, image_hw = _place(path, listed[image], images)
            if (other := owners.setdefault(name, image)) != image:
                raise ValueError(
                    f"{path}: images {other} and {image} both find {images.file(name)}; give each picture the name "
                    "that its file has"
                )
            places[image] = name, image_hw
        name, image_hw = places[image]
        regions.append(annotation_region(annotation, image_hw, name, str(number), f"{path}: annotation"))
    names = {entry.get("name"): known_id(entry.get("id")) for entry in read_items(path, "categories.item", False)}
    categories = {name: number for name, number in names.items() if isinstance(name, str) and type(number) is int}
    return regions, owners, categories


def _place(path: Path, image: dict, images: ImageFolder) -> tuple[str, tuple[int, int]]:
    """(a picture's name in records, its size) of an entry of a COCO file."""
    names, where = coco_names(image), f"{path}: image {image['id']}"
    found = images.find(*names) or images.path(names[0], where)
    image_hw = images.image_hw(found)
    said = known_id(image.get("height")), known_id(image.get("width"))
    if None not in said and said != image_hw:
        raise ValueError(
            f"{where}: {names[0]!r} is {image_hw[1]} x {image_hw[0]}, the file says {said[1]} x {said[0]}; its boxes "
            "count in the pictures that were annotated. `python -m data_prep.coco --stored-pixels` makes records "
            "where an EXIF orientation turns them"
        )
    return found, image_hw


def write_asked(job: Job, regions: Sequence[Region], overwrite: bool = False) -> None:
    """Writes the record file of a job. ValueError where results of other regions, or another file, are at its place."""
    begun = [job.predictions, *job.predictions.parent.glob(f"{job.predictions.name}.part-*")]
    begun = [path for path in begun if path.is_file() and path.stat().st_size]
    with atomic_path(job.records) as temporary:
        write_records(temporary, regions)
        if begun and not overwrite:
            same = job.records.is_file() and job.records.read_bytes() == temporary.read_bytes()
            if not same:
                raise ValueError(f"{begun[0]} holds results of other regions than these; {ANOTHER}")


# --- what is written --------------------------------------------------------------------------------------------------


def check_form(job: Job, overwrite: bool = False) -> None:
    """ValueError where the COCO file is there already and is none of this job's."""
    if job.is_coco and job.out.exists() and not job.predictions.exists() and not overwrite:
        raise ValueError(f"{job.out} is there already and was not made by this job; {ANOTHER}")


def write_form(job: Job, records: RegionRecords, results: Mapping[str, RegionResult]) -> None:
    """Writes results in COCO's form: of a COCO file's annotations the list of results that `COCO(FILE).loadRes` reads,
    with the file's ids; of other inputs a whole document."""
    said = [exported(region, results[region.id]) for region in records]
    document = coco_document(said, job.categories, root=records.root)
    if not job.image_ids:
        write_coco(job.out, document)
        return
    found = coco_results(document)
    for entry, region in zip(found, records, strict=True):
        entry["image_id"] = job.image_ids[region.image]
    write_coco(job.out, found)


def draw_all(job: Job, records: RegionRecords, results: Mapping[str, RegionResult], folder: Path) -> int:
    """Draws the results of every picture into a folder, one PNG each; the number of pictures.

    No file that stands there is written over. What a killed job has drawn is not drawn again: STEM.drawn.json beside
    the results holds the names.
    """
    from tqdm import tqdm

    from dynrefer.draw import draw_results

    groups = [[records[int(k)] for k in group] for group in records.image_groups()]
    plan = _plan(job, folder, [group[0].image for group in groups], records.root)
    for group in tqdm(groups, unit="picture", desc="draw"):
        target = folder / plan[group[0].image]
        if target.exists():
            continue
        found = [with_mask(results[region.id], region) for region in group]
        with atomic_path(target) as temporary:
            draw_results(records.root / group[0].image, found).save(temporary, "png")
    return len(groups)


def _plan(job: Job, folder: Path, images: Sequence[str], root: Path) -> dict[str, str]:
    """Image -> name of its drawing in the folder: that of an earlier try, or new ones, beside what is there."""
    path = job.predictions.with_name(job.predictions.name.removesuffix(".jsonl") + ".drawn.json")
    if path.is_file():
        before = json.loads(read_text(path))
        if before.get("folder") == str(folder.absolute()) and list(before.get("names", ())) == list(images):
            return before["names"]
    _, titles = image_names(images, root)
    taken = {name.casefold() for name in (os.listdir(folder) if folder.is_dir() else ())}
    names = {}
    for image in images:
        stem, number = str(Path(titles[image]).with_suffix("")).replace("/", "-"), 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png").casefold() in taken:
            number += 1
        taken.add(name.casefold())
        names[image] = name
    with atomic_path(path) as temporary:
        content = {"folder": str(folder.absolute()), "names": names}
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return names
