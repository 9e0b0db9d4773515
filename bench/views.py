"""View selection against the plain way: every candidate crop resized and transformed by OpenCV."""

from types import ModuleType

import numpy as np
import torch

from dynrefer import phash
from dynrefer.views import CANDIDATE_SCALES, candidate_hashes, choose_scales, pixel_boxes, view_boxes

from .timing import Budget, MissingPackage, Result, Work, compare

NUM_REGIONS, NUM_VIEWS = 64, 3
SIDE, BITS = phash.HASH_SIZE, phash.HASH_BITS


def opencv() -> ModuleType:
    """cv2 on one thread."""
    try:
        import cv2
    except ImportError as error:
        raise MissingPackage(f"the plain way needs OpenCV ({error}); pip install opencv-python-headless") from None
    cv2.setNumThreads(1)
    return cv2


def photo(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with a photo's spectrum: amplitudes fall with 1 / frequency."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    waves = np.fft.rfft2(rng.standard_normal((3, height, width))) / np.maximum(frequency, 1)
    picture = np.fft.irfft2(waves, (height, width))
    low, high = np.percentile(picture, (1, 99))
    picture = (255 * (picture - low) / (high - low)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(1, 2, 0))


def region_boxes(height: int, width: int) -> np.ndarray:
    """(R, 4) float32 boxes with sides of 5 to 60 percent of the image's."""
    rng = np.random.default_rng(1)
    sides = np.exp(rng.uniform(np.log(0.05), np.log(0.6), (NUM_REGIONS, 2)))
    corners = rng.uniform(0, 1 - sides)
    return (np.concatenate([corners, corners + sides], axis=1) * [width, height, width, height]).astype(np.float32)


def plain_hashes(cv2: ModuleType, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(R, 1 + C, 64) bool, crop by crop."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    whole = np.array([0, 0, grey.shape[1], grey.shape[0]], np.float32)
    bits = []
    for box in boxes:
        for scale in (0.0, *CANDIDATE_SCALES):
            x1, y1, x2, y2 = (box + (whole - box) * np.float32(scale)).astype(np.int64)
            block = cv2.dct(cv2.resize(grey[y1:y2, x1:x2], (SIDE, SIDE)))[:BITS, :BITS]
            bits.append((block > block.mean()).ravel())
    return np.reshape(bits, (len(boxes), 1 + len(CANDIDATE_SCALES), BITS * BITS))


def plain_scales(hashes: np.ndarray) -> np.ndarray:
    """(R, V): region by region, the largest distances to view 0 divided by t."""
    scales = np.zeros((len(hashes), NUM_VIEWS), np.float32)
    for row, (own, *others) in zip(scales, hashes, strict=True):
        score = np.array([(own ^ other).sum() / t for other, t in zip(others, CANDIDATE_SCALES, strict=True)])
        for view in range(1, NUM_VIEWS):
            best = score.argmax()
            row[view], score[best] = CANDIDATE_SCALES[best], 0
    return scales


def product() -> Work:
    """A large float32 matrix product, counted in floating-point operations: what this machine can do at best."""
    a = np.random.default_rng(0).random((768, 768), np.float32)

    def work() -> float:
        a @ a
        return 2.0 * 768**3

    return work


def floor_note(crops: np.ndarray, peak: float, seconds: float) -> str:
    """How far a time is from what the products of all distinct crops would take at this machine's best rate."""
    crops = np.unique(crops, axis=0)
    width, height = (crops[:, 2:] - crops[:, :2]).T
    width = np.where(width > phash.LONG_WIDTH, 2 * SIDE, width)
    height = np.where(height > phash.LONG_HEIGHT, 2 * SIDE, height)
    flop = float((2 * BITS * height * width + 2 * BITS * BITS * width).sum())
    return (
        f"floor: {flop / 1e9:.2f} GFLOP at {peak / 1e9:.0f} GFLOP/s (a large matrix product in the same run) = "
        f"{1e3 * flop / peak:.1f} ms, ours {1e3 * seconds:.1f} ms on {4e-6 * (height * width).sum():,.0f} MB of pixels"
    )


def choice(height: int, width: int, budget: Budget) -> Result:
    """Pixels of one photo and the boxes of 64 regions -> the scales of their three views."""
    cv2 = opencv()
    image, boxes = photo(height, width), region_boxes(height, width)
    plain, ours = plain_hashes(cv2, image, boxes), candidate_hashes(phash.grey(image), boxes)
    flips = int((plain != ours).sum())
    if flips > 1e-4 * plain.size:  # rounding may turn a coefficient that equals the mean
        raise RuntimeError(f"views: {flips} of {plain.size} hash bits differ between the two ways")
    ways: dict[str, Work] = {
        "OpenCV, crop by crop": lambda: len(plain_scales(plain_hashes(cv2, image, boxes))),
        "dynrefer.views": lambda: len(choose_scales("phash", image, boxes, NUM_VIEWS, [])),
        "product": product(),
    }
    rates = compare(ways, budget)
    peak = rates.pop("product")
    grown = view_boxes(torch.from_numpy(boxes), (height, width), torch.tensor((0.0, *CANDIDATE_SCALES)))
    crops = pixel_boxes(grown.numpy().reshape(-1, 4), (height, width))
    notes = [
        f"{flips} of {plain.size:,} hash bits differ",
        floor_note(crops, peak, NUM_REGIONS / rates["dynrefer.views"]),
    ]
    return Result(rates, "regions/s", notes)


def view_choice(budget: Budget) -> Result:
    """Views of 64 regions of a 640 x 480 photo, chosen by hash: OpenCV resize + DCT a candidate against ours."""
    return choice(480, 640, budget)


def view_choice_large(budget: Budget) -> Result:
    """The same for a 2560 x 1920 photo, where the resize skips most pixels and reading the others takes the time."""
    return choice(1920, 2560, budget)


def transform(budget: Budget) -> Result:
    """8 x 8 coefficients of crops that are 224 x 224 already: the full DCT of each against two thin products."""
    cv2 = opencv()
    height, width, number = 480, 640, 256
    grey = phash.grey(photo(height, width))
    corners = np.random.default_rng(2).integers(0, [width - SIDE, height - SIDE], (number, 2))
    crops = np.concatenate([corners, corners + SIDE], axis=1)
    resized = [np.ascontiguousarray(grey[y1:y2, x1:x2], np.float32) for x1, y1, x2, y2 in crops]
    ways: dict[str, Work] = {"cv2.dct": lambda: len([cv2.dct(crop)[:BITS, :BITS] for crop in resized])}
    notes = []
    try:
        from scipy.fft import dctn

        ways["scipy.fft.dctn"] = lambda: len([dctn(crop, norm="ortho")[:BITS, :BITS] for crop in resized])
    except ImportError:
        notes.append("scipy is not installed: pip install scipy to compare with its DCT too")
    ways["dynrefer.phash"] = lambda: len(phash.low_frequencies(grey, crops))
    expected = np.stack([cv2.dct(crop)[:BITS, :BITS] for crop in resized])
    error = np.abs(phash.low_frequencies(grey, crops) - expected).max()
    if error > 0.1:  # of coefficients up to 57,120
        raise RuntimeError(f"transform: coefficients differ by {error}")
    rates = compare({**ways, "product": product()}, budget)
    peak = rates.pop("product")
    notes += [f"largest difference {error:.4f}", floor_note(crops, peak, number / rates["dynrefer.phash"])]
    return Result(rates, "crops/s", notes)
