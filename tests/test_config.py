"""Settings: YAML, `base:`, the command line, and what a mistake in them says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dynrefer.config import from_dict, load_config, parse_value, save_config, to_dict
from dynrefer.errors import check_keys, suggestion


@dataclass(frozen=True)
class Loop:
    steps: int = 100
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    stop_after: int | None = None
    resume: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps}; train for at least one step")


@dataclass(frozen=True)
class Data:
    train: str | list[str] = "train.jsonl"
    weights: dict[str, float] = field(default_factory=dict)
    folder: Path = Path("data")
    order: Literal["shuffled", "file", 3] = "shuffled"
    val: str = ""
    extra: str | list[str] = ""


@dataclass(frozen=True)
class Run:
    name: str
    loop: Loop = Loop()
    data: Data = field(default_factory=Data)
    model: dict = field(default_factory=dict)


def load(*overrides, yaml=None):
    return load_config(Run, yaml, ["name=test", *overrides])


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        ("1_0.5e1", 105.0),
        ("3", 3),
        ("0.1", 0.1),
        ("[1, 2]", [1, 2]),
        ("[1e-4, a]", [1e-4, "a"]),
        ("null", None),
        ("true", True),
        ("a.b", "a.b"),
        ("e5", "e5"),
        ("", ""),
        ("'7'", "7"),
        ("{a: {b: 1e-3}}", {"a": {"b": 1e-3}}),
    ],
)
def test_a_value_is_read_as_one_would_write_it(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_settings_on_the_command_line_reach_nested_fields():
    cfg = load("loop.learning_rate=1e-4", "loop.betas=[0.8, 0.99]", "loop.stop_after=5", "loop.resume=true")
    assert cfg.loop == Loop(learning_rate=1e-4, betas=(0.8, 0.99), stop_after=5, resume=True)
    assert load("loop.stop_after=5", "loop.stop_after=null").loop.stop_after is None
    assert load("loop={steps: 3, resume: true}", "loop.steps=4").loop == Loop(steps=4, resume=True)


def test_a_text_field_takes_the_words_as_they_stand():
    assert load_config(Run, None, ["name=007"]).name == "007"
    assert load_config(Run, None, ["name=no"]).name == "no"
    assert load_config(Run, None, ["name=a=b"]).name == "a=b"
    assert load_config(Run, None, ["name="]).name == ""


def test_free_sections_take_any_nested_key():
    cfg = load("model.vision.width=64", "model.vision.scale=1e-3", "model.parts=[a, b]", "model.text={layers: 2}")
    assert cfg.model == {"vision": {"width": 64, "scale": 1e-3}, "parts": ["a", "b"], "text": {"layers": 2}}


def test_an_integer_serves_as_a_float_and_nothing_else_is_converted():
    assert load("loop.learning_rate=1").loop.learning_rate == 1.0
    assert isinstance(load("loop.learning_rate=1").loop.learning_rate, float)
    assert load("data.weights={a: 1}").data.weights == {"a": 1.0}
    assert load("data.train=[a, b]").data.train == ["a", "b"]
    assert load("data.order=3").data.order == 3
    assert load("data.folder=there").data.folder == Path("there")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.steps=1.5", r"loop\.steps: expected int, got 1\.5 \(float\)"),
        ("loop.steps=true", r"loop\.steps: expected int, got True \(bool\)"),
        ("loop.steps=", r"loop\.steps: expected int, got '' \(str\)"),
        ("name=null", r"name: expected str, got None"),
        ("data.train=null", r"data\.train: expected str or list\[str\], got None"),
        ("data.folder=~", r"data\.folder: expected Path, got None"),
        ("loop.steps=null", r"loop\.steps: expected int, got None"),
        ("loop.learning_rate=fast", r"loop\.learning_rate: expected float, got 'fast' \(str\)"),
        ("loop.resume=1", r"loop\.resume: expected bool, got 1 \(int\)"),
        ("loop.betas=[0.9]", r"loop\.betas: expected tuple\[float, float\], got \[0\.9\]"),
        ("loop.betas=[0.9, x]", r"loop\.betas\[1\]: expected float, got 'x'"),
        ("loop.stop_after=x", r"loop\.stop_after: expected int, got 'x'"),
        ("loop=3", r"loop: expected a section"),
        ("loop.steps.more=3", r"loop\.steps: expected int, got \{'more': 3\}"),
        ("data.weights={a: x}", r"data\.weights\.a: expected float, got 'x'"),
        (
            "data.order=shufled",
            r"data\.order: 'shufled' is not one of 'shuffled', 'file', 3. Did you mean 'shuffled'\?",
        ),
        ("model=5", r"model: expected dict, got 5"),
        ("loop.steps=0", r"loop: steps: 0; train for at least one step"),
        ("steps", r"'steps' is no setting; write section\.key=value"),
        ("=3", r"'=3' is no setting"),
        ("loop..steps=3", r"is no setting"),
        ("loop.betas=[1", r"loop\.betas: cannot read the value '\[1' as YAML"),
    ],
)
def test_a_wrong_value_names_key_value_and_type(override, message):
    with pytest.raises(ValueError, match=message):
        load(override)


def test_an_unknown_key_names_its_nearest_neighbour():
    with pytest.raises(ValueError, match=r"loop: unknown key 'step'. Did you mean 'steps'\? Known keys: betas, "):
        load("loop.step=3")
    with pytest.raises(ValueError, match=r"unknown key 'lop'. Did you mean 'loop'\?"):
        load("lop.steps=3")
    with pytest.raises(ValueError, match=r"thing: unknown key 'zzz'. Known keys: a, b\."):
        check_keys(["a", "zzz"], ["b", "a"], "thing")
    assert suggestion("beems", ["num_beams", "beams"]) == " Did you mean 'beams'?"
    assert suggestion("zzz", ["beams"]) == ""


def test_a_missing_setting_without_default_is_named():
    with pytest.raises(ValueError, match="'name' is missing; it has no default"):
        load_config(Run)


def test_a_path_through_a_plain_value_is_refused():
    with pytest.raises(ValueError, match=r"cannot set 'model\.vision\.width': 'model\.vision' is 'clip'"):
        load("model.vision=clip", "model.vision.width=3")


def test_yaml_base_and_command_line_lie_over_each_other(tmp_path):
    (tmp_path / "sub").mkdir()
    write(
        tmp_path,
        "base.yaml",
        "name: a\nloop: {steps: 1, learning_rate: 1e-4}\nmodel: {a: {x: 1, y: 2}, b: [1]}\n",
    )
    write(tmp_path / "sub", "middle.yaml", "base: ../base.yaml\nloop: {steps: 2}\nmodel: {a: {y: 3}, b: [9]}\n")
    top = write(tmp_path / "sub", "top.yaml", "base: middle.yaml\nname: top\n")
    cfg = load_config(Run, top, ["model.a.z=4"])
    assert cfg == Run("top", Loop(steps=2, learning_rate=1e-4), Data(), {"a": {"x": 1, "y": 3, "z": 4}, "b": [9]})


def test_an_empty_yaml_means_the_defaults(tmp_path):
    assert load(yaml=write(tmp_path, "empty.yaml", "# nothing\n")) == Run("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nnmae: b\n", "bad.yaml: unknown key 'nmae'. Did you mean 'name'"),
        ("name: a\nname: b\n", "key 'name' is written twice"),
        ("name: 5\n", r"bad.yaml: name: expected str, got 5 \(int\)"),
        ("- a\n", "expected `key: value` lines at the top level, found a list"),
        ("name: [a\n", "bad.yaml: not valid YAML"),
        ("base: nowhere.yaml\nname: a\n", "cannot read the config .*nowhere.yaml"),
        ("base: bad.yaml\nname: a\n", "goes round in a circle"),
        ("base: [a, b]\nname: a\n", "base: expected the path of one YAML file"),
    ],
)
def test_a_bad_yaml_names_the_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(Run, write(tmp_path, "bad.yaml", text))


def test_a_missing_yaml_is_named():
    with pytest.raises(ValueError, match="cannot read the config 'configs/nothing.yaml'"):
        load_config(Run, "configs/nothing.yaml")


def test_the_resolved_config_reads_back_equal(tmp_path):
    cfg = load("loop.learning_rate=1e-7", "model.a.b=1e-5", "data.folder=x", "data.train=[a, b]", "model.text=null")
    save_config(cfg, tmp_path / "new" / "config.yaml")
    assert load_config(Run, tmp_path / "new" / "config.yaml") == cfg
    assert from_dict(Run, to_dict(cfg)) == cfg
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + below] * 10)}]\n" for below, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: &m {a: *m}", "an alias contains itself"),
        ("model: &m [1, [*m]]", "an alias contains itself"),
        (BOMB, "its aliases stand for more than 1,000,000 values"),
        (f"loop: {{steps: {'9' * 5000}}}", "digits"),
        ("model: 2020-13-45", "month"),
    ],
)
def test_yaml_that_cannot_be_written_out_is_named_by_file(tmp_path, text, message):
    path = write(tmp_path, "c.yaml", f"name: x\n{text}\n")
    with pytest.raises(ValueError, match=f"c.yaml: not valid YAML: .*({message})") as error:
        load_config(Run, path)
    assert "\n" not in str(error.value)


def test_an_alias_that_is_used_twice_is_fine(tmp_path):
    path = write(tmp_path, "c.yaml", "name: x\nmodel: {a: &a [1, 2], b: *a}\n")
    assert load_config(Run, path).model == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("key", ["val", "extra"])
def test_null_for_a_text_that_may_be_empty_is_an_empty_one(tmp_path, key):
    for text in ("null", "~", ""):
        assert getattr(load(f"data.{key}={text}").data, key) == ""
        assert getattr(load(yaml=write(tmp_path, "r.yaml", f"data: {{{key}: {text}}}")).data, key) == ""
    assert getattr(load(f"data.{key}='null'").data, key) == "null"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", "a Git LFS pointer.*`git lfs pull`"),
        ("<!DOCTYPE html>\n<html><head><title>404: not found</title></head>\n", "a page in HTML.*download it again"),
        ("\n<html>\n", "a page in HTML"),
        ("\0" * 40, "nothing but zeros"),
    ],
)
def test_a_file_that_is_something_else_than_yaml_is_named_as_what_it_is(tmp_path, content, said):
    path = write(tmp_path, "run.yaml", content)
    for wrong in (path, write(tmp_path, "above.yaml", "base: run.yaml\n")):
        with pytest.raises(ValueError, match=rf"run\.yaml: not valid YAML: {said}"):
            load(yaml=wrong)
