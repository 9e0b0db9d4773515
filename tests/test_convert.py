"""`dynrefer convert dynrefer` on random files of many sizes and kinds, and what it says to files that do not fit.

That converted models compute what the released program computed is in test_released.py.
"""

import json
import pickle
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dynrefer
from dynrefer.convert.blip2 import BASE_NAMES
from dynrefer.data.records import Region
from dynrefer.masks import mask_to_rle
from dynrefer.models.dynrefer import convert
from dynrefer.models.language import CausalLM, Seq2SeqLM
from tests import tiny_dynrefer as small
from tests.released_layout import SIZES, fill, released_shapes, save_base, text_shapes, write_base

LISTS = {"vocabulary": "tags.txt", "attributes": "ovad.json", "categories": "coco.json"}
FILES = {"checkpoint": "dynrefer.pth", "base": "base", "text_encoder": "text.pt", **LISTS}
VARIANTS = {
    "t5": (SIZES, "t5", "blip2"),
    "two views, narrow groups, one layer": (
        replace(SIZES, views=2, groups=2, decoder=20, decoder_layers=1),
        "t5",
        "blip2",
    ),
    "five views, eight groups, deep decoders": (replace(SIZES, views=5, groups=8, decoder_layers=3), "t5", "blip2"),
    "vicuna, InstructBLIP": (replace(SIZES, prefix="llm", text_branch=30), "llama", "instructblip"),
    "vicuna, BLIP-2": (replace(SIZES, prefix="llm"), "llama", "blip2"),
    "opt, BLIP-2": (replace(SIZES, prefix="llm"), "opt", "blip2"),
}


def write_files(folder, sizes=SIZES, language="t5", kind="blip2"):
    """Everything that the converter reads, in a folder; returns the checkpoint's tensors."""
    base = load_file(write_base(folder / "base", language, kind) / "model.safetensors")
    tensors = fill(released_shapes(sizes), seed=1)
    for name in tensors:
        if name.endswith("embed_tokens.weight"):
            tensors[name] = base["language_model.shared.weight"].half()
        elif (ours := convert.rename(name, convert.TEXT_BRANCH)) is not None:
            tensors[name] = base[ours].clone()
    write_checkpoint(folder, tensors)
    towers = fill(text_shapes(width=24, layers=2, mlp=30, output=sizes.text), seed=2)
    torch.save({**towers, "visual.cls_token": torch.zeros(1, 1, 8)}, folder / "text.pt")
    (folder / "tags.txt").write_text("cup\ncar\ndog\nred\n")
    attributes = [
        {"name": "color:red", "type": "color", "is_has_att": "has"},
        {"name": "size:big/large", "type": "size"},
    ]
    (folder / "ovad.json").write_text(json.dumps({"attributes": attributes}))
    (folder / "coco.json").write_text(json.dumps(["Cup", "Dog"]))
    return tensors


def write_checkpoint(folder, tensors, name="dynrefer.pth"):
    torch.save(
        {"model": tensors, "epoch": 4, "config": {"run": {"task": "x"}}, "optimizer": {"state": {}}}, folder / name
    )
    return folder / name


def run_convert(folder, output, **changes):
    return convert.convert(**{**{name: folder / file for name, file in FILES.items()}, **changes}, output=output)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of T5 files, to be read only, and its checkpoint's tensors."""
    folder = tmp_path_factory.mktemp("files")
    return folder, write_files(folder)


@pytest.fixture(scope="module")
def output(files, tmp_path_factory):
    """The folder that they were converted to."""
    return run_convert(files[0], tmp_path_factory.mktemp("converted") / "model")


