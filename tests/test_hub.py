"""Saving, loading and publishing: bit-exact, small where parts are frozen, and the same through the hub."""

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, BitsAndBytesConfig

import dynrefer
from dynrefer.data.arrow import save_arrow
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from dynrefer.models import adapt, base_parts
from dynrefer.models.base_parts import Origin, content_hash
from dynrefer.models.card import MARK
from dynrefer.models.tokenizer import train_tokenizer
from tests import tiny_dynrefer as small

BOXES = np.array(small.BOXES, np.float32)
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
ENDPOINTS = {"vision": "clip", "language": "llama", "text": "clip"}


def parts_from(place, **language):
    """The `model:` sections of parts by name: place("clip") is a folder or hub id."""
    sections = {part: {"name": place(name)} for part, name in ENDPOINTS.items()}
    sections["language"] |= language or {"mode": "lora", "lora": LORA}
    return sections


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a CLIP with two towers, a Llama with tied embeddings in bfloat16, and a BLIP-2 with a T5 inside."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(1)
    tokenizer = train_tokenizer(small.CAPTIONS * 3, 120)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {k: v for k, v in small.SECTION["vision"]["config"].items() if k != "model_type"}
    text = {**small.SECTION["text"]["config"], **ids, "bos_token_id": tokenizer.bos_token_id}
    clip = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    llama = transformers.AutoConfig.for_model(**small.LLAMA["config"], **ids, tie_word_embeddings=True)
    blip = transformers.Blip2Config(
        vision_config=vision,
        qformer_config={**small.SECTION["qformer"], "encoder_hidden_size": 32},
        text_config={**small.T5["config"], **ids, "decoder_start_token_id": tokenizer.pad_token_id},
    )
    models = {
        "clip": transformers.CLIPModel(clip),
        "llama": AutoModelForCausalLM.from_config(llama).to(torch.bfloat16),
        "blip": transformers.Blip2ForConditionalGeneration(blip),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def tuned(bases):
    """A model made of those parts, all frozen but LoRA layers, whose other tensors have been trained a little."""
    model, _ = small.model(**parts_from(lambda name: str(bases / name)))
    train_a_little(model)
    return model


def train_a_little(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.before_eval()


def assert_same(one, other):
    """Names, number types and bits of all tensors."""
    for (name, tensor), (other_name, copy) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == other_name and tensor.dtype == copy.dtype and torch.equal(tensor, copy), name


def answers(model):
    return model.predict(small.batch_of(model.processor, small.picture(), BOXES))


def assert_same_answers(one, other):
    """To the last bit but one: where a tensor lies in memory changes the order of a sum."""
    for mine, theirs in zip(answers(one), answers(other), strict=True):
        assert (mine.caption, mine.category["name"]) == (theirs.caption, theirs.category["name"])
        assert mine.score == pytest.approx(theirs.score, rel=1e-4)
        assert [tag["score"] for tag in mine.tags] == pytest.approx([tag["score"] for tag in theirs.tags], rel=1e-4)


def names_in(folder):
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {name for file in files for name in safe_open(file, "pt").keys()}


# ------------------------------------------------------------------------------------------ transformers' Auto classes


def run_python(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_import_dynrefer_is_light_and_changes_no_other_package():
    done = run_python(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "import dynrefer\n"
        "assert sys.meta_path == before\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'dynrefer.models.dynrefer'} & sys.modules.keys()))\n"
        "import transformers\n"
        "assert 'dynrefer' not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES\n"
    )
    assert done.stdout == "[]\n" and not done.returncode, done.stderr


@pytest.mark.slow
def test_auto_classes_know_our_models_after_import_dynrefer_auto(tmp_path):
    model, _ = small.model()
    model.save_pretrained(tmp_path)
    done = run_python(
        "import dynrefer.auto\n"
        "from transformers import AutoProcessor, AutoModel, AutoConfig\n"
        f"loaded = [auto.from_pretrained({str(tmp_path)!r}) for auto in (AutoProcessor, AutoModel, AutoConfig)]\n"
        "print(*(type(each).__name__ for each in loaded))\n"
    )
    assert done.stdout.split()[-3:] == ["DynReferProcessor", "DynReferModel", "DynReferConfig"], done.stderr
    assert_same(AutoModel.from_pretrained(tmp_path), model)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), dynrefer.DynReferProcessor)


# ------------------------------------------------------------------------------------------ whole models


TIED_LLAMA = {**small.LLAMA, "config": {**small.LLAMA["config"], "tie_word_embeddings": True}}
UNTIED_T5 = {**small.T5, "config": {**small.T5["config"], "tie_word_embeddings": False}}


@pytest.mark.parametrize("shard", ["50GB", "40KB"], ids=["one-file", "shards"])
@pytest.mark.parametrize(
    "language", [small.T5, UNTIED_T5, small.LLAMA, TIED_LLAMA], ids=["t5", "t5-untied", "llama", "llama-tied"]
)
def test_a_saved_model_is_the_same_bit_by_bit(language, shard, tmp_path):
    model, _ = small.model(language=language)
    train_a_little(model)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard == "50GB"
    loaded = dynrefer.load(tmp_path, device="cpu")
    assert_same(loaded, model)
    inside, outside = loaded.language.model.get_input_embeddings(), loaded.language.model.get_output_embeddings()
    tied = language in (small.T5, TIED_LLAMA)
    assert (inside.weight.data_ptr() == outside.weight.data_ptr()) is tied
    if tied:  # a shared tensor stands in the file once
        stored = names_in(tmp_path)
        assert not {"language.model.lm_head.weight", "language.model.encoder.embed_tokens.weight"} & stored


def test_a_new_save_leaves_nothing_of_the_last_one(tuned, tmp_path):
    tuned.save_pretrained(tmp_path, save_trainable_only=True)
    tuned.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "base_parts.json").exists() and not (tmp_path / "model.safetensors").exists()
    assert_same(dynrefer.load(tmp_path, device="cpu"), tuned)
    loaded = dynrefer.load(tmp_path, device="cpu")
    loaded.save_pretrained(tmp_path, adapters="merged")  # over the files that it was read from
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    merged = dynrefer.load(tmp_path, device="cpu")
    assert [answer.caption for answer in answers(merged)] == [answer.caption for answer in answers(tuned)]


