"""Released RegionSpot files: every layout gives the recorded numbers, and what does not fit is an error in one line."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import dynrefer
from dynrefer import RegionPredictor, cli
from dynrefer.models.regionspot.clip import OpenClipConfig
from dynrefer.models.regionspot.configuration import RegionSpotConfig
from dynrefer.models.regionspot.convert import check_variant, convert, export, named_size, read_released, released_names
from dynrefer.models.regionspot.modeling import RegionSpotModel
from tests.regionspot import (
    ALL,
    CHECKPOINT,
    CLIP,
    NAMES,
    RECORDS,
    SAM,
    batch,
    example,
    folder,
    model,
    picture,
    scores,
    vector,
)


def tensors():
    return torch.load(CHECKPOINT, weights_only=True)["model"]


@pytest.mark.parametrize("record", ALL, ids=lambda record: record["image"])
def test_the_recorded_numbers_come_out_at_every_step(record):
    given = batch(example(record))
    with torch.no_grad():
        encoded = model().encode(given)
        embeds = model().recognise(encoded.tokens, encoded.memory, given.present)
        logits = model().logits(embeds, model().text_bank(NAMES))
    for found, name, tolerance in (
        (encoded.tokens, "sam_token", 1e-4),
        (encoded.quality, "sam_iou", 1e-4),
        (encoded.memory[0], "clip_tokens", 1e-4),
        (embeds, "region_embeds_normalised", 1e-4),
        (logits, "logits", 1e-3),
    ):
        torch.testing.assert_close(found, vector(record, name), rtol=0, atol=tolerance)


def test_the_predictor_gives_the_recorded_probabilities():
    for record in ALL:
        results = RegionPredictor(model())(picture(record), boxes=record["boxes_xyxy"], categories=NAMES, top_k=7)
        expected = torch.tensor(record["probabilities"])
        torch.testing.assert_close(scores(results, NAMES), expected, rtol=0, atol=1e-4)
    assert len(ALL) in (2, 4)


def test_the_command_gives_the_recorded_probabilities(tmp_path, capsys):
    record, names = RECORDS[0], tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    boxes = [part for box in record["boxes_xyxy"] for part in ("--box", *map(str, box))]
    command = ["describe", str(picture(record)), "--model", str(folder()), *boxes, "--json", "--device", "cpu"]
    assert cli.main([*command, f"categories={names}", "top_k=7"]) == 0
    rows = [json.loads(line)["categories"] for line in capsys.readouterr().out.splitlines()]
    found = torch.tensor([[{c["name"]: c["score"] for c in row}[name] for name in NAMES] for row in rows])
    torch.testing.assert_close(found, torch.tensor(record["probabilities"]), rtol=0, atol=1e-4)


def whole(tensors):
    """What detectron2 writes: objects of its own beside the tensors, copies of SAM and CLIP, DDP's prefix."""
    copies = {
        "model.sam.image_encoder.pos_embed": torch.zeros(2),
        "model.clip_model.visual.proj": torch.zeros(2).half(),
    }
    names = {f"module.{name}": tensor for name, tensor in {**tensors, **copies}.items()}
    return {"model": names, "trainer": {"hooks": [NotOurs()]}, "iteration": NotOurs()}


class NotOurs:
    """Whose unpickling would be seen."""

    def __reduce__(self):
        return open, (UNPICKLED, "w")


UNPICKLED = "unpickled"


@pytest.mark.parametrize("layout", ["whole", "bare", "bare, of DDP", "renamed"])
def test_every_layout_holds_the_same_60_tensors(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stripped = read_released(CHECKPOINT)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors().items()}
    content = {
        "whole": whole(tensors()),
        "bare": bare,
        "bare, of DDP": {f"module.{name}": tensor for name, tensor in bare.items()},
        "renamed": {"state_dict": tensors()},
    }[layout]
    torch.save(content, tmp_path / "file.pth")
    found = read_released(tmp_path / "file.pth")
    assert found.keys() == stripped.keys() == set(released_names()) and len(found) == 60
    assert all(torch.equal(found[name], stripped[name]) for name in found)
    assert not (tmp_path / UNPICKLED).exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model.projector.bias"), "lacks 1 of the 60 tensors of RegionSpot, such as projector.bias"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "1 tensors are none of RegionSpot's 60, such as extra"),
        (lambda t: t.update({"to_clip.bias": torch.zeros(64)}), "are both to_clip.bias"),
        (lambda t: t["model.to_clip.bias"].fill_(torch.nan), "hold NaN"),
    ],
)
def test_a_file_with_other_tensors_is_refused(change, told, tmp_path):
    content = tensors()
    change(content)
    torch.save({"model": content}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=told) as error:
        read_released(tmp_path / "file.pth")
    assert "\n" not in str(error.value)


def test_a_state_dict_of_parameters_is_read_and_a_tensor_larger_than_its_numbers_is_not(tmp_path):
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model()

    torch.save({"model": Holder().state_dict(keep_vars=True), "optimizer": {"lr": 0.1}}, tmp_path / "state.pth")
    names = {"sam.": "model.sam.", "clip.": "model.clip_model."}
    content = torch.load(tmp_path / "state.pth", weights_only=True)["model"]
    assert any(name.startswith("model.clip.") for name in content)
    content = {
        name.replace("model.clip.", names["clip."]): torch.nn.Parameter(value, requires_grad=False)
        for name, value in content.items()
    }
    torch.save({"model": content}, tmp_path / "state.pth")
    assert read_released(tmp_path / "state.pth").keys() == set(released_names())
    content["model.to_clip.bias"] = torch.zeros(1).expand(10**9)
    torch.save({"model": content}, tmp_path / "state.pth")
    with pytest.raises(ValueError, match=r"to_clip.bias is \(1000000000,\), of 1 numbers in the file"):
        read_released(tmp_path / "state.pth")


