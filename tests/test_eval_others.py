"""Models of others in our harness: how they are told the region, and what comes of it. Tiny models, real formats."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import eval.run as run
from dynrefer.data.example import Example
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region
from dynrefer.models.options import TextOptions, make_options
from dynrefer.predictions import predict
from eval.benchmarks import TASKS, get_task
from eval.others import NewTokens, Prompts, clean, load
from eval.overlay import RED, overlay
from eval.region_prompts import CAPTIONERS
from eval.task import Task
from tests import others
from tests import tiny_dynrefer as small

TASK = Task(
    "tiny",
    "test.jsonl",
    "a test",
    metrics=("captions",),
    caption_metrics=("rouge", "cider"),
    tokenizer="lower",
    generation={"num_beams": 2, "max_new_tokens": 6},
)
WITH_BOXES = [name for name, row in CAPTIONERS.items() if row.words]
SHOWN = {"llava": "overlay", "blip": "overlay", "git": "crop"}  # models without boxes of their own
EVERY = [*WITH_BOXES, *SHOWN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models, each in a folder of its name, and records of two images with four regions each."""
    folder = tmp_path_factory.mktemp("others")
    for name in (*EVERY, "llama"):
        others.save(name, folder / name)
    regions = []
    for n in range(2):
        Image.fromarray(small.picture(n)).save(folder / f"{n}.png")
        regions += small.regions(f"{n}.png", start=4 * n)
    write_records(folder / "test.jsonl", regions)
    return folder


@pytest.fixture(scope="module")
def captioners(folder):
    """name -> the loaded model, once."""
    loaded = {}

    def captioner(name):
        if name not in loaded:
            loaded[name] = load(str(folder / name), TASK, SHOWN.get(name), device="cpu")
        return loaded[name]

    return captioner


@pytest.fixture
def command(folder, tmp_path, monkeypatch, capsys):
    """eval.run on the tiny task: (exit status, what it printed as an error)."""
    monkeypatch.setitem(TASKS, "tiny", TASK)

    def command(model, *options, task="tiny"):
        given = ["--model", str(model), "--task", task, "--data", str(folder / "test.jsonl"), "--device", "cpu"]
        status = run.main([*given, "--num-workers", "0", "--out", str(tmp_path / "out"), *options])
        return status, capsys.readouterr().err.strip().splitlines()[-1]

    return command


def region(box, image_hw=(100, 200), **more) -> Region:
    return Region.from_dict({"id": "r", "image": "a.png", "image_hw": list(image_hw), "box": list(box), **more})


def samples(captioner, regions=None):
    regions = regions or small.regions()
    return made(captioner.processor, regions)


def asked_for(generation):
    return make_options(TextOptions, generation)


def made(prompts, regions, image=None):
    """Samples of regions of one picture."""
    image = small.picture() if image is None else image
    return prompts.samples(Example.of_picture(image, regions), TextOptions(), [], False)


# --- where the region is ---------------------------------------------------------------------------------------------

# an image 200 wide and 100 high; qwen2.5-vl's processor makes it 112 wide and 56 high; Kosmos-2 has 32 cells a row
MIDDLE, WHOLE = (50, 25, 100, 75), (0, 0, 200, 100)
WORDS = {
    "florence2": ("<loc_250><loc_250><loc_500><loc_750>", "<loc_0><loc_0><loc_999><loc_999>"),
    "qwen2-vl": ("(250,250),(500,750)<|box_end|>", "<|box_start|>(0,0),(1000,1000)<|box_end|>"),
    "qwen2.5-vl": ('{"bbox_2d": [28, 14, 56, 42]}', '{"bbox_2d": [0, 0, 111, 55]}'),
    "qwen3-vl": ('{"bbox_2d": [250, 250, 500, 750]}', '{"bbox_2d": [0, 0, 1000, 1000]}'),
    "internvl": ("<box>[[250, 250, 500, 750]]</box>", "<box>[[0, 0, 1000, 1000]]</box>"),
    "kosmos-2": (
        f"<patch_index_{8 * 32 + 8:04}><patch_index_{23 * 32 + 15:04}>",
        "<patch_index_0000><patch_index_1023>",
    ),
}


