"""RegionPredictor against a stand-in model: what is asked of it, in which chunks, and where each answer goes."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from dynrefer.data.records import RegionResult
from dynrefer.models.dynrefer.options import Options
from dynrefer.models.family import FamilyModel, FamilyProcessor
from dynrefer.predictor import RegionPredictor
from dynrefer.prompts import region_controls


@dataclass
class FakeBatch:
    samples: list
    moved: bool = False

    @property
    def ids(self):
        return [sample["region"].id for sample in self.samples]

    def __len__(self):
        return len(self.ids)

    def to(self, device):
        assert device == "cpu"
        return replace(self, moved=True)


class FakeProcessor(FamilyProcessor):
    def __init__(self):
        self.view_strategies = []
        self.sizes = []

    def samples(self, example, options, generators, train):
        image = example.image
        assert image.dtype == np.uint8 and image.ndim == 3 and not train and len(generators) == len(example)
        self.view_strategies.append(options.view_strategy)
        self.sizes.append(image.shape[:2])
        controls = region_controls(options.control, len(example))
        return [{"region": r, "control": c} for r, c in zip(example.regions, controls, strict=True)]

    def collate(self, samples):
        return FakeBatch(list(samples))


class FakeModel(FamilyModel):
    """Says its region's box, and remembers the size, the options and the control words of every call."""

    device = "cpu"
    Options = Options

    def __init__(self):
        self.processor = FakeProcessor()
        self.chunks, self.options, self.controls = [], [], []

    def predict(self, batch, options):
        assert batch.moved
        self.chunks.append(len(batch))
        self.options.append(options)
        self.controls.append([sample["control"] for sample in batch.samples])
        regions = [sample["region"] for sample in batch.samples]
        return [RegionResult(region.id, list(region.box), f"box {list(region.box)}") for region in regions]


@pytest.fixture
def model():
    return FakeModel()


def picture(height=100, width=200):
    return np.zeros((height, width, 3), dtype=np.uint8)


def boxes_of(results):
    return [result.box for result in results]


def test_one_image_gives_one_result_a_region_in_order(model):
    results = RegionPredictor(model)(picture(), boxes=[[40, 30, 180, 100], [0, 0, 10, 10]])
    assert boxes_of(results) == [[40, 30, 180, 100], [0, 0, 10, 10]]
    assert [result.id for result in results] == ["0:0", "0:1"]
    assert all(isinstance(result, RegionResult) for result in results)


def test_several_images_give_a_list_of_lists_and_share_chunks(model):
    predictor = RegionPredictor(model, max_regions=4)
    results = predictor([picture()] * 4, boxes=[[[0, 0, i + 1, 2]] * i for i in (3, 0, 2, 5)])
    assert [len(some) for some in results] == [3, 0, 2, 5]
    assert model.chunks == [4, 4, 2]
    assert [result.id for some in results for result in some] == [
        f"{image}:{region}" for image, count in ((0, 3), (2, 2), (3, 5)) for region in range(count)
    ]
    assert [some[0].box[2] for some in results if some] == [4, 3, 6]


def test_one_image_in_a_list_gives_a_list_of_one_list(model):
    assert [boxes_of(some) for some in RegionPredictor(model)([picture()], boxes=[[[0, 0, 2, 2]]])] == [[[0, 0, 2, 2]]]


def test_zero_regions_give_no_results_and_no_call(model):
    predictor = RegionPredictor(model)
    assert predictor(picture(), boxes=[]) == []
    assert predictor(picture(), boxes=np.zeros((0, 4))) == []
    assert predictor(picture(), masks=[]) == []
    assert predictor([picture(), picture()], boxes=[[], []]) == [[], []]
    assert predictor([], boxes=[]) == []
    assert model.chunks == []


def test_ten_thousand_regions_go_through_in_chunks(model):
    boxes = np.stack([np.arange(10_000) % 150, np.zeros(10_000), np.arange(10_000) % 150 + 7, np.ones(10_000)], axis=1)
    results = RegionPredictor(model)(picture(), boxes)
    assert boxes_of(results) == boxes.tolist()
    assert max(model.chunks) == 64 and sum(model.chunks) == 10_000 and len(model.chunks) == 157


def test_boxes_may_come_in_other_formats_and_types(model):
    torch = pytest.importorskip("torch")
    predictor = RegionPredictor(model)
    wanted = [[20.0, 10.0, 60.0, 40.0]]
    assert boxes_of(predictor(picture(), [[20, 10, 40, 30]], "xywh")) == wanted
    assert boxes_of(predictor(picture(), [[0.1, 0.1, 0.3, 0.4]], box_format="xyxy-unit")) == [pytest.approx(wanted[0])]
    assert boxes_of(predictor(picture(), torch.tensor(wanted))) == wanted
    assert boxes_of(predictor(picture(), np.array(wanted, dtype=np.float32))) == wanted


def test_a_box_partly_outside_is_clipped(model):
    assert boxes_of(RegionPredictor(model)(picture(), [[-5, 90, 300, 400]])) == [[0, 90, 200, 100]]


