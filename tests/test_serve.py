"""The server: what it answers is what the predictor says, and what is wrong with a request is said in a line."""

import base64
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from dynrefer.masks import mask_to_rle
from dynrefer.predictor import RegionPredictor
from dynrefer.serve import logs
from tests import tiny_dynrefer
from tests.serving import StubModel, ask, blank, encoded, error_of, gate_of, post, regions_body, uri
from tests.tiny_dynrefer import BOXES, picture

BOX = [4, 4, 40, 30]


@pytest.fixture(scope="module")
def tiny_gate():
    return gate_of(tiny_dynrefer.model()[0])


@pytest.fixture(scope="module")
def gate():
    return gate_of()


def results(answer):
    assert answer.status_code == 200, answer.text
    return [image["regions"] for image in answer.json()["images"]]


def same(found, expected):
    """Results of a server and of a predictor; the last digits depend on the batch."""
    for one, other in zip(found, [result.to_dict() for result in expected], strict=True):
        assert {name: one[name] for name in ("id", "caption", "box")} == {
            name: other[name] for name in ("id", "caption", "box")
        }
        assert one.keys() == other.keys() and one["score"] == pytest.approx(other["score"], rel=1e-3)
        assert [each["name"] for each in one["categories"]] == [each["name"] for each in other["categories"]]


def test_answers_are_the_predictors_in_order(tiny_gate):
    pictures = [picture(0), picture(1)]
    body = {
        "images": [
            {"image": uri(pictures[0]), "regions": [list(box) for box in BOXES]},
            {"image": uri(pictures[1]), "regions": [list(box) for box in BOXES[:2]], "id": "second"},
        ],
        "options": {"num_beams": 2, "control": ["red", ["blue", "lamp"]]},
    }
    answer = post(tiny_gate, body)
    model = tiny_gate.service.model
    expected = RegionPredictor(model)(pictures, [BOXES, BOXES[:2]], num_beams=2, control=["red", ["blue", "lamp"]])
    for found, wanted in zip(results(answer), expected, strict=True):
        same(found, wanted)
    content = answer.json()
    assert [(image["id"], image["width"], image["height"]) for image in content["images"]] == [
        ("0", 100, 80),
        ("second", 100, 80),
    ]
    assert content["usage"]["regions"] == 6 and content["usage"]["completion_tokens"] > 6
    assert set(content["timings"]) == {"reading", "waiting", "model", "total"}


def test_a_joint_family_with_masks_is_served_alike():
    from tests.toy_family import ToyConfig, ToyModel, ToyProcessor

    config = ToyConfig(categories=["cup", "lamp", "dog"])
    model = ToyModel(config).eval()
    model.processor = ToyProcessor(config)
    gate = gate_of(model, max_batch=2)  # an example with more regions goes alone
    answer = post(gate, regions_body(*[list(box) for box in BOXES], image=uri(picture()), options={"top_k": 2}))
    expected = RegionPredictor(model)(picture(), BOXES, top_k=2)
    (found,) = results(answer)
    assert [one["mask"] for one in found] == [one.mask for one in expected]
    same(found, expected)
    assert error_of(post(gate, regions_body(BOX, options={"categories": ["cat"]})), 400)["message"].startswith(
        "categories: 'cat' is none of this model's."
    )


@pytest.mark.parametrize(
    "box_format, box",
    [("xywh", [4, 4, 36, 26]), ("xyxy-1000", [40, 50, 400, 375]), ("cxcywh-unit", [0.22, 0.2125, 0.36, 0.325])],
)
def test_boxes_come_back_in_pixels(gate, box_format, box):
    ((found,),) = results(post(gate, regions_body(box, box_format=box_format)))
    assert found["box"] == pytest.approx([4, 4, 40, 30])


def test_every_form_of_a_region_is_read(gate):
    mask = np.zeros((80, 100), bool)
    mask[4:30, 4:40] = True
    forms = [
        BOX,
        {"box": BOX, "id": "mine"},
        {"bbox_2d": BOX},
        {"mask": mask_to_rle(mask)},
        {"mask": {"size": [80, 100], "counts": [324, *[26, 54] * 35, 26, 8000 - 324 - 35 * 80 - 26]}},
        {"mask": [[4, 4, 40, 4, 40, 30, 4, 30]]},
        {"mask": [4, 4, 40, 4, 40, 30, 4, 30]},
        {"mask": uri(mask.astype(np.uint8) * 255)},
        {"mask": base64.b64encode(encoded(mask.astype(np.uint8))).decode()},
        {"box": BOX, "mask": mask_to_rle(mask)},
    ]
    (found,) = results(post(gate, regions_body(*forms)))
    assert [one["box"] for one in found] == [[4, 4, 40, 30]] * len(forms)
    assert [one["id"] for one in found] == ["0:0", "mine", *[f"0:{n}" for n in range(2, len(forms))]]


