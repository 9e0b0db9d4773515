"""Files of a model that are not what they should be: one line with the file, what it is and what to do."""

import json
import logging
import shutil
import warnings

import pytest
import tiny_dynrefer as small
import torch
from safetensors.torch import load_file, save_file

import dynrefer
from dynrefer.models import folder_check
from dynrefer.models.folder_check import check_folder, read_object, read_state

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Access denied</title></head></html>\n"


def cut(content):
    return content[: len(content) // 2]


DAMAGES = {
    "pointer": (
        lambda content: POINTER,
        "a pointer of Git LFS (12[0-9] bytes), not the file itself; fetch it with `git",
    ),
    "annex": (lambda content: b"/annex/objects/SHA256E-s123--0.bin\n", "a pointer of git-annex"),
    "empty": (lambda content: b"", "empty; copy or download it again"),
    "page": (lambda content: PAGE, "a web page (HTML), not the file; download the file itself"),
    "page after blanks": (lambda content: b"\xef\xbb\xbf\n <html lang=en>" + PAGE, "a web page (HTML)"),
    "cut": (cut, "cut off"),
    "zeros": (lambda content: bytes(len(content)), "nothing but zeros"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model's folder."""
    folder = tmp_path_factory.mktemp("saved")
    model, _ = small.model()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def in_one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500 and "weights_only" not in text and "trust_remote_code" not in text
    return text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "text_tokenizer/tokenizer.json"],
)
def test_a_damaged_file_is_named_with_what_it_is(folder, name, damage):
    change, said = DAMAGES[damage]
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        dynrefer.load(folder, device="cpu")
    text = in_one_line(error)
    assert f"model file {str(path)!r}: " in text and said.split(" (12")[0] in text


@pytest.mark.parametrize("damage", ["pointer", "empty", "page", "cut"])
def test_a_damaged_shard_or_index_is_named(saved, tmp_path, damage):
    folder = tmp_path / "sharded"
    dynrefer.load(saved, device="cpu").save_pretrained(folder, max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    for path in (shard, folder / "model.safetensors.index.json"):
        whole = path.read_bytes()
        path.write_bytes(DAMAGES[damage][0](whole))
        with pytest.raises(ValueError, match=path.name) as error:
            dynrefer.load(folder, device="cpu")
        assert DAMAGES[damage][1].split(" (12")[0] in in_one_line(error)
        path.write_bytes(whole)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}.*: no such file; check the path, or download it again"):
        dynrefer.load(folder, device="cpu")


@pytest.mark.parametrize("value", ["[]", '"text"', "17", "null"])
def test_a_config_that_is_no_object_is_named(folder, value):
    (folder / "config.json").write_text(value)
    with pytest.raises(ValueError, match="config.json': holds .* where names and values are expected"):
        dynrefer.load(folder, device="cpu")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/hostname", "..\\outside.safetensors", "C:\\w.safetensors"]
)
def test_an_index_stays_in_its_folder(folder, tmp_path, name):
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"query_tokens": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="weight_map names .* which is not in the model's folder; nothing is read"):
        dynrefer.load(folder, device="cpu")


def test_a_config_stays_in_its_folder_and_fetches_no_kernels(folder):
    whole = json.loads((folder / "config.json").read_text())
    for key, value, said in (
        ("transformers_weights", "../../other.safetensors", "transformers_weights names '../../other.safetensors'"),
        (
            "attn_implementation",
            "somebody/kernels",
            "attn_implementation is 'somebody/kernels', which is code",
        ),
    ):
        for changed in ({**whole, key: value}, {**whole, "language_config": {**whole["language_config"], key: value}}):
            (folder / "config.json").write_text(json.dumps(changed))
            with pytest.raises(ValueError, match=said):
                dynrefer.load(folder, device="cpu")