@pytest.mark.parametrize("name", WITH_BOXES)
def test_a_box_is_written_as_the_model_learned_it(captioners, name):
    prompts = captioners(name).processor
    middle, whole = (prompts.prompt(region(box)) for box in (MIDDLE, WHOLE))
    assert WORDS[name][0] in middle and WORDS[name][1] in whole
    assert "{region}" not in middle
    corner = region((0, 0, 0.4, 0.3))  # less than a pixel, at the edge
    assert prompts.prompt(corner) not in (middle, whole)
    image = np.zeros((100, 200, 3), np.uint8)
    batch = prompts.collate(made(prompts, [region(MIDDLE), corner], image))
    assert len(set(map(tuple, batch.inputs["input_ids"].tolist()))) == 2  # another box, another input


def test_location_tokens_are_single_tokens(captioners):
    for name, tokens in (("florence2", ["<loc_250>", "<loc_750>"]), ("kosmos-2", ["<patch_index_0264>", "<object>"])):
        prompts = captioners(name).processor
        batch = prompts.collate(made(prompts, [region(MIDDLE)], np.zeros((100, 200, 3), np.uint8)))
        ids = prompts.processor.tokenizer.convert_tokens_to_ids(tokens)
        assert set(ids) <= set(batch.inputs["input_ids"][0].tolist())


def test_pixels_count_in_the_image_that_the_model_sees(captioners):
    prompts = captioners("qwen2.5-vl").processor
    image = np.zeros((300, 90, 3), np.uint8)
    batch = prompts.collate(made(prompts, [region((0, 0, 90, 300), (300, 90))], image))
    _, rows, columns = batch.inputs["image_grid_thw"][0].tolist()
    assert prompts.resized_hw((300, 90)) == (14 * rows, 14 * columns)
    assert f"[0, 0, {14 * columns - 1}, {14 * rows - 1}]" in prompts.prompt(region((0, 0, 90, 300), (300, 90)))


def test_the_line_and_the_crop_are_of_the_region(captioners):
    processor = captioners("llava").processor.processor
    image, regions = small.picture(), [small.regions()[0], region((60, 30, 100, 80), (80, 100))]
    drawn = made(Prompts(processor, CAPTIONERS["overlay"], "What?", TASK), regions, image)
    for sample, one in zip(drawn, regions, strict=True):
        shown = np.asarray(sample["image"])
        np.testing.assert_array_equal(shown, overlay(image, one))
        line = (shown == RED).all(-1)
        rows, columns = np.nonzero(line)
        x1, y1, x2, y2 = one.box
        assert abs(columns.min() - x1) <= 2 and abs(columns.max() + 1 - x2) <= 2
        assert abs(rows.min() - y1) <= 2 and abs(rows.max() + 1 - y2) <= 2
        np.testing.assert_array_equal(shown[~line], image[~line])
    small_region = region((10.2, 5.5, 10.4, 7.1), (80, 100))
    crops = made(Prompts(processor, CAPTIONERS["crop"], "What?", TASK), [regions[1], small_region], image)
    np.testing.assert_array_equal(np.asarray(crops[0]["image"]), image[30:80, 60:100])
    np.testing.assert_array_equal(np.asarray(crops[1]["image"]), image[5:8, 10:11])


def test_tasks_with_masks_draw_the_masks(folder):
    task = Task("m", "x", "a test", prompt="mask")
    captioner = load(str(folder / "llava"), task, "overlay", device="cpu")
    triangle = region((0, 0, 100, 80), (80, 100), mask=[[20, 10, 60, 10, 40, 60]])
    (sample,) = made(captioner.processor, [triangle])
    np.testing.assert_array_equal(np.asarray(sample["image"]), overlay(small.picture(), triangle, prompt="mask"))
    assert captioner.settings(TextOptions())["line"] == {"around": "mask", "width": None}
    with pytest.raises(ValueError, match="region r has no mask"):
        made(captioner.processor, [region((1, 1, 9, 9), (80, 100))])