def test_a_mask_in_the_alpha_channel_is_the_region_and_the_colours_below_stay(gate):
    pixels = np.full((80, 100, 4), 200, np.uint8)
    pixels[..., 3] = 0
    pixels[10:20, 30:50, 3] = 255
    body = {"images": [{"image": uri(pixels), "regions": "alpha"}]}
    ((found,),) = results(post(gate, body))
    assert found["box"] == [30, 10, 50, 20]
    from dynrefer.serve.inputs import pixels_of

    seen, mask = pixels_of(encoded(pixels), "image", True)
    assert (seen == 200).all() and mask.sum() == 200
    seen, mask = pixels_of(encoded(pixels), "image", False)
    assert seen[0, 0].tolist() == [255, 255, 255] and mask is None
    error = error_of(post(gate, {"images": [{"image": uri(blank()), "regions": "alpha"}]}), 400)
    assert "alpha channel is missing or the same everywhere" in error["message"]


def test_an_alpha_mask_turns_with_its_picture(gate):
    pixels = np.full((80, 100, 4), 255, np.uint8)
    pixels[10:20, 30:50, 3] = 0
    image = Image.fromarray(255 - pixels[..., 3])
    image = Image.merge("LA", (image, image))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter to the right
    body = {"images": [{"image": uri(image, exif=exif), "regions": "alpha"}]}
    answer = post(gate, body)
    ((found,),) = results(answer)
    assert found["box"] == [60, 30, 70, 50] and answer.json()["images"][0]["width"] == 80


def test_no_regions_are_no_results(gate):
    assert results(post(gate, regions_body())) == [[]]