def test_number_types_are_kept_or_set(tuned, tmp_path):
    tuned.save_pretrained(tmp_path)
    types = {tensor.dtype for tensor in tuned.state_dict().values()}
    assert types == {torch.float32, torch.bfloat16}, "the language model's file is in bfloat16, the rest is not"
    for dtype in (None, "auto"):
        loaded = dynrefer.load(tmp_path, device="cpu", dtype=dtype)
        assert_same(loaded, tuned)
        for (name, buffer), (_, copy) in zip(tuned.named_buffers(), loaded.named_buffers(), strict=True):
            assert buffer.dtype == copy.dtype and torch.equal(buffer, copy), f"{name} is not even in the file"
    for dtype in ("bfloat16", "torch.bfloat16", torch.bfloat16):
        loaded = dynrefer.load(tmp_path, device="cpu", dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert all(0 <= answer.score <= 1 for answer in answers(loaded))
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path, dtype=torch.float64).parameters()} == {torch.float64}
    for wrong in ("bfloat", "int8", "nn", torch.int64):
        with pytest.raises(ValueError, match="dtype .*expected a floating-point type"):
            dynrefer.load(tmp_path, dtype=wrong)


SPLIT = {"vision": "disk", "language": "disk", "qformer": "cpu", "query_tokens": "cpu", "text_encoder": "cpu"}
SPLIT |= dict.fromkeys(["region_encoder", "tag_decoder", "region_text_decoder"], "cpu")
SPLIT |= dict.fromkeys(["tag_texts", "attribute_texts", "category_texts"], "cpu")


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto", {"": "disk"}, SPLIT], ids=["cpu", "auto", "disk", "split"])
def test_device_maps_change_no_answer(device_map, tuned, tmp_path):
    tuned.save_pretrained(tmp_path, save_trainable_only=True)
    loaded = dynrefer.load(tmp_path, device_map=device_map, offload_folder=str(tmp_path / "offload"))
    assert any(p.is_meta for p in loaded.parameters()) is (isinstance(device_map, dict) and device_map != {"": "cpu"})
    assert_same_answers(loaded, tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers': that this takes memory
        loaded.save_pretrained(tmp_path / "again")
    assert_same(dynrefer.load(tmp_path / "again", device="cpu"), tuned)
    with pytest.raises(ValueError, match="device 'cpu' and device_map"):
        dynrefer.load(tmp_path, device="cpu", device_map=device_map)


def test_layers_that_must_stay_on_one_device_are_named(tuned):
    assert {"CLIPEncoderLayer", "LlamaDecoderLayer", "RegionEncoder", "TextQueryDecoder"} <= set(
        tuned._no_split_modules
    )


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["4-bit", "8-bit"])
def test_quantization_is_of_the_language_model_only(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes packs blocks of 64
    model, _ = small.model(language={**small.LLAMA, "config": {**small.LLAMA["config"], **wide}, "mode": "frozen"})
    model.save_pretrained(tmp_path)
    loaded = dynrefer.load(tmp_path, device="cpu", quantization_config=BitsAndBytesConfig(**bits))
    packed = {name for name, p in loaded.named_parameters() if not p.is_floating_point()}
    layers = {name for name, m in model.language.model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    assert packed == {f"language.model.{name}.weight" for name in layers}
    vision = loaded.vision.state_dict()
    assert all(torch.equal(tensor, vision[name]) for name, tensor in model.vision.state_dict().items())
    for mine, theirs in zip(answers(loaded), answers(model), strict=True):  # not through the language model
        assert [tag["score"] for tag in mine.tags] == pytest.approx([tag["score"] for tag in theirs.tags], rel=1e-4)
    loaded.save_pretrained(tmp_path / "packed")
    again = dynrefer.load(tmp_path / "packed", device="cpu")
    assert_same_answers(again, loaded)
    with pytest.raises(ValueError, match="quantized"):
        loaded.save_pretrained(tmp_path / "small", save_trainable_only=True)
    dynrefer.load(tmp_path, device="cpu").save_pretrained(tmp_path / "small", save_trainable_only=True)
    fetched = dynrefer.load(tmp_path / "small", device="cpu", quantization_config=BitsAndBytesConfig(**bits))
    assert_same(fetched, dynrefer.load(tmp_path, device="cpu", quantization_config=BitsAndBytesConfig(**bits)))
    chosen = BitsAndBytesConfig(**bits, llm_int8_skip_modules=["vision", "language", "text_encoder", "qformer"])
    own = dynrefer.load(tmp_path, device="cpu", quantization_config=chosen)
    assert any(not p.is_floating_point() for p in own.tag_decoder.parameters()), "a user's own choice is kept"


# ------------------------------------------------------------------------------------------ frozen parts left out


def test_frozen_parts_are_left_out_and_fetched_again(tuned, bases, tmp_path):
    tuned.save_pretrained(tmp_path, save_trainable_only=True)
    stored = names_in(tmp_path)
    assert not [name for name in stored if name.startswith(("vision.model.", "text_encoder.", "language.model."))]
    assert {name for name, p in tuned.named_parameters() if p.requires_grad and "lora_" not in name} <= stored
    records = json.loads((tmp_path / "base_parts.json").read_text())
    assert {part: row["name"] for part, row in records.items()} == {
        part: str(bases / name) for part, name in ENDPOINTS.items()
    }
    left_out = {name for row in records.values() for name in row["tensors"]}
    assert left_out == {
        name
        for name in tuned.state_dict()
        if name.startswith(tuple(f"{path}." for path in tuned.BASE_PARTS.values()))
        and "lora_" not in name
        and name != "language.model.lm_head.weight"  # tied
    }
    loaded = dynrefer.load(tmp_path, device="cpu")
    assert_same(loaded, tuned)
    assert_same_answers(loaded, tuned)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in tuned.parameters()]
    assert_same(AutoModel.from_pretrained(tmp_path), tuned)
    loaded.save_pretrained(tmp_path / "again", save_trainable_only=True)  # its sources are known
    assert names_in(tmp_path / "again") == stored
    assert_same(dynrefer.load(tmp_path / "again", device="cpu"), tuned)


def test_a_source_that_changed_is_an_error_with_both_hashes(tuned, bases, tmp_path):
    moved = tmp_path / "bases"
    shutil.copytree(bases, moved)
    model, _ = small.model(**parts_from(lambda name: str(moved / name)))
    model.save_pretrained(tmp_path / "small", save_trainable_only=True)
    file = moved / "llama" / "model.safetensors"
    tensors = load_file(file)
    before = model.config.base_parts["language"]["sha256"]
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="language: .*llama has content hash [0-9a-f]{64}") as error:
        dynrefer.load(tmp_path / "small")
    assert before in str(error.value) and str(error.value).count(before) == 1
    file.unlink()
    with pytest.raises(ValueError, match="language: its tensors come from .*llama, which cannot be read"):
        dynrefer.load(tmp_path / "small")
    save_file({"other": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 20 tensors of the language part"):
        dynrefer.load(tmp_path / "small")


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"vision": {}}', '{"ears": {"kind": "dynrefer", "name": "x", "sha256": "0", "tensors": {}}}']
)
def test_a_damaged_record_is_an_error(damage, tuned, tmp_path):
    tuned.save_pretrained(tmp_path, save_trainable_only=True)
    (tmp_path / "base_parts.json").write_text(damage)
    with pytest.raises(ValueError, match="base_parts.json"):
        dynrefer.load(tmp_path)


