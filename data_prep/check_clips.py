"""What is wrong with a clip file: the form of records and conversations, boxes and masks, and videos that are missing,
damaged, of another size or shorter than recorded. `python -m data_prep.check` says it with lines."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.record_form import place_problems, record_chat
from dynrefer.data.clips import ClipRegion
from dynrefer.data.records import CHECK_HINT, record_root
from dynrefer.files import parse_line, read_lines
from dynrefer.videos import VideoFolder, open_video


def check_clips(path: str | Path, mixed: bool = False) -> tuple[list[tuple[int, str]], int, int]:
    """(problems as (line, text), number of records, number of videos) of a clip file. mixed: of the clips in a file
    that has pictures too; ids are compared where those are read."""
    path = Path(path)
    problems: list[tuple[int, str]] = []
    lines: dict[str, int] = {}
    by_video: dict[str, list[tuple[int, int, tuple[int, int]]]] = {}  # -> (line, num_frames, frame_hw)
    line = 0
    try:
        for line, text in read_lines(path):
            if mixed and b'"video"' not in text:
                continue
            try:
                content = parse_line(text, f"{path}:{line}", unique_keys=True)
                if isinstance(content, dict) and "turns" in content:
                    clip, problem = record_chat(content)
                    found = [problem] if problem else []
                else:
                    clip = ClipRegion.from_dict(content)
                    found = list(place_problems(clip))
            except ValueError as error:
                problems.append((line, str(error).removeprefix(f"{path}:{line}: ").removeprefix("record: ")))
                continue
            problems.extend((line, text) for text in found)
            if clip is None:
                continue
            if (first := lines.setdefault(clip.id, line)) != line and not mixed:
                problems.append((line, f"id {clip.id!r} stands in line {first} already; ids are unique"))
            by_video.setdefault(clip.video, []).append((line, clip.num_frames, clip.frame_hw))
    except ValueError as error:  # the file itself
        problems.append((line, str(error)))
    for video, users in by_video.items():
        problems.extend(video_problems(record_root(path) / video, users))
    problems = [(line, text.removesuffix(f"; {CHECK_HINT}")) for line, text in sorted(problems)]
    nothing = [] if lines or mixed else [(0, "no records in it")]
    return problems or nothing, len(lines), len(by_video)


def video_problems(path: Path, users: list[tuple[int, int, tuple[int, int]]]) -> Iterator[tuple[int, str]]:
    try:
        video = open_video(path)
        frame_hw = video.frame_hw
    except ValueError as error:
        yield users[0][0], f"{error} ({len(users)} records)"
        return
    for line, num_frames, recorded_hw in users:
        if num_frames > video.num_frames or (isinstance(video, VideoFolder) and num_frames != video.num_frames):
            yield line, f"num_frames {num_frames}, but {path} has {video.num_frames}"
        if recorded_hw != frame_hw:
            yield line, f"frame_hw {recorded_hw}, but frames of {path} are {frame_hw} (height, width)"