WRONG = {
    "no images": ({"images": []}, "images: list should have at least 1 item"),
    "no key": ({}, "images is missing"),
    "a wrong key": ({"imagess": []}, "unknown key 'imagess' (imagess). Did you mean 'images'?"),
    "a key like a kind's": ({"images": [], "None": None}, "unknown key 'None' (None)."),
    "a key like a type": (regions_body({"str": 1}), "unknown key 'str' (images[0].regions[0].str)"),
    "a wrong key of a region": (regions_body({"boxs": BOX}), "unknown key 'boxs'"),
    "three numbers": (regions_body(BOX[:3]), "images[0].regions[0].box: list should have at least 4 items"),
    "five numbers": (regions_body([*BOX, 1]), "images[0].regions[0].box: list should have at most 4 items"),
    "a text as number": (regions_body([1, 2, "3", 4]), "images[0].regions[0].box[2]: input should be a valid number"),
    "a boolean": (regions_body([True, 2, 3, 4]), "images[0].regions[0].box[0]: input should be a valid number"),
    "no box": (regions_body({"id": "a"}), "images[0].regions[0]: neither box nor mask"),
    "two boxes": (regions_body({"box": BOX, "bbox_2d": BOX}), "images[0].regions[0]: box and bbox_2d"),
    "an inverted box": (regions_body(BOX, [9, 9, 4, 4]), "images[0]: box 1: inverted box [9.0, 9.0, 4.0, 4.0]"),
    "an empty box": (regions_body([9, 9, 9, 12]), "images[0]: box 0: empty box"),
    "outside": (regions_body([200, 200, 300, 300]), "the image is 100 wide and 80 high"),
    "fractions": (regions_body([0.1, 0.1, 0.5, 0.5]), "box_format='xyxy-unit'?"),
    "pixels as fractions": (regions_body(BOX, box_format="xyxy-unit"), "far outside 0..1"),
    "a format": (regions_body(BOX, box_format="yxyx"), "box_format: input should be 'xyxy'"),
    "regions": ({"images": [{"image": uri(blank()), "regions": "all"}]}, "images[0].regions: input should be"),
    "an empty mask": (regions_body({"mask": uri(blank()[..., 0])}), "images[0].regions[0]: empty mask"),
    "a mask's size": (regions_body({"mask": uri(blank(20, 20)[..., 0] + 1)}), "mask of size (20, 20)"),
    "run lengths": (regions_body({"mask": {"size": [80, 100], "counts": "~~"}}), "not COCO's compressed run lengths"),
    "a mask of JPEG": (regions_body({"mask": uri(blank(), "JPEG")}), "no whole PNG, WEBP, GIF, BMP or TIFF file"),
    "a path as a mask": (regions_body({"mask": "/etc/hostname"}), "neither a data URI nor base64"),
    "a path": (regions_body(BOX, image="/etc/hostname"), "images[0]: neither a data URI nor base64"),
    "a file address": (regions_body(BOX, image="file:///etc/hostname"), "neither a data URI nor base64"),
    "an address": (regions_body(BOX, image="http://127.0.0.1/a.png"), "this server fetches no addresses"),
    "base64 with holes": (regions_body(BOX, image=uri(blank())[:-7] + "*" + uri(blank())[-6:]), "nor base64"),
    "half of base64": (regions_body(BOX, image=uri(blank())[:-1]), "nor base64 (Incorrect padding)"),
    "another type": (regions_body(BOX, image="data:text/plain;base64,AAAA"), "a data URI of type 'text/plain'"),
    "no base64": (regions_body(BOX, image="data:image/svg+xml,<svg/>"), "a data URI without ;base64"),
    "no bytes": (regions_body(BOX, image="data:image/png;base64,"), "no bytes"),
    "no picture": (regions_body(BOX, image=uri(b"hello")), "5 bytes that are no whole JPEG, PNG, WEBP, GIF, BMP or"),
    "a cut-off picture": (regions_body(BOX, image=uri(encoded(picture(), "PNG")[:-200])), "truncated or damaged"),
    "a surrogate": (regions_body({"box": BOX, "id": "\ud800"}), "the body is no JSON"),
    "an option": (regions_body(BOX, options={"num_beamz": 2}), "unknown option 'num_beamz'. Did you mean 'num_beams'?"),
    "an option's type": (regions_body(BOX, options={"num_beams": "two"}), "num_beams: expected int or None"),
    "a closed option": (regions_body(BOX, options={"machine": "cuda:9"}), "unknown option 'machine'"),
    "a costly option": (regions_body(BOX, options={"max_new_tokens": 10**6}), "this server allows at most 512"),
    "many beams": (regions_body(BOX, options={"num_beams": 1000}), "this server allows at most 8"),
    "many words": (regions_body(BOX, options={"words": ["a"] * 3000}), "letters; at most 2000"),
    "what the model refuses": (regions_body(BOX, options={"words": ["bad"]}), "words: 'bad' is none of this model's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line(gate, name):
    body, message = WRONG[name]
    answer = ask(
        gate, "POST", "/v1/regions", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    error = error_of(answer, 400)
    assert message in error["message"] and error["type"] == "invalid_request_error"


def test_a_message_does_not_repeat_all_that_was_sent(tiny_gate):
    error = error_of(post(tiny_gate, regions_body(BOX, options={"categories": "a" * 50_000})), 400)
    assert error["message"].startswith("options: categories: 'aaa") and len(error["message"]) == 1000


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the body is empty"),
        (b"{", "the body is no JSON"),
        (b"[]", "the body is a JSON list"),
        (b'{"images": NaN}', "the body is no JSON"),
        (b"\xff\xfe{}", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b'{"images": ' + b"1" * 5000 + b"}", ""),
    ],
)
def test_bad_json_is_refused(gate, content, message):
    answer = ask(gate, "POST", "/v1/regions", content=content, headers={"content-type": "application/json"})
    assert message in error_of(answer, 400)["message"]


def bomb(width, height):
    """A PNG of a few bytes whose header promises so many pixels."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_too_much_is_refused_with_413(gate):
    for side in (10_000, 20_000, 60_000):  # 100 megapixels and more
        error = error_of(post(gate, regions_body(BOX, image=uri(bomb(side, side)))), 413)
        assert error["param"] == "images[0]" and "50,000,000" in error["message"]
    error = error_of(post(gate, regions_body({"mask": uri(bomb(9000, 9000))})), 413)
    assert "9000 x 9000 pixels" in error["message"]
    assert (
        "5000 regions; this server takes up to 1000"
        in error_of(post(gate, regions_body(*[BOX] * 5000)), 413)["message"]
    )
    error = error_of(post(gate, regions_body(*[BOX] * 20_000)), 413)
    assert error["message"].startswith("images[0].regions: 20000 regions, at most 10000")
    many = {"images": regions_body(BOX)["images"] * 65}
    assert "65 images" in error_of(post(gate, many), 413)["message"]
    zigzag = [0.0, 0.0, 900.0, 700.0] * 2500
    assert "outline" in error_of(post(gate, regions_body({"mask": [zigzag]})), 413)["message"]
    assert "more than 500,000 values" in error_of(post(gate, regions_body(*[BOX] * 200_000)), 413)["message"]
    small = gate_of(max_body_mb=0.01)
    assert "10,485 bytes" in error_of(post(small, regions_body(BOX, image="A" * 20_000)), 413)["message"]
    assert small.service.memory.used == 0

    async def pieces():
        for _ in range(30):
            yield b" " * 1000

    answer = ask(small, "POST", "/v1/regions", content=pieces(), headers={"content-type": "application/json"})
    assert error_of(answer, 413)["code"] == "too_large"


def test_pictures_beyond_the_memory_wait_outside():
    gate = gate_of(max_memory_mb=0.02)  # 20,971 bytes; the picture is 32,000
    assert error_of(post(gate, regions_body(BOX)), 413)["code"] == "too_large"
    gate = gate_of(max_memory_mb=0.04)
    gate.service.memory.take(20_000)
    answer = post(gate, regions_body(BOX))
    assert error_of(answer, 429)["code"] == "memory_full" and answer.headers["retry-after"] == "1"
    gate.service.memory.give(20_000)
    assert post(gate, regions_body(BOX)).status_code == 200 and gate.service.memory.used == 0


def test_only_json_is_taken(gate):
    for kind in ("text/plain", "multipart/form-data; boundary=x", ""):
        answer = ask(gate, "POST", "/v1/regions", content=b"{}", headers={"content-type": kind})
        assert error_of(answer, 415)["message"].endswith("send application/json")
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert error_of(ask(gate, "POST", "/v1/regions", content=b"{}", headers=packed), 415)


def test_other_ways_and_methods_are_refused(gate):
    assert error_of(ask(gate, "GET", "/v1/nothing"), 404)["code"] == "not_found"
    answer = ask(gate, "GET", "/v1/regions")
    assert error_of(answer, 405)["code"] == "method_not_allowed" and answer.headers["allow"] == "POST"
    assert error_of(post(gate, regions_body(BOX, model="other")), 404)["code"] == "model_not_found"


def test_a_key_is_asked_for_and_never_shown(capfd):
    key = "s3cret-key"
    gate = gate_of(api_key=key)
    logs.set_up()
    assert key not in repr(gate.settings)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": key}, {"authorization": f"Basic {key}"}):
        answer = post(gate, regions_body(BOX), headers=headers)
        assert error_of(answer, 401)["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(ask(gate, "GET", "/v1/models"), 401)
    assert error_of(ask(gate, "GET", "/v1/nothing"), 401), "without a key nobody learns what there is"
    assert post(gate, regions_body(BOX), headers={"authorization": f"bearer {key}"}).status_code == 200
    assert ask(gate, "GET", "/health").status_code == ask(gate, "GET", "/ready").status_code == 200
    assert key not in capfd.readouterr().err


def test_other_origins_may_not_call_unless_they_are_named():
    page = {"origin": "https://page.example", "access-control-request-method": "POST"}
    gate = gate_of()
    assert error_of(ask(gate, "OPTIONS", "/v1/regions", headers=page), 405)
    assert "access-control-allow-origin" not in post(gate, regions_body(BOX), headers=page).headers
    gate = gate_of(cors_origins=("https://page.example",), api_key="key")
    asked = ask(gate, "OPTIONS", "/v1/regions", headers={**page, "access-control-request-headers": "authorization"})
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://page.example"
    refused = post(gate, regions_body(BOX), headers=page)
    assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers, "so that the page reads why"
    other = ask(gate, "OPTIONS", "/v1/regions", headers={**page, "origin": "https://other.example"})
    assert other.status_code == 400


def test_models_and_their_options_are_listed(tiny_gate):
    (model,) = ask(tiny_gate, "GET", "/v1/models").json()["data"]
    assert model["id"] == "stub" and model["object"] == "model" and "caption" in model["answers"]
    assert model["options"]["num_beams"] == "beams of the search; 1: greedy"
    assert not {"crop_on", "generation"} & model["options"].keys()
    assert ask(tiny_gate, "GET", "/v1/models/stub").json()["id"] == "stub"
    assert error_of(ask(tiny_gate, "GET", "/v1/models/an/other"), 404)["code"] == "model_not_found"


def test_the_operators_options_stand_below_the_clients():
    gate = gate_of(options={"words": ["shop"], "machine": "this"})
    assert results(post(gate, regions_body(BOX)))[0][0]["caption"] == "0:0 at 4 shop"
    assert results(post(gate, regions_body(BOX, options={"words": ["home"]})))[0][0]["caption"] == "0:0 at 4 home"
    assert all(options.machine == "this" for _, options in gate.service.model.batches)
    with pytest.raises(ValueError, match="none of this model's"):
        gate_of(options={"words": ["bad"]})


def test_health_and_readiness_tell_two_things():
    model = StubModel()
    gate = gate_of(model)
    gate.draining = True
    assert ask(gate, "GET", "/health").status_code == 200
    assert error_of(ask(gate, "GET", "/ready"), 503)["code"] == "ending"
    answer = post(gate, regions_body(BOX))
    assert error_of(answer, 503)["code"] == "ending" and answer.headers["connection"] == "close"
    gate.draining = False
    model.fail = {"0:0": RuntimeError("CUDA error: an illegal memory access")}
    for _ in range(3):
        error = error_of(post(gate, regions_body(BOX)), 500)
        assert "CUDA" not in error["message"] and error["code"] == "model_failed"
    assert error_of(ask(gate, "GET", "/health"), 503)["code"] == "unhealthy"
    model.fail = {}
    assert post(gate, regions_body(BOX)).status_code == 200 and ask(gate, "GET", "/health").status_code == 200


def test_metrics_count_what_happened():
    gate = gate_of()
    post(gate, regions_body(BOX, BOX))
    post(gate, {})
    ask(gate, "GET", "/a/path/of/somebody")
    page = ask(gate, "GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    for line in (
        'dynrefer_requests_total{path="/v1/regions",status="200"} 1.0',
        'dynrefer_requests_total{path="/v1/regions",status="400"} 1.0',
        'dynrefer_requests_total{path="other",status="404"} 1.0',
        'dynrefer_refused_total{code="missing_value"} 1.0',
        "dynrefer_regions_total 2.0",
        'dynrefer_batch_regions_bucket{le="2.0"} 1.0',
        "dynrefer_queue_regions 0.0",
        "dynrefer_held_bytes 0.0",
        "dynrefer_requests_in_flight 0.0",
    ):
        assert line in page.text.splitlines()


def test_the_log_is_a_json_object_a_request(capfd):
    logs.set_up()
    gate = gate_of()
    answer = post(gate, regions_body(BOX), headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert post(gate, {}, headers={"x-request-id": "a b\tc"}).headers["x-request-id"] != "a b\tc"
    ask(gate, "GET", "/health")
    gate.service.model.fail = {"0:0": RuntimeError("broken")}
    post(gate, regions_body(BOX))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["request", "request", "the model failed", "request"]
    assert lines[0].items() >= {"id": "abc-1", "path": "/v1/regions", "status": 200, "images": 1, "regions": 1}.items()
    assert lines[1]["code"] == "missing_value" and "RuntimeError: broken" in lines[2]["exception"]
    logging.getLogger(logs.NAME).handlers.clear()


def test_the_openapi_page_describes_requests_and_errors(gate):
    page = ask(gate, "GET", "/openapi.json").json()
    assert set(page["paths"]) >= {"/v1/regions", "/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics"}
    schemas = page["components"]["schemas"]
    assert {"RegionsRequest", "ChatRequest", "RegionIn", "RegionsAnswer", "ErrorBody"} <= schemas.keys()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(page)))
    assert named <= schemas.keys()
    assert "422" not in json.dumps(page) and ask(gate, "GET", "/docs").status_code == 200
    assert "security" not in page["paths"]["/v1/regions"]["post"]
    page = ask(gate_of(api_key="key"), "GET", "/openapi.json").json()
    assert page["paths"]["/v1/models"]["get"]["security"] and "security" not in page["paths"]["/health"]["get"]