def test_a_frozen_tensor_that_was_changed_is_saved(bases, tmp_path):
    model, _ = small.model(**parts_from(lambda name: str(bases / name)))
    with torch.no_grad():
        model.vision.model.post_layernorm.bias += 1
        model.text_encoder.requires_grad_(True)
    with pytest.warns(UserWarning, match="vision: 1 of .* differ from those of .*clip, so they are saved"):
        model.save_pretrained(tmp_path, save_trainable_only=True)
    stored = names_in(tmp_path)
    assert "vision.model.post_layernorm.bias" in stored and "vision.model.post_layernorm.weight" not in stored
    assert {f"text_encoder.{name}" for name in model.text_encoder.state_dict()} <= stored, "a trained part is saved"
    assert_same(dynrefer.load(tmp_path, device="cpu"), model)


def test_a_model_in_another_number_type_than_its_source_is_the_same_again(bases, tmp_path, monkeypatch):
    """bfloat16 rounds what the source has: the model is compared with the source itself, once."""
    model, _ = small.model(**parts_from(lambda name: str(bases / name), mode="frozen"))
    model.to(torch.bfloat16)
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder, save_trainable_only=True)
        assert not [name for name in names_in(tmp_path / folder) if name.startswith(("vision.model.", "text_enc"))]
        monkeypatch.setattr(base_parts, "read_part", None)  # not called a second time
    monkeypatch.undo()
    assert_same(dynrefer.load(tmp_path / "second", device="cpu"), model)


