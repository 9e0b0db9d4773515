"""DenseCap's splits and cleaning of Visual Genome, to which dense captioning has kept since: what is train, val, test,
what a phrase becomes, where a box may lie (Johnson, Karpathy, Fei-Fei, CVPR 2016; github.com/jcjohnson/densecap)."""

import os
import string
from pathlib import Path

from data_prep.counts import check_counts
from dynrefer.data.json_files import read_json

SPLITS = {"train": 77_398, "val": 5_000, "test": 5_000}  # images in info/densecap_splits.json
MAX_WORDS = 15  # longer phrases are dropped, in the test set too
_TABLE = str.maketrans(
    dict.fromkeys(string.punctuation + "—™…")  # a dash becomes a hyphen, and hyphens go
    | {"½": "half", "¢": "cent", "ç": "c", "û": "u", "é": "e", "è": "e", "°": " degree"}
)


def clean_phrase(phrase: str) -> str:
    """Lower-case words without punctuation, a blank apart; empty where nothing is left.

    >>> clean_phrase("The café's T-shirt,  at 20° !")
    'the cafes tshirt at 20 degree'
    """
    return " ".join(phrase.translate(_TABLE).lower().split())


def clamp_box(
    box: tuple[float, float, float, float], image_hw: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """A box clipped to (0, 0, W, H), now to (1, 1, W, H) and starting at W - 1, H - 1 at the latest: the annotations
    count pixels from 1. None where nothing is left.

    >>> clamp_box((0.0, 5.0, 60.0, 100.0), (100, 200))
    (1.0, 5.0, 60.0, 100.0)
    """
    height, width = image_hw
    x1, y1 = min(max(box[0], 1.0), width - 1.0), min(max(box[1], 1.0), height - 1.0)
    return (x1, y1, box[2], box[3]) if x1 < box[2] and y1 < box[3] else None


def read_splits(path: str | os.PathLike, subset: bool = False) -> dict[str, frozenset[int]]:
    """Image ids of "train", "val" and "test" in densecap_splits.json. ValueError for another file, an image in two
    splits and, unless it is knowingly a subset, other counts than published."""
    path = Path(path)
    lists = read_json(path)
    if (
        not isinstance(lists, dict)
        or set(lists) != set(SPLITS)
        or not all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in lists.values())
    ):
        raise ValueError(f"{path}: expected lists of image ids named {list(SPLITS)}, as in info/densecap_splits.json")
    splits = {name: frozenset(ids) for name, ids in lists.items()}
    check_counts({name: len(ids) for name, ids in splits.items()}, SPLITS, f"{path} (images)", subset)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if common := splits[one] & splits[other]:
            raise ValueError(f"{path}: {len(common)} images are in {one} and in {other}, the first is {min(common)}")
    return splits
