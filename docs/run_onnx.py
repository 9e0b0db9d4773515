"""Runs what `dynrefer export` wrote: regions of a picture, with numpy, onnxruntime and Pillow. PyTorch is not needed.

    python docs/run_onnx.py exported photo.jpg --box 40 30 180 200 --box 10 10 60 90

Prints one JSON object a region. The functions below are all there is to it; take what you need.
"""

import argparse
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Exported:
    """A folder of `dynrefer export`: its description, graphs and arrays."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.about = json.loads((self.folder / "export.json").read_text(encoding="utf-8"))
        self.words = self.about["words"]
        files = {graph["name"]: graph["file"] for graph in self.about["graphs"]}
        self.sessions = {
            name: onnxruntime.InferenceSession(str(self.folder / file), providers=onnxruntime.get_available_providers())
            for name, file in files.items()
        }
        self.arrays = {name: np.load(self.folder / array["file"]) for name, array in self.about["arrays"].items()}

    def run(self, graph, **inputs):
        """{output: array} of one graph."""
        session = self.sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def describe(self, image, boxes):
        """One dict a region. image: PIL image; boxes: (R, 4) xyxy pixels of the upright picture."""
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        return KINDS[self.about["preprocessing"]["kind"]](self, pixels, np.asarray(boxes, np.float32).reshape(-1, 4))


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


SCORES = {"sigmoid": sigmoid, "softmax": softmax}


def ranked(words, scores, most=None, above=None):
    """The words with their scores, best first."""
    order = np.argsort(-scores, kind="stable")[:most]
    return [
        {"name": words[k], "score": round(float(scores[k]), 6)} for k in order if above is None or scores[k] > above
    ]


# --- models that look at a region through nested views ---------------------------------------------------------------


def describe_views(exported, image, boxes):
    rules = exported.about["preprocessing"]
    scales = np.array([view_scales(rules, image, box) for box in boxes], np.float32)  # (R, V)
    made = [make_views(rules, image, box, some) for box, some in zip(boxes, scales, strict=True)]
    views, region_boxes = (np.stack(parts) for parts in zip(*made, strict=True))
    embeds = exported.run("encoder", views=views, region_boxes=region_boxes)["region_embeds"]
    results = [{"box": box.tolist(), "scales": some.round(6).tolist()} for box, some in zip(boxes, scales, strict=True)]
    logits = exported.run("heads", region_embeds=embeds)
    for name, rule in exported.about["answers"].items():
        scores = SCORES[rule["score"]](logits[rule["output"]])
        for result, row in zip(results, scores, strict=True):
            result[name] = ranked(exported.words[name], row, rule.get("most"), rule.get("above"))
    return results


def whole_pixels(box, image):
    """A box as the pixels that are cut out: inside the picture, at least one wide."""
    height, width = image.shape[:2]
    x1, y1 = (min(int(max(side, 0)), limit - 1) for side, limit in zip(box[:2], (width, height), strict=True))
    x2, y2 = (int(min(side, np.float32(limit))) for side, limit in zip(box[2:], (width, height), strict=True))
    return np.array([x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)])


def widened(box):
    """A box thinner than a pixel becomes one pixel wide, to the left and the top where there is room."""
    x1, y1, x2, y2 = (float(side) for side in box)
    x1, y1 = max(min(x1, x2 - 1), 0), max(min(y1, y2 - 1), 0)
    return np.array([x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)], np.float32)


def view_box(box, scale, image):
    """The region's box grown towards the whole picture: scale 0 is the box, 1 the picture."""
    whole = np.array([0, 0, image.shape[1], image.shape[0]], np.float32)
    return whole_pixels(box + np.float32(scale) * (whole - box), image)


def make_views(rules, image, box, scales):
    """views (V, 3, S, S) uint8 and the region's box in each, (V, 4) float32."""
    side, box = rules["view_size"], widened(box)
    own, views, places = whole_pixels(box, image), [], []
    for scale in scales:
        x1, y1, x2, y2 = view_box(box, scale, image)
        crop = Image.fromarray(image[y1:y2, x1:x2]).resize((side, side), Image.Resampling.BICUBIC)
        views.append(np.asarray(crop).transpose(2, 0, 1))
        sides = (np.array([side, side]) / (x2 - x1, y2 - y1)).astype(np.float32)
        places.append((own - (x1, y1, x1, y1)).astype(np.float32) * np.tile(sides, 2))
    places = np.trunc(places) if rules["truncate_region_boxes"] else np.array(places)
    return np.stack(views), places.astype(np.float32)


