import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dynrefer.images import open_image
from dynrefer.videos import natural_order, open_video

av = pytest.importorskip("av")
HW, COUNT = (48, 64), 30


def shade(index) -> int:
    """The grey of a frame tells its number."""
    return 20 + 7 * index


def picture(index) -> np.ndarray:
    pixels = np.full((*HW, 3), shade(index), dtype=np.uint8)
    pixels[:10, :10] = 255  # top left
    return pixels


def write_video(path, codec="mpeg4", count=COUNT, rate=10, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt = HW[1], HW[0], "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames) -> list[int]:
    return [round((float(frame[20:, 20:].mean()) - 20) / 7) for frame in frames]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {"g": "8"}),
        ("b.mp4", "libx264", {"g": "10", "bf": "3"}),  # frames stored in another order than shown
        ("one_key.mkv", "libx264", {"g": "999"}),
        ("c.webm", "libvpx-vp9", {"g": "7"}),
        ("d.avi", "mpeg4", {"g": "8", "bf": "2"}),  # no times in the file
        ("e.avi", "mjpeg", {}),
    ],
)
def test_every_frame_of_a_file_has_its_number(tmp_path, name, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    video = open_video(write_video(tmp_path / name, codec, **options))
    assert video.num_frames == COUNT and video.frame_hw == HW and video.frame_rate == pytest.approx(10, rel=0.01)
    assert numbers(video.read(range(COUNT))) == list(range(COUNT))
    for wanted in ([0], [29], [17], [3, 25], [25, 3, 3], [9, 10, 11], [0, 10, 20, 29]):
        frames = video.read(wanted)
        assert frames.dtype == np.uint8 and frames.shape == (len(wanted), *HW, 3) and numbers(frames) == wanted


def test_a_file_whose_packets_have_gaps_in_time_counts_its_frames(tmp_path):
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt = HW[1], HW[0], "yuv420p"
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index * index + 3, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = open_video(tmp_path / "v.mkv")
    assert video.num_frames == 8 and numbers(video.read([7, 2, 5])) == [7, 2, 5]


@pytest.mark.parametrize(
    ("degrees", "matrix", "corner"),
    [  # how a player must turn the frame clockwise, and where its white corner is seen then
        (90, (0, 1, -1, 0), (0, -1)),
        (180, (-1, 0, 0, -1), (-1, -1)),
        (270, (0, -1, 1, 0), (-1, 0)),
    ],
)
def test_sideways_films_stand_upright(tmp_path, degrees, matrix, corner):
    path = write_video(tmp_path / "v.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # the display matrix of the track's header
    a, b, c, d = (number << 16 for number in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    video = open_video(path)
    assert video.frame_hw == (HW if degrees == 180 else HW[::-1])
    frame = video.read([0])[0]
    rows, columns = (slice(0, 8) if place == 0 else slice(-8, None) for place in corner)
    assert frame[rows, columns].mean() > 200 and frame[20:28, 20:28].mean() < 60


def test_pictures_of_a_folder_are_frames_in_the_order_of_their_numbers(tmp_path):
    for index in (1, 2, 10, 9):
        Image.fromarray(picture(index)).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("x")
    video = open_video(tmp_path)
    assert video.num_frames == 4 and video.frame_hw == HW and video.frame_rate is None
    assert numbers(video.read([0, 1, 2, 3, 1])) == [1, 2, 9, 10, 2]
    assert (video.read([0])[0] == open_image(tmp_path / "frame1.png")).all()
    assert sorted(["a10", "a9", "a", "b1", "10", "9"], key=natural_order) == ["9", "10", "a", "a9", "a10", "b1"]
    Image.new("RGB", (8, 8)).save(tmp_path / "frame3.png")
    with pytest.raises(ValueError, match="frame3.png is .8, 8., the first one .48, 64."):
        video = open_video(tmp_path)
        video.read([0, 2])


def test_what_is_no_video_is_refused_by_name(tmp_path):
    whole = write_video(tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    rules = {"cut.mp4": "truncated or damaged", "text.mp4": "damaged", "empty": "no picture", "none.mp4": "no such"}
    for name, rule in {**rules, "sound.wav": "no video stream"}.items():
        with pytest.raises(ValueError, match=f"video .*{name}: .*{rule}"):
            open_video(tmp_path / name)
    video = open_video(tmp_path / "v.mp4")
    for index in (-1, COUNT):
        with pytest.raises(ValueError, match=f"frame {index}, but there are {COUNT}"):
            video.read([0, index])


def test_a_file_damaged_in_its_middle_names_the_frame_or_the_damage(tmp_path):
    path = write_video(tmp_path / "v.mkv", "libx264", g="5")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    try:
        video = open_video(path)
        video.read(range(video.num_frames))
    except ValueError as error:
        assert "v.mkv" in str(error)