@pytest.fixture(scope="module")
def model(output):
    return dynrefer.load(output, device="cpu")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_of_any_size_convert_predict_and_export_back(tmp_path, variant):
    sizes, language, kind = VARIANTS[variant]
    tensors = write_files(tmp_path, sizes, language, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = dynrefer.load(run_convert(tmp_path, tmp_path / "model"), device="cpu")
    config = model.config
    assert (config.num_views, config.align_groups, config.decoder_layers) == (
        sizes.views,
        sizes.groups,
        sizes.decoder_layers,
    )
    assert isinstance(model.language, Seq2SeqLM if language == "t5" else CausalLM)
    base = load_file(tmp_path / "base/model.safetensors")
    state = model.state_dict()
    for name, tensor in base.items():
        ours = convert.rename(name, BASE_NAMES)
        if not ours.startswith(convert.REPLACED):
            assert torch.equal(state[ours], tensor), name
    photo = picture(50, 40)
    boxes = [[0, 0, 40, 50], [39, 49, 40, 50], [10.2, 3, 10.6, 30], [5, 5, 20, 20.5]]
    results = dynrefer.RegionPredictor(model)(photo, boxes, control=[["red"], [], None, "old cup"])
    assert len(results) == 4 and all(np.isfinite(result.score) and result.category for result in results)
    alone = dynrefer.RegionPredictor(model)(photo, boxes[3:], control="old cup")[0]
    assert alone.caption == results[3].caption
    back = convert.read_torch(convert.export(model, tmp_path / "back.pth"))
    left = {name for name in tensors if convert.rename(name, convert.TEXT_BRANCH)}
    assert back.keys() == tensors.keys() - left
    for name, tensor in back.items():
        assert torch.equal(tensor.to(tensors[name].dtype), tensors[name]), name
    again = run_convert(tmp_path, tmp_path / "again", checkpoint=tmp_path / "back.pth")
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------ text encoders


def test_the_text_encoder_may_stand_in_a_whole_clip_file(files, tmp_path):
    """open_clip's layout, text.* beside visual.*, and OpenAI's, the text tower's names at the top."""
    folder, _ = files
    own = torch.load(folder / "text.pt", weights_only=True)
    whole = {name.removeprefix("text."): tensor for name, tensor in own.items()}
    whole |= {"visual.conv1.weight": torch.zeros(1), "context_length": torch.tensor(77), "attn_mask": torch.zeros(1)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in whole.items()}}, tmp_path / "openai.pt")
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / "open_clip.safetensors")
    wanted = convert.text_tensors(own)
    for name in ("openai.pt", "open_clip.safetensors"):
        found = convert.text_tensors(convert.read_text_encoder(tmp_path / name))
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_an_open_clip_name_stands_for_its_published_weights(files, tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    folder, _ = files
    own = torch.load(folder / "text.pt", weights_only=True)
    asked = []

    class Clip(torch.nn.Module):
        def state_dict(self):
            return own

    def create_model(name, pretrained=None):
        asked.append((name, pretrained))
        return Clip()

    config = {"text_cfg": {"heads": 3, "width": 24}, "quick_gelu": True}
    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    model = dynrefer.load(run_convert(folder, tmp_path / "model", text_encoder="EVA01-g-14"), device="cpu")
    assert asked == [("EVA01-g-14", "laion400m_s11b_b41k")]
    assert model.config.text_config.num_attention_heads == 3, "heads stand in open_clip's config"
    assert model.config.text_config.hidden_act == "quick_gelu"
    assert model.config.base_parts["text"]["name"] == "EVA01-g-14"
    with pytest.raises(ValueError, match="EVA01-g-15.*Did you mean 'EVA01-g-14'"):
        convert.read_text_encoder("EVA01-g-15")

    def offline(name, pretrained=None):
        raise RuntimeError("Failed to download")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(ValueError, match="cannot fetch its weights 'laion400m_s11b_b41k'; give a file"):
        convert.read_text_encoder("EVA01-g-14")


def test_text_heads_are_given_or_of_64_at_least_four(files):
    folder, _ = files
    texts = convert.text_tensors(convert.read_text_encoder(folder / "text.pt"))
    assert convert.text_sizes(texts, None)["num_attention_heads"] == 4
    assert convert.text_sizes(texts, 6)["num_attention_heads"] == 6
    assert convert.head_count(768) == 12
    with pytest.raises(ValueError, match="width 24 cannot have 5 heads; give --text-heads"):
        convert.text_sizes(texts, 5)


# ------------------------------------------------------------------------------------------------ language models


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"scale_decoder_outputs": True}, {}])
def test_the_file_says_whether_the_output_matrix_is_tied(files, tmp_path, config):
    """T5's config class always says tied, and configs of the hub leave the rest to defaults; the tensors decide."""
    folder, _ = files
    shutil.copytree(folder / "base", tmp_path / "base")
    saved = json.loads((tmp_path / "base/config.json").read_text())
    for name in ("tie_word_embeddings", "scale_decoder_outputs", "dense_act_fn"):
        saved["text_config"].pop(name, None)
    saved["text_config"] |= {**config, "torch_dtype": "bfloat16"}
    (tmp_path / "base/config.json").write_text(json.dumps(saved))
    output = run_convert(folder, tmp_path / "model", base=tmp_path / "base")
    language = dynrefer.load(output, device="cpu").language.model
    base = load_file(folder / "base/model.safetensors")
    assert torch.equal(language.lm_head.weight, base["language_model.lm_head.weight"])
    assert torch.equal(language.shared.weight, base["language_model.shared.weight"])
    assert not language.config.scale_decoder_outputs and language.config.dense_act_fn == "gelu"
    assert language.dtype == torch.float32


