import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from data_prep.show import main, show
from dynrefer.data import Region, open_records, save_arrow, write_records

HW = (60, 90)
HOSTILE = "<script>alert(1)</script> \"'&"


@pytest.fixture
def records(tmp_path):
    pixels = np.zeros((*HW, 3), np.uint8)
    pixels[20:40, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = [[30, 20, 60, 20, 60, 40, 30, 40]]
    common = {"image": "a.png", "image_hw": HW, "box": (30.0, 20.0, 60.0, 40.0), "split": "train"}
    regions = [
        Region(
            "full", **common, mask=mask, captions=(HOSTILE,), tags=("cup", HOSTILE), category="cup", licence=HOSTILE
        ),
        Region("bare", **common),
        Region(
            "none", **common | {"image": "none.png", "split": "val"}, attributes={"color:red": 1, "wet": -1}, tags=()
        ),
        Region("size", **common | {"image_hw": (120, 180)}, category=HOSTILE),
        Region("many", **common, captions=tuple(f"text {k}" for k in range(9))),
    ]
    write_records(tmp_path / "r.jsonl", regions)
    return tmp_path / "r.jsonl"


def page_of(records, *arguments) -> str:
    assert main([str(records), "--out", str(records.parent / "page.html"), *arguments]) == 0
    return (records.parent / "page.html").read_text(encoding="utf-8")


def cards_of(page) -> list[str]:
    return re.findall(r"<article>.*?</article>", page, re.S)


def pictures_of(card) -> list[Image.Image]:
    found = re.findall(r'src="data:image/(?:jpeg|png);base64,([^"]+)"', card)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_card_shows_the_image_the_mask_and_the_views(records):
    (card,) = cards_of(page_of(records, "--ids", "full"))
    image, mask, *views = pictures_of(card)
    assert image.size == (90, 60) and mask.mode == "P" and mask.size == (90, 60)
    levels = np.asarray(mask)
    assert levels[30, 45] == 1 and levels[20, 45] == 2 and levels[10, 10] == 0, "inside, outline, outside"
    assert [view.size for view in views] == [(168, 168)] * 3
    means = [np.asarray(view.convert("L")).mean() for view in views]
    assert means[0] > 250 > means[1] > means[2], "the crop is white, the more there is around it the darker"
    assert '<i class="region" style="inset:33.33% 33.33% 33.33% 33.33%">' in card
    assert '<i class="view" style="inset:20.00% 20.00% 20.00% 20.00%"><small>t = 0.4</small>' in card


def test_texts_are_shown_and_none_of_them_is_html(records):
    page = page_of(records)
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt; &#34;&#39;&amp;") == 4
    full, bare, none, size, many = cards_of(page)
    assert ">cup</span>" in full and "licence" in full
    assert "<li>" not in bare and "tags" not in bare
    assert "none is true" in none and '<span class="chip has">color:red' in none
    assert '<span class="chip not">wet' in none
    assert many.count("<li>") == 6 and "and 3 more" in many


def test_what_cannot_be_drawn_is_said_on_its_card(records):
    _, _, none, size, _ = cards_of(page_of(records))
    assert "none.png: no such file" in none and not pictures_of(none)
    assert "the record says image_hw (120, 180), the image has (60, 90)" in size and len(pictures_of(size)) == 4


def test_nothing_is_loaded_from_elsewhere(records):
    page = page_of(records)
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import', page)
    assert "default-src 'none'" in page


def test_the_same_seed_draws_the_same_samples(records, tmp_path):
    save_arrow(tmp_path / "arrow", open_records(records))
    drawn = [
        show(open_records(path), tmp_path / "p.html", num=2, seed=seed)
        for path in (records, tmp_path / "arrow")
        for seed in range(8)
    ]
    assert drawn[:8] == drawn[8:] and len({tuple(ids) for ids in drawn}) > 2
    assert all(len(ids) == 2 for ids in drawn)
    assert show(open_records(records), tmp_path / "p.html", num=99) == ["full", "bare", "none", "size", "many"]


def test_filters(records, capsys):
    assert [len(cards_of(page_of(records, *f))) for f in (["--category", "cup"], ["--split", "val"])] == [1, 1]
    assert len(cards_of(page_of(records, "--ids", "many", "bare", "full", "--num", "1"))) == 3
    for arguments, text in (
        (["--category", "dog"], "among its categories are"),
        (["--split", "test"], "its splits are ['train', 'val']"),
        (["--ids", "other"], "no record 'other'"),
        (["--num", "0"], "1 or more"),
    ):
        assert main([str(records), "--out", str(records.parent / "no.html"), *arguments]) == 2
        assert text in capsys.readouterr().err
    assert not (records.parent / "no.html").exists()