def test_weights_in_a_pickle_are_not_read_as_a_model_of_ours(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin': weights in a pickle, which may hold code") as error:
        dynrefer.load(folder, device="cpu")
    in_one_line(error)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(folder, number):
    tensors = load_file(folder / "model.safetensors")
    tensors["language.control_memory"][0] = number
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights hold NaN or infinite numbers, such as language.control_memory"):
        dynrefer.load(folder, device="cpu")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_hold_no_fractions_are_named(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["query_tokens"] = tensors["query_tokens"].to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"1 weights .* holds no fractions, such as query_tokens \({name}\)"):
        dynrefer.load(folder, device="cpu")


def test_a_buffer_that_is_no_number_is_named_like_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["attribute_texts"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights hold NaN or infinite numbers, such as attribute_texts"):
        dynrefer.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "no weights in it"),
        ("tokenizer.json", "a tokenizer without its tokenizer.json"),
        ("tokenizer_config.json", "a tokenizer without its tokenizer_config.json"),
        ("text_tokenizer/tokenizer.json", "text_tokenizer': a tokenizer without its tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(folder, name, said):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=said) as error:
        dynrefer.load(folder, device="cpu")
    assert in_one_line(error).startswith(f"model folder '{folder}")


def test_tensors_of_another_shape_are_named_in_one_line_and_no_table(folder, capfd):
    tensors = load_file(folder / "model.safetensors")
    tensors["query_tokens"] = tensors["query_tokens"][..., :1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"mismatched keys in its weights: query_tokens \(.*, 1\), not \(") as error:
        dynrefer.load(folder, device="cpu")
    in_one_line(error)
    assert "REPORT" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def saved_with_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    model, _ = small.model(language={**small.LLAMA, "mode": "lora"})
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_named(saved_with_adapter, tmp_path, name, damage):
    path = shutil.copytree(saved_with_adapter, tmp_path / "model") / "adapter" / name
    path.write_bytes(DAMAGES[damage][0](path.read_bytes()))
    with pytest.raises(ValueError) as error:
        dynrefer.load(tmp_path / "model", device="cpu")
    assert f"model file {str(path)!r}: " in in_one_line(error)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, name: tensors.pop(name), "adapter_model.safetensors: 1 LoRA tensors do not fit config.json's"),
        (lambda tensors, name: tensors.update(extra=torch.zeros(1)), "1 LoRA tensors do not fit .*such as extra"),
        (
            lambda tensors, name: tensors[name].fill_(float("nan")),
            "1 weights hold NaN or infinite numbers, such as lang",
        ),
        (
            lambda tensors, name: tensors.update({name: tensors[name].long()}),
            "1 weights are of a type that holds no fr",
        ),
        (
            lambda tensors, name: tensors.update({name: tensors[name][:, :1].clone()}),
            "mismatched keys in its weights: l",
        ),
        (None, "missing keys in its weights: language"),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(saved_with_adapter, tmp_path, change, said):
    path = shutil.copytree(saved_with_adapter, tmp_path / "model") / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    if change is not None:
        change(tensors, min(tensors))
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=said) as error:
        dynrefer.load(tmp_path / "model", device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_named(folder, name, encoding):
    path = folder / name
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    with pytest.raises(ValueError, match="begins with a byte order mark.*save it as UTF-8 without one") as error:
        dynrefer.load(folder, device="cpu")
    assert str(path) in in_one_line(error)


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", None), ("model.safetensors", None), ("config.json", "{}")]
)
def test_a_file_for_a_folder_and_an_empty_config_are_named(folder, name, content):
    if content is not None:
        (folder / name).write_text(content)
    said = f"a file of a model; name its folder, '{folder}'" if content is None else "its config.json is empty"
    with pytest.raises(ValueError, match=said):
        dynrefer.load(folder / name if content is None else folder, device="cpu")


def test_files_that_loading_does_not_read_may_be_anything(folder):
    for name in ("pytorch_model.bin", "tf_model.h5", "scores.json", "consolidated.safetensors", "README.md"):
        (folder / name).write_bytes(POINTER)
    dynrefer.load(folder, device="cpu")


def test_code_in_a_folder_is_told_of_once_and_loading_goes_on(folder, caplog, monkeypatch):
    monkeypatch.setattr(folder_check, "_told", set())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "trap.Model"}}))
    (folder / "trap.py").write_text("raise SystemExit")
    with caplog.at_level(logging.WARNING):
        dynrefer.load(folder, device="cpu")
    said = [record.getMessage() for record in caplog.records if "never run" in record.getMessage()]
    assert said == [f"{folder}: brings code (auto_map in config.json, trap.py), which is never run"]


def test_nobody_can_ask_for_code(folder):
    with pytest.raises(ValueError, match="trust_remote_code is set, and code of a model is never run; leave it out"):
        dynrefer.load(folder, device="cpu", trust_remote_code=True)


def test_a_saved_state_is_tensors_and_plain_values_only(tmp_path):
    torch.save({"step": 3, "tensor": torch.ones(2)}, tmp_path / "state.pt")
    assert read_state(tmp_path / "state.pt")["step"] == 3
    whole = (tmp_path / "state.pt").read_bytes()
    for change, said in DAMAGES.values():
        (tmp_path / "state.pt").write_bytes(change(whole))
        with pytest.raises(ValueError, match="state.pt") as error:
            read_state(tmp_path / "state.pt")
        assert said.split(" (12")[0] in in_one_line(error)
    torch.save({"path": tmp_path}, tmp_path / "state.pt")  # any class
    with pytest.raises(ValueError, match=r"such as code, which is never run \(it names pathlib") as error:
        read_state(tmp_path / "state.pt", "checkpoint file")
    assert in_one_line(error).startswith("checkpoint file ")


def test_an_object_is_read_or_named(tmp_path):
    (tmp_path / "loop.json").write_text('{"step": 3}')
    assert read_object(tmp_path / "loop.json") == {"step": 3}
    (tmp_path / "loop.json").write_text('{"step": 3')
    with pytest.raises(ValueError, match=r"loop.json': damaged or cut off, no JSON \(.*\); copy or download it again"):
        read_object(tmp_path / "loop.json")
    check_folder(tmp_path / "absent")  # nothing to say of


def test_files_beside_predictions_are_named_too(tmp_path):
    from eval.report import report_run
    from eval.run import _settings_of

    for content, said in (
        (POINTER, "a pointer of Git LFS"),
        (b"", "empty"),
        (PAGE, "a web page"),
        (b'{"a"', "no JSON"),
    ):
        (tmp_path / "p.jsonl.meta.json").write_bytes(content)
        (tmp_path / "scores.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"p.jsonl.meta.json': .*{said}"):
            _settings_of(str(tmp_path / "p.jsonl"))
        with pytest.raises(ValueError, match=f"scores.json': .*{said}"):
            report_run(tmp_path, "world", predictions=tmp_path)


def test_complex_weights_are_named_without_a_warning(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["query_tokens"] = tensors["query_tokens"].to(torch.complex64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            ValueError, match=r"model\.safetensors': 1 weights are complex numbers, such as query_tokens"
        ):
            dynrefer.load(folder, device="cpu")