def test_the_loaded_model_is_the_source_where_there_is_no_other(tmp_path):
    frozen = {name: {**small.SECTION[name], "trainable": False} for name in ("vision", "text")}
    model, _ = small.model(**frozen, language={**small.LLAMA, "mode": "frozen"})
    with pytest.warns(UserWarning, match="vision: not trained, but of no known source, so it is saved"):
        model.save_pretrained(tmp_path / "whole", save_trainable_only=True)
    assert "vision.model.post_layernorm.bias" in names_in(tmp_path / "whole")
    loaded = dynrefer.load(tmp_path / "whole", device="cpu")
    train_a_little(loaded)
    loaded.save_pretrained(tmp_path / "small", save_trainable_only=True)
    assert not [name for name in names_in(tmp_path / "small") if name.startswith(("vision.model.", "language.model."))]
    assert_same(dynrefer.load(tmp_path / "small", device="cpu"), loaded)
    with pytest.warns(UserWarning, match="no known source"):  # not even its own folder
        loaded.config.base_parts = None
        loaded.save_pretrained(tmp_path / "whole", save_trainable_only=True)
    assert_same(dynrefer.load(tmp_path / "whole", device="cpu"), loaded)


def test_a_part_that_was_trained_or_merged_is_no_longer_its_source(tuned, bases, tmp_path):
    model = dynrefer.load(saved(tuned, tmp_path / "lora"), device="cpu")
    adapt(model, {"vision": {"trainable": True}})
    train_a_little(model)
    model.save_pretrained(tmp_path / "merged", adapters="merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert card.count("`llama`, trained further") == 1 and card.count("`clip`, trained further") == 1
    loaded = dynrefer.load(tmp_path / "merged", device="cpu")
    adapt(loaded, {"vision": {"trainable": False}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.save_pretrained(tmp_path / "small", save_trainable_only=True)
    records = json.loads((tmp_path / "small" / "base_parts.json").read_text())
    names = {part: row["name"] for part, row in records.items()}
    assert names == {**dict.fromkeys(["vision", "language"], str(tmp_path / "merged")), "text": str(bases / "clip")}
    assert_same(dynrefer.load(tmp_path / "small", device="cpu"), loaded)


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def test_a_part_is_found_inside_a_model_of_several(bases, tmp_path):
    named = {"name": str(bases / "blip")}
    model, _ = small.model(vision=named, language={**named, "mode": "frozen"})
    whole = transformers.Blip2ForConditionalGeneration.from_pretrained(bases / "blip")
    for own, theirs in ((model.vision.model, whole.vision_model), (model.language.model, whole.language_model)):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(own.state_dict()[name], tensor), name
    model.save_pretrained(tmp_path, save_trainable_only=True)
    assert set(json.loads((tmp_path / "base_parts.json").read_text())) == {"vision", "language"}
    assert_same(dynrefer.load(tmp_path, device="cpu"), model)


def test_records_of_version_0_3_0_name_our_models_by_another_kind(tmp_path):
    model, _ = small.model(language={**small.LLAMA, "mode": "frozen"})
    model.save_pretrained(tmp_path / "whole")
    whole = dynrefer.load(tmp_path / "whole", device="cpu")
    whole.save_pretrained(tmp_path / "small", save_trainable_only=True)
    records = json.loads((tmp_path / "small/base_parts.json").read_text())
    assert {row["kind"] for row in records.values()} == {"ours"}
    for row in records.values():
        row["kind"] = "dynrefer"
    (tmp_path / "small/base_parts.json").write_text(json.dumps(records))
    loaded = dynrefer.load(tmp_path / "small", device="cpu")
    assert_same(loaded, whole)
    assert {row["kind"] for row in loaded.config.base_parts.values()} == {"ours"}


def test_parts_whose_files_have_older_names(tmp_path):
    """transformers writes DINOv3's tensors under the names of its publisher."""
    config = {**small.SECTION["vision"]["config"], "model_type": "dinov3_vit", "num_register_tokens": 2}
    model, _ = small.model(vision={"config": config})
    model.vision.model.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    assert not {f"vision.model.{name}" for name in model.vision.model.state_dict()} <= names_in(tmp_path / "whole")
    loaded = dynrefer.load(tmp_path / "whole", device="cpu")
    assert_same(loaded, model)
    loaded.save_pretrained(tmp_path / "small", save_trainable_only=True)
    assert not [name for name in names_in(tmp_path / "small") if name.startswith("vision.")]
    assert_same(dynrefer.load(tmp_path / "small", device="cpu"), model)


def test_a_tensor_that_is_neither_here_nor_left_out_is_missed(tuned, tmp_path):
    tuned.save_pretrained(tmp_path, save_trainable_only=True)
    tensors = load_file(tmp_path / "model.safetensors")
    stray = {"stray": torch.zeros(1)}
    for wrong, message in ((stray | tensors, "unexpected keys.*stray"), (dict(tensors), "missing keys.*query_tokens")):
        if "stray" not in wrong:
            del wrong["query_tokens"]
        save_file(wrong, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            dynrefer.load(tmp_path)


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["4-bit", "8-bit"])
def test_lora_learns_on_a_quantized_language_model(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128}
    section = {**small.LLAMA, "config": {**small.LLAMA["config"], **wide}, "mode": "lora", "lora": LORA}
    model, _ = small.model(language=section)
    train_a_little(model)
    model.save_pretrained(tmp_path)
    loaded = dynrefer.load(tmp_path, device="cpu", quantization_config=BitsAndBytesConfig(**bits))
    layer = loaded.language.model.model.layers[0].self_attn.q_proj
    assert not layer.base_layer.weight.is_floating_point() and layer.lora_A["default"].weight.is_floating_point()
    samples = small.samples(loaded.processor, small.picture(), small.regions(), small.generators(), False)
    loaded.train()(loaded.processor.collate(samples))["captions"].backward()
    assert layer.lora_A["default"].weight.grad.abs().max() > 0
    loaded.save_pretrained(tmp_path / "packed")
    assert_same(dynrefer.load(tmp_path / "packed", device="cpu"), loaded)


def test_a_source_that_cannot_be_read_any_more_costs_no_training(bases, tmp_path):
    shutil.copytree(bases / "clip", tmp_path / "clip")
    model, _ = small.model(vision={"name": str(tmp_path / "clip")}, language={**small.LLAMA, "mode": "full"})
    model.to(torch.bfloat16)  # so that the source would have to be read
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="vision: its tensors come from .*clip, which cannot be read.*vision is saved"):
        model.save_pretrained(tmp_path / "out", save_trainable_only=True)
    assert_same(dynrefer.load(tmp_path / "out", device="cpu"), model)


def test_layers_under_lora_get_the_pretrained_weights(tuned, bases):
    theirs = AutoModelForCausalLM.from_pretrained(bases / "llama").state_dict()
    own = tuned.language.model.state_dict()
    for name, tensor in theirs.items():
        wrapped = name.replace("q_proj.", "q_proj.base_layer.").replace("v_proj.", "v_proj.base_layer.")
        assert torch.equal(own[wrapped if wrapped in own else name], tensor), name


def test_what_is_trained_is_in_float32_whatever_the_source_says(tuned):
    types = {p.dtype for name, p in tuned.language.model.named_parameters() if "lora_" in name}
    assert types == {torch.float32} and tuned.language.model.model.norm.weight.dtype == torch.bfloat16


def test_the_content_hash_knows_names_shapes_and_values_but_not_the_width_of_a_number():
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])}
    digest = content_hash(tensors)
    assert content_hash({"b": tensors["b"], "a": tensors["a"].bfloat16()}) == digest
    for other in (
        {"a": tensors["a"], "c": tensors["b"]},
        {**tensors, "a": tensors["a"].reshape(2, 1)},
        {**tensors, "a": tensors["a"].flip(0)},
        {**tensors, "b": tensors["b"].float()},
        {"a": tensors["a"]},
    ):
        assert content_hash(other) != digest


