"""View construction, from JPEG files to the pixels that go to the model, against the way most repositories take."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dynrefer.images import open_image
from dynrefer.resize import FASTEST
from dynrefer.views import choose_scales, crop_views, place_views, reduction

from .timing import Budget, Result, compare
from .views import NUM_VIEWS, photo, region_boxes

NUM_PHOTOS, REGIONS, SIZE = 4, 8, 224
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))  # (3, 1, 1)


class Photo:
    """A JPEG file in memory with the boxes and scales of its regions."""

    def __init__(self, pixels: np.ndarray, boxes: np.ndarray, seed: int):
        self.image_hw, self.boxes = pixels.shape[:2], boxes
        generators = [np.random.default_rng([seed, region]) for region in range(len(boxes))]
        self.scales = choose_scales("random", pixels, boxes, NUM_VIEWS, generators)
        self.crops = place_views(boxes, self.scales, self.image_hw, SIZE)[0]  # (R, V, 4)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        self.data = file.getvalue()

    def plain(self) -> torch.Tensor:
        """(R, V, 3, S, S) float: a region is a sample, which opens its image; each view takes an array of all of it."""
        views = []
        for crops in self.crops:
            image = Image.open(io.BytesIO(self.data)).convert("RGB")
            for x1, y1, x2, y2 in crops:
                crop = Image.fromarray(np.array(image)[y1:y2, x1:x2])
                resized = np.array(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
                views.append((torch.from_numpy(resized).permute(2, 0, 1).float() / 255 - MEAN) / STD)
        return torch.stack(views).unflatten(0, self.crops.shape[:2])

    def ours(self, draft: bool = False) -> np.ndarray:
        """(R, V, 3, S, S) uint8, as loader workers make them for training; the model normalizes them on its device."""
        image = open_image(self.data, reduction(self.boxes, SIZE) if draft else 1)
        return crop_views(image, self.boxes, self.scales, SIZE, image_hw=self.image_hw, resize=FASTEST)[0]

    def floor(self) -> np.ndarray:
        """The file decoded, every crop read and every view written, once and without a resize."""
        image = np.asarray(Image.open(io.BytesIO(self.data)))
        for x1, y1, x2, y2 in self.crops.reshape(-1, 4):
            image[y1:y2, x1:x2].copy()
        return np.full((*self.crops.shape[:2], 3, SIZE, SIZE), 128, np.uint8)


def some_photos(height: int, width: int) -> list[Photo]:
    pixels, boxes = photo(height, width), region_boxes(height, width)
    return [
        Photo(np.roll(pixels, 97 * number, 1), boxes[REGIONS * number : REGIONS * (number + 1)], number)
        for number in range(NUM_PHOTOS)
    ]


def difference(photos: list[Photo], views: Callable[[Photo], np.ndarray]) -> str:
    """How far views lie from the plain ones; RuntimeError where they are other views altogether."""
    plain = [((one.plain() * STD + MEAN) * 255).round().numpy().astype(int) for one in photos]
    off = np.stack([np.abs(theirs - views(one)) for theirs, one in zip(plain, photos, strict=True)])
    if off.mean() > 2:
        raise RuntimeError(f"crops: pixels differ by {off.mean():.1f} grey levels in the mean")
    return f"{off.mean():.3f} grey levels from the plain way's in the mean, more than one in {(off > 1).mean():.2%}"


def construction(height: int, width: int, budget: Budget) -> Result:
    """JPEG files and the boxes of 8 regions each -> three views of every region."""
    torch.set_num_threads(1)  # as in a loader's worker
    photos = some_photos(height, width)
    ways = {
        "an array a crop": lambda: sum(len(one.plain()) for one in photos),
        "dynrefer.views": lambda: sum(len(one.ours()) for one in photos),
        "decode and copy": lambda: sum(len(one.floor()) for one in photos),
    }
    notes = [f"pixels {difference(photos, Photo.ours)}", "decode and copy: the floor, with nothing resized"]
    return Result(compare(ways, budget), "samples/s", notes)


def view_construction(budget: Budget) -> Result:
    """Three views of 8 regions of 640 x 480 JPEG photos: an array of the image for each crop against ours."""
    return construction(480, 640, budget)


def view_construction_large(budget: Budget) -> Result:
    """The same for 1280 x 960."""
    return construction(960, 1280, budget)


def draft(budget: Budget) -> Result:
    """Three views of a large region of a 4000 x 3000 JPEG photo, decoded whole and at reduced scale."""
    torch.set_num_threads(1)
    one = Photo(photo(3000, 4000), np.array([[300, 200, 2500, 2400]], np.float32), 0)
    ways = {
        "an array a crop": lambda: len(one.plain()),
        "decoded whole": lambda: len(one.ours()),
        f"at 1/{reduction(one.boxes, SIZE)} (data.draft)": lambda: len(one.ours(draft=True)),
    }
    notes = [f"reduced pixels {difference([one], lambda one: one.ours(draft=True))}"]
    return Result(compare(ways, budget), "samples/s", notes)