def test_images_may_be_path_pil_or_array(model, tmp_path):
    Image.fromarray(picture(50, 60)).save(tmp_path / "photo.png")
    sources = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.new("L", (60, 50)), picture(50, 60)]
    RegionPredictor(model)(sources, boxes=[[[0, 0, 5, 5]]] * 4)
    assert model.processor.sizes == [(50, 60)] * 4


def test_boxes_count_in_the_upright_picture(model, tmp_path):
    image = Image.new("RGB", (60, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    image.save(tmp_path / "rotated.jpg", exif=exif)
    assert boxes_of(RegionPredictor(model)(tmp_path / "rotated.jpg", [[0, 40, 20, 60]])) == [[0, 40, 20, 60]]


def test_a_mask_gives_the_box_and_a_box_beside_it_wins(model, tmp_path):
    mask = np.zeros((100, 200), dtype=bool)
    mask[10:20, 30:50] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    predictor = RegionPredictor(model)
    polygon = [[30, 10, 50, 10, 50, 20, 30, 20]]
    for masks in ([mask], mask[None], [tmp_path / "mask.png"], [str(tmp_path / "mask.png")], [polygon]):
        assert boxes_of(predictor(picture(), masks=masks)) == [[30, 10, 50, 20]]
    assert boxes_of(predictor(picture(), [[1, 2, 3, 4]], masks=[mask])) == [[1, 2, 3, 4]]
    two = predictor([picture(), picture()], boxes=[None, [[1, 2, 3, 4]]], masks=[[mask], None])
    assert [boxes_of(some) for some in two] == [[[30, 10, 50, 20]], [[1, 2, 3, 4]]]


def test_masks_follow_their_regions_through_the_chunks(model):
    masks = np.zeros((5, 100, 200), dtype=np.uint8)
    for index in range(5):
        masks[index, index : index + 2, 10] = 1
    seen = []

    def predict(batch, options):
        seen.extend(sample["region"].to_mask() for sample in batch.samples)
        return [RegionResult(i, [], "") for i in batch.ids]

    model.predict = predict
    RegionPredictor(model, max_regions=2)(picture(), masks=masks)
    assert np.array_equal(np.stack(seen), masks.astype(bool))


def test_options_reach_the_model(model):
    options = {
        "control": "",
        "tag_threshold": 1.5,
        "attributes": ["red"],
        "categories": ["cup", "lamp"],
        "generation": {"num_beams": 5},
    }
    RegionPredictor(model)(picture(), [[0, 0, 2, 2]], view_strategy="phash", **options)
    options["num_beams"] = options.pop("generation")["num_beams"]
    assert model.options == [Options(view_strategy="phash", **options)]
    assert model.processor.view_strategies == ["phash"]
    RegionPredictor(model)(picture(), [[0, 0, 2, 2]])
    assert model.options[1] == Options()
    RegionPredictor(model)(picture(), [[0, 0, 2, 2]], options=Options(num_beams=2, control="red"), num_beams=3)
    assert model.options[2] == Options(num_beams=3, control="red"), "what is named goes over the object"


def test_an_option_that_the_model_does_not_have_names_those_it_has(model):
    with pytest.raises(
        ValueError, match="^unknown option 'view_stategy'. Did you mean 'view_strategy'. Options of this"
    ):
        RegionPredictor(model)(picture(), [[0, 0, 2, 2]], view_stategy="phash")


def test_regions_that_influence_each_other_are_never_parted(model):
    model.joint = True
    boxes = [[0, 0, i + 1, 2] for i in range(5)]
    results = RegionPredictor(model, max_regions=3)([picture()] * 3, [boxes[:2], boxes, boxes[:1]])
    assert model.chunks == [2, 5, 1] and [len(some) for some in results] == [2, 5, 1]


def test_control_words_follow_their_regions_through_the_chunks(model):
    boxes = [[0, 0, i + 1, 2] for i in range(3)]
    predictor = RegionPredictor(model, max_regions=2)
    predictor(picture(), boxes, control=[["red"], None, "car,blue"])
    assert model.controls == [[["red"], None], [["car,blue"]]]
    model.controls.clear()
    predictor([picture(), picture()], [boxes[:1], boxes], control=["red", "car"])  # words for all regions
    assert model.controls == [[["red", "car"]] * 2] * 2
    model.controls.clear()
    predictor([picture()] * 3, [boxes[:1], boxes[:2], boxes[:1]], control=[None, [["red"], []], ["car", "blue"]])
    assert model.controls == [[None, ["red"]], [[], ["car", "blue"]]]
    with pytest.raises(ValueError, match="^control: 1 entries for 2 images"):
        predictor([picture()] * 2, [boxes, boxes], control=[[["red"]]])


class Counted(list):
    """A list that counts the entries it has given away."""

    given = 0

    def __getitem__(self, position):
        self.given += 1
        return super().__getitem__(position)

    def __iter__(self):
        for entry in super().__iter__():
            self.given += 1
            yield entry


def test_words_of_each_region_are_looked_at_as_often_for_many_regions_as_for_few(model):
    each = []
    for number in (640, 6400):
        control = Counted([["red"]] * number)
        RegionPredictor(model)(picture(), [[0, 0, 2, 2]] * number, control=control)
        each.append(control.given / number)
    assert each[1] <= each[0] <= 10


def test_given_ids_name_the_results(model):
    predictor = RegionPredictor(model)
    assert predictor(picture(), [[0, 0, 2, 2]], ids=["cup"])[0].id == "cup"
    assert predictor([picture()] * 2, [[[0, 0, 2, 2]]] * 2, ids=[["a"], ["b"]])[1][0].id == "b"


def mask_of(height, width):
    mask = np.zeros((height, width), dtype=bool)
    mask[:1] = True
    return mask


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "image 0: no regions; give boxes or masks"),
        ({"boxes": [[0, 0, 5, 5], [9, 0, 5, 5]]}, "image 0: box 1: inverted"),
        ({"boxes": [[0, 0, 0, 5]]}, "image 0: box 0: empty"),
        ({"boxes": [[0, 0, float("nan"), 5]]}, "image 0: box 0: non-finite"),
        ({"boxes": [[0, 0, 5, 5], [300, 0, 400, 5]]}, "image 0: box 1: wholly outside"),
        ({"boxes": [0, 0, 5, 5]}, "image 0: .*put one box in a list"),
        ({"boxes": [[0, 0, 5]]}, "image 0: .*four"),
        ({"boxes": [[0, 0, 5, 5]], "box_format": "yxyx"}, "image 0: unknown box format 'yxyx'"),
        ({"masks": [mask_of(100, 200), mask_of(9, 9)]}, r"image 0: mask 1: mask of size \(9, 9\)"),
        ({"masks": [np.zeros((100, 200), bool)]}, "image 0: mask 0: empty mask"),
        ({"masks": mask_of(100, 200)}, r"image 0: masks: one ndarray; give a list of masks"),
        ({"masks": "mask.png"}, "image 0: masks: one str; give a list"),
        ({"masks": {"size": [1, 1], "counts": "1"}}, "image 0: masks: one dict; give a list"),
        ({"masks": ["nowhere.png"]}, "image 0: mask 0: .*nowhere.png"),
        ({"boxes": [[0, 0, 5, 5]] * 2, "masks": [mask_of(100, 200)]}, "image 0: 2 boxes but 1 masks"),
        ({"boxes": [[0, 0, 5, 5]], "ids": ["a", "b"]}, "image 0: ids: .* for 1 regions"),
        ({"boxes": [[], []]}, "image 0: boxes of shape"),
        ({"boxes": [[True, True, True, True]]}, "image 0: boxes .*booleans"),
        ({"boxes": [["1", "2", "3", "4"]]}, "image 0: boxes .*text"),
        ({"boxes": [[0.141, 0.399, 0.346, 0.601]]}, r"image 0: box 0: .*0..1 numbers: box_format='xyxy-unit'\?"),
        ({"masks": [{"size": [100, 200], "counts": [10**5000]}]}, "image 0: mask 0: mask counts"),
        ({"boxes": [[0, 0, 5, 5]], "categories": "cup"}, "categories: 'cup' is one text"),
        ({"boxes": [[0, 0, 5, 5]], "attributes": "red"}, "attributes: 'red' is one text"),
        ({"boxes": [[0, 0, 5, 5]], "control": 5}, r"control 5: words are a text"),
        ({"boxes": [[0, 0, 5, 5]], "control": [["red"], ["car"]]}, "image 0: control: 2 entries for 1 regions"),
        ({"boxes": [[0, 0, 5, 5]], "control": [["red", 5]]}, r"image 0: control \['red', 5\]: words are"),
    ],
)
def test_bad_input_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        RegionPredictor(model)(picture(), **arguments)
    assert model.chunks == []


def test_an_error_in_one_of_several_images_names_it(model, tmp_path):
    predictor = RegionPredictor(model)
    with pytest.raises(ValueError, match="^image 1: box 0: empty"):
        predictor([picture(), picture()], [[[0, 0, 2, 2]], [[5, 5, 5, 9]]])
    Image.fromarray(picture()).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"^image 1 \(.*b\.png\): box 0: empty"):
        predictor([picture(), tmp_path / "b.png"], [[[0, 0, 2, 2]], [[5, 5, 5, 9]]])
    with pytest.raises(ValueError, match=r"^image 1: image .*missing\.png: no such file"):
        predictor([picture(), tmp_path / "missing.png"], [[[0, 0, 2, 2]]] * 2)
    with pytest.raises(ValueError, match="^boxes: 1 entries for 2 images"):
        predictor([picture(), picture()], [[[0, 0, 2, 2]]])
    with pytest.raises(ValueError, match="^masks: a str for a list of images"):
        predictor([picture()], masks="mask.png")


def test_a_chunk_holds_at_least_one_region(model):
    with pytest.raises(ValueError, match="max_regions: 0"):
        RegionPredictor(model, max_regions=0)
