"""The same few pictures of data.val with what the model says of their regions, again and again while it learns."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from dynrefer.data.loader import DataConfig
from dynrefer.data.records import RegionRecords
from train.evaluate import EvalConfig, answers

MOST_REGIONS = 12  # of a picture: more cannot be read
LONGER_SIDE = 800  # pixels of a drawn picture


@torch.no_grad()
def sample_pictures(
    model: Any, records: RegionRecords, number: int, cfg: EvalConfig, data: DataConfig, accelerator: Accelerator
) -> dict[str, Image.Image]:
    """{name: a picture, or the frame of a clip in which its regions are shown, with what the model answers}, at most
    `number` of them.

    model: unwrapped. Every process calls it; the first one gets the pictures, the others none.
    """
    from dynrefer.data.dataset import ExampleDataset
    from dynrefer.data.packing import Piece
    from dynrefer.draw import draw_results

    chosen = some_examples(records, number)
    some = records.subset([index for members in chosen for index in members])
    model.eval()
    results = answers(model, some, cfg, data, accelerator)
    if not accelerator.is_main_process:
        return {}
    pictures, examples = {}, ExampleDataset(some, model.processor, train=False, seed=0)
    for place, members in enumerate(chosen):
        example = examples.example(Piece(place, np.arange(len(members))))
        own = [results[region.id] for region in example.regions]
        pictures[example.key] = draw_results(example.image, own, largest=LONGER_SIDE)
    return pictures


def some_examples(records: RegionRecords, number: int) -> list[list[int]]:
    """Indices of the regions of at most `number` pictures or clips, evenly spread over the records."""
    groups = records.example_groups()
    places = np.linspace(0, len(groups), min(number, len(groups)), endpoint=False).astype(int)
    return [groups.members(place)[:MOST_REGIONS].tolist() for place in places.tolist()]