def test_a_tied_output_matrix_stays_tied(tmp_path):
    write_files(tmp_path, replace(SIZES, prefix="llm"), "opt")
    language = dynrefer.load(run_convert(tmp_path, tmp_path / "model"), device="cpu").language.model
    assert language.lm_head.weight is language.get_input_embeddings().weight


@pytest.mark.parametrize("embeddings", [False, True], ids=["q and v", "released: words, q, v, output"])
def test_lora_layers_are_used_and_exported(files, tmp_path, embeddings):
    folder, tensors = files
    wrapper = "t5_model.base_model.model."
    tensors = {name.replace("t5_model.", wrapper): tensor for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(5)
    lora = {}
    for stack, attention in (("encoder", "0.Self"), ("decoder", "0.Self"), ("decoder", "1.EncDec")):
        for block in (0, 1):
            for layer in ("q", "v"):
                name = f"{wrapper}{stack}.block.{block}.layer.{attention}Attention.{layer}"
                lora[f"{name}.lora_A.default.weight"] = torch.randn(2, 20, generator=generator)
                lora[f"{name}.lora_B.default.weight"] = torch.randn(20, 2, generator=generator)
    if embeddings:
        for stack in ("encoder", "decoder"):
            lora[f"{wrapper}{stack}.embed_tokens.lora_embedding_A.default"] = torch.randn(2, 90, generator=generator)
            lora[f"{wrapper}{stack}.embed_tokens.lora_embedding_B.default"] = torch.randn(20, 2, generator=generator)
        lora[f"{wrapper}lm_head.lora_A.default.weight"] = torch.randn(2, 20, generator=generator)
        lora[f"{wrapper}lm_head.lora_B.default.weight"] = torch.randn(90, 2, generator=generator)
    path = write_checkpoint(tmp_path, tensors | lora, "lora.pth")
    model = dynrefer.load(run_convert(folder, tmp_path / "model", checkpoint=path), device="cpu")
    assert model.config.language_mode == "lora"
    targets = ["embed_tokens", "lm_head", "q", "v"] if embeddings else ["q", "v"]
    assert model.config.language_lora == {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": targets}
    base = load_file(folder / "base/model.safetensors")
    layer = model.language.model.encoder.block[0].layer[0].SelfAttention.q
    plain = base["language_model.encoder.block.0.layer.0.SelfAttention.q.weight"]
    x = torch.randn(3, 20, generator=generator)
    name = f"{wrapper}encoder.block.0.layer.0.SelfAttention.q.lora_"
    added = 2.0 * (x @ lora[f"{name}A.default.weight"].T) @ lora[f"{name}B.default.weight"].T  # alpha / r
    torch.testing.assert_close(layer(x), x @ plain.T + added, rtol=1e-5, atol=1e-5)
    ids, mask = torch.tensor([[5, 7]]), torch.ones(1, 2, dtype=torch.long)
    words, _ = model.language.prompt(torch.zeros(1, 5, 24), ids, mask)
    expected = base["language_model.shared.weight"][ids] + model.language.control_memory
    if embeddings:
        name = f"{wrapper}encoder.embed_tokens.lora_embedding_"
        expected = expected + 2.0 * lora[f"{name}A.default"].T[ids] @ lora[f"{name}B.default"].T
    torch.testing.assert_close(words[:, 5:], expected, rtol=1e-5, atol=1e-5)
    back = convert.read_torch(convert.export(model, tmp_path / "back.pth"))
    assert back.keys() == (tensors | lora).keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in lora.items())
    assert np.isfinite(dynrefer.RegionPredictor(model)(picture(20, 30), [[2, 3, 20, 15]])[0].score)


def test_query_tokens_that_learned_are_kept(files, tmp_path):
    folder, tensors = files
    learned = {"query_tokens": torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(7))}
    path = write_checkpoint(tmp_path, tensors | learned)
    model = dynrefer.load(run_convert(folder, tmp_path / "model", checkpoint=path), device="cpu")
    assert torch.equal(model.query_tokens, learned["query_tokens"]) and model.query_tokens.requires_grad
    back = convert.read_torch(convert.export(model, tmp_path / "back.pth"))
    assert torch.equal(back["query_tokens"], learned["query_tokens"])