def test_the_question_is_what_the_task_wants(folder):
    def asked(model, task, **options):
        captioner = load(str(folder / model), get_task(task), device="cpu", **options)
        return captioner.processor.prompt(region(WHOLE)), captioner.settings(TextOptions())

    assert asked("florence2", "lvis-similarity")[0].startswith("<REGION_TO_CATEGORY><loc_0>")
    assert asked("florence2", "refcocog-a")[0].startswith("<REGION_TO_DESCRIPTION><loc_0>")
    text = 'the region {"bbox_2d": [0, 0, 1000, 1000]}'
    assert f"What is the category of {text}? Using only one word" in asked("qwen3-vl", "coco-recognition-text")[0]
    assert f"Describe {text} in detail." in asked("qwen3-vl", "dlc-bench")[0]
    assert "Describe this image in detail." in asked("llava", "ref-l4", family="crop")[0]
    text, settings = asked("llava", "refcocog-d-val", family="overlay")
    assert "Provide a short description for this region." in text  # lmms-eval's words, and its line
    assert settings["line"] == {"around": "box", "width": 1}
    own = load(str(folder / "qwen3-vl"), TASK, prompt='Say what {region} {"is"}.', device="cpu")
    assert 'Say what the region {"bbox_2d": [0, 0, 1000, 1000]} {"is"}.' in own.processor.prompt(region(WHOLE))


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [{}, {"num_beams": 2, "repetition_penalty": 1.5, "length_penalty": 0.0}])
@pytest.mark.parametrize("name", EVERY)
def test_a_region_is_described_the_same_alone_and_in_company(captioners, name, generation):
    captioner, generation = captioners(name), {"max_new_tokens": 6} | generation
    wide = Region.from_dict(small.regions()[0].to_dict() | {"id": "wide", "box": [0, 0, 100, 80]})
    asked = samples(captioner, [*small.regions(), wide])
    if asked[0]["text"] and name != "kosmos-2":  # whose prompts are of one length, a box is two tokens
        asked[0]["text"] += " so far"
    together = captioner.predict(captioner.processor.collate(asked), asked_for(generation))
    alone = [captioner.predict(captioner.processor.collate([one]), asked_for(generation))[0] for one in asked]
    assert [result.caption for result in together] == [result.caption for result in alone]
    np.testing.assert_allclose(
        [math.log(result.score) for result in together], [math.log(result.score) for result in alone], atol=1e-3
    )
    assert [result.id for result in together] == ["0", "1", "2", "3", "wide"]
    assert len({round(math.log(result.score), 3) for result in together}) > 1  # regions differ


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["qwen2.5-vl", "internvl", "kosmos-2", "llava"])
def test_the_score_is_the_probability_of_the_text(captioners, monkeypatch, name, beams):
    captioner, made = captioners(name), {}
    generate = captioner.model.generate
    monkeypatch.setattr(captioner.model, "generate", lambda **o: made.setdefault("output", generate(**o)))
    batch = captioner.processor.collate(samples(captioner)[1:2])
    (result,) = captioner.predict(batch, asked_for({"num_beams": beams, "max_new_tokens": 5, "length_penalty": 0.0}))
    text = made["output"].sequences
    start = batch.inputs["input_ids"].shape[1]
    inputs = dict(batch.inputs) | {"input_ids": text, "attention_mask": torch.ones_like(text)}
    for key in ("mm_token_type_ids", "image_embeds_position_mask"):
        if key in inputs:
            inputs[key] = torch.nn.functional.pad(inputs[key], (0, text.shape[1] - start))
    with torch.no_grad():
        log_probabilities = captioner.model(**inputs).logits[:, start - 1 : -1].log_softmax(-1)
    expected = log_probabilities.gather(-1, text[:, start:, None]).sum().item()
    assert math.log(result.score) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "blip"])  # which sets its own end
