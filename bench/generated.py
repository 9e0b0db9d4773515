"""Data of Visual Genome's kind and any size, made on the spot: records, annotations and photos."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

REGIONS_AN_IMAGE = 50
CAPTION = "the clock on the wall is green in colour"
HW = (600, 800)


def write_arrow(path: Path, num_images: int) -> None:
    """Records of Visual Genome's kind, made column by column."""
    import pyarrow as pa

    from dynrefer.data.arrow import save_tables

    def repeated(values: list, count: int, kind: pa.DataType) -> pa.Array:
        offsets = np.arange(0, len(values) * count + 1, len(values), dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values * count, kind))

    def tables() -> Iterator[pa.Table]:
        for start in range(0, num_images, 160):
            images = range(start, min(start + 160, num_images))
            count = len(images) * REGIONS_AN_IMAGE
            numbers = range(start * REGIONS_AN_IMAGE, start * REGIONS_AN_IMAGE + count)
            entry = pa.struct([("name", pa.string()), ("value", pa.int8())])
            columns = {
                "id": [f"vg-{2407890 + number}" for number in numbers],
                "image": [f"VG_100K/{image}.jpg" for image in images for _ in range(REGIONS_AN_IMAGE)],
                "image_hw": repeated(list(HW), count, pa.int32()),
                "box": repeated([10.0, 20.0, 110.0, 220.0], count, pa.float64()),
                "mask": pa.nulls(count, pa.string()),
                "captions": repeated([CAPTION], count, pa.string()),
                "tags": repeated(["clock", "wall"], count, pa.string()),
                "attributes": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], entry)),
                "category": ["clock"] * count,
                "source": ["visual-genome-1.2"] * count,
                "licence": ["CC-BY-4.0"] * count,
                "split": ["train"] * count,
            }
            yield pa.table(columns)

    save_tables(path, tables())


def write_images(folder: Path, names: list[str]) -> Path:
    """One JPEG of Visual Genome's usual size under many names."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (75, 100, 3), dtype=np.uint8)
    first = folder / names[0]
    first.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(HW[::-1], Image.Resampling.BICUBIC).save(first, quality=90)
    for name in names[1:]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(first, folder / name)
    return folder


def write_coco(path: Path, num_images: int, mask: str = "") -> None:
    """COCO JSON of the same regions, as one writes it: with boxes alone, "polygons" or "run lengths"."""
    corners = [10.5 + 7 * k % 300 for k in range(48)]
    masks = {
        "": "",
        "polygons": f', "segmentation": [{corners}]',
        "run lengths": f', "segmentation": {{"size": [600, 800], "counts": "{"Wl0" + "01O2N" * 40}"}}',
    }
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"images": [')
        for image in range(num_images):
            file.write(f'{", " * (image > 0)}{{"id": {image}, ')
            file.write(f'"file_name": "{image:012d}.jpg", "height": {HW[0]}, "width": {HW[1]}}}')
        file.write('], "annotations": [')
        for number in range(num_images * REGIONS_AN_IMAGE):
            file.write(f'{", " * (number > 0)}{{"id": {number}, "image_id": {number // REGIONS_AN_IMAGE}, ')
            file.write('"category_id": 1, "bbox": [10.0, 20.0, 100.0, 200.0], "area": 20000.0, "iscrowd": 0, ')
            file.write(f'"caption": "{CAPTION}"{masks[mask]}}}')
        file.write('], "categories": [{"id": 1, "name": "clock"}]}')


def write_visual_genome(folder: Path, num_images: int) -> None:
    """region_descriptions.json, image_data.json and densecap_splits.json as they are published."""
    with open(folder / "region_descriptions.json", "w", encoding="utf-8") as file:
        for image in range(1, num_images + 1):
            regions = [
                f'{{"region_id": {image * 1000 + k}, "width": 100, "height": 200, "image_id": {image}, '
                f'"phrase": "{CAPTION}", "y": 20, "x": 10}}'
                for k in range(REGIONS_AN_IMAGE)
            ]
            file.write(f'{"[" if image == 1 else ", "}{{"regions": [{", ".join(regions)}], "id": {image}}}')
        file.write("]")
    url = "https://cs.stanford.edu/people/rak248/VG_100K/{}.jpg"
    entry = {"width": HW[1], "height": HW[0], "coco_id": None, "flickr_id": None}
    images = [{"image_id": image, "url": url.format(image), **entry} for image in range(1, num_images + 1)]
    (folder / "image_data.json").write_text(json.dumps(images))
    splits = {"train": list(range(1, num_images + 1)), "val": [], "test": []}
    (folder / "densecap_splits.json").write_text(json.dumps(splits))


def write_lines(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(
                f'{{"id": "{number}", "image": "VG_100K/{number // REGIONS_AN_IMAGE + 1}.jpg", "image_hw": [600, 800], '
                f'"box": [10, 20, 110, 220], "captions": ["{CAPTION}"], "tags": ["clock"], "category": "clock"}}\n'
            )
