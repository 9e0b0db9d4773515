"""The line that shows a region to models without boxes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dynrefer.data.records import Region
from eval.overlay import RED, overlay


def region(box=None, mask=None, image_hw=(40, 60)):
    return Region.from_dict({"id": "r", "image": "a.png", "image_hw": list(image_hw), "box": box, "mask": mask})


def picture(image_hw=(40, 60)):
    return np.full((*image_hw, 3), 90, np.uint8)


def red(image):
    return (image == RED).all(-1)


@pytest.mark.parametrize("box", [[10, 5, 30, 20], [10.6, 5.2, 30.9, 20.5], [0, 0, 59, 39]])
def test_a_box_line_of_one_pixel_is_what_pillow_draws(box):
    expected = Image.fromarray(picture())
    ImageDraw.Draw(expected).rectangle(box, outline="red")
    np.testing.assert_array_equal(overlay(picture(), region(box), width=1), np.asarray(expected))


def test_a_wide_line_grows_away_from_the_box():
    drawn = red(overlay(picture(), region([10, 5, 30, 20]), width=4))
    assert not drawn[6:20, 11:30].any()
    assert drawn[2:6, 7:34].all() and drawn[20:24, 7:34].all() and drawn[2:24, 7:11].all() and drawn[2:24, 30:34].all()
    assert drawn.sum() == 22 * 27 - 14 * 19


def test_the_line_stays_on_the_image_where_the_region_touches_its_edge():
    whole = red(overlay(picture(), region([0, 0, 60, 40]), width=2))
    assert whole[:2].all() and whole[-2:].all() and whole[:, :2].all() and whole[:, -2:].all()
    assert not whole[2:-2, 2:-2].any()
    rle = {"size": [40, 60], "counts": [0, 40 * 60]}
    np.testing.assert_array_equal(red(overlay(picture(), region(mask=rle), width=2, prompt="mask")), whole)


def test_a_mask_is_outlined_and_not_covered():
    polygon = [[20, 10, 40, 10, 30, 30]]
    triangle = region([0, 0, 60, 40], mask=polygon)
    drawn = red(overlay(picture(), triangle, width=2, prompt="mask"))
    mask = triangle.to_mask()
    assert drawn.any() and not (drawn & mask).any()
    rows, columns = np.nonzero(drawn)
    inside_rows, inside_columns = np.nonzero(mask)
    assert rows.min() == inside_rows.min() - 2 and columns.max() == inside_columns.max() + 2


def test_the_line_is_wider_on_larger_images_and_the_image_is_not_changed():
    image = picture((1200, 1600))
    drawn = red(overlay(image, region([400, 400, 800, 800], image_hw=(1200, 1600))))
    assert drawn[600].sum() == 2 * 8 and (image == 90).all()
    assert red(overlay(picture(), region([20, 10, 30, 20])))[15].sum() == 2 * 2
    assert red(overlay(picture((1, 1)), region([0, 0, 1, 1], image_hw=(1, 1)))).all()


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="region r has no mask"):
        overlay(picture(), region([1, 1, 5, 5]), prompt="mask")
    with pytest.raises(ValueError, match=r"\(20, 60\), its record says \(40, 60\)"):
        overlay(picture((20, 60)), region([1, 1, 5, 5]))
    with pytest.raises(ValueError, match="uint8"):
        overlay(picture() / 255, region([1, 1, 5, 5]))
    with pytest.raises(ValueError, match="line width 0"):
        overlay(picture(), region([1, 1, 5, 5]), width=0)
    with pytest.raises(ValueError, match="prompt 'point'"):
        overlay(picture(), region([1, 1, 5, 5]), prompt="point")