def test_a_fine_tune_of_the_full_size_model_is_below_a_gigabyte(monkeypatch):
    """The released sizes (BLIP-2 FlanT5-XL, EVA-CLIP's text tower) with LoRA of rank 64, on the meta device."""
    text = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    text |= {"num_attention_heads": 12, "projection_dim": 1024, "eos_token_id": 49407}
    t5 = {"model_type": "t5", "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "d_kv": 64}
    config = dynrefer.DynReferConfig(
        vision_config={"model_type": "blip_2_vision_model"},
        language_config={**t5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": 32128},
        text_config={**text, "hidden_act": "gelu"},
        language_mode="lora",
        language_lora={"r": 64, "target_modules": ["q", "v"]},
        tags=[f"tag {i}" for i in range(4585)],
        attributes=[{"name": f"color:{i}", "type": "color", "is_has_att": "has"} for i in range(117)],
        categories=[f"category {i}" for i in range(80)],
        base_parts={part: vars(Origin("transformers", "x/y", sha256="0")) for part in ENDPOINTS},
    )
    model = dynrefer.DynReferModel.skeleton(config)
    state = model.state_dict()
    sizes = {name: tensor.numel() * tensor.itemsize for name, tensor in state.items()}
    assert sum(p.numel() for p in model.parameters()) > 4.0e9
    monkeypatch.setattr(base_parts, "content_hash", lambda tensors: "0")  # nothing is in memory; as if unchanged
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    records = base_parts.leave_out(model, state, trained, folder=None)
    left_out = {name for row in records.values() for name in row["tensors"]}
    tied = {name for name, source in model.all_tied_weights_keys.items() if source in left_out}
    kept = sum(size for name, size in sizes.items() if name not in left_out | tied)
    assert trained.isdisjoint(left_out)
    assert 0.5e9 < kept < 1e9, f"{kept / 1e9:.2f} GB in float32"


# ------------------------------------------------------------------------------------------ adapters


def test_adapters_are_what_peft_users_expect(tuned, bases, tmp_path):
    from peft import PeftModel

    tuned.save_pretrained(tmp_path)
    assert not [name for name in names_in(tmp_path) if "lora_" in name]
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(bases / "llama") and described["task_type"] == "CAUSAL_LM"
    plain = AutoModelForCausalLM.from_pretrained(bases / "llama")
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 9, 7, 11]])
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, tuned.language.model(input_ids=ids).logits)
        with theirs.disable_adapter():
            assert not torch.equal(theirs(input_ids=ids).logits, tuned.language.model(input_ids=ids).logits)