def test_files_of_before_the_zip_format_and_safetensors_are_read_too(tmp_path):
    torch.save({"model": tensors()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({name: tensor.contiguous() for name, tensor in tensors().items()}, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        found = read_released(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in read_released(CHECKPOINT).items())


@pytest.mark.parametrize(("width", "texts", "parameters"), [(768, 512, 24_226_304), (1024, 768, 38_853_376)])
def test_models_of_the_released_sizes_have_the_released_tensors(width, texts, parameters):
    heads = {"num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 64}
    clip = {"model_type": "clip", "projection_dim": texts}
    clip |= {"vision_config": {"hidden_size": width, "patch_size": 16, **heads}, "text_config": heads}
    sam = {"model_type": "sam", "vision_config": {"num_hidden_layers": 1, "global_attn_indexes": [0]}}
    made = RegionSpotModel.skeleton(RegionSpotConfig(sam_config=sam, clip_config=clip))
    own = {name: tensor for name, tensor in made.state_dict().items() if not name.startswith(("sam.", "clip."))}
    assert own.keys() == set(released_names())
    assert sum(tensor.numel() for tensor in own.values()) == parameters


def test_an_exported_model_is_the_file_it_came_from(tmp_path):
    export(model(), tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == tensors().keys()
    assert all(torch.equal(back[name], tensor.float()) for name, tensor in tensors().items())
    with pytest.raises(ValueError, match="exists"):
        export(model(), tmp_path / "back.pth")
    other = SimpleNamespace(config=RegionSpotConfig(**model().config.to_dict() | {"clip_positions": "sine"}))
    with pytest.raises(ValueError, match="clip_positions is 'sine'; the released program knows 'none' only"):
        export(other, tmp_path / "other.pth")


def test_the_name_of_a_released_file_tells_the_size_of_its_pictures():
    names = ["regionspot_bb.pth", "regionspot_bl.pth", "regionspot_bl_336.pth", "bl@336.pth", "model.pth", "able.pth"]
    assert [named_size(f"runs/336/{name}") for name in names] == [224, 224, 336, 336, None, None]


def test_a_file_name_that_says_another_size_is_an_error_and_the_users_size_a_warning(tmp_path, caplog, capsys):
    named = shutil.copy(CHECKPOINT, tmp_path / "regionspot_bl_336.pth")
    with pytest.raises(ValueError, match=r"336 x 336 pixels, and clip .*clip_hf.* has 64 x 64; .*--image-size 64"):
        convert(named, SAM, CLIP, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    convert(named, SAM, CLIP, tmp_path / "model", image_size=96)
    assert "--image-size 96" in caplog.text and "has 64 x 64" in caplog.text and "says 336 x 336" in caplog.text
    assert "pictures of 96 x 96 pixels" in capsys.readouterr().out
    loaded = dynrefer.load(tmp_path / "model", device="cpu")
    (result,) = RegionPredictor(loaded)(picture(RECORDS[0]), boxes=[[5, 5, 90, 90]], categories=NAMES)
    assert loaded.clip.grid == 6 and len(result.categories) == 5


def test_a_file_that_is_named_as_the_other_model_is_an_error():
    config = SimpleNamespace(clip_config=OpenClipConfig(architecture="ViT-L-14-336"), image_size=336)
    line = check_variant(config, 1024, "regionspot_bl_336.pth", "clip", None)
    assert line == "RegionSpot BL@336: clip clip with pictures of 336 x 336 pixels"
    with pytest.raises(ValueError, match="by its name BB and by its tensors BL"):
        check_variant(config, 1024, "regionspot_bb.pth", "clip", None)


def test_a_size_that_is_no_number_of_patches_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="image_size 100: CLIP's patches have 16 pixels; give a multiple, such as 96"):
        convert(CHECKPOINT, SAM, CLIP, tmp_path / "model", image_size=100)


def edited(source, target, change):
    """A copy of a model's folder with another config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_sam_or_clip_that_does_not_fit_is_an_error_in_one_line(tmp_path):
    wide = edited(CLIP, tmp_path / "wide", lambda c: c["vision_config"].update(hidden_size=96))
    long = edited(CLIP, tmp_path / "long", lambda c: c.update(projection_dim=32))
    small = edited(SAM, tmp_path / "small", lambda c: c["mask_decoder_config"].update(hidden_size=128))
    for sam, clip, told in (
        (SAM, wide, "image tokens of CLIP have 96 numbers, the checkpoint expects 64"),
        (SAM, long, "text vectors of CLIP have 32 numbers, the checkpoint expects 24"),
        (small, CLIP, "tokens of SAM have 128 numbers, the checkpoint expects 256"),
        (CLIP, CLIP, "sam_config: model_type 'clip' gives no mask token; expected one of sam, sam_hq, sam2"),
        (SAM, SAM, "clip_config: model_type 'sam' is not a model of two towers"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            convert(CHECKPOINT, sam, clip, tmp_path / "model")
        assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


def test_the_command_converts_and_exports(tmp_path, capsys):
    parts = ["--checkpoint", str(CHECKPOINT), "--sam", str(SAM), "--clip", str(CLIP)]
    assert cli.main(["convert", "regionspot", *parts, "--output", str(tmp_path / "model")]) == 0
    assert "pictures of 64 x 64 pixels" in capsys.readouterr().out
    export_to = ["--export", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")]
    assert cli.main(["convert", "regionspot", *export_to]) == 0
    assert read_released(tmp_path / "back.pth").keys() == set(released_names())
