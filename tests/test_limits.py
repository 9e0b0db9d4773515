"""What a model cannot hold or work with is refused before any work, with the number."""

import re
import warnings

import pytest
import tiny_dynrefer as tiny

torch = pytest.importorskip("torch")

import dynrefer  # noqa: E402
from dynrefer.models.auto import pick_device  # noqa: E402
from dynrefer.models.dynrefer.options import Options  # noqa: E402
from dynrefer.models.language import check_generation  # noqa: E402
from dynrefer.models.options import make_options  # noqa: E402
from dynrefer.predictor import RegionPredictor  # noqa: E402

BOX = [[4, 4, 40, 30]]
ROOM = 128 - 4 - 12  # positions of the tiny Llama, less query tokens and max_new_tokens


@pytest.fixture(scope="module")
def model():
    return tiny.model()[0]


@pytest.fixture(scope="module")
def t5():
    return tiny.model(language=tiny.T5)[0]


def refused(model, monkeypatch, **options):
    """The message with which a call is refused; it has not come to any work."""

    def work(*arguments, **_):
        raise AssertionError("work was done")

    with monkeypatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(model, "encode", work)
        patch.setattr("dynrefer.predictor.open_image", work)
        RegionPredictor(model)("photo.jpg", BOX, **options)
    assert len(str(error.value)) < 400
    return str(error.value)


def words(number):
    return [f"w{i}" for i in range(number)]


@pytest.mark.parametrize("form", [",".join, list, lambda some: [some], lambda some: ["cup", *some, "<tags>"]])
def test_control_words_beyond_the_language_model_are_refused_with_the_number(model, monkeypatch, form):
    said = refused(model, monkeypatch, control=form(words(10_000)))
    assert "words are" in said and f"holds at most {ROOM:,} of a prompt" in said and "10,00" in said


def test_the_longest_prompt_that_fits_is_answered(model, monkeypatch):
    known = words(1000)
    number = next(n for n in range(1, 1000) if model.processor.prompt_lengths([known[: n + 1]])[0] > ROOM)
    assert len(RegionPredictor(model)(tiny.picture(), BOX, control=known[:number])) == 1
    assert f"{number + 1} words are" in refused(model, monkeypatch, control=known[: number + 1])
    shorter = model.processor.prompt_lengths([known[: number + 1]])[0] - ROOM
    assert RegionPredictor(model)(tiny.picture(), BOX, control=known[: number + 1], max_new_tokens=12 - shorter)
    assert "max_new_tokens 500: " in refused(model, monkeypatch, control="cup", max_new_tokens=500)


def test_an_encoder_without_a_limit_of_its_own_takes_what_it_learned_from(t5, monkeypatch):
    assert "holds at most 508 of a prompt" in refused(t5, monkeypatch, control=words(10_000))
    assert len(RegionPredictor(t5)(tiny.picture(), BOX, control="cup", max_new_tokens=600, min_new_tokens=0)) == 1


def test_a_list_for_images_or_regions_is_looked_at_whole(model, monkeypatch):
    with pytest.raises(ValueError, match="1,000 words are"):
        RegionPredictor(model)([tiny.picture()] * 2, [BOX, BOX], control=[["cup"], [words(1000)]])
    assert "1,000 words are" in refused(model, monkeypatch, control=[None, ["cup"], words(1000)])


def test_predicted_tags_beyond_it_are_left_out_with_a_word(model):
    tags, processor = words(500), model.processor
    with pytest.warns(UserWarning, match=r"region 7: the prompt holds \d+ of 500 predicted tags; a higher tag_thresh"):
        some = processor.fitting_words("red,<tags>", tags, ROOM, "7")
    assert some == ["red", *tags[: len(some) - 1]] and processor.prompt_lengths([some])[0] <= ROOM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert processor.fitting_words(None, tags[:5], ROOM, "7") == tags[:5]
    with pytest.raises(ValueError, match="region 7: control of 500 words"):
        processor.fitting_words([*tags, "<tags>"], ["cup"], ROOM, "7")


@pytest.mark.parametrize("name", ["categories", "attributes"])
def test_names_beyond_the_text_encoder_are_refused_with_the_number(model, monkeypatch, name):
    said = refused(model, monkeypatch, **{name: ["cup", "a very long name " * 40]})
    assert "tokens; the text encoder holds at most 24" in said and "a very long" in said
    assert len(RegionPredictor(model)(tiny.picture(), BOX, **{name: ["cup", "lamp"]})) == 1


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ({"control": "red,\ud800"}, "control: .*half a surrogate"),
        ({"control": ["red", "a\udcff"]}, "control: .*half a surrogate"),
        ({"control": [["\udfff"]]}, "control: .*half a surrogate"),
        ({"categories": ["cup", "\ud800"]}, "categories: .*half a surrogate"),
        ({"attributes": ["color:\ud800"]}, "attributes: .*half a surrogate"),
        ({"categories": ["cup", 5]}, "categories: 5 is no text"),
        ({"attributes": ["red", 5]}, "attribute 5: expected a name"),
        ({"view_strategy": 5}, "view_strategy: expected str or None, got 5"),
        ({"view_strategy": True}, "view_strategy: expected str or None"),
        ({"crop_on": 5}, "crop_on: expected str or None"),
        ({"tag_threshold": "high"}, "tag_threshold: expected float or None, got 'high'"),
        ({"tag_threshold": float("nan")}, "tag_threshold: nan"),
        ({"list_tags": True}, "list_tags: expected float or None"),
        ({"num_categories": True}, "num_categories"),
        ({"categories": 5}, "categories: expected"),
        ({"num_beams": "five"}, "num_beams: expected int or None, got 'five'"),
        ({"num_beams": 0}, "num_beams=0: expected a whole number of at least 1"),
        ({"num_beams": -3}, "num_beams=-3"),
        ({"num_beams": 10**5000}, "num_beams"),
        ({"generation": {"num_beams": 0}}, "num_beams=0"),
        ({"generation": {"no_repeat_ngram_size": "two"}}, "no_repeat_ngram_size='two'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"top_p": 5}, "top_p=5: .*at most 1"),
        ({"temperature": 0, "do_sample": True}, "temperature=0: above 0 with do_sample"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: expected a number above 0"),
        ({"early_stopping": "x"}, "early_stopping"),
        ({"do_sample": 3}, "do_sample: expected bool"),
        ({"crop_on": "gpu"}, "device 'gpu': torch knows none of that name"),
        ({"crop_on": "cuda:99"}, "device 'cuda:99': this machine has "),
    ],
)
def test_an_option_of_another_kind_is_refused_by_name(model, monkeypatch, option, what):
    said = refused(model, monkeypatch, **option)
    assert re.search(what, said) and "\n" not in said


def test_options_that_are_numbers_of_other_libraries_are_taken():
    np = pytest.importorskip("numpy")
    made = make_options(Options, {"num_beams": np.int64(3), "tag_threshold": np.float32(0.5), "categories": ("a", "b")})
    assert made.num_beams == 3 and check_generation({"num_beams": np.int64(3), "top_k": None}) == {"num_beams": 3}


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "mps:7", "opengl", 99])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device):
    with pytest.raises(ValueError, match=r"^device '?\S+: (torch knows none|this machine has)"):
        dynrefer.load("no/such/model", device=device)


def test_devices_that_are_there_are_taken():
    assert str(pick_device("cpu")) == "cpu" and pick_device(torch.device("cpu")).type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