@pytest.mark.parametrize("language", [small.T5, small.LLAMA], ids=["encoder-decoder", "decoder-only"])
def test_merged_adapters_answer_alike_and_leave_the_model_as_it_is(language, tmp_path):
    target = "q" if language is small.T5 else "q_proj"
    model, _ = small.model(language={**language, "mode": "lora", "lora": {"r": 2, "target_modules": [target]}})
    train_a_little(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, adapters="merged")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    merged = dynrefer.load(tmp_path, device="cpu")
    assert merged.config.language_mode == "frozen" and not [n for n in merged.state_dict() if "lora_" in n]
    for one, other in zip(answers(merged), answers(model), strict=True):
        assert one.caption == other.caption and one.score == pytest.approx(other.score, rel=1e-4)
    with pytest.raises(ValueError, match="adapters 'merge': expected one of separate, merged"):
        model.save_pretrained(tmp_path, adapters="merge")


def test_adapters_of_another_shape_are_refused(tuned, tmp_path):
    tuned.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["language_lora"]["target_modules"] = ["q_proj"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="4 LoRA tensors do not fit config.json's language_lora.*v_proj"):
        dynrefer.load(tmp_path)


def test_training_may_go_on_with_lora_or_with_other_parts(tuned, tmp_path):
    model, _ = small.model(language={**small.LLAMA, "mode": "frozen"})
    assert not [p for p in model.language.model.parameters() if p.requires_grad]
    adapt(model, {"language": {"mode": "lora", "lora": LORA}, "vision": {"trainable": False}})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len([name for name in trained if "lora_" in name]) == 8
    assert not [n for n in trained if n.startswith("vision.") or (n.startswith("language.model.") and "lora" not in n)]
    model.save_pretrained(tmp_path)
    assert_same(dynrefer.load(tmp_path, device="cpu"), model)
    adapt(tuned, {"language": {"mode": "lora"}})
    for wrong in ({"mode": "full"}, {"mode": "lora", "lora": {**LORA, "r": 4}}):
        with pytest.raises(ValueError, match="the model of `init` has LoRA layers .*adapters='merged'"):
            adapt(tuned, {"language": wrong})
    with pytest.raises(ValueError, match="model.language.mode 'lroa': expected one of frozen, lora, full"):
        adapt(small.model()[0], {"language": {"mode": "lroa"}})


# ------------------------------------------------------------------------------------------ the hub


def files_of(hub, name, revision="main"):
    repository = hub.repositories[name]
    return repository.commits[repository.resolve(revision)]


def test_a_pushed_model_comes_back_by_id_and_revision(hub, monkeypatch):
    model, _ = small.model()
    model.push_to_hub("me/cups", commit_message="first", token="hf_x")
    files = files_of(hub, "me/cups")
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files.keys()
    first = dynrefer.load("me/cups", device="cpu")
    assert_same(first, model)
    assert_same_answers(first, model)
    assert "`" not in files["README.md"].decode().split("dynrefer.load(")[1].split(")")[0]
    assert 'dynrefer.load("me/cups")' in files["README.md"].decode()

    train_a_little(model)
    model.push_to_hub("me/cups", max_shard_size="100KB")
    assert "model.safetensors" not in files_of(hub, "me/cups"), "the old weights would be read instead of the shards"
    old = first.loaded_from[1]
    assert old != hub.repositories["me/cups"].resolve("main")
    assert_same(dynrefer.load("me/cups", device="cpu"), model)
    assert_same(dynrefer.load("me/cups", device="cpu", revision=old), first)
    first.push_to_hub("me/cups", revision="old")
    assert_same(AutoModel.from_pretrained("me/cups", revision="old"), first)
    assert isinstance(AutoProcessor.from_pretrained("me/cups"), dynrefer.DynReferProcessor)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert_same(dynrefer.load("me/cups", device="cpu"), model)
    assert not hub.requests


def test_what_is_not_on_the_hub_is_told(hub):
    model, _ = small.model()
    model.push_to_hub("me/cups")
    with pytest.raises(ValueError, match="model 'me/mugs': no run folder, model folder or hub id"):
        dynrefer.load("me/mugs")
    with pytest.raises(ValueError, match="model 'me/cups': .*nope"):
        dynrefer.load("me/cups", revision="nope")


