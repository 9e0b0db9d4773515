import json
from pathlib import Path

import pytest

from data_prep.tags import TagVocabulary, caption_tags, main, make_vocabulary, score
from dynrefer.data import Region, open_records, save_arrow, write_records

pytest.importorskip("lemminflect")
CHECKED = Path(__file__).parent / "fixtures" / "tags"


@pytest.mark.parametrize(
    ("caption", "vocabulary", "tags"),
    [
        ("three dogs", ["dog"], "dog"),
        ("The Men's bikes, and a MAN", ["man", "bicycle"], "man|bicycle"),
        ("a tennis racket", ["tennis", "racket", "tennis racket"], "tennis racket"),
        ("tennis rackets", ["tennis racket"], "tennis racket"),
        ("a tee-shirt and a surf board", ["T-shirt", "surfboard"], "T-shirt|surfboard"),
        ("hot dogs", ["dog", "hotdog"], "hotdog"),
        ("a black bird", ["blackbird", "bird"], "bird"),
        ("a man with glasses", ["glass", "man"], "man"),
        ("two glasses", ["glass", "glasses"], "glasses"),
        ("a grey couch", ["gray", "sofa"], "gray|sofa"),
        ("the bigger leaves", ["big", "leaf", "leave"], "big|leaf"),
        ("a man standing in the park", ["stand", "standing", "park"], "standing|park"),
        ("a man stands near people who watch it", ["stand", "watch", "man"], "man"),
        ("a watch on a stand", ["stand", "watch"], "stand|watch"),
        ("a man painting a wall", ["painting", "wall"], "wall"),
        ("a painting of a brick building", ["painting", "building"], "painting|building"),
        ("on top of a woman in a white top", ["top"], "top"),
        ("a cup on top of the front of a bus", ["top"], ""),
        ("a man without a hat or shoes in a car", ["hat", "shoe", "car"], "car"),
        ("no dogs; cats", ["dog", "cat"], "cat"),
        ("a no parking sign", ["sign"], "sign"),
        ("a light green wall under a light", ["light", "green"], "light|green"),
        ("a light green wall", ["light", "green"], "green"),
        ("a jeune fille à la plage, 犬", ["plage", "犬"], "plage|犬"),
        ("red car. park", ["car park"], ""),
        ("", ["dog"], ""),
        ("a numbered list of a number of things", ["numb", "list"], "list"),
    ],
)
def test_tags_of_a_caption(caption, vocabulary, tags):
    assert caption_tags([caption], vocabulary) == tuple(filter(None, tags.split("|")))


def test_tags_of_several_captions_come_once_in_the_order_of_the_vocabulary():
    vocabulary = TagVocabulary(["car", "red", "dog"])
    assert caption_tags(["a dog in a red car", "the dog, a dog"], vocabulary) == ("car", "red", "dog")


def test_a_line_names_a_tag_and_its_synonyms():
    assert caption_tags(["a chesterfield and two rowing boats"], ["couch, chesterfield", "boat,rowing boat"]) == (
        "couch",
        "boat",
    )


@pytest.mark.parametrize("lines", [[], ["", " , "], ["dog", "cat", "dog"]])
def test_a_vocabulary_needs_tags_once_each(lines):
    with pytest.raises(ValueError, match="tag vocabulary"):
        TagVocabulary(lines)


def test_tags_agree_with_those_checked_by_hand():
    rates = score(CHECKED / "checked.jsonl", TagVocabulary((CHECKED / "vocabulary.txt").read_text().splitlines()))
    assert set(rates) == {"tuned", "held-out"}
    for row in rates.values():
        assert row["texts"] >= 50 and row["right"] + row["missed"] >= 120
        assert row["precision"] > 0.93 and row["recall"] > 0.95


def test_a_vocabulary_of_the_captions_themselves():
    captions = ["two brown dogs", "a dog runs to the fire hydrant", "a red fire hydrant", "fire hydrants"] * 3
    words = make_vocabulary(captions, 50)
    assert {"dog", "fire hydrant", "brown", "red"} <= set(words)
    assert not {"two", "the", "dogs", "runs", "run"} & set(words)
    assert make_vocabulary(captions, 2) == words[:2]


@pytest.fixture
def records(tmp_path):
    def region(name, *captions, tags=None):
        return Region(name, "images/a.jpg", (20, 30), (1.0, 2.0, 9.0, 9.0), captions=captions, tags=tags)

    path = tmp_path / "r.jsonl"
    write_records(path, [region("1", "two dogs"), region("2", "a thing"), region("3"), region("4", "dog", tags=("x",))])
    return path


def test_the_command_writes_records_and_the_list(records, capsys):
    (records.parent / "words.txt").write_text("dog, hound\n\ncat\n")
    out = records.parent / "sub" / "tagged.jsonl"
    command = ["--records", str(records), "--vocabulary", str(records.parent / "words.txt"), "--out", str(out)]
    assert main(command) == 0
    assert "1  records whose captions name no tag" in capsys.readouterr().out
    found = list(open_records(out))
    assert [region.tags for region in found] == [("dog",), (), None, ("x",)]
    assert found[0].image == "../images/a.jpg" and found[0].captions == ("two dogs",)
    assert (out.parent / "tags.txt").read_text() == "dog\ncat\n"
    assert main([*command, "--replace"]) == 0
    assert [region.tags for region in open_records(out)] == [("dog",), (), None, ("dog",)]


def test_the_command_makes_a_vocabulary_and_reads_arrow(records, tmp_path):
    save_arrow(tmp_path / "arrow", open_records(records))
    out = tmp_path / "made" / "arrow"
    assert main(["--records", str(tmp_path / "arrow"), "--make-vocabulary", "1", "--out", str(out)]) == 0
    assert (out.parent / "tags.txt").read_text() == "dog\n"
    assert [region.tags for region in open_records(out)] == [("dog",), (), None, ("x",)]


def test_what_the_command_refuses(records, tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("dog\n")
    (tmp_path / "tags.txt").write_text("another\n")
    out = str(tmp_path / "out.jsonl")
    for arguments, text in (
        (["--records", str(records), "--vocabulary", str(words), "--out", out], "another list stands there"),
        (["--records", str(records), "--vocabulary", str(tmp_path / "none"), "--out", out], "no such file"),
        (["--records", str(records), "--make-vocabulary", "0", "--out", out], "1 or more"),
        (["--vocabulary", str(words)], "--records and --out"),
        (["--score", str(records), "--vocabulary", str(words)], "'x' is not in the vocabulary"),
    ):
        if "another" not in text:
            (tmp_path / "tags.txt").unlink(missing_ok=True)
        if "--score" in arguments:
            rows = [json.loads(line) for line in records.read_text().splitlines()]
            records.write_text("".join(json.dumps(row) + "\n" for row in rows if row["tags"]))
        assert main(arguments) == 2
        assert text in capsys.readouterr().err
    assert not Path(out).exists()


def test_the_command_measures(capsys):
    files = [str(CHECKED / name) for name in ("checked.jsonl", "vocabulary.txt")]
    assert main(["--score", files[0], "--vocabulary", files[1]]) == 0
    assert "held-out: precision 0.9" in capsys.readouterr().out
