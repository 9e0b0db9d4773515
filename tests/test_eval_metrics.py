"""Tag, attribute, category, similarity and choice metrics on numbers that can be checked by eye."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.attributes import attribute_groups, attribute_map
from eval.metrics.categories import category_accuracy
from eval.metrics.judge import HTTPJudge, Question, choice_accuracy, choice_scores, judge_captions, prompt, read_choice
from eval.metrics.similarity import SentenceEncoder, similarity_scores, word_iou
from eval.metrics.tags import average_precision, tag_map

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"


def test_average_precision_of_small_rankings():
    assert average_precision([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0, 1], [0.9, 0.8]) == 0.5
    assert average_precision([1, 0, 0, 1], [0.5] * 4) == 0.5  # equal scores: the order of the regions says nothing
    assert average_precision([0, 0, 0, 1], [0.5] * 4) == average_precision([1, 0, 0, 0], [0.5] * 4) == 0.25
    with pytest.raises(ValueError, match="without a positive"):
        average_precision([0, 0], [1, 2])


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels = generator.integers(0, 2, 50)
        labels[0] = 1
        scores = np.round(generator.random(50), 1)  # many equal ones
        expected = metrics.average_precision_score(labels, scores)
        assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_tag_scores():
    labels = [[1, 0, 0], [1, 1, 0]]
    scores = [[0.9, 0.8, 0.0], [0.6, 0.7, 0.75]]
    result = tag_map(labels, scores, threshold=0.7)
    assert result["tag mAP"] == pytest.approx((1 + 0.5) / 2)  # the third tag has no positive
    assert result["tag precision"] == 2 / 4
    assert result["tag recall"] == pytest.approx(2 / 3)
    assert result["tag F1"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    nothing = tag_map(labels, np.zeros((2, 3)), threshold=0.0)
    assert nothing["tag precision"] == nothing["tag recall"] == nothing["tag F1"] == 0


def test_attribute_map_leaves_unknown_labels_and_attributes_without_positives_out():
    labels = [[1, 0, -1], [0, 0, 1], [-1, 0, 0]]
    scores = [[0.5, 0.9, 0.9], [0.4, 0.1, 0.5], [0.9, 0.2, 0.6]]
    assert attribute_map(labels, scores)["attribute mAP"] == pytest.approx((1 + 0.5) / 2)


def test_attribute_map_equals_the_released_evaluator_in_every_group():
    vector = np.load(FIXTURES / "ovad.npz")
    expected = json.loads((FIXTURES / "ovad_expected.json").read_text())
    attributes = json.loads((FIXTURES / "ovad_attributes.json").read_text())
    result = attribute_map(vector["labels"], vector["scores"], attributes)
    names = {name.removeprefix("PCt0.4_ap/"): value / 100 for name, value in expected.items()}
    assert len(names) == 25 and {"all", "head", "medium", "tail", "color", "single"} <= set(names)
    assert result.pop("attribute mAP") == pytest.approx(names.pop("all"), abs=1e-8)
    assert {name.removeprefix("attribute mAP/"): value for name, value in result.items()} == pytest.approx(
        names, abs=1e-8
    )


def test_attribute_groups_of_plain_names():
    assert attribute_groups([{"name": "color:red"}, {"name": "wet"}, {"name": "color:gray/grey", "type": "hue"}]) == {
        "color": [0],
        "hue": [2],
        "single": [0],
        "multiple": [2],
    }
    assert "attribute mAP/color" not in attribute_map([[0, 1]], [[0.1, 0.2]], [{"name": "color:red"}, {"name": "wet"}])
    with pytest.raises(ValueError, match="1 entries for 2 columns"):
        attribute_map([[0, 1]], [[0.1, 0.2]], [{"name": "color:red"}])


def test_category_accuracy_counts_a_missing_prediction_as_wrong():
    true = {"a": "cup", "b": "lamp", "c": None, "d": "cup"}
    assert category_accuracy({"a": "cup", "b": "cup", "c": "cup"}, true) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="the first for 'x'"):
        category_accuracy({"x": "cup"}, true)
    with pytest.raises(ValueError, match="no region has a category"):
        category_accuracy({}, {"a": None})


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([[1, 0]], [[0.1]], r"labels \(1, 2\) and scores \(1, 1\)"),
        ([[2]], [[0.1]], "label 2"),
        ([[1]], [[np.nan]], "score nan of region 0, name 0"),
        ([[0]], [[0.1]], "no region has any"),
    ],
)
def test_wrong_arrays_are_named(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        tag_map(labels, scores, 0.5)
    with pytest.raises(ValueError, match=message):
        attribute_map(labels, scores)


# --- names compared by embeddings and words -------------------------------------------------------------------------


def letters(texts):
    """Stands in for a sentence encoder: how often each letter occurs."""
    return [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz "] for text in texts]


def test_names_are_compared_by_embedding_and_by_words():
    true = {"a": "Dog_collar", "b": "car:wheel", "c": "cup", "d": "lamp"}
    predicted = {"a": "It is: dog  collar.", "b": "a Wheel", "c": "Answer:", "d": "palm,"}
    corpus, items = similarity_scores(predicted, true, letters)
    assert items["a"] == pytest.approx({"semantic similarity": 1, "word IoU": 1})
    assert items["b"]["word IoU"] == pytest.approx(1 / 3)
    assert items["c"] == {"semantic similarity": 0, "word IoU": 0}
    assert items["d"] == pytest.approx({"semantic similarity": 1, "word IoU": 0})
    assert corpus["word IoU"] == pytest.approx((1 + 1 / 3 + 0 + 0) / 4)
    missing, _ = similarity_scores({k: predicted[k] for k in "ab"}, true, letters)
    assert missing["semantic similarity"] == pytest.approx((1 + items["b"]["semantic similarity"]) / 4)
    assert similarity_scores({}, true)[0] == {"semantic similarity": 0, "word IoU": 0}  # loads no encoder
    assert word_iou("", "") == 0


@pytest.mark.parametrize(
    ("predicted", "true", "encode", "message"),
    [
        ({"x": "cup"}, {"a": "cup"}, letters, "the first for 'x'"),
        ({"a": None}, {"a": "cup"}, letters, "name None is NoneType"),
        ({}, {}, letters, "no references"),
        ({"a": "cup"}, {"a": " _"}, letters, "region 'a': its true name ' _' has no word"),
        ({"a": "cup"}, {"a": "dog"}, lambda texts: [[np.nan]] * len(texts), "expected finite"),
        ({"a": "cup"}, {"a": "dog"}, lambda texts: [[1.0]], "for 2 texts"),
    ],
)
def test_names_that_cannot_be_compared_are_named(predicted, true, encode, message):
    with pytest.raises(ValueError, match=message):
        similarity_scores(predicted, true, encode)


def test_the_sentence_encoder_averages_the_tokens_of_each_text(tmp_path):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cup", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=10**6).save_pretrained(tmp_path)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=8, **size)).eval()
    model.save_pretrained(tmp_path)
    encode = SentenceEncoder(tmp_path, batch_size=2)
    together = encode(["red dog", "cup", "dog"])
    assert together.shape == (3, 16) and together.dtype == np.float32
    with torch.inference_mode():
        alone = model(torch.tensor([[2, 7, 5, 3]])).last_hidden_state.mean(1)[0]
    assert together[0] == pytest.approx(alone.numpy(), abs=1e-5)
    assert together[2] == pytest.approx(encode(["dog"])[0], abs=1e-5)  # padding and neighbours change nothing
    assert np.isfinite(encode(["dog " * 50])).all()  # longer than the model's input
    corpus, _ = similarity_scores({"a": "red dog", "b": "cup"}, {"a": "red_dog", "b": "dog"}, encode)
    assert corpus["semantic similarity"] < 1 and corpus["word IoU"] == 0.5
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 4, "do_lower_case": false}')
    short = SentenceEncoder(tmp_path)
    assert short(["red dog cup"])[0] == pytest.approx(short(["red dog"])[0], abs=1e-6)
    assert short.max_length == 4 and encode.max_length == 8


# --- questions that a judge answers ---------------------------------------------------------------------------------

KIND = Question("What is it?", [("a dog", 1.0), ("an animal", 0.5), ("nothing", 0.0), ("a cup", -1.0)], "recognition")
DETAIL = Question("Its colour?", [("brown", 1.0), ("dark", 0.5), ("not said", 0.0), ("white", -1.0)])
ABSENT = Question("Its hat?", [("no hat", 1.0), ("open", 0.0), ("a hat", -1.0)], "negative")


def test_choice_scores():
    questions = {"a": [KIND, DETAIL, ABSENT], "b": [KIND, DETAIL, ABSENT], "c": [DETAIL]}
    answers = {"a": [0, 1, 0], "b": [3, 0, 2], "c": [None]}  # b: another thing, so no points for its colour
    corpus, items = choice_scores(answers, questions)
    assert corpus == pytest.approx(
        {
            "choice score/positive": (0.5 + 0 + 0) / 3,
            "choice score/negative": (1 - 1) / 2,
            "choice score": (0.5 / 3 + 0) / 2,
            "choice accuracy/recognition": 1 / 2,
        }
    )
    more = choice_scores(answers | {"c": [0] * 4}, questions | {"c": [DETAIL] * 4})[0]
    assert more["choice score/positive"] == pytest.approx((0.5 + 0 + 1) / 3), "a region counts once, not its questions"
    assert items["a"]["choice score"] == pytest.approx(0.75) and items["b"]["choice score"] == pytest.approx(-0.5)
    assert set(choice_scores({}, questions)[0].values()) == {0.0}, "no description gives no points for what it avoids"
    only = choice_scores({"a": [2]}, {"a": [ABSENT]})[0]
    assert only == {"choice score": -1, "choice score/negative": -1}


def test_choice_accuracy_counts_a_missing_answer_as_wrong():
    assert choice_accuracy({"a": 0, "b": None}, {"a": 0, "b": 1, "c": 1}) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no questions"):
        choice_accuracy({}, {})
    with pytest.raises(ValueError, match="the first for 'x'"):
        choice_accuracy({"x": 0}, {"a": 0})


@pytest.mark.parametrize(
    ("answers", "questions", "message"),
    [
        ({"x": [0]}, {"a": [DETAIL]}, "the first for 'x'"),
        ({"a": [0, 1]}, {"a": [DETAIL]}, "region a: 2 answers to 1 questions"),
        ({"a": [4]}, {"a": [DETAIL]}, "choice 4 of 4: 'Its colour"),
        ({"a": [0, 0]}, {"a": [KIND, KIND]}, "2 recognition questions"),
        ({}, {}, "no questions"),
    ],
)
def test_answers_that_do_not_fit_are_named(answers, questions, message):
    with pytest.raises(ValueError, match=message):
        choice_scores(answers, questions)


@pytest.mark.parametrize(
    ("kind", "choices", "message"),
    [
        ("neutral", [("a", 1), ("b", 0)], "kind 'neutral'"),
        ("negative", [("a", 1), ("b", 0.5)], "'b' has 0.5 points; expected 1, 0, -1"),
        ("positive", [("a", 1)], "1 choices"),
    ],
)
def test_questions_that_do_not_fit_are_named(kind, choices, message):
    with pytest.raises(ValueError, match=message):
        Question("Its hat?", choices, kind)


def test_a_judge_reads_the_description_alone_and_answers_with_a_letter():
    asked = []

    def judge(text):
        asked.append(text)
        return "B."

    answers = judge_captions({"a": "A dark dog.\n", "b": " "}, {"a": [DETAIL], "b": [DETAIL], "c": [DETAIL]}, judge)
    assert answers == {"a": [1]} and asked == [prompt(DETAIL, "A dark dog.")]
    assert asked[0].endswith("A dark dog.\n\nQuestion: Its colour?\nA. brown\nB. dark\nC. not said\nD. white")


def test_a_judge_is_asked_about_several_regions_at_a_time():
    class Judge:
        parallel = 2

        def __init__(self):
            self.both = threading.Barrier(2, timeout=20)

        def __call__(self, text):
            self.both.wait()  # until another question has come
            return "A" if "brown" in text.partition("Question")[0] else "B"

    captions = {"a": "A brown dog", "b": "A dark dog"}
    assert judge_captions(captions, {"a": [DETAIL] * 2, "b": [DETAIL] * 2}, Judge()) == {"a": [0, 0], "b": [1, 1]}


def test_a_judge_that_names_no_choice_gives_no_score():
    with pytest.raises(RuntimeError, match="none of the judge's 1 answers names a choice, the first is 'zzz'"):
        judge_captions({"a": "A dog"}, {"a": [DETAIL]}, lambda text: "zzz")


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("D", 3),
        ("Not said", 2),
        ("B. dark", 1),
        ("c. Not said.", 2),
        ("The answer is: white", 3),
        ("A. It is not white", 3),  # one choice stands in it, which goes before the letter
        ("A. neither dark nor white", 0),
        ("it is dark, not white", 3),  # the last of several
        ("dark brown", 0),
        ("whit", 3),  # a part of a choice
        ("b\nbecause it is so", 1),
        ("b, because it is so", None),
        ("**A**", None),
        ("The answer is B.", None),
        ("A dog", None),
        ("E", None),
        ("", None),
    ],
)
def test_answers_are_read_as_the_released_evaluator_reads_them(answer, place):
    assert read_choice(answer, DETAIL) == place


def test_the_longest_of_the_choices_at_one_place_is_meant():
    question = Question("Its coat?", [("short", 1.0), ("short and thick", 0.5), ("long", -1.0)])
    assert read_choice("I would say short and thick", question) == 1
    assert read_choice("B.", question) == 1 and read_choice("and", question) == 1


def test_a_judge_behind_http():
    seen = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body["model"], body["temperature"], self.headers["Authorization"]))
            said = None if body["model"] == "silent" else "A"
            answer = {"choices": [{"message": {"content": said}}]} if body["model"] != "other" else {"error": "no"}
            self.send_response(429 if body["model"] == "busy" and len(seen) % 3 else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert HTTPJudge(url, "judge", key="secret")("Which?") == "A"
        assert seen == [("/v1/chat/completions", "judge", 0, "Bearer secret")]
        with pytest.raises(RuntimeError, match="the judge 'other' at http.* gave no answer"):
            HTTPJudge(url, "other")("Which?")
        with pytest.raises(RuntimeError, match="the judge 'silent' .*message content None"):
            HTTPJudge(url, "silent")("Which?")
        seen.clear()
        assert HTTPJudge(url, "busy", wait=0)("Which?") == "A" and len(seen) == 3
        with pytest.raises(RuntimeError, match="gave no answer: .*429"):
            HTTPJudge(url, "busy", attempts=2, wait=0)("Which?")
        server.shutdown()
    with pytest.raises(RuntimeError, match="gave no answer"):
        HTTPJudge(url, "judge", timeout=5, wait=0)("Which?")