def test_a_small_model_is_fetched_with_its_sources_by_commit(hub, bases, monkeypatch):
    from huggingface_hub import HfApi

    for name in ("clip", "llama"):
        HfApi().create_repo(f"base/{name}")
        HfApi().upload_folder(repo_id=f"base/{name}", folder_path=bases / name)
    model, _ = small.model(**parts_from(lambda name: f"base/{name}"))
    train_a_little(model)
    commits = {part: hub.repositories[f"base/{name}"].resolve("main") for part, name in ENDPOINTS.items()}
    assert {part: row["revision"] for part, row in model.config.base_parts.items()} == commits
    model.push_to_hub("me/small", save_trainable_only=True)
    files = files_of(hub, "me/small")
    assert len(files["model.safetensors"]) < 0.7 * sum(p.numel() * p.itemsize for p in model.parameters())
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == ["base/clip", "base/llama"]

    # the sources move on; what is fetched is the commit that was used
    newer = hub.repositories["base/llama"]
    tensors = load_file(bases / "llama" / "model.safetensors")
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(changed, bases.parent / "changed.safetensors", metadata={"format": "pt"})
    HfApi().upload_file(
        repo_id="base/llama",
        path_or_fileobj=bases.parent / "changed.safetensors",
        path_in_repo="model.safetensors",
    )
    assert newer.resolve("main") != commits["language"]
    hub.forget()
    hub.requests.clear()
    assert_same(dynrefer.load("me/small", device="cpu"), model)
    assert f"GET /base/llama/resolve/{commits['language']}/model.safetensors" in hub.requests
    newer.commits[commits["language"]] = newer.commits[newer.resolve("main")]  # history rewritten
    hub.forget()
    with pytest.raises(ValueError, match=f"base/llama@{commits['language']} has content hash"):
        dynrefer.load("me/small")


def test_a_source_on_this_machine_is_not_published(hub, tuned, bases):
    with pytest.raises(
        ValueError, match="push_to_hub: the vision part is left out and its source .*clip.* this machine"
    ):
        tuned.push_to_hub("me/small", save_trainable_only=True)
    assert not hub.repositories
    tuned.config.training = [{"init": str(bases), "run": "r", "steps": 1, "batch_size": 1, "regions": 1, "seed": 0}]
    tuned.config.training[0] |= {"tasks": {}, "sources": []}
    tuned.push_to_hub("me/whole")
    tuned.config.training = None
    files = files_of(hub, "me/whole")
    assert not [name for name, content in files.items() if str(bases).encode() in content], "local paths"
    loaded = dynrefer.load("me/whole", device="cpu")
    assert_same(loaded, tuned)
    train_a_little(loaded)
    loaded.push_to_hub("me/small", save_trainable_only=True)  # the published model is the source now
    records = json.loads(files_of(hub, "me/small")["base_parts.json"])
    assert {(row["kind"], row["name"]) for row in records.values()} == {("ours", "me/whole")}
    hub.forget()
    assert_same(dynrefer.load("me/small", device="cpu"), loaded)


def test_the_command_publishes_a_run(hub, tmp_path, capsys):
    from dynrefer.cli import main

    model, _ = small.model()
    model.save_pretrained(tmp_path / "run" / "best")
    assert main(["push", str(tmp_path / "run"), "me/cups", "--licence", "Apache-2.0", "--branch", "v2"]) == 0
    assert capsys.readouterr().out.strip().startswith(f"{hub.url}/me/cups/commit/")
    assert ModelCard(files_of(hub, "me/cups", "v2")["README.md"].decode()).data.license == "apache-2.0"
    assert_same(dynrefer.load("me/cups", device="cpu", revision="v2"), model)


def test_a_processor_is_pushed_alone(hub):
    _, processor = small.model()
    processor.push_to_hub("me/processor")
    loaded = AutoProcessor.from_pretrained("me/processor")
    assert loaded.encode_captions(["a red cup"])[0].tolist() == processor.encode_captions(["a red cup"])[0].tolist()


def test_save_pretrained_may_push(hub, tmp_path):
    model, processor = small.model()
    model.save_pretrained(tmp_path / "cups", push_to_hub=True, repo_id="me/cups", private=True)
    processor.save_pretrained(tmp_path / "p", push_to_hub=True, repo_id="me/p")
    assert_same(dynrefer.load("me/cups", device="cpu"), model)
    assert "processor_config.json" in files_of(hub, "me/p")


def test_a_card_of_ones_own_stays(hub, tmp_path):
    model, _ = small.model()
    model.push_to_hub("me/cups")
    own = files_of(hub, "me/cups")["README.md"].decode().replace(MARK, "My own words.")
    files_of(hub, "me/cups")["README.md"] = own.encode()
    hub.forget()
    model.push_to_hub("me/cups")
    assert files_of(hub, "me/cups")["README.md"].decode() == own
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# ------------------------------------------------------------------------------------------ the model card


def test_the_card_says_what_is_known_and_nothing_else(tmp_path):
    model, _ = small.model()
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "unknown" and card.data.library_name == "dynrefer"
    assert card.data.pipeline_tag == "image-to-text" and card.data.datasets is None and card.data.eval_results is None
    assert "Not recorded." in card.text and "None recorded for these weights." in card.text
    assert "Not stated" in card.text
    for said, told in (("CC-BY-4.0", {"license": "cc-by-4.0"}), ("My own, v1", {"license_name": "my-own-v1"})):
        model.config.licence = said
        model.save_pretrained(tmp_path)
        assert told.items() <= ModelCard.load(tmp_path / "README.md").data.to_dict().items()
    assert ModelCard.load(tmp_path / "README.md").data.license == "other"