@pytest.mark.parametrize(
    ("sizes", "language", "message"),
    [
        (replace(SIZES, prefix="llm"), "t5", "has a llm_proj, but the language model of base .* is an encoder-decoder"),
        (
            SIZES,
            "llama",
            "has a t5_proj, but the language model of base .* is decoder-only .llama.; it needs a base with T5",
        ),
        (replace(SIZES, language=24), "t5", r"language.projection.weight is \(24, 24\), expected \(20, 24\)"),
        (replace(SIZES, width=28), "t5", "features have width 28 and the base's vision encoder 32"),
    ],
    ids=["vicuna on T5", "T5 on vicuna", "another language width", "another vision width"],
)
def test_a_checkpoint_and_a_base_that_do_not_belong_together(tmp_path, sizes, language, message):
    write_files(tmp_path, sizes, "t5" if sizes.prefix == "t5" else "llama")
    shutil.rmtree(tmp_path / "base")
    write_base(tmp_path / "base", language)
    tensors = convert.read_torch(tmp_path / "dynrefer.pth")
    for name in list(tensors):  # compared later
        if name.endswith("embed_tokens.weight"):
            del tensors[name]
    write_checkpoint(tmp_path, {name: tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=message):
        run_convert(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_instructblips_q_former_reads_is_compared_or_left_out_with_a_warning(tmp_path):
    tensors = write_files(tmp_path, replace(SIZES, prefix="llm", text_branch=30), "llama", "instructblip")
    name = "Qformer.bert.encoder.layer.1.intermediate.dense.weight"
    write_checkpoint(tmp_path, tensors | {name: tensors[name] + 1}, "other.pth")
    with pytest.raises(ValueError, match=f"{name} differs .* belong to different base models"):
        run_convert(tmp_path, tmp_path / "model", checkpoint=tmp_path / "other.pth")
    write_base(tmp_path / "queries", "llama", "blip2")
    with pytest.warns(UserWarning, match="20 tensors of the Q-Former's text branch"):
        run_convert(tmp_path, tmp_path / "model", base=tmp_path / "queries")


# ------------------------------------------------------------------------------------------------ files that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("tag_fc.bias"), "missing tag_decoder.fc.bias"),
        (lambda t: t.pop("cvem_mlp.0.weight"), "missing tensor region_encoder.mlp.0.weight"),
        (lambda t: t.pop("t5_proj.weight"), "neither t5_proj.weight nor llm_proj.weight"),
        (lambda t: t.update({"llm_proj.weight": torch.zeros(1)}), "t5_proj.weight and llm_proj.weight are both"),
        (lambda t: t.update(stray=torch.zeros(1)), "unknown tensors, such as stray"),
        (lambda t: t.update({"t5_model.encoder.stray": torch.zeros(1)}), "unused language.model.encoder.stray"),
        (lambda t: t.update(cem_memory=torch.zeros(7)), r"language.control_memory is \(7,\), expected \(20,\)"),
        (lambda t: t.update({"attr_fc.weight": torch.zeros(1, 9)}), r"region_text_decoder.fc.weight is \(1, 9\)"),
        (
            lambda t: t["t5_model.encoder.embed_tokens.weight"].zero_(),
            "encoder.embed_tokens.weight.*different base models",
        ),
        (lambda t: t.update({"t5_model.shared.weight": torch.zeros(2, 2)}), r"\(2, 2\) repeats a tensor \(90, 20\)"),
        (
            lambda t: t["Qformer.bert.embeddings.position_ids"].add_(1),
            "position_ids differs from what it should repeat",
        ),
        (lambda t: t.update(clip_embeds=torch.zeros(5, 12)), r"clip_embeds \(5, 12\) repeats a tensor \(4, 12\)"),
        (lambda t: t.update(ov_embeds=torch.ones(2, 12)), "ov_embeds differs .* other word lists"),
        (lambda t: t["tag_fc.weight"].fill_(torch.nan), r"NaN or infinite numbers, such as tag_fc.weight"),
        (lambda t: t.update({"cvem_mlp.0.weight": torch.zeros(32, 80)}), "no whole number of views of width 32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(files, tmp_path, change, message):
    folder, tensors = files
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    path = write_checkpoint(tmp_path, tensors)
    with pytest.raises(ValueError, match=message):
        run_convert(folder, tmp_path / "model", checkpoint=path)
    assert [path.name for path in tmp_path.iterdir()] == ["dynrefer.pth"], "nothing half-written is left"


def test_what_only_repeats_others_is_compared(files, model, tmp_path):
    folder, tensors = files
    banks = {"clip_embeds": model.tag_texts, "att_embeds": model.attribute_texts, "ov_embeds": model.category_texts}
    path = write_checkpoint(tmp_path, tensors | {name: bank.half() for name, bank in banks.items()})
    run_convert(folder, tmp_path / "model", checkpoint=path)

    tensors = write_files(tmp_path / "vicuna", replace(SIZES, prefix="llm"), "llama")
    name = "llm_model.model.layers.1.self_attn.rotary_emb.inv_freq"
    frequencies = 10000.0 ** -(torch.arange(0, 10, 2) / 10)
    path = write_checkpoint(tmp_path, tensors | {name: frequencies})
    run_convert(tmp_path / "vicuna", tmp_path / "rotary", checkpoint=path)
    path = write_checkpoint(tmp_path, tensors | {name: frequencies * 2})
    with pytest.raises(ValueError, match="rotary_emb.inv_freq differs"):
        run_convert(tmp_path / "vicuna", tmp_path / "other", checkpoint=path)


def test_every_tensor_of_a_checkpoint_is_needed(files, model):
    """Without any one of them the converter says so, but for what only repeats others."""
    folder, tensors = files
    texts = convert.text_tensors(convert.read_text_encoder(folder / "text.pt"))
    base, base_config = convert.read_base(folder / "base")
    trained, copies = convert.split_released(tensors, "checkpoint")
    assert len(trained) + len(copies) == len(tensors) and len(copies) == 3
    for name in trained:
        rest = {key: tensor for key, tensor in trained.items() if key != name}
        with pytest.raises(ValueError, match=f"missing {name}"):
            convert.check_fit(model, convert.all_tensors(rest, base, texts), computed=convert.TEXT_BANKS.values())


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path(sys.argv[0]).parent / "hostile-was-run",))


@pytest.mark.parametrize(
    ("option", "make", "message"),
    [
        ("checkpoint", lambda f, t: f / "absent.pth", "absent.pth'?: no such file"),
        ("checkpoint", lambda f, t: f, "no such file"),
        ("checkpoint", lambda f, t: f / "text.pt", r"no cvem_mlp.*looks like a CLIP text encoder \(--text-encoder\)"),
        ("checkpoint", lambda f, t: f / "base/model.safetensors", "looks like a BLIP-2 of transformers"),
        ("checkpoint", lambda f, t: cut(f / "dynrefer.pth", t), "cut off .* download it again"),
        ("checkpoint", lambda f, t: f / "tags.txt", "checkpoint .*tags.txt'"),
        ("checkpoint", lambda f, t: hostile(t), "more than tensors, such as code, which is never run"),
        ("checkpoint", lambda f, t: saved([1, 2], t), "expected names and tensors, found list"),
        ("checkpoint", lambda f, t: saved({"model": {"a": 1}}, t), "'a' is a int; expected tensors only"),
        ("text_encoder", lambda f, t: f / "dynrefer.pth", r"looks like a DynRefer checkpoint \(--checkpoint\)"),
        ("text_encoder", lambda f, t: f / "base", "no such file"),
        ("text_encoder", lambda f, t: "absent.pt", "neither a file nor one of open_clip.list_models"),
        ("text_encoder", lambda f, t: saved({"visual.x": torch.zeros(1)}, t), "no token_embedding.weight"),
        ("base", lambda f, t: f, "no config.json in it"),
        ("base", lambda f, t: f / "dynrefer.pth", "no config.json in it"),
        ("base", lambda f, t: another_kind(t), "is of type 'bert', whose config has no vision_config, qformer_config"),
        ("base", lambda f, t: without_weights(f, t), "no .safetensors file in it"),
        ("base", lambda f, t: damaged_weights(f, t), "cut off .* bytes"),
        ("base", lambda f, t: without_tokenizer(f, t), "no tokenizer in it"),
        ("vocabulary", lambda f, t: f / "absent.txt", "no such file"),
        ("vocabulary", lambda f, t: empty(t), "the list is empty"),
        ("vocabulary", lambda f, t: f / "dynrefer.pth", "dynrefer.pth': not a text file"),
        ("attributes", lambda f, t: saved_text("{}", t), "attribute list: expected a list of attributes"),
        ("attributes", lambda f, t: saved_text("[{}]", t), "attribute {}: expected a name"),
        ("attributes", lambda f, t: saved_text("[", t), "list.json': not JSON"),
        ("categories", lambda f, t: f / "ovad.json", "ovad.json': expected a list of names"),
        ("categories", lambda f, t: saved_text("[1]", t), "list.json': expected a list of names"),
    ],
)
def test_wrong_files_are_named(files, tmp_path, option, make, message):
    folder, _ = files
    path = make(folder, tmp_path)
    with pytest.raises(ValueError, match=message):
        run_convert(folder, tmp_path / "model", **{option: path})
    assert not (tmp_path / "model").exists()
    assert not (Path(sys.argv[0]).parent / "hostile-was-run").exists()


def cut(path, folder):
    data = path.read_bytes()
    (folder / "cut.pth").write_bytes(data[: len(data) // 2])
    return folder / "cut.pth"


def hostile(folder):
    (folder / "hostile.pth").write_bytes(pickle.dumps({"model": Hostile()}, protocol=2))
    return folder / "hostile.pth"


def saved(content, folder):
    torch.save(content, folder / "saved.pth")
    return folder / "saved.pth"


def saved_text(text, folder):
    (folder / "list.json").write_text(text)
    return folder / "list.json"


def another_kind(folder):
    save_base(folder / "bert", {"model_type": "bert"}, {"x": torch.zeros(1)})
    return folder / "bert"


def without_weights(files, folder):
    shutil.copytree(files / "base", folder / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / "base"


def without_tokenizer(files, folder):
    shutil.copytree(files / "base", folder / "base", ignore=shutil.ignore_patterns("tokenizer*"))
    return folder / "base"


def damaged_weights(files, folder):
    shutil.copytree(files / "base", folder / "base")
    data = (folder / "base/model.safetensors").read_bytes()
    (folder / "base/model.safetensors").write_bytes(data[: len(data) // 2])
    return folder / "base"


def empty(folder):
    (folder / "empty.txt").write_text("\n\n")
    return folder / "empty.txt"


# ------------------------------------------------------------------------------------------------ folders and files


def test_a_folder_with_something_in_it_is_left_alone(files, model, tmp_path):
    folder, _ = files
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="model' exists and is not an empty folder"):
        run_convert(folder, tmp_path / "model")
    with pytest.raises(ValueError, match="notes.txt' exists and is not an empty folder"):
        run_convert(folder, tmp_path / "model/notes.txt")
    with pytest.raises(ValueError, match="notes.txt' exists; give another name"):
        convert.export(model, tmp_path / "model/notes.txt")
    assert (tmp_path / "model/notes.txt").read_text() == "mine"


def test_a_stopped_conversion_leaves_no_model_behind(files, tmp_path, monkeypatch):
    folder, _ = files

    def stop(self, *args, **kwargs):
        (Path(args[0]) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(dynrefer.DynReferModel, "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        run_convert(folder, tmp_path / "new/model")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def test_the_folder_holds_all_that_a_user_needs(files, tmp_path):
    folder, _ = files
    (tmp_path / "model").mkdir()  # an empty one may be there
    output = run_convert(folder, tmp_path / "model")
    assert oct(output.stat().st_mode)[-3:] == oct((folder / "base").stat().st_mode)[-3:], "others may read it"
    names = {path.relative_to(output).as_posix() for path in output.rglob("*")}
    assert names >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert "text_tokenizer/tokenizer.json" in names
    bank = load_file(output / "model.safetensors")["attribute_texts"]
    assert bank.shape == (2 + 4, 12) and bank.abs().max() > 0
    config = json.loads((output / "config.json").read_text())
    assert config["tags"] == ["cup", "car", "dog", "red"] and config["categories"] == ["Cup", "Dog"]
    assert {part: row["name"] for part, row in config["base_parts"].items()} == {
        "vision": str(folder / "base"),
        "language": str(folder / "base"),
        "text": str(folder / "text.pt"),
    }
    assert config["generation"]["num_beams"] == 2 and config["generation"]["repetition_penalty"] == 1.5
    dynrefer.load(output, device="cpu").save_pretrained(tmp_path / "small", save_trainable_only=True)
    again = dynrefer.load(tmp_path / "small", device="cpu").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in dynrefer.load(output, "cpu").state_dict().items())
    assert (tmp_path / "small/model.safetensors").stat().st_size < (output / "model.safetensors").stat().st_size / 2


def test_converted_models_train_what_was_trained(files, model):
    _, tensors = files
    _, copies = convert.split_released(tensors, "checkpoint")
    trained = {convert.checkpoint_name(name) for name in tensors.keys() - copies.keys()}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_repeated_words_are_left_out_with_a_warning(files, tmp_path):
    folder, _ = files
    (tmp_path / "tags.txt").write_text("cup\ncar\ncup\n")
    with pytest.warns(UserWarning, match="tags.txt: 1 repeated words are left out"):
        output = run_convert(folder, tmp_path / "model", vocabulary=tmp_path / "tags.txt")
    assert json.loads((output / "config.json").read_text())["tags"] == ["cup", "car"]


@pytest.mark.parametrize(
    "change",
    [
        {"roi_aligned": True},
        {"positions": True},
        {"decoder_heads": 2},
        {"vision_trainable": True},
        {"language_mode": "full"},
        {"language_mode": "lora", "language_lora": {"r": 4, "lora_alpha": 4}},
    ],
    ids=str,
)
def test_what_the_released_layout_cannot_hold_is_refused(tmp_path, change):
    settings = {"language": {**small.T5, "mode": "frozen"}, "text": {**small.SECTION["text"], "trainable": False}}
    model, _ = small.model(**settings, vision={**small.SECTION["vision"], "trainable": False})
    convert.check_layout(model.config)
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"^{list(change)[-1]} .*released layout"):
        convert.export(model, tmp_path / "out.pth")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ using them


def test_a_mask_is_looked_at_as_the_released_program_does(model):
    mask = np.zeros((50, 40), bool)
    mask[10:30, 5:25] = True
    predictor = dynrefer.RegionPredictor(model)
    by_mask = predictor(picture(50, 40), masks=[mask])[0]
    by_box = predictor(picture(50, 40), [[5, 10, 24, 29]])[0]
    assert (by_mask.box, by_mask.caption, by_mask.score) == (by_box.box, by_box.caption, by_box.score)
    record = {"id": "1", "image": "a.png", "image_hw": [50, 40], "mask": mask_to_rle(mask)}
    regions = [Region.from_dict(row) for row in (record, {**record, "box": [4, 10, 25, 30]})]
    samples = small.samples(
        model.processor, picture(50, 40), regions, [np.random.default_rng(i) for i in range(2)], False
    )
    assert [sample["boxes"].tolist() for sample in samples] == [[5, 10, 24, 29], [4, 10, 25, 30]], "its own box stays"
    thin = np.zeros((50, 40), bool)
    thin[7, 3] = True
    assert predictor(picture(50, 40), masks=[thin])[0].caption is not None


def test_control_words_reach_the_prompt(model, monkeypatch):
    prompts = []
    encode = model.processor.encode_prompts
    monkeypatch.setattr(model.processor, "encode_prompts", lambda words: (prompts.extend(words), encode(words))[1])
    predictor = dynrefer.RegionPredictor(model)
    boxes = [[0, 0, 20, 20], [5, 5, 40, 50]]
    everything, nothing = {"tag_threshold": -1.0}, {"tag_threshold": 1.0}
    ranked = [[tag["name"] for tag in result.tags] for result in predictor(picture(50, 40), boxes, **everything)]
    assert all(sorted(tags) == ["car", "cup", "dog", "red"] for tags in ranked)
    assert prompts[2:] == ranked, "behind those of training, which are empty: the predicted tags, best first"
    cases = {
        "red,car": [["red", "car"]] * 2,
        "": [[], []],
        "old hat,<tags>": [["old hat", *tags] for tags in ranked],
        ("car", "red"): [["car", "red"]] * 2,
        (("red",), None): [["red"], ranked[1]],
    }
    for control, expected in cases.items():
        prompts.clear()
        predictor(picture(50, 40), boxes, control=control, **everything)
        assert prompts[2:] == expected
    prompts.clear()
    predictor(picture(50, 40), boxes, **nothing)
    assert prompts[2:] == [[], []]


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (64, 64)])
def test_pictures_of_any_kind_are_described(model, size):
    height, width = size
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8))
    predictor = dynrefer.RegionPredictor(model)
    boxes = [[0, 0, width, height], [width - 1, height - 1, width, height], [width - 0.5, 0, width, 0.5]]
    for photo in (grey, grey.convert("RGB"), grey.convert("P"), np.zeros((height, width, 3), np.uint8)):
        assert all(np.isfinite(result.score) for result in predictor(photo, boxes))
    many = predictor(grey, np.tile(np.array(boxes), (30, 1)))
    assert len(many) == 90 and len({result.caption for result in many}) <= 3