def test_what_stands_behind_the_end_of_a_text_does_not_count(captioners, name):
    captioner = captioners(name)
    batch = captioner.processor.collate(samples(captioner))
    first = captioner.predict(batch, asked_for({"max_new_tokens": 1}))
    ends = list(range(len(captioner.processor.processor.tokenizer)))  # whatever comes first ends the text
    ended = captioner.predict(batch, asked_for({"max_new_tokens": 5, "eos_token_id": ends}))
    assert [result.score for result in ended] == pytest.approx([result.score for result in first], rel=1e-4)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a red cup.<|im_end|>\n", "a red cup."),
        ("turquoise car<loc_52><loc_332><loc_932><loc_774></s>", "turquoise car"),
        ("<phrase> a cup</phrase><object><patch_index_0001><patch_index_0045></object> on a table", "a cup on a table"),
        ("<ref>a cup</ref><box>[[1, 2, 3, 4]]</box> at the left", "a cup at the left"),
        ("<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", "a cup"),
        ("<think>\nA cup?\nNo.</think>\n\na lamp", "a lamp"),
        ("thoughts </think> a lamp", "a lamp"),
        ("<think>a thought that the limit of tokens ends", ""),
        ("a cup\tof tea\n\nwith milk < 3", "a cup of tea with milk < 3"),
        ("", ""),
    ],
)
def test_captions_are_free_of_marks(text, caption):
    assert clean(text) == caption


def test_a_thought_that_the_prompt_begins_and_nothing_ends_is_no_caption():
    assert clean("I wonder", thinking=True) == "" and clean("I wonder</think>a cup", thinking=True) == "a cup"


def test_only_generated_words_count_as_repetition():
    penalize, logits = NewTokens(2.0), torch.full((1, 6), 4.0)
    assert penalize(torch.tensor([[1, 2, 3]]), logits.clone()).tolist() == [[4.0] * 6]
    assert penalize(torch.tensor([[1, 2, 3, 5]]), logits.clone()).tolist() == [[4.0] * 5 + [2.0]]


def test_a_model_that_draws_its_texts_by_default_does_not_here(folder, tmp_path):
    others.save("llava", tmp_path)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(
        json.dumps(config | {"do_sample": True, "temperature": 9.0, "top_k": 50, "max_new_tokens": 5, "num_beams": 3})
    )
    captioner = load(str(tmp_path), TASK, "overlay", device="cpu")
    batch = captioner.processor.collate(samples(captioner))
    assert captioner.predict(batch) == captioner.predict(batch, asked_for({"num_beams": 3, "max_new_tokens": 5}))
    assert captioner.settings(TextOptions())["model_decoding"]["max_new_tokens"] == 5
    assert captioner.predict(batch, asked_for({"do_sample": True})) != captioner.predict(batch)
    with pytest.raises(ValueError, match="'num_beam'. Did you mean 'num_beams'"):
        captioner.predict(batch, asked_for({"num_beam": 2}))


# --- through the harness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_every_family_is_found_and_scored(folder, tmp_path, command, name):
    options = ["--captioner", SHOWN[name]] if name in SHOWN else []
    assert command(folder / name, "--batch-size", "3", *options)[0] == 0
    written = json.loads((tmp_path / "out/scores.json").read_text())
    assert {"ROUGE-L", "CIDEr"} <= written["scores"].keys() and written["regions_scored"] == {"captions": 8}
    captioner = written["settings"]
    assert captioner["family"] == SHOWN.get(name, name) and written["model"] == str(folder / name)
    assert captioner["convention"] == CAPTIONERS[captioner["family"]].description
    assert captioner["prompt"] in captioner["input"] and captioner["dtype"] == "float32"
    assert written["settings"]["generation"] == {"num_beams": 2, "max_new_tokens": 6}
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(n) for n in range(8)]
    assert all(0 < json.loads(line)["score"] < 1 for line in lines)


def test_a_benchmark_of_the_table_with_workers_and_half_precision(folder, tmp_path, command, monkeypatch):
    monkeypatch.setitem(TASKS, "world", get_task("world", caption_metrics=("rouge", "cider"), tokenizer="lower"))
    options = ["--dtype", "bfloat16", "--num-workers", "1", "--batch-size", "4", "max_new_tokens=3"]
    assert command(folder / "qwen3-vl", *options, task="world")[0] == 0
    written = json.loads((tmp_path / "out/scores.json").read_text())
    assert "CIDEr" in written["scores"] and written["left_out"]["tags"] == "this model gives caption only"
    assert written["settings"]["dtype"] == "bfloat16"
    assert written["settings"]["generation"]["max_new_tokens"] == 3