def test_scores_in_the_card_are_of_these_very_weights(tmp_path):
    from dynrefer.models.fingerprint import model_fingerprint

    model, _ = small.model()
    model.save_pretrained(tmp_path / "run" / "best")
    place = tmp_path / "run" / "predictions" / "cups"
    place.mkdir(parents=True)
    scores = {
        "task": "cups",
        "task_version": 3,
        "protocol": "Cups only; PTB tokens.",
        "data": str(tmp_path / "secret" / "cups.jsonl"),
        "data_sha256": "ab" * 32,
        "date": "2030-01-02T03:04:05+00:00",
        "regions": 12,
        "settings": {"generation": {"num_beams": 2}},
        "scores": {"CIDEr": 1.23456, "attribute mAP/color": 0.5},
        "baselines": {"always 'a cup'": {"CIDEr": 0.1}},
        "left_out": {"METEOR": "no Java"},
    }
    (place / "scores.json").write_text(json.dumps(scores))
    meta = place / "predictions.jsonl.meta.json"
    meta.write_text(json.dumps({"model": model_fingerprint(model)}))
    loaded = dynrefer.load(tmp_path / "run", device="cpu")
    loaded.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        "Cups only; PTB tokens.",
        "ab" * 32,
        "cups, version 3",
        "num_beams",
        "1.235",
        "always 'a cup'",
        "Java",
    ):
        assert fact in text, fact
    assert "secret" not in text and "2030-01-02" in text
    result = ModelCard(text).data.eval_results[0]
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("CIDEr", 1.2346, "cups")
    train_a_little(loaded)
    loaded.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "1.235" not in text and ModelCard(text).data.eval_results is None


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    regions = []
    for number in range(3):
        Image.fromarray(small.picture(number)).save(folder / f"{number}.png")
        own = {"source": f"cups:{number}", "licence": "CC0-1.0" if number else ""}
        regions += [dataclasses.replace(r, **own) for r in small.regions(f"{number}.png", 10 * number)]
    write_records(folder / "train.jsonl", regions)
    return folder / "train.jsonl"


def test_records_know_their_sources_and_licences(records, tmp_path):
    expected = {("cups", "CC0-1.0"): 8, ("cups", ""): 4}
    plain = open_records(records)
    save_arrow(tmp_path / "arrow", list(plain))
    arrow = open_records(tmp_path / "arrow")
    assert plain.licences() == arrow.licences() == expected
    assert arrow.subset(range(4, 6)).licences() == {("cups", "CC0-1.0"): 2}
    other = Region.from_dict({"id": "x", "image": "x.png", "image_hw": [9, 9], "box": [0, 0, 5, 5]})
    write_records(tmp_path / "more.jsonl", [other])
    joined = open_records([records, tmp_path / "more.jsonl"])
    assert joined.licences() == {**expected, ("", ""): 1}
    assert joined.subset([12]).licences() == {("", ""): 1}


# ------------------------------------------------------------------------------------------ training


def test_training_with_small_checkpoints_resumes_exactly(bases, records, tmp_path):
    from dynrefer.config import load_config
    from train.run import RunConfig, main

    model = {**small.SECTION, **parts_from(lambda name: str(bases / name))}
    common = [f"data.train={records}", f"output={tmp_path}", "data.batch_size=4", "data.num_workers=0", "loop.cpu=true"]
    common += ["loop.num_threads=1", "log.tensorboard=false", "loop.save=trainable", "losses={captions: 1, tags: 0.5}"]

    def go(name, *settings):
        cfg = load_config(RunConfig, None, [f"name={name}", "loop.steps=4", *common, *settings])
        return main(dataclasses.replace(cfg, model={} if cfg.init else model)).folder

    straight = go("straight")
    go("stopped", "loop.stop_at=2", "loop.keep_last=1")
    stopped = go("stopped", "loop.resume=true", "loop.keep_last=1")
    losses = [
        [json.loads(line).get("loss") for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (straight, stopped)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    one, other = dynrefer.load(straight, device="cpu"), dynrefer.load(stopped, device="cpu")
    assert_same(one, other)
    for folder in ("best", "checkpoints/step-00000004/model"):
        assert not [name for name in names_in(stopped / folder) if name.startswith(("vision.model.", "text_encoder."))]
        records_of = json.loads((stopped / folder / "base_parts.json").read_text())
        assert {row["name"] for row in records_of.values()} == {str(bases / "clip"), str(bases / "llama")}

    further = go("further", f"init={straight}")
    text = (further / "best" / "README.md").read_text()
    assert "Run `straight`: 4 steps of 4 regions on 12 regions" in text and "Run `further`, starting from" in text
    assert "| cups | 8 | CC0-1.0 |" in text and "| cups | 4 | not stated |" in text
    assert ModelCard(text).data.datasets == ["cups"]
