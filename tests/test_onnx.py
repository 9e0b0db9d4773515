"""`dynrefer export --onnx`: onnxruntime agrees with PyTorch, and nobody needs PyTorch to run what was written."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dynrefer
from dynrefer import cli
from dynrefer.graph_files import difference, write_graph
from dynrefer.models.dynrefer.graphs import graphs
from dynrefer.models.dynrefer.options import Options
from dynrefer.models.graphs import Graph
from tests import tiny_dynrefer
from tests.toy_family import ToyConfig, ToyModel
from tests.without_torch import run_without_torch, scores, session

CATEGORIES = ["cup", "lamp", "bird", "a big house"]


def assert_same_answers(found, results, names):
    assert len(found) == len(results) > 0
    for one, result in zip(found, results, strict=True):
        for name in names:
            given = scores(one[name])
            assert given == pytest.approx(scores(getattr(result, name)), abs=1e-4) and (given or name == "tags")


# --- what can be said without exporting -------------------------------------------------------------------------------


def test_a_family_without_graphs_refuses_in_one_line():
    with pytest.raises(ValueError, match="models of the family 'toy' have no graphs to export; use them with"):
        ToyModel(ToyConfig(categories=["a"])).graphs(None)


def test_what_is_wrong_is_said_before_the_weights_are_loaded(tmp_path, capsys, monkeypatch):
    model, processor = tiny_dynrefer.model()
    model.processor = processor
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(cli, "_load", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    command = ["export", str(tmp_path / "model"), "--onnx"]
    assert cli.main([*command, str(tmp_path / "full")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "new"), "--categories", str(tmp_path / "no.txt")]) == 2
    assert "no.txt" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main([*command, str(tmp_path / "new")]) == 2
    assert 'pip install -e ".[onnx]"' in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_without_words_says_so():
    model, processor = tiny_dynrefer.model()
    model.processor = processor
    model.config.tags = model.config.attributes = model.config.categories = ()
    with pytest.raises(ValueError, match="no word list; give one with --categories FILE"):
        graphs(model, Options())


# --- exporting --------------------------------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, values):
        return values * 2


def doubling(module):
    return Graph(
        "double",
        module,
        {"values": ("N", 3)},
        {"twice": ("N", 3)},
        lambda sizes, generator: (torch.randn(sizes["N"], 3, generator=generator),),
    )


@pytest.mark.slow
def test_a_graph_that_differs_or_holds_one_size_only_is_an_error(tmp_path):
    write_graph(doubling(Double()), tmp_path / "double.onnx")
    assert difference(doubling(Double()), tmp_path / "double.onnx", 7) == 0.0
    (given,) = session(tmp_path / "double.onnx").get_inputs()
    assert given.shape == ["N", 3]
    half = Double()
    half.forward = lambda values: values / 2
    with pytest.raises(ValueError, match="graph double: onnxruntime's twice differs from PyTorch's by"):
        difference(doubling(half), tmp_path / "double.onnx", 7)

    class Fixed(nn.Module):
        def forward(self, values):
            return values * torch.arange(len(values))[:, None]

    with pytest.raises(Exception, match="specialized it to be a constant"):
        write_graph(doubling(Fixed()), tmp_path / "fixed.onnx")


RESNET = {
    "config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "norm": "group",
}
MODELS = {
    "three views of a transformer": {},
    "one view of a convolutional encoder": {
        "vision": RESNET,
        "num_views": 1,
        "view_strategy": "fixed:0",
        "positions": True,
        "roi_aligned": True,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_dynrefer_gives_the_same_by_onnxruntime(changes, tmp_path, capsys):
    torch.manual_seed(1)
    model, processor = tiny_dynrefer.model(**changes)
    model.processor = processor
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero, as it is in a new model
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.before_eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "names.txt").write_text("\n".join(CATEGORIES))
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "model"), "--onnx", str(out), "--categories", str(tmp_path / "names.txt")]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("onnxruntime and PyTorch agree within") == 2
    about = json.loads((out / "export.json").read_text())
    assert {path.name for path in out.iterdir()} == {"export.json", "encoder.onnx", "heads.onnx"}
    assert b"site-packages" not in (out / "encoder.onnx").read_bytes(), "no paths of this machine"
    assert about["words"]["categories"] == CATEGORIES
    for described, path in zip(about["graphs"], ("encoder.onnx", "heads.onnx"), strict=True):
        running = session(out / path)
        for values, found in (
            (described["inputs"], running.get_inputs()),
            (described["outputs"], running.get_outputs()),
        ):
            assert [(v["name"], v["shape"]) for v in values] == [(v.name, v.shape) for v in found]

    model = dynrefer.load(tmp_path / "model")
    encoder, heads = session(out / "encoder.onnx"), session(out / "heads.onnx")
    encode, score = (graph.module for graph in graphs(model, Options(categories=CATEGORIES)).graphs)
    for count in (1, 2, 9):
        generator = torch.Generator().manual_seed(100 + count)
        views = torch.randint(
            0, 256, (count, model.config.num_views, 3, 32, 32), generator=generator, dtype=torch.uint8
        )
        boxes = (torch.rand(count, model.config.num_views, 2, 2, generator=generator).sort(2).values * 32).flatten(2)
        with torch.no_grad():
            embeds = encode(views, boxes)
            logits = score(embeds)
        (found,) = encoder.run(None, {"views": views.numpy(), "region_boxes": boxes.numpy()})
        np.testing.assert_allclose(found, embeds, rtol=0, atol=1e-4)
        for one, other in zip(heads.run(None, {"region_embeds": found}), logits, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)

    image = tiny_dynrefer.picture(seed=3)
    Image.fromarray(image).save(tmp_path / "photo.png")
    asked = [(4, 4, 40, 30), (50.5, 10.2, 90.9, 60), (99.4, 0, 100, 0.5), (0, 0, 100, 80)]
    results = dynrefer.RegionPredictor(model)(image, boxes=asked, categories=CATEGORIES)
    found = run_without_torch(out, tmp_path / "photo.png", asked)
    assert_same_answers(found, results, ("tags", "attributes", "categories"))
    assert [one["scales"] for one in found] == [pytest.approx(result.extra["scales"]) for result in results]
    if model.config.num_views > 1:
        results = dynrefer.RegionPredictor(model)(image, boxes=asked, categories=CATEGORIES, view_strategy="phash")
        about["preprocessing"]["scales"] = "phash"
        (out / "export.json").write_text(json.dumps(about))
        found = run_without_torch(out, tmp_path / "photo.png", asked)
        assert [one["scales"] for one in found] == [pytest.approx(result.extra["scales"]) for result in results]
        assert_same_answers(found, results, ("tags", "attributes", "categories"))