def test_a_killed_run_goes_on_and_another_prompt_does_not(folder, tmp_path, command, captioners, monkeypatch):
    captioner, records = captioners("internvl"), open_records(folder / "test.jsonl")
    settings = {"options": TextOptions(max_new_tokens=4), "batch_size": 3, "num_workers": 0, "progress": False}
    whole = predict(captioner, records, tmp_path / "whole.jsonl", **settings)
    answer, calls = captioner.predict, []

    def dies(*args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return answer(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(captioner, "predict", dies)
        predict(captioner, records, tmp_path / "p.jsonl", **settings)
    assert predict(captioner, records, tmp_path / "p.jsonl", **settings) == whole
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

    other = load(str(folder / "internvl"), TASK, prompt="What is {region}?", device="cpu")
    with pytest.raises(ValueError, match="was written with prompt 'Provide .* now it is 'What is {region}"):
        predict(other, records, tmp_path / "p.jsonl", **settings)
    drawn = load(str(folder / "internvl"), TASK, "overlay", device="cpu")
    with pytest.raises(ValueError, match="was written with family 'internvl', now it is 'overlay'"):
        predict(drawn, records, tmp_path / "p.jsonl", **settings)


def test_another_captioner_or_prompt_writes_elsewhere():
    outs = {
        str(run.default_out("a/b", "world", {}, captioner, prompt))
        for captioner, prompt in ((None, None), ("crop", None), ("crop", "What is it?"), (None, ""), (None, "x" * 500))
    }
    assert len(outs) == 5 and max(map(len, outs)) < 150


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_unknown_models_are_named_with_what_can_be_done(folder, tmp_path, command):
    status, error = command(folder / "llava")
    assert status == 2 and "type 'llava'" in error and "--captioner overlay" in error and "qwen2.5-vl (" in error
    status, error = command(folder / "llama", "--captioner", "overlay")
    assert status == 2 and "type 'llama', of which Transformers has no model that reads images" in error
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat/config.json").write_text('{"model_type": "internvl_chat"}')
    status, error = command(tmp_path / "chat")
    assert status == 2 and "type 'internvl_chat'" in error and "internvl (internvl)" in error and "end in -hf" in error
    status, error = command(folder / "nothing", "--captioner", "overlay")
    assert status == 2 and "no model folder or hub id that can be read" in error


def test_settings_that_do_not_fit_are_refused(folder, command):
    for options, message in (
        (["--captioner", "qwen"], "unknown captioner 'qwen'. Did you mean 'qwen3-vl'? Known: florence2, qwen2-vl"),
        (["--captioner", "florence2"], "does not know the boxes of florence2"),
        (["--prompt", "What is this?"], "write {region} there, as in 'Provide"),
        (["--control", "red"], "unknown option 'control'. Options of this model: num_beams, max_new_tokens, "),
        (["--view-strategy", "phash"], "unknown option 'view_strategy'. Options of this model: num_beams"),
        (["--dtype", "int8"], "expected a floating-point type"),
    ):
        status, error = command(folder / "qwen2-vl", *options)
        assert status == 2 and message in error, (options, error)


@pytest.mark.parametrize("words", [40_000, 200_000])
def test_a_prompt_beyond_what_the_model_holds_is_refused_with_the_numbers(folder, tmp_path, command, words):
    status, error = command(folder / "qwen2-vl", "--prompt", "{region} " + "cup " * words)
    assert status == 2 and "tokens; model " in error and "holds at most " in error and len(error) < 500
    assert not list(tmp_path.glob("out/*.jsonl"))  # nothing was predicted


def test_a_prompt_with_half_a_character_is_refused(folder, command):
    status, error = command(folder / "qwen2-vl", "--prompt", "{region} cup \ud83d")
    assert status == 2 and "half a surrogate" in error


def test_help_lists_the_options_of_a_model_without_its_weights(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((folder / "llava/config.json").read_text())
    for options, said in (
        (["--model", str(tmp_path)], "options of " + str(tmp_path)),
        (["--model", str(tmp_path / "none")], "no options are listed: "),
        ([], "--model MODEL --help lists them"),
    ):
        with pytest.raises(SystemExit) as end:
            run.main([*options, "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert end.value.code == 0 and said in out and ("num_beams: int" in out) == ("options of" in said)


def test_our_own_models_take_no_captioner(folder, tmp_path, command):
    model, processor = small.model()
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    status, error = command(tmp_path / "ours", "--prompt", "What is {region}?")
    assert status == 2 and "is one of ours" in error


def test_folders_that_lack_something_say_what(folder, tmp_path, command):
    others.save("llava", tmp_path / "none")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "none" / name).unlink()
    status, error = command(tmp_path / "none", "--captioner", "overlay")
    assert status == 2 and f"model '{tmp_path / 'none'}': " in error and "processor" in error

    others.save("llava", tmp_path / "half")
    (tmp_path / "half/processor_config.json").unlink()
    status, error = command(tmp_path / "half", "--captioner", "overlay")
    assert status == 2 and "processor" in error

    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "llava/model.safetensors")
    others.save("llava", tmp_path / "cut")
    save_file(dict(list(weights.items())[1:]), tmp_path / "cut/model.safetensors", metadata={"format": "pt"})
    status, error = command(tmp_path / "cut", "--captioner", "overlay")
    assert status == 2 and "its file lacks 1 weights" in error


def test_a_model_without_a_chat_template_is_asked_plainly(tmp_path):
    others.save("llava", tmp_path, chat=False)
    captioner = load(str(tmp_path), TASK, "overlay", device="cpu")
    assert captioner.processor.text == "<image>\nProvide a short description for this region."
    assert len(captioner.predict(captioner.processor.collate(samples(captioner)))) == 4


def test_a_chat_template_that_knows_no_images_has_the_image_in_its_text(folder):
    processor = load(str(folder / "llava"), TASK, "overlay", device="cpu").processor.processor
    processor.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    assert Prompts(processor, CAPTIONERS["overlay"], "What?", TASK).text == "[user] <image>\nWhat?\n"
    processor.chat_template = "Hello!"
    with pytest.raises(ValueError, match="does not take an image and the prompt 'What.' with its chat template"):
        Prompts(processor, CAPTIONERS["overlay"], "What?", TASK)


def test_models_that_only_caption_are_asked_nothing_unless_told(folder, captioners):
    for name in ("blip", "git"):
        assert captioners(name).processor.text == ""
        assert set(captioners(name).processor.collate(samples(captioners(name))).inputs) == {"pixel_values"}
        told = load(str(folder / name), TASK, "crop", prompt="a red", device="cpu")
        batch = told.processor.collate(samples(told))
        assert "input_ids" in batch.inputs and len(told.predict(batch, asked_for({"max_new_tokens": 3}))) == 4
    ids = batch.inputs["input_ids"]  # GIT's go on: no end token behind them
    assert (ids[:, -1] != told.processor.processor.tokenizer.sep_token_id).all()


def test_an_encoder_reads_its_prompt_to_the_end_token(captioners):
    prompts = captioners("florence2").processor
    asked = made(prompts, small.regions())
    tokenizer = prompts.processor.tokenizer
    asked[0]["text"] += " at the left"
    ids = prompts.collate(asked).inputs["input_ids"]
    assert ids[0, -1] == tokenizer.eos_token_id and ids[1, -1] == tokenizer.pad_token_id
    assert (prompts.collate(asked[1:]).inputs["input_ids"][:, -1] == tokenizer.eos_token_id).all()


def test_one_caption_a_region(captioners):
    batch = captioners("llava").processor.collate(samples(captioners("llava")))
    with pytest.raises(ValueError, match="num_return_sequences is fixed"):
        captioners("llava").predict(batch, asked_for({"num_return_sequences": 2, "num_beams": 2}))


def test_an_image_that_the_processor_refuses_is_named(captioners):
    for name in ("qwen2-vl", "qwen2.5-vl"):
        prompts = captioners(name).processor
        thin = region((0, 0, 300, 1), (1, 300))
        with pytest.raises(ValueError, match="regions? r: .*aspect ratio"):
            prompts.collate(made(prompts, [thin], np.zeros((1, 300, 3), np.uint8)))
