import codecs
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import bensmot, flickr30k
from data_prep.converter import write_list
from dynrefer import files
from dynrefer.config import read_yaml
from dynrefer.data import Region, save_arrow
from dynrefer.files import atomic_path, hidden_folder, read_text
from dynrefer.models.options import read_names
from dynrefer.vocabulary import attribute_texts, read_attributes, read_words
from eval.compare import read_scores
from eval.report import read_log

MARKED = {
    "utf-8": "utf-8-sig",
    "utf-16, low byte first": "utf-16-le",
    "utf-16, high byte first": "utf-16-be",
    "utf-32": "utf-32-le",
}


def marked(text: str, encoding: str) -> bytes:
    """With a byte order mark."""
    return text.encode(encoding) if encoding == "utf-8-sig" else ("\ufeff" + text).encode(encoding)


@pytest.mark.parametrize("encoding", MARKED.values(), ids=MARKED)
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    (tmp_path / "t.txt").write_bytes(marked("tasse où\n杯\n", encoding))
    assert read_text(tmp_path / "t.txt") == "tasse où\n杯\n"


def test_other_bytes_are_told_with_their_place(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"tasse\xe9")
    with pytest.raises(ValueError, match="ids.txt: not a text file in UTF-8 .* at byte 5"):
        read_text(tmp_path / "ids.txt")


def test_half_a_character_at_the_end_is_told(tmp_path):
    (tmp_path / "ids.txt").write_bytes("12".encode("utf-16") + b"3")
    with pytest.raises(ValueError, match="ids.txt: not a text file in UTF-16"):
        read_text(tmp_path / "ids.txt")


READERS = {  # a file's name, its text, the reader, what it gives
    "words": ("w.txt", "table\ncup\n", read_words, ["table", "cup"]),
    "words, JSON": ("w.json", '["table", {"name": "cup"}]', read_words, ["table", "cup"]),
    "attributes": ("a.txt", "red\nblue\n", lambda p: attribute_texts(read_attributes(p))[0][0], "the red"),
    "attributes, JSON": ("a.json", '["red"]', lambda p: attribute_texts(read_attributes(p))[0][0], "the red"),
    "names of an option": ("n.txt", "table\ncup\n", lambda p: read_names(str(p), "control"), ["table", "cup"]),
    "settings": ("s.yaml", "seed: 3\nname: où\n", read_yaml, {"seed": 3, "name": "où"}),
    "photo ids": ("ids.txt", "12.jpg\n34\n", flickr30k._read_ids, ["12", "34"]),
    "sentences": ("1.txt", "[/EN#7/people A man] sits", flickr30k._read_sentences, {"7": [(["people"], "A man")]}),
    "captions of a clip": ("c.txt", "woman0: walks\n", bensmot._lines, ["woman0: walks"]),
    "scores": ("scores.json", '{"scores": {}, "task": "t"}', read_scores, {"scores": {}, "task": "t"}),
    "a log": ("log.jsonl", '{"step": 1}\n{"step": 2}\n', read_log, [{"step": 1}, {"step": 2}]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_text_reads_over_the_mark(tmp_path, reader, encoding):
    name, text, read, expected = READERS[reader]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name) == expected


def test_a_word_list_with_a_mark_is_the_same_list(tmp_path):
    (tmp_path / "categories.txt").write_bytes(codecs.BOM_UTF8 + b"table\ncup\n")
    write_list(tmp_path / "categories.txt", ["table", "cup"])  # an error for another list
    with pytest.raises(ValueError, match="another list stands there"):
        write_list(tmp_path / "categories.txt", ["cup", "table"])


# --- what killed processes leave ---


WRITER = """
import pathlib, sys
from dynrefer.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        temporary = temporary / "data"
    temporary.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def writer(path: Path, kind: str) -> subprocess.Popen:
    """A process in the middle of writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_at_the_next_start_of_the_output(tmp_path, kind):
    out = tmp_path / "out"
    end(writer(out, kind))
    (left,) = tmp_path.iterdir()
    with atomic_path(out) as temporary:
        assert not left.exists()
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and out.read_text() == "whole"


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    process = writer(tmp_path / "out", "file")
    try:
        with atomic_path(tmp_path / "out") as temporary:
            temporary.write_text("mine")
        assert len(list(tmp_path.iterdir())) == 2
        process.stdin.close()
        assert process.wait() == 0 and (tmp_path / "out").read_text() == "half"  # the last one to end has it
    finally:
        process.kill()
        process.wait()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_between_two_renames_loses_no_folder(tmp_path):
    hidden = tmp_path / ".arrow.0123abcd.tmp"
    (hidden / files.REPLACED / "arrow").mkdir(parents=True)
    (hidden / files.REPLACED / "arrow" / "data").write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "arrow"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["arrow"]
    assert (tmp_path / "arrow" / "data").read_text() == "before"


def test_a_folder_of_other_things_and_a_file_are_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("a picture")
    (tmp_path / "notes").write_text("notes")
    regions = [Region("1", "a.jpg", (10, 10), (0, 0, 5, 5))]
    with pytest.raises(ValueError, match=r"photos is a folder of other things \(a.jpg\), which are not deleted"):
        save_arrow(tmp_path / "photos", regions)
    with pytest.raises(NotADirectoryError):
        save_arrow(tmp_path / "notes", regions)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "a picture" and (tmp_path / "notes").read_text() == "notes"
    assert len(list(tmp_path.iterdir())) == 2


def test_files_of_others_are_left_alone(tmp_path):
    names = [".out.tmp", ".out.0123abcg.tmp", "out.0123abcd.tmp", ".step-00000006.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.0123abcd.tmp").write_text("a file of this name is none of ours")
    with hidden_folder(tmp_path, "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*names, ".out.0123abcd.tmp"}


def test_a_long_name_can_be_written(tmp_path):
    name = "ä" * 120 + ".json"  # 245 bytes of the 255 that a name may have
    files.write_json(tmp_path / name, [1])
    assert json.loads((tmp_path / name).read_text()) == [1]
    with pytest.raises(OSError) as error:
        files.write_json(tmp_path / ("x" * 300), [1])
    assert error.value.filename == str(tmp_path / ("x" * 300)) and not os.path.exists(error.value.filename)


def test_a_killed_converter_leaves_nothing_for_its_next_start(tmp_path):
    (tmp_path / ".photos.jsonl.0123abcd.tmp").mkdir()
    (tmp_path / "list.txt").write_text("cup\n")
    write_list(tmp_path / "categories.txt", ["cup"])
    assert {path.name for path in tmp_path.iterdir()} == {"list.txt", "categories.txt"}
