"""The `dynrefer` command: what it prints, its one-line errors, and that help comes at once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import dynrefer
from dynrefer import cli
from dynrefer.data.records import RegionResult
from dynrefer.models import auto
from dynrefer.models.dynrefer.options import Options
from dynrefer.models.family import FamilyModel, FamilyProcessor

REPOSITORY = Path(__file__).resolve().parents[1]
BOX = ["--box", "0", "0", "5", "5"]


class FakeBatch(list):
    def to(self, device):
        return self


class FakeModel(FamilyModel, FamilyProcessor):
    device = "cpu"
    Options = Options

    def __init__(self):
        self.processor = self
        self.options = None

    def samples(self, example, options, generators, train):
        return list(example.regions)

    def collate(self, samples):
        return FakeBatch(samples)

    def predict(self, batch, options):
        self.options = options
        scored = [{"name": "cup", "score": 0.9}, {"name": "red", "score": 0.7}]
        answers = {"caption": "une tasse dorée", "score": 0.5, "tags": scored, "attributes": scored}
        answers |= {"category": {"name": "cup", "score": 0.8}, "extra": {"scales": [0.0, 0.3]}}
        return [RegionResult(region.id, list(region.box), **answers) for region in batch]


@pytest.fixture
def model(monkeypatch):
    """A stand-in for every model; its `loaded` is what was asked for."""
    fake = FakeModel()

    def load(name, device="auto", dtype=None, revision=None):
        fake.loaded = (name, device, dtype, revision)
        return fake

    monkeypatch.setitem(dynrefer.__dict__, "load", load)
    monkeypatch.setattr(auto, "family_of", lambda name, revision=None: fake.family)
    fake.family = SimpleNamespace(options=Options)
    return fake


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "photo.jpg")
    return str(tmp_path / "photo.jpg")


def run(capsys, *argv):
    """(status, stdout, stderr) of one command."""
    try:
        status = cli.main(argv)
    except SystemExit as exit:
        status = exit.code
    out, err = capsys.readouterr()
    return status, out, err


def test_json_prints_one_result_a_line(model, photo, capsys):
    status, out, _ = run(
        capsys,
        "caption",
        photo,
        "--model",
        "m",
        "--box",
        "40",
        "30",
        "180",
        "90",
        *BOX,
        "--json",
    )
    results = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [result["box"] for result in results] == [[40, 30, 180, 90], [0, 0, 5, 5]]
    answers = {"caption", "score", "tags", "attributes", "category", "categories", "mask", "extra"}
    assert set(results[0]) == {"id", "box", *answers}
    assert "dorée" in out


def test_text_shows_caption_tags_attributes_category_and_views(model, photo, capsys):
    status, out, _ = run(capsys, "caption", photo, "--model", "m", "--box", "40", "30", "180", "90")
    assert status == 0
    assert out.splitlines() == [
        "0: une tasse dorée  (score 0.500, box 40, 30, 180, 90)",
        "   tags: cup 0.90, red 0.70",
        "   attributes: cup 0.90, red 0.70",
        "   category: cup 0.80",
        "   scales: 0, 0.3",
    ]


def test_every_option_arrives(model, photo, capsys, tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "names.txt").write_text("cup\n\nred lamp\n")
    words = ["--control", "red", "--tag-threshold", "1.5", "--categories", str(tmp_path / "names.txt")]
    words += [
        "--attributes",
        "red, shiny",
        "--view-strategy",
        "phash",
        "--generation",
        "num_beams=5",
        "length_penalty=1e-1",
    ]
    loading = ["--device", "cpu", "--dtype", "bfloat16", "--revision", "v1"]
    box = ["--box-format", "xywh", "--box", "40", "30", "10", "20"]
    status, out, err = run(capsys, "caption", photo, "--model", "m", "--json", *words, *loading, *box)
    assert (status, err) == (0, "")
    assert json.loads(out)["box"] == [40, 30, 50, 50]
    assert model.loaded == ("m", "cpu", torch.bfloat16, "v1")
    given = {"tag_threshold": 1.5, "categories": ["cup", "red lamp"], "attributes": ["red", "shiny"]}
    expected = Options(control="red", view_strategy="phash", num_beams=5, length_penalty=0.1, **given)
    assert model.options == expected
    words = ["control=red", "tag_threshold=1.5", f"categories={tmp_path}/names.txt", "attributes=red, shiny"]
    words += ["view_strategy=phash", "num_beams=5", "length_penalty=1e-1"]
    assert run(capsys, "describe", photo, *words, "--model", "m", *loading, *box)[0] == 0
    assert model.options == expected, "flags are other names of the options"


def test_a_mask_gives_the_box_and_an_empty_control_stays_empty(model, photo, capsys, tmp_path):
    mask = np.zeros((100, 200), dtype=np.uint8)
    mask[10:20, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    mask_path = str(tmp_path / "mask.png")
    status, out, _ = run(capsys, "caption", photo, "--model", "m", "--control", "", "--json", "--mask", mask_path)
    assert status == 0 and json.loads(out)["box"] == [30, 10, 50, 20]
    assert model.options.control == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["PHOTO", "--model", "m"], "no region; give --box"),
        (["missing.jpg", "--model", "m", *BOX], "missing.jpg: no such file"),
        (["PHOTO", "--model", "m", "--box", "9", "0", "5", "5"], "box 0: inverted"),
        (["PHOTO", "--model", "m", "--box", "-9", "-9", "-5", "-5"], "box 0: wholly outside"),
        (["PHOTO", "--model", "m", "--box", "nan", "0", "5", "5"], "box 0: non-finite"),
        (["PHOTO", "--model", "m", "--box", "0", "0", "5"], "--box: expected 4 arguments"),
        (["PHOTO", "--model", "m", "--box", "0", "0", "5", "x"], "--box 'x': expected a number"),
        (["PHOTO", *BOX], "no model; give --model"),
        (["PHOTO", "PHOTO", "--model", "m", *BOX], "--box and --mask need exactly one"),
        (["PHOTO", "--model", "m", *BOX, "num_beems=5"], "unknown option 'num_beems'. Did you mean 'num_beams'?"),
        (["PHOTO", "--model", "m", *BOX, "num_beams=five"], "num_beams: expected int, got 'five'"),
        (["PHOTO", "--model", "m", *BOX, "--box-format", "yx"], "unknown box format 'yx'"),
        (["PHOTO", "--model", "m", *BOX, "--mask", "no.png"], "mask 0: mask no.png: no such file"),
        (["PHOTO", "--model", "m", *BOX, "--categories", "no.txt"], "categories: no file 'no.txt'"),
        (["PHOTO", "--model", "m", *BOX, "--attributes", " , "], "attributes: ' , ' holds no name"),
        (["PHOTO", "--model", "m", *BOX, "--generation", "5"], "option '5': expected key=value"),
        (["PHOTO", "--model", "m", *BOX, "--bax"], "unknown option '--bax'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_before_any_model_is_loaded(model, photo, capsys, argv, message):
    status, out, err = run(capsys, "caption", *[photo if word == "PHOTO" else word for word in argv])
    assert status == 2 and out == ""
    assert err.startswith("dynrefer: error: ") and err.count("\n") == 1 and message in err
    assert not hasattr(model, "loaded")


def test_a_model_that_cannot_be_loaded_is_one_line_too(monkeypatch, photo, capsys):
    def load(name, **_):
        raise ValueError(f"no model in {name!r};\n  give a run folder")

    monkeypatch.setitem(dynrefer.__dict__, "load", load)
    monkeypatch.setattr(auto, "family_of", lambda name, revision=None: SimpleNamespace(options=Options))
    status, _, err = run(capsys, "caption", photo, "--model", "m", *BOX)
    assert (status, err) == (2, "dynrefer: error: no model in 'm'; give a run folder\n")
    status, _, err = run(capsys, "info", "m")
    assert (status, err) == (2, "dynrefer: error: no model in 'm'; give a run folder\n")


def test_debug_shows_where_a_mistake_was_found(monkeypatch, photo):
    monkeypatch.setenv("DYNREFER_DEBUG", "1")
    with pytest.raises(ValueError, match="no region"):
        cli.main(["caption", photo, "--model", "m"])


def test_without_a_command_or_with_an_unknown_one_the_line_says_so(capsys):
    assert run(capsys)[0] == 2
    status, _, err = run(capsys, "descrybe")
    assert status == 2 and "invalid choice: 'descrybe'" in err and err.count("\n") == 1


def test_help_with_a_model_lists_its_options(model, capsys):
    status, out, _ = run(capsys, "describe", "--help", "--model", "m")
    assert status == 0 and "num_beams: int or null = None\n      beams of the search" in out
    assert "control: " in out and "options of m:" in out


def test_convert_is_offered_exactly_where_a_family_can_convert(capsys):
    families = sorted(path.parent.name for path in (REPOSITORY / "dynrefer" / "models").glob("*/convert.py"))
    assert ("convert" in run(capsys, "--help")[1]) == bool(families)


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["describe", "--help"], ["caption", "--help"], ["info", "--help"]]
)
def test_help_comes_at_once_without_the_heavy_packages(argv):
    heavy = ("torch", "transformers", "numpy", "PIL", "yaml", "datasets")
    code = f"""
