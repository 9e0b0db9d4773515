import pytest
from PIL import Image

from data_prep.bensmot import main
from data_prep.check_clips import check_clips
from dynrefer.data.clips import open_clips

HW = (48, 64)
# frame, track, x, y, width, height, considered, class, visibility
GT = """1,1,0,5,10,20,1,1,1.0
2,1,2,5,10,20,1,1,1.0
6,1,4,5,10,20,1,1,1.0
2,2,30,5,10,20,1,1,0.5
3,2,30,5,10,20,1,1,0.5
4,2,60,5,10,20,1,1,0.5
2,3,0,0,5,5,0,1,1.0
"""
CAPTIONS = "woman0: A woman: she dances.\n\nman0: A man stands still.\n"


@pytest.fixture
def folder(tmp_path):
    sequence = tmp_path / "train" / "dancing" / "V_0"
    (sequence / "imgs").mkdir(parents=True)
    (sequence / "gt").mkdir()
    for number in (1, 2, 4, 6):  # some numbers are left out
        Image.new("RGB", HW[::-1]).save(sequence / "imgs" / f"{number:03d}.jpg")
    (sequence / "gt" / "gt.txt").write_text(GT)
    (sequence / "instance_captions.txt").write_text(CAPTIONS)
    (sequence / "video_caption.txt").write_text("x")
    return tmp_path


def run(folder, *options):
    where = ["--videos", str(folder / "train"), "--out", str(folder / "out" / "train.jsonl"), "--split", "train"]
    return main([*where, *options])


def sequence(folder):
    return folder / "train" / "dancing" / "V_0"


def test_tracks_become_clips_with_their_captions(folder, capsys):
    assert run(folder) == 0
    woman, man = open_clips(folder / "out" / "train.jsonl")
    assert woman.id == "bensmot-train-dancing/V_0-1" and woman.captions == ("A woman: she dances.",)
    assert woman.category == "woman" and woman.num_frames == 4 and woman.frame_hw == HW and woman.end_frame == 4
    assert woman.frames[1].box == (2, 5, 12, 25) and woman.frames[2] is None and woman.frames[3].box == (4, 5, 14, 25)
    assert man.prompt_frame == 1 and man.end_frame == 3 and man.frames[2].box == (60, 5, 64, 25)
    assert man.category == "man" and man.video == "../train/dancing/V_0/imgs" and man.frame_rate is None
    printed = capsys.readouterr().out
    for line in ("1  boxes left out: marked", "1  boxes left out: no picture", "1  boxes clipped", "1  sequences\n"):
        assert line in printed
    assert check_clips(folder / "out" / "train.jsonl") == ([], 2, 1)


def test_captions_that_belong_to_nobody_knows_whom_are_left_out(folder, capsys):
    (sequence(folder) / "instance_captions.txt").write_text("woman0: A woman.\n")
    assert run(folder) == 0
    assert [clip.captions for clip in open_clips(folder / "out" / "train.jsonl")] == [(), ()]
    assert "1  sequences with more tracks than captions" in capsys.readouterr().out
    assert run(folder, "--pair-uneven") == 0
    assert [clip.captions for clip in open_clips(folder / "out" / "train.jsonl")] == [("A woman.",), ()]
    (sequence(folder) / "instance_captions.txt").unlink()
    assert run(folder) == 0
    assert "1  sequences without captions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("gt/gt.txt", GT + "2,1,2,5\n", "gt.txt:8: '2,1,2,5': expected frame, track"),
        ("gt/gt.txt", GT + "2.5,1,2,5,3,3\n", "gt.txt:8"),
        ("gt/gt.txt", GT + "x,1,2,5,3,3\n", "gt.txt:8"),
        ("gt/gt.txt", b"\xff\xfe1", "gt.txt: not a text file in UTF-16"),
        ("instance_captions.txt", "a woman\n", "instance_captions.txt:1: 'a woman': expected 'woman0: caption'"),
        ("imgs/poster.jpg", None, "poster.jpg: expected frames named by their number"),
        ("imgs/001.jpg", "no picture", "001.jpg"),
    ],
)
def test_bad_files_are_refused_with_their_line(folder, capsys, file, content, rule):
    path = sequence(folder) / file
    if content is None:
        Image.new("RGB", HW[::-1]).save(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(folder) == 2
    with pytest.raises(AssertionError, match=rule):
        raise AssertionError(capsys.readouterr().err)
    assert not list(folder.glob("out/*"))


def test_repeated_and_empty_boxes_are_left_out_or_an_error(folder, capsys):
    (sequence(folder) / "gt" / "gt.txt").write_text(GT + "1,1,5,5,9,9\n1,2,90,5,9,9\n")
    assert run(folder) == 0
    printed = capsys.readouterr()
    assert "gt.txt:8: the track has one" in printed.err and "gt.txt:9: box 0: wholly outside" in printed.err
    assert run(folder, "--strict") == 2


def test_another_folder_is_refused(folder, capsys):
    assert main(["--videos", str(folder), "--out", str(folder / "a.jsonl"), "--split", "train"]) == 2
    assert "name BenSMOT/train or /test" in capsys.readouterr().err
    assert main(["--videos", str(folder / "x"), "--out", str(folder / "a.jsonl"), "--split", "train"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["--videos", str(folder / "train"), "--out", str(folder / "a.json"), "--split", "train"]) == 2
    assert "ends with .jsonl" in capsys.readouterr().err
