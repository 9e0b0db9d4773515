"""RegionSpot's graphs: onnxruntime agrees with PyTorch, and the recorded numbers come out without PyTorch."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynrefer import RegionPredictor, cli
from dynrefer.graph_files import difference, write_graph
from dynrefer.masks import to_mask
from dynrefer.models.regionspot.decoder import with_waves
from dynrefer.models.regionspot.graphs import flat, flat_names, nested, resized
from tests.regionspot import NAMES, RECORDS, folder, model, picture
from tests.test_regionspot_parts import convolutional_clip, convolutional_model, tiny_model
from tests.without_torch import run_without_torch, scores, session

OTHERS = {"SAM-HQ, SigLIP": ("sam_hq", "siglip"), "SAM 2, SigLIP 2": ("sam2", "siglip2")}


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("hw", [(1, 1), (5, 9), (64, 64), (333, 1000), (1500, 2000)])
def test_pictures_are_resized_as_by_torch(hw, antialias):
    image = torch.randint(0, 256, (1, 3, *hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image.float(), (96, 96), mode="bilinear", align_corners=False, antialias=antialias)
    found = resized(resized(image, 2, 96, antialias), 3, 96, antialias)
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)  # of 255


def test_maps_are_taken_apart_and_put_together():
    maps = {"one": torch.ones(1), "many": [torch.zeros(2), torch.ones(3)]}
    assert flat_names(maps) == ["one", "many.0", "many.1"]
    assert nested(flat_names(maps), flat(maps)) == maps | {"many": maps["many"]}


def test_attributes_are_no_words_of_regionspot(tmp_path, capsys):
    (tmp_path / "words.txt").write_text("red\n")
    command = ["export", str(folder()), "--onnx", str(tmp_path / "out"), "--attributes", str(tmp_path / "words.txt")]
    assert cli.main(command) == 2
    assert "attributes" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_recorded_numbers_come_out_without_pytorch(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert cli.main(["export", str(folder()), "--onnx", str(out), "--categories", str(tmp_path / "names.txt")]) == 0
    assert capsys.readouterr().out.count("onnxruntime and PyTorch agree within") == 3
    assert {path.name for path in out.iterdir()} == {
        *("export.json", "clip.onnx", "sam.onnx", "regions.onnx", "categories.npy")
    }
    about = json.loads((out / "export.json").read_text())
    assert about["words"]["categories"] == NAMES and about["arrays"]["categories"]["shape"][0] == len(NAMES)

    running = {name: session(out / f"{name}.onnx") for name in ("clip", "sam", "regions")}
    for number, graph in enumerate(model().graphs(model().Options(categories=NAMES)).graphs):
        for count in (1, 2, 7):
            sizes = {size: count + place for place, size in enumerate(graph.free)}
            given = graph.example(sizes, torch.Generator().manual_seed(10 * number + count))
            with torch.no_grad():
                expected = graph.module(*given)
            inputs = {name: value.numpy() for name, value in zip(graph.inputs, given, strict=True)}
            expected = expected if isinstance(expected, tuple) else (expected,)
            for one, other in zip(running[graph.name].run(None, inputs), expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)

    for record in RECORDS:
        results = RegionPredictor(model())(picture(record), boxes=record["boxes_xyxy"], categories=NAMES)
        found = run_without_torch(out, picture(record), record["boxes_xyxy"])
        assert len(found) == len(results)
        for one, result, row in zip(found, results, record["probabilities"], strict=True):
            recorded = dict(zip(NAMES, row, strict=True))
            assert scores(one["categories"]) == pytest.approx(scores(result.categories), abs=1e-4)
            assert scores(one["categories"]) == pytest.approx(
                {name: recorded[name] for name in scores(one["categories"])}, abs=1e-4
            )
            masks = [to_mask(mask, tuple(mask["size"])) for mask in (one["mask"], result.mask)]
            assert (masks[0] != masks[1]).mean() < 1e-3  # logits next to zero
            assert one["mask_iou"] == pytest.approx(result.extra["mask_iou"][0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("sam", "clip"), OTHERS.values(), ids=OTHERS)
def test_other_sams_and_clips_become_graphs(sam, clip, tmp_path):
    made = tiny_model(sam, clip)
    for graph in made.graphs(made.Options()).graphs:
        write_graph(graph, tmp_path / f"{graph.name}.onnx")
        for size in (1, 6):
            assert difference(graph, tmp_path / f"{graph.name}.onnx", size) <= 1e-4


@pytest.mark.slow
def test_a_convolutional_clip_becomes_a_graph_that_knows_places(tmp_path):
    convolutional_clip(tmp_path / "clip")
    made = convolutional_model(tmp_path / "clip", clip_positions="sine", class_token=False)
    graph = made.graphs(made.Options()).graphs[0]
    write_graph(graph, tmp_path / "clip.onnx")
    for size in (1, 6):
        assert difference(graph, tmp_path / "clip.onnx", size) <= 1e-4
    (image,) = graph.example({"N": 1, "H": 5, "W": 6}, torch.Generator().manual_seed(0))
    (memory,) = session(tmp_path / "clip.onnx").run(None, {"image": image.numpy()})
    picture = F.interpolate(image.float(), (96, 96), mode="bilinear", align_corners=False) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (made.config.image_mean, made.config.image_std))
    expected = with_waves(made.clip.image_tokens((picture - mean) / std), 3)[:, 1:]
    np.testing.assert_allclose(memory, expected, rtol=0, atol=1e-3)
