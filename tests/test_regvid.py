"""The pipeline from masklets to instructions, with a stand-in for the models it asks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.check import check_file
from data_prep.regvid import prompts
from data_prep.regvid.__main__ import main
from data_prep.regvid.desk import Journal
from data_prep.regvid.prompts import Unreadable
from data_prep.regvid.settings import RegvidConfig, Role
from data_prep.regvid.shots import centre_of, draw_shot, marked_shots
from dynrefer.data.clips import ClipRegion, FrameRegion, open_clips, write_clips
from dynrefer.data.record_files import open_records
from dynrefer.masks import mask_to_rle
from tests.chat_server import chat_server

HW, COUNT = (40, 60), 8
CLEAN, CLAIMED = "Red box that moves to the right.", "Red box that moves to the right and jumps."


def masked(x1, y1, x2, y2) -> FrameRegion:
    inside = np.zeros(HW, bool)
    inside[y1:y2, x1:x2] = True
    return FrameRegion((x1, y1, x2, y2), mask_to_rle(inside))


@pytest.fixture
def clips(tmp_path):
    """Two videos, in each of which a red box moves, named by its category, and a blue one stays, named by a text."""
    regions = []
    for video in ("one", "two"):
        (tmp_path / "src" / video).mkdir(parents=True)
        for t in range(COUNT):
            picture = np.full((*HW, 3), 60, np.uint8)
            picture[4:20, 2 + 4 * t : 14 + 4 * t], picture[22:38, 20:40] = (220, 0, 0), (0, 0, 220)
            Image.fromarray(picture).save(tmp_path / "src" / video / f"{t}.png")
        red = {t: masked(2 + 4 * t, 4, 14 + 4 * t, 20) for t in range(COUNT)}
        blue = {t: masked(20, 22, 40, 38) for t in range(COUNT)}
        common = {"video": video, "num_frames": COUNT, "frame_hw": HW, "prompt_frame": 0, "end_frame": COUNT}
        regions.append(ClipRegion(id=f"{video}-red", frames=red, category="red box", source="mine", **common))
        regions.append(ClipRegion(id=f"{video}-blue", frames=blue, captions=("the blue one",), **common))
    write_clips(tmp_path / "src" / "clips.jsonl", regions)
    return tmp_path / "src" / "clips.jsonl"


def models(asked):
    """Says what a good model would: the red box does not jump."""
    text = asked.text
    if "Which noun" in text:
        return "Blue box."
    if "Describe each of them" in text:
        return f"Sure:\n```json\n{json.dumps({'0': CLAIMED, '1': 'Blue box that stays.'})}\n```"
    if "Turn a description" in text:
        red = re.findall("Description: (.*)", text)[-1].startswith("Red")
        return json.dumps(["Does it move right?", "Does it jump?"] if red else ["Does the blue box stay?"])
    if "Answer from the frames" in text:
        return "(D) Definitely no" if "jump" in text else "A"
    if "was checked" in text:
        return CLEAN
    if "Summarize" in text:
        return "A box."
    assert "Write a conversation" in text
    good = {"question": "Does [1] move as [0] does?", "answer": "No, it stays where it is."}
    return json.dumps([good, {"question": "Who?", "answer": "x"}, {"question": "Is it [1]?", "answer": "[1] is."}])


ONCE = {"captioner": 1, "editor": 4, "checker": 3, "writer": 3}  # questions about one clip


def run(clips, url, *more):
    role = f"{{url: {url}, model: MODEL, price: [1, 2]}}"
    roles = [f"{name}={role.replace('MODEL', name)}" for name in ("captioner", "checker", "writer", "editor")]
    return main(["--clips", str(clips), "--out", str(clips.parents[1] / "out"), "side=112", *roles, *more])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_regions_become_checked_captions_and_conversations(clips, capsys):
    out = clips.parents[1] / "out"
    with chat_server(models) as server:
        assert run(clips, server.url) == 0
    count = {name: sum(asked.model == name for asked in server.asked) for name in ONCE}
    # both clips are told of in the same words, and words are asked about once
    assert count == {"captioner": 2, "editor": 4, "checker": 6, "writer": 3}
    assert {len(asked.pictures) for asked in server.asked if asked.model == "captioner"} == {COUNT}
    assert all(not asked.pictures for asked in server.asked if asked.model in ("editor", "writer"))
    (question,) = {asked.text for asked in server.asked if asked.model == "captioner"}
    assert "[0]: red box\n[1]: blue box" in question and "about 90 words" in question
    captioned = open_clips(out / "captions.jsonl")
    assert [clip.captions for clip in captioned] == [(CLEAN,), ("Blue box that stays.",)] * 2
    assert captioned.video_path(0).resolve() == clips.parent / "one" and captioned[0].frames[1] == masked(6, 4, 18, 20)
    chats = list(open_records(out / "chats.jsonl"))
    assert [chat.id for chat in chats][:5] == [
        *("one-red-detailed", "one-red-brief", "one-blue-detailed", "one-blue-brief", "one-red-conversation")
    ]
    assert [chat.turns[0].answer for chat in chats[:4]] == [CLEAN, "A box.", "Blue box that stays.", "A box."]
    talk = chats[4]
    assert [(turn.question, turn.answer) for turn in talk.turns] == [
        ("Does <region1> move as <region0> does?", "No, it stays where it is.")
    ]
    assert [region.id for region in talk.regions] == ["one-red", "one-blue"] and talk.category == "conversation"
    for name in ("captions", "chats"):
        report = check_file(out / f"{name}.jsonl")
        assert not list(report.problems), report.lines()
    printed = capsys.readouterr().out
    assert "2  statements denied" in printed and "10  conversations" in printed
    assert printed.splitlines()[-1].endswith(
        "left out most: 4 turns: no number of a region in the question, or one in the answer"
    )


def test_the_estimate_asks_nobody_and_counts_what_will_be_asked(clips, capsys):
    with chat_server(models) as server:
        assert run(clips, server.url, "--estimate", "clips_at_once=1") == 0
        assert not server.asked
        printed = capsys.readouterr().out
        # a typical caption is split into 9 questions, of which one is denied; both regions, both clips
        for name, number in {"captioner": 2, "editor": 2 + 4 + 4, "checker": 36, "writer": 6, "in all": 54}.items():
            assert re.search(rf"{name} +{number} questions", printed), name
        assert run(clips, server.url) == 0
        asked = len(server.asked)
        capsys.readouterr()
        assert run(clips, server.url, "--estimate") == 0 and len(server.asked) == asked
    printed = capsys.readouterr().out
    assert "nothing is left to ask" in printed and f"{asked} answers are known already" in printed


def test_nothing_is_asked_twice(clips):
    with chat_server(models) as server:
        assert run(clips, server.url, "limit=1") == 0
        asked = len(server.asked)
        assert asked == sum(ONCE.values())
        before = (clips.parents[1] / "out" / "chats.jsonl").read_bytes()
        assert run(clips, server.url, "limit=1") == 0 and len(server.asked) == asked
        assert (clips.parents[1] / "out" / "chats.jsonl").read_bytes() == before
        assert run(clips, server.url) == 0  # the second clip's noun and texts are known from the first
        assert len(server.asked) == asked + 1 + 3  # its frames are others: the captioner's and the checker's questions
        assert run(clips, server.url, "words=50") == 0
        assert sum(asked.model == "captioner" for asked in server.asked) == 4


def test_a_killed_run_goes_on(clips, tmp_path):
    out = clips.parents[1] / "out"

    def slowly(asked):
        time.sleep(0.05)
        return models(asked)

    with chat_server(slowly) as server:
        settings = [f"clips={clips}", f"out={out}", "side=112"]
        settings += [f"{name}={{url: {server.url}, model: {name}}}" for name in ("captioner", "checker", "writer")]
        process = subprocess.Popen([sys.executable, "-m", "data_prep.regvid", *settings], cwd=Path(__file__).parents[1])
        while len(server.asked) < 8 and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with open(out / "answers.jsonl", "a") as file:
            file.write('{"key": "torn')
        first = len(server.asked)
        known = len(lines_of_journal(out))
        assert 8 <= first < 15 and first - known <= 2 * 8  # only what was on the way is lost
        assert main(settings) == 0
        again = len(server.asked) - first
    assert known + again == len(Journal(out / "answers.jsonl").answers) == 15
    assert len(lines(out / "chats.jsonl")) == 10


def lines_of_journal(out: Path) -> list[str]:
    return [line for line in (out / "answers.jsonl").read_text().split("\n")[:-1] if line]


def test_questions_at_once_are_bounded(clips):
    def slowly(asked):
        time.sleep(0.02)
        return models(asked)

    url = "URL"
    with chat_server(slowly) as server:
        roles = [
            f"{name}={{url: {server.url}, model: all, parallel: {number}}}"
            for name, number in (("captioner", 1), ("editor", 1), ("checker", 1), ("writer", 1))
        ]
        assert main([f"clips={clips}", f"out={clips.parents[1] / url}", "side=112", "clips_at_once=2", *roles]) == 0
    assert server.most <= 2


def test_a_budget_is_kept_and_the_run_goes_on_with_a_larger_one(clips, capsys):
    with chat_server(models) as server:
        assert run(clips, server.url, "budget=0.0001") == 2
        assert not server.asked and "budget 0.0001: about 0.0" in capsys.readouterr().err
        # the server counts words, which are fewer than the estimate's tokens
        journal = clips.parents[1] / "out" / "answers.jsonl"
        journal.parent.mkdir(exist_ok=True)
        costly = {"key": "x", "role": "writer", "model": "writer", "text": "", "tokens": [10**6, 0]}
        journal.write_text(json.dumps(costly) + "\n")
        assert run(clips, server.url, "budget=1") == 2 and not server.asked
        assert run(clips, server.url, "budget=1.5") == 0 and server.asked


@pytest.mark.parametrize(
    ("part", "answer", "why"),
    [
        ("Describe each of them", json.dumps({"0": None, "1": "Blue box."}), "the captioner cannot make them out"),
        ("Turn a description", "no list", "an answer could not be read"),
        ("Turn a description", (400, {"error": "not that"}, {}), "a model refused to answer"),
        ("Answer from the frames", "D", "nothing of their caption was left by the check"),
        ("Which noun", "I would say that it is a box", "an answer could not be read"),
    ],
)
def test_a_region_that_fails_is_left_out_and_counted(clips, capsys, part, answer, why):
    with chat_server(lambda asked: answer if part in asked.text else models(asked)) as server:
        status = run(clips, server.url, "limit=1")
    printed = capsys.readouterr()
    assert (
        re.search(rf"\d  regions left out: {why}", printed.out)
        and f"one-{'red' if 'noun' not in part else 'blue'}" in printed.err
    )
    everything = "captioner" not in why and "noun" not in part
    assert status == (2 if everything else 0)
    if everything:
        assert f"no regions came out; 2 regions left out: {why}" in printed.err.splitlines()[-1]


def test_an_answer_of_another_form_is_asked_for_once_more(clips):
    def second(asked):
        if "Summarize" in asked.text and prompts.ONLY_JSON not in asked.text:
            return " "
        return models(asked)

    with chat_server(second) as server:
        assert run(clips, server.url, "limit=1") == 0
    chats = list(open_records(clips.parents[1] / "out" / "chats.jsonl"))
    assert len(chats) == 5 and sum(prompts.ONLY_JSON in asked.text for asked in server.asked) == 2


def test_an_unreachable_model_stops_the_run_with_what_is_known(clips, capsys):
    with chat_server(lambda asked: (401, {}, {}) if asked.model == "writer" else models(asked)) as server:
        assert run(clips, server.url) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "the model 'writer' at http" in error and "401" in error
        known = len(Journal(clips.parents[1] / "out" / "answers.jsonl").answers)
        assert known >= 1
    assert not (clips.parents[1] / "out" / "chats.jsonl").exists()


def test_settings_are_checked(clips, monkeypatch, capsys):
    assert main([f"clips={clips}", "out=o", "captioner={url: http://a/v1, model: m}"]) == 2
    assert "checker: nobody is named; give checker.url and checker.model" in capsys.readouterr().err
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert run(clips, "http://127.0.0.1:9/v1", "captioner.key=NO_SUCH_KEY", "--estimate") == 0
    assert run(clips, "http://127.0.0.1:9/v1", "captioner.key=NO_SUCH_KEY") == 2
    assert "captioner.key: the environment has no NO_SUCH_KEY" in capsys.readouterr().err
    only = RegvidConfig("a", "b", captioner=Role("http://a", "m"), check=False, instructions=False)
    assert only.asked() == ("captioner",)
    with pytest.raises(ValueError, match="a model is named by both"):
        Role(url="http://a")


# ------------------------------------------------------------------------------------------------ frames


def test_regions_are_outlined_and_numbered(clips):
    records = open_clips(clips)
    frame = np.full((*HW, 3), 60, np.uint8)
    drawn = draw_shot(frame, {0: masked(10, 10, 50, 30), 3: FrameRegion((2, 2, 8, 8))}, 120)
    assert drawn.shape == (120, 120, 3)
    bare = draw_shot(frame, {}, 120)
    changed = (drawn != bare).any(-1)
    assert changed[28, 60] and changed[60, 18] and not changed[80, 60]  # a line around the mask, nothing else in it
    assert changed[55:65, 55:65].any()  # the number
    assert (bare == 60).all()
    shots = marked_shots(clips.parent / "one", list(records)[:2], [0, 1], 4, 56, np.random.default_rng(0))
    assert len(shots) == 4 and shots[0].frame == 0 and [set(shot.marks) for shot in shots] == [{0, 1}] * 4
    assert len({shot.name for shot in shots}) == 4 and shots[1].pixels().shape == (56, 56, 3)


def test_a_number_stands_inside_a_ring():
    y, x = np.mgrid[:41, :41]
    ring = (np.hypot(x - 20, y - 20) < 20) & (np.hypot(x - 20, y - 20) > 12)
    x, y = centre_of(ring)
    assert ring[int(y), int(x)]


# ------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("text", "count", "letters"),
    [
        ("A", 1, ["A"]),
        (" (D) Definitely no", 1, ["D"]),
        ("B. Possibly yes", 1, ["B"]),
        ("Possibly no.", 1, ["C"]),
        ("The answer is (E).", 1, ["E"]),
        ('```json\n["A", "(D)", "b"]\n```', 3, ["A", "D", "B"]),
    ],
)
def test_answers_of_the_checker_are_read(text, count, letters):
    assert prompts.read_letters(text, count) == letters


@pytest.mark.parametrize(("text", "count"), [("A dog jumps", 1), ("F", 1), ("", 1), ('["A"]', 2), ("A, B", 2)])
def test_answers_without_a_letter_are_not_guessed(text, count):
    with pytest.raises(Unreadable):
        prompts.read_letters(text, count)


def test_json_is_found_among_words():
    assert prompts.read_json('Here [1]: {"a": [1, {"b": 2}]} done', dict) == {"a": [1, {"b": 2}]}
    assert prompts.read_json('{ not {"a": 1}', dict) == {"a": 1}
    for text in ("", "none", "[" * 5000, '{"a": '):
        with pytest.raises(Unreadable):
            prompts.read_json(text, dict)


def test_there_are_32_ways_of_asking_each():
    for ways in (prompts.DETAILED, prompts.BRIEF):
        assert len(set(ways)) == 32 and all(way.count("<region>") == 1 for way in ways)


@pytest.mark.parametrize(
    ("caption", "speaks"),
    [("Dog outlined in red", True), ("Man numbered 3", True), ("Red car that turns", False), ("Dog inline", False)],
)
def test_captions_that_speak_of_the_drawing_are_found(caption, speaks):
    assert bool(prompts.DRAWN.search(caption)) == speaks
