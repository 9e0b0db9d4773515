"""SAM's own proposals: those of a plain count, each picture encoded once, and a killed run that goes on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamModel

from data_prep import proposals
from dynrefer import segment
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from eval.inputs.proposals import read_proposals
from tests import regionspot
from tests.regionspot import lively_sam

SAM = str(regionspot.SAM)
SIZES = [(90, 120), (64, 64), (130, 100)]
LOW = ["--points-per-side", "5", "--pred-iou", "0", "--stability", "0", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path):
    """Three pictures with two things in each, the first in two records."""
    regions = []
    for n, (height, width) in enumerate(SIZES):
        pixels = np.full((height, width, 3), 90, np.uint8)
        pixels[10:40, 20:60], pixels[45:60, 30:50] = (200, 30, 30), (20, 200, 30)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        for k in range(2 - bool(n)):
            regions.append(Region(f"r{n}-{k}", f"{n}.png", (height, width), (20, 10, 60, 40)))
    write_records(tmp_path / "r.jsonl", regions)
    return tmp_path


@pytest.fixture(scope="module")
def lively():
    return lively_sam()


def run(folder, *more, source=(), sam=SAM):
    source = source or ("--records", folder / "r.jsonl")
    return proposals.main([*map(str, ["--sam", sam, *source, "--out", folder / "sam.json", *more])])


def by_hand(sam, path, points, least_iou, least_stability, offset, nms=0.7):
    """SAM asked for every point of the grid alone; boxes of its masks, thinned from the surest on."""
    sam = SamModel.from_pretrained(sam, dtype=torch.float32).eval()
    picture = Image.open(path)
    width, height = picture.size
    scale = 128 / max(width, height)
    inner = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(pixels, inner, mode="bilinear", antialias=True).round()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    padded = torch.zeros(1, 3, 128, 128)
    padded[..., : inner[0], : inner[1]] = (pixels - mean) / std
    found = []
    with torch.no_grad():
        features = sam.get_image_embeddings(padded)
        for y in range(points):
            for x in range(points):
                point = torch.tensor([(x + 0.5) / points * inner[1], (y + 0.5) / points * inner[0]])
                output = sam(image_embeddings=features, input_points=point[None, None, None])
                for logits, iou in zip(output.pred_masks[0, 0], output.iou_scores[0, 0], strict=True):
                    logits = torch.nn.functional.interpolate(logits[None, None], (128, 128), mode="bilinear")
                    logits = logits[..., : inner[0], : inner[1]]
                    logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")[0, 0].numpy()
                    stable = (logits > offset).sum() / max((logits > -offset).sum(), 1)
                    ys, xs = np.nonzero(logits > 0)
                    if stable > least_stability and (iou > least_iou or not least_iou):
                        found.append((float(iou), [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]))
    kept = []
    for iou, box in sorted(found, key=lambda pair: -pair[0]):
        if all(overlap(box, other) <= nms for _, other in kept):
            kept.append((iou, box))
    return kept


def overlap(a, b):
    """Of boxes by their last pixels, as the thinning has them."""
    a, b = ([x1, y1, x2 - 1, y2 - 1] for x1, y1, x2, y2 in (a, b))
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / max(sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared, 1e-9)


@pytest.mark.parametrize("least", [(0, 0, 1), (0, 0.3, 200), (0.2, 0, 1)])
def test_boxes_and_scores_are_those_of_a_plain_count(folder, lively, least):
    names = ("--pred-iou", "--stability", "--stability-offset")
    given = [word for pair in zip(names, least, strict=True) for word in pair]
    assert run(folder, "--points-per-side", "3", *given, "--device", "cpu", sam=lively) == 0
    content = json.loads((folder / "sam.json").read_text())
    assert list(content) == ["0.png", "1.png", "2.png"]
    for name, own in content.items():
        expected = by_hand(lively, folder / name, 3, *least)
        assert own["boxes"] and own["labels"] == [0] * len(own["boxes"])
        assert own["scores"] == pytest.approx([iou for iou, _ in expected], abs=2e-3)
        boxes, true = np.array(own["boxes"]), np.array([box for _, box in expected])
        assert np.abs(boxes - true).max() <= 1


def test_a_large_picture_takes_fewer_points_at_once_and_has_the_same_boxes(folder, lively, monkeypatch):
    given = ["--points-per-side", "3", "--pred-iou", "0", "--stability", "0", "--device", "cpu"]
    assert run(folder, *given, sam=lively) == 0
    whole = json.loads((folder / "sam.json").read_text())
    calls, forward = [], SamModel.forward
    monkeypatch.setattr(SamModel, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    monkeypatch.setattr(segment, "MASK_PIXELS", 3 * 90 * 120 * 2)
    assert run(folder, *given, sam=lively) == 0
    alone = json.loads((folder / "sam.json").read_text())
    assert len(calls) == 5 + 2 + 9  # of nine points, two, five and one at once
    for name, own in whole.items():
        assert alone[name]["boxes"] == own["boxes"]
        assert alone[name]["scores"] == pytest.approx(own["scores"], abs=1e-5)


def test_what_it_writes_is_read_by_the_evaluation(folder):
    assert run(folder, *LOW) == 0
    records = open_records(folder / "r.jsonl")
    found = read_proposals(folder / "sam.json", records)
    assert set(found.images()) == set(records.images()) and len(found) >= 3
    document = {"images": [{"id": 7 + n, "file_name": f"{n}.png"} for n in range(3)], "annotations": []}
    document["images"] = [
        entry | {"height": h, "width": w} for entry, (h, w) in zip(document["images"], SIZES, strict=True)
    ]
    (folder / "coco.json").write_text(json.dumps(document))
    before = json.loads((folder / "sam.json").read_text())
    assert run(folder, *LOW, source=("--coco", folder / "coco.json", "--images", folder)) == 0
    after = json.loads((folder / "sam.json").read_text())
    assert list(after) == ["7", "8", "9"] and list(after.values()) == list(before.values())


def test_a_picture_is_encoded_once_and_a_killed_run_goes_on(folder, monkeypatch, capsys):
    encoded, encode = [], SamModel.get_image_embeddings
    monkeypatch.setattr(SamModel, "get_image_embeddings", lambda *given: encoded.append(1) or encode(*given))
    assert run(folder, *LOW) == 0
    whole = (folder / "sam.json").read_text()
    assert len(encoded) == 3 and sorted(p.name for p in folder.glob("sam.json*")) == ["sam.json"]
    (folder / "sam.json").unlink()
    call, looked = proposals.Proposer.__call__, []

    def dies(self, image):
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(1)
        return call(self, image)

    monkeypatch.setattr(proposals.Proposer, "__call__", dies)
    assert run(folder, *LOW) == 130
    assert "the same command goes on" in capsys.readouterr().err
    with open(folder / "sam.json.part", "a") as file:
        file.write('{"image": "2.png", "scores": [0.')  # torn by the kill
    assert run(folder, *LOW, "--box-nms", "0.5") == 2
    assert "was begun with crops_nms_thresh 0.7, now it is 0.5" in capsys.readouterr().err
    looked.clear()
    assert run(folder, *LOW) == 0
    assert len(looked) == 1 and (folder / "sam.json").read_text() == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pred-iou", "2"], "--pred-iou 2.0: expected a number from 0 to 1"),
        (["--points-per-side", "0"], "--points-per-side 0: expected a whole number of at least 1"),
        (["--points-at-once", "0"], "--points-at-once are above 0"),
        (["--coco", "x.json"], "one of them"),
        (["--out", "sam.jsonl"], "expected a name that ends in .json"),
        (["--sam", "nowhere/at-all"], "SAM 'nowhere/at-all'"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, options, message):
    assert run(folder, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
