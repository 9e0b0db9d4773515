"""Results drawn on their picture: boxes, masks, texts, heat maps."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import dynrefer
from dynrefer import draw, letters, paint
from dynrefer.data.example import Example
from dynrefer.data.records import RegionResult
from dynrefer.draw import LARGEST, SMALLEST, draw_results, label_of, save_picture
from dynrefer.masks import mask_to_rle

GREY = 90


def picture(height=600, width=800):
    return np.full((height, width, 3), GREY, np.uint8)


def result(box, number=0, name=None, **values):
    if name is not None:
        values["categories"] = [{"name": name, "score": 0.875}, {"name": "plate", "score": 0.004}]
    return RegionResult(f"0:{number}", [float(side) for side in box], **values)


def drawn(results, image=None):
    return np.asarray(draw_results(picture() if image is None else image, results))


def test_a_box_is_drawn_around_its_region_and_the_rest_of_the_picture_stays():
    pixels = drawn([result((200, 150, 400, 350), name="cup")])
    assert pixels.shape == (600, 800, 3), "nothing to list: the picture itself"
    colour = paint.colour_of(0)
    assert (pixels[250, 199:201] == colour).all() and (pixels[250, 400:402] == colour).all()
    assert (pixels[149:151, 300] == colour).all() and (pixels[350:352, 300] == colour).all()
    assert (pixels[160:340, 210:390] == GREY).all(), "no label in the box"
    assert (pixels[:100] == GREY).all() and (pixels[400:] == GREY).all()


def test_labels_cover_neither_their_box_nor_each_other(monkeypatch):
    placed = []
    chip = draw.Sheet.chip
    monkeypatch.setattr(draw.Sheet, "chip", lambda *args: placed.append(args[2:4]) or chip(*args))
    boxes = [
        (0, 0, 80, 60),
        (700, 0, 800, 90),
        (300, 0, 500, 600),
        (310, 300, 480, 400),
        (2, 500, 60, 600),
        (0, 90, 70, 99),
    ]
    draw_results(picture(), [result(box, n, "a long name") for n, box in enumerate(boxes)])
    labels = placed[: len(boxes)]
    assert [text.split()[0] for _, text in labels] == list("012345")
    for index, (place, _) in enumerate(labels):
        others = np.array([other for n, (other, _) in enumerate(labels) if n != index])
        assert draw.overlaps(place[None], others).item() == 0
        assert draw.overlaps(place[None], np.array([boxes[index]])).item() == 0
        assert place[0] >= 0 and place[1] >= 0 and place[2] <= 800 and place[3] <= 600


def test_a_region_that_is_the_whole_picture_has_its_number_on_it_and_its_name_below():
    pixels = drawn([result((0, 0, 800, 600), name="cup")])
    assert pixels.shape[0] > 600
    assert (pixels[50:550, 50:750] == GREY).all()


def test_captions_stand_in_a_list_below():
    once = drawn([result((10, 10, 90, 90), caption="a red cup", score=0.5)])
    twice = drawn([result((10, 10, 90, 90), n, caption="a red cup", score=0.5) for n in range(2)])
    long = drawn([result((10, 10, 90, 90), caption="a red cup " * 30, score=0.5)])
    assert 600 < once.shape[0] < twice.shape[0] and once.shape[0] < long.shape[0]
    assert (once[601:] == draw.INK).all(-1).any() and (once[601:] == draw.FAINT).all(-1).any()


@pytest.mark.parametrize("hw", [(1, 1), (30, 40), (3, 4000), (4000, 3), (3000, 4000)])
def test_texts_are_large_enough_on_pictures_of_any_size(hw):
    whole = draw_results(picture(*hw), [result((0, 0, hw[1], hw[0]), caption="a red cup", score=0.5)])
    sheet = draw.Sheet(picture(*hw), [], LARGEST)
    longer = max(sheet.plain.shape[:2])
    assert SMALLEST <= longer <= LARGEST and sheet.letters.size >= max(18, longer / 45)
    assert whole.width >= 26 * sheet.letters.size and whole.height > sheet.plain.shape[0]


def test_colours_are_distinct_stable_and_have_a_readable_ink():
    colours = [paint.colour_of(index) for index in range(1000)]
    assert len(set(colours)) == 1000 and colours == [paint.colour_of(index) for index in range(1000)]
    for one, other in itertools.combinations(colours[:24], 2):
        assert np.abs(np.subtract(one, other)).sum() > 50

    def light(colour):
        shares = np.array(colour) / 255
        return np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    for colour in colours:
        low, high = sorted((light(colour), light(paint.ink_on(colour))))
        assert (high + 0.05) / (low + 0.05) > 3.4


def test_a_region_keeps_its_colour_whatever_else_is_drawn():
    boxes = [(100, 100, 200, 200), (400, 100, 500, 200)]
    both = drawn([result(box, n, "cup") for n, box in enumerate(boxes)])
    assert (drawn([result(boxes[0], 0, "cup")])[100:200, 90:210] == both[100:200, 90:210]).all()


def test_a_mask_is_tinted_and_outlined():
    mask = np.zeros((600, 800), bool)
    mask[200:400, 300:500] = True
    pixels = drawn([result((300, 200, 500, 400), mask=mask_to_rle(mask))])
    expected = np.rint(GREY * (1 - draw.MASK_SHARE) + np.array(paint.colour_of(0)) * draw.MASK_SHARE)
    assert (np.abs(pixels[210:390, 310:490] - expected) <= 1).all()
    whole = np.ones((600, 800), bool)
    pixels = drawn([result((0, 0, 800, 600), mask=mask_to_rle(whole))])
    assert (pixels[300, :2] == paint.colour_of(0)).all(), "along the picture's edge the line lies inside"
    polygons = {"mask": [[300, 200, 500, 200, 500, 400, 300, 400]]}
    assert (drawn([result((300, 200, 500, 400), **polygons)])[300, 400] == pixels[300, 400]).all()


def test_a_heat_map_is_bilinear_over_the_picture_with_a_legend():
    assert paint.spread(np.array([[0, 1]]), (1, 8))[0].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    grid = [[0.0, 0.0], [0.0, 4.0]]
    plain = result((10, 10, 90, 90), name="cup")
    for key in ("attention", "heat_map"):
        hot = result((10, 10, 90, 90), name="cup", extra={key: grid})
        pixels = drawn([hot])
        assert pixels.shape[0] > 600 and pixels.shape == drawn([hot, plain]).shape, "a panel a region that has one"
        panel = pixels[600:]
        rows, columns = np.nonzero((np.abs(panel - paint.HEAT[-1]) <= 1).all(-1))
        assert rows.size, "the brightest colour stands in the legend"
        brightest = panel[: rows.min()].astype(int).sum(-1) * (panel[: rows.min()] != 255).any(-1)
        legend = panel[rows.min(), columns.min()].astype(int)
        assert legend[0] > 200 > legend[2]
        left, right = brightest[40:-20, 30:180].mean(), brightest[40:-20, 250:380].mean()
        assert left < right


def test_a_flat_heat_map_and_many_of_them_are_drawn():
    flat = [result((10, 10, 90, 90), n, "cup", extra={"attention": [[0.25] * 3] * 3}) for n in range(30)]
    few = drawn(flat[: draw.MAX_PANELS])
    many = drawn(flat)
    assert 0 < many.shape[0] - few.shape[0] < 200, "the others are counted"


def test_what_does_not_fit_the_picture_is_named():
    with pytest.raises(ValueError, match=r"region 0:3: box .* does not lie in this picture of 800 x 600"):
        drawn([result((10, 10, 900, 90), 3)])
    with pytest.raises(ValueError, match="region 0:0: mask of size"):
        drawn([result((1, 1, 9, 9), mask=mask_to_rle(np.ones((3, 3), bool)))])
    for bad in ([1, 2], [[1, 2], [3]], [[float("nan")]], [["a"]], [[]]):
        with pytest.raises(ValueError, match="region 0:0: its heat map"):
            drawn([result((1, 1, 9, 9), extra={"attention": bad})])


def test_no_region_leaves_the_picture_as_it_is():
    assert (drawn([]) == GREY).all()


def test_what_is_not_sure_is_called_unknown():
    assert label_of(result((0, 0, 1, 1), name="cup")) == "cup 0.88"
    scored = [{"name": "cup", "score": 0.2}]
    assert label_of(RegionResult("r", [0, 0, 1, 1], category=None, categories=scored)) == "unknown"
    assert label_of(result((0, 0, 1, 1))) == ""


def test_regions_of_a_clip_are_drawn_on_the_frame_that_shows_them():
    frames = np.stack([np.full((600, 800, 3), grey, np.uint8) for grey in (10, 60, 110)])
    shown_in = Example("clip", [None], lambda indices, reduce: frames[[1] if indices is None else list(indices)])
    assert (drawn([result((10, 10, 90, 90))], shown_in.image)[300:] == 60).all()


def test_hundreds_of_regions_are_drawn():
    generator = np.random.default_rng(0)
    corners = generator.integers(0, [700, 500], (300, 2))
    many = [result((x, y, x + 60, y + 50), n, "cup") for n, (x, y) in enumerate(corners.tolist())]
    assert drawn(many).shape[0] > 600


def test_pictures_of_one_name_do_not_overwrite(tmp_path):
    paths = [save_picture(tmp_path / "new", "photo", Image.new("RGB", (n, 1))) for n in (1, 2, 3)]
    assert [path.name for path in paths] == ["photo.png", "photo-2.png", "photo-3.png"]
    assert [Image.open(path).width for path in paths] == [1, 2, 3]


def test_the_function_is_public():
    assert dynrefer.draw_results is draw_results


# --- texts ------------------------------------------------------------------------------------------------------------


class Font:
    """A font that has some characters: each as a picture of its own, the others as one sign."""

    def __init__(self, characters):
        self.characters = characters

    def getmask(self, one):
        return Image.new("L", (3, 3), ord(one) % 256 if one in self.characters else 7).im


def test_each_character_is_written_in_a_font_that_has_it():
    latin, chinese = Font("abc é"), Font("猫犬a")
    assert letters.runs("ab 猫犬 c", (latin, chinese)) == [(latin, "ab "), (chinese, "猫犬 "), (latin, "c")]
    assert letters.runs("a\u0301Ω", (latin, chinese)) == [(latin, "a\u0301Ω")], "marks stay with their letter"


def test_lines_are_as_wide_as_they_may_be():
    some = letters.Letters(20)
    text = "one two three four five six seven eight nine ten"
    lines = some.lines(text, 150, 9)
    assert " ".join(lines) == text and len(lines) > 2 and all(some.length(line) <= 150 for line in lines)
    assert [len(lines) for lines in (some.lines(text, 150, 2), some.lines("", 9, 2))] == [2, 0]
    assert some.lines(text, 150, 2)[-1].endswith("…") and some.length(some.lines(text, 150, 2)[-1]) <= 150
    assert "".join(some.lines("x" * 50, 100, 99)) == "x" * 50, "a word wider than the line is cut"
    assert some.lines("xx", 0.5, 9)


def test_a_font_of_ones_own_is_used(monkeypatch, tmp_path):
    font = ImageFont.load_default(20)
    font_file = tmp_path / "own.ttf"
    font_file.write_bytes(font.font_bytes)
    monkeypatch.setenv("DYNREFER_FONT", str(font_file))
    assert letters.Letters(21).fonts[1].getname() == font.getname()
    font_file.write_bytes(b"nothing")
    letters.fonts_of.cache_clear()
    with pytest.raises(ValueError, match="DYNREFER_FONT=.*not a font file"):
        letters.Letters(22)


def test_texts_are_written_on_their_base_line():
    page = Image.new("L", (200, 60))
    letters.Letters(30).write(ImageDraw.Draw(page), (5, 40), "xo", (255,))
    rows = np.flatnonzero(np.asarray(page).any(1))
    assert rows.max() in (39, 40) and rows.min() > 15