def view_scales(rules, image, box):
    """How far each view grows: fixed numbers, or those whose perceptual hash differs most from the region's own."""
    name, _, numbers = rules["scales"].partition(":")
    if name == "fixed":
        return [float(number) for number in numbers.split(",")]
    if name != "phash":
        raise ValueError(f"scales {rules['scales']!r}: set them to fixed:0,0.4 and so on in export.json")
    candidates, box = np.array(rules["candidate_scales"]), widened(box)
    weights = tuple(weight / 2**15 for weight in (9798, 19235, 3735)) + (0,)
    grey = np.asarray(Image.fromarray(image).convert("L", weights)).astype(np.float32)
    hashes = [hash_bits(grey, view_box(box, scale, image)) for scale in (0, *candidates)]
    apart = np.array([(bits != hashes[0]).sum() for bits in hashes[1:]]) / candidates
    best = np.argsort(-apart, kind="stable")[: rules["num_views"] - 1]
    return [0.0, *candidates[np.where(apart[best] > 0, best, 0)]]


def hash_bits(grey, box):
    """64 bits of a crop: its 8 x 8 lowest frequencies at 224 x 224 pixels, those above their mean."""
    x1, y1, x2, y2 = box
    block = hash_weights(int(y2 - y1)) @ grey[y1:y2, x1:x2] @ hash_weights(int(x2 - x1)).T
    return (block > block.mean()).reshape(-1)


@lru_cache(maxsize=256)
def hash_weights(side):
    """(8, side): a bilinear resize to 224 without antialiasing, then the first eight rows of a DCT."""
    size = 224
    k, x = np.arange(8)[:, None], np.arange(size)[None]
    transform = np.cos(np.pi * (2 * x + 1) * k / (2 * size)) * np.sqrt(2 / size)
    transform[0] /= np.sqrt(2)
    centre = (np.arange(size) + 0.5) * (side / size) - 0.5
    low = np.floor(centre).astype(int)
    fraction = (centre - low).astype(np.float32)
    weights = np.zeros((8, side))
    for place, share in ((low, 1 - fraction), (low + 1, fraction)):
        np.add.at(weights.T, place.clip(0, side - 1), (transform * share).T)
    return weights.astype(np.float32)


# --- models that look at the whole picture, and at its regions together -----------------------------------------------


def describe_picture(exported, image, boxes):
    rules, answers = exported.about["preprocessing"], exported.about["answers"]
    memory = exported.run("clip", image=image.transpose(2, 0, 1)[None])["memory"]
    picture, inner_hw = sam_picture(rules, image)
    maps = exported.run("sam", picture=picture[None], inner_hw=np.array([inner_hw]))
    scale = np.array([inner_hw[1] / image.shape[1], inner_hw[0] / image.shape[0]] * 2, np.float32)
    found = exported.run("regions", boxes=boxes * scale, memory=memory, **maps)
    results = [{"box": box.tolist()} for box in boxes]
    if rule := answers.get("categories"):
        logits = rule["scale"] * found[rule["output"]] @ exported.arrays[rule["array"]].T + rule["bias"]
        for result, row in zip(results, SCORES[rule["score"]](logits), strict=True):
            result["categories"] = ranked(exported.words["categories"], row, rule["most"])
    for result, logits, sure in zip(results, found["mask_logits"], found["mask_iou"], strict=True):
        large = bilinear(logits, (rules["sam_size"], rules["sam_size"]))[: inner_hw[0], : inner_hw[1]]
        result["mask"] = run_lengths(bilinear(large, image.shape[:2]) > answers["mask"]["above"])
        result["mask_iou"] = round(float(sure), 6)
    return results


def sam_picture(rules, image):
    """SAM's square (3, S, S) uint8, zero where nothing of the image is, and the image's height and width in it."""
    size, (height, width) = rules["sam_size"], image.shape[:2]
    inner = size, size
    if rules["letterbox"]:
        inner = tuple(max(1, int(side * (size / max(height, width)) + 0.5)) for side in (height, width))
    square = np.zeros((size, size, 3), np.uint8)
    square[: inner[0], : inner[1]] = Image.fromarray(image).resize(inner[::-1], Image.Resampling.BILINEAR)
    return square.transpose(2, 0, 1), inner


def bilinear(values, hw):
    """values (h, w) -> (H, W), without antialiasing."""
    for axis, size in enumerate(hw):
        length = values.shape[axis]
        where = np.maximum((np.arange(size) + 0.5) * np.float32(length / size) - 0.5, 0).astype(np.float32)
        low = np.minimum(where.astype(int), length - 1)
        share = np.expand_dims(where - low, 1 - axis)
        high = np.minimum(low + 1, length - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def run_lengths(mask):
    """COCO's run lengths of a mask (H, W): down the columns, outside first."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


KINDS = {"views": describe_views, "picture": describe_picture}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what `dynrefer export MODEL --onnx FOLDER` wrote")
    parser.add_argument("photo")
    parser.add_argument("--box", nargs=4, type=float, action="append", required=True, metavar="N", help="x1 y1 x2 y2")
    args = parser.parse_args()
    for result in Exported(args.folder).describe(Image.open(args.photo), args.box):
        print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