import sys
from dynrefer import cli
try:
    cli.main({argv!r})
except SystemExit as exit:
    assert exit.code == 0
print("loaded:", sorted(set({heavy!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "loaded: []" in done.stdout


def test_version_is_the_packages(capsys):
    assert run(capsys, "--version")[:2] == (0, f"dynrefer {dynrefer.__version__}\n")


def test_the_module_runs_as_a_program():
    env = {key: value for key, value in os.environ.items() if key != "DYNREFER_DEBUG"}
    command = [sys.executable, "-m", "dynrefer.cli", "caption", "x.jpg", "--model", "m"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=env, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == "dynrefer: error: no region; " + done.stderr.split("; ", 1)[1] and done.stderr.count("\n") == 1
    )


TINY = {
    "image_size": 32,
    "num_query_tokens": 4,
    "decoder_width": 16,
    "decoder_heads": 2,
    "decoder_mlp_width": 32,
    "decoder_layers": 1,
    "tokenizer": {"vocab_size": 300},
    "vision": {
        "config": {
            "model_type": "clip_vision_model",
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    },
    "qformer": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "language": {
        "config": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "mode": "full",
    },
    "text": {
        "config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"projection_dim": 16}
    },
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder whose best checkpoint is a real, tiny, untrained model of the world's words."""
    pytest.importorskip("torch")
    from data_prep import world
    from dynrefer import models
    from dynrefer.data.record_files import open_records

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    records = open_records(world.write(folder.parent / "world", 4, "train", seed=0))
    model, processor = models.build(TINY, records)
    model.save_pretrained(folder / "best")
    processor.save_pretrained(folder / "best")
    return str(folder)


def test_a_saved_model_describes_boxes_and_masks(run_folder, photo, capsys):
    boxes = ["--box", "40", "30", "180", "90", "--box", "0", "0", "50", "50"]
    command = ["caption", photo, "--model", run_folder, "--device", "cpu", *boxes, "--json"]
    status, out, _ = run(capsys, *command, "--tag-threshold", "1.5", "--categories", "cup,lamp")
    results = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [result["box"] for result in results] == [[40, 30, 180, 90], [0, 0, 50, 50]]
    for result in results:
        assert result["tags"] == [] and result["category"]["name"] in ("cup", "lamp")
        assert 0 <= result["score"] <= 1 and len(result["extra"]["scales"]) == 3 and result["extra"]["scales"][0] == 0
    alone = run(capsys, *command[:6], *boxes[5:], "--json", "--tag-threshold", "1.5", "--categories", "cup,lamp")[1]
    assert json.loads(alone)["caption"] == results[1]["caption"]  # regions do not see each other


def test_unknown_generation_settings_are_one_line(run_folder, photo, capsys):
    words = ["caption", photo, "--model", run_folder, "--device", "cpu", *BOX, "--generation", "num_beems=5"]
    status, _, err = run(capsys, *words)
    assert status == 2 and err.count("\n") == 1 and "num_beems" in err and "num_beams" in err


def test_a_model_that_is_not_there_is_one_line(photo, capsys, tmp_path):
    for name in (tmp_path, tmp_path / "nothing"):
        status, _, err = run(capsys, "info", str(name), "--device", "cpu")
        assert status == 2 and err.startswith("dynrefer: error: ") and err.count("\n") == 1 and str(name) in err


def test_info_counts_parameters_words_and_versions(run_folder, capsys):
    status, out, _ = run(capsys, "info", run_folder, "--device", "cpu", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["family"] == "dynrefer" and facts["device"] == "cpu"
    total = facts["parameters"].pop("total")
    for kind in ("trainable", "frozen"):
        assert sum(part[kind] for part in facts["parameters"].values()) == total[kind] > 0
    assert set(facts["vocabularies"]) >= {"tags", "attributes", "categories"}
    assert set(facts["versions"]) == {"dynrefer", "python", "torch", "transformers"}


def test_info_says_in_a_screen_what_a_model_is(run_folder, capsys):
    status, out, _ = run(capsys, "info", run_folder, "--device", "cpu")
    print(out)
    assert status == 0 and len(out.splitlines()) < 20 and "{" not in out
    titles = ("family", "answers", "reads", "size", "vision", "language", "word lists", "trained on", "licence")
    for title in titles:
        assert re.search(rf"^ +{title}  +\S", out, re.MULTILINE), title


def test_a_fresh_process_prints_json_and_nothing_else(run_folder, photo):
    command = [sys.executable, "-m", "dynrefer.cli", "caption", photo, "--model", run_folder, "--device", "cpu"]
    done = subprocess.run([*command, *BOX, "--json"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["box"] == [0, 0, 5, 5]


def test_draw_writes_one_picture_and_never_over_another(model, photo, capsys, tmp_path):
    folder = tmp_path / "drawn" / "here"
    arguments = ["describe", photo, "--model", "m", *BOX, "--draw", str(folder)]
    status, out, err = run(capsys, *arguments)
    assert status == 0 and err.strip() == f"drawn: {folder}/photo.png" and out.startswith("0: une tasse")
    status, out, err = run(capsys, *arguments, "--json")
    assert json.loads(out)["box"] == [0, 0, 5, 5] and err.strip() == f"drawn: {folder}/photo-2.png"
    assert Image.open(folder / "photo.png").width == 800
    (tmp_path / "file").touch()
    status, _, err = run(capsys, "describe", photo, "--model", "m", *BOX, "--draw", str(tmp_path / "file"))
    assert status == 2 and "file" in err


def test_a_mask_that_was_given_is_drawn(model, photo, capsys, tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    mask[20:80, 50:150] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["describe", photo, "--model", "m", "--mask", str(tmp_path / "mask.png"), "--draw", str(tmp_path)]
    assert run(capsys, *arguments)[0] == 0
    pixels = np.asarray(Image.open(tmp_path / "photo.png"))
    assert (pixels[200, 400] > 0).any() and (pixels[40, 400] == 0).all(), "tinted inside, as it was outside"
