"""OpenAI's form: every way to name a region, the settings that are honoured or refused, and the official client."""

import asyncio
import json

import httpx2
import numpy as np
import openai
import pytest

from dynrefer.serve.chat import NO_INSTRUCTION, ChatRequest, read_chat
from dynrefer.serve.schema import parse
from tests import tiny_dynrefer
from tests.serving import StubModel, blank, chat_body, error_of, events, gate_of, post, uri
from tests.tiny_dynrefer import BOXES, picture

PATH = "/v1/chat/completions"
BOX = [4, 4, 40, 30]


@pytest.fixture(scope="module")
def gate():
    return gate_of()


@pytest.fixture(scope="module")
def tiny_gate():
    return gate_of(tiny_dynrefer.model()[0])


def ask(gate, **changes):
    return post(gate, chat_body(**changes), PATH)


def regions(answer):
    assert answer.status_code == 200, answer.text
    return [(one["image"], one["id"], one["box"]) for one in answer.json()["regions"]]


def test_an_answer_is_a_chat_completion_with_structured_results(gate):
    answer = ask(gate).json()
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-") and answer["model"] == "stub"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "0:0 at 4", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert answer["regions"][0]["box"] == BOX and answer["notes"] == []
    assert ask(gate, text='What is this? {"bbox_2d": [4, 4, 40, 30]}').json()["notes"] == [NO_INSTRUCTION]


def test_a_region_is_named_in_the_text_the_field_or_the_alpha_channel(gate):
    text = '```json\n[{"bbox_2d": [4, 4, 40, 30], "label": "cup"}, {"label": "x", "bbox_2d":[50.5,10,90,60]}]\n```'
    assert regions(ask(gate, text=text)) == [(0, "0:0", BOX), (0, "0:1", [50.5, 10, 90, 60])]
    assert regions(ask(gate, text="", regions=[BOX])) == [(0, "0:0", BOX)]
    assert regions(ask(gate, text=text, regions=[{"box": BOX, "id": "mine"}])) == [(0, "mine", BOX)], "the field first"
    pixels = np.full((80, 100, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[4:30, 4:40, 3] = 255
    assert regions(ask(gate, text="", image=uri(pixels))) == [(0, "0:0", BOX)]
    assert regions(ask(gate, text="", image=uri(pixels), regions="alpha")) == [(0, "0:0", BOX)]
    assert "no regions" in error_of(ask(gate, text="What is this?"), 400)["message"]


def test_the_box_format_is_stated_or_pixels(gate):
    ((_, _, box),) = regions(ask(gate, text='{"bbox_2d": [40, 50, 400, 375]}', box_format="xyxy-1000"))
    assert box == pytest.approx(BOX)
    ((_, _, box),) = regions(ask(gate, text='{"bbox_2d": [4, 4, 36, 26], "box_format": "xywh"}'))
    assert box == pytest.approx(BOX)
    assert "expected one of" in error_of(ask(gate, text='{"bbox_2d": [1,2,3,4], "box_format": "yx"}'), 400)["message"]


def test_several_pictures_have_their_own_regions(gate):
    def part(height):
        return {"type": "image_url", "image_url": {"url": uri(blank(height))}}

    texts = [{"type": "text", "text": json.dumps({"bbox_2d": [n, 4, 40, 30]})} for n in range(4)]
    body = {"model": "stub", "messages": [{"role": "user", "content": [part(80), texts[0], part(90), *texts[1:3]]}]}
    assert regions(post(gate, body, PATH)) == [
        (0, "0:0", [0, 4, 40, 30]),
        (1, "1:0", [1, 4, 40, 30]),
        (1, "1:1", [2, 4, 40, 30]),
    ]
    assert (
        post(gate, body, PATH).json()["choices"][0]["message"]["content"]
        == "0:0: 0:0 at 0\n1:0: 1:0 at 1\n1:1: 1:1 at 2"
    )
    body["messages"][0]["content"] = [part(80), part(90)]
    assert [one[0] for one in regions(post(gate, {**body, "regions": [[BOX], [BOX, BOX]]}, PATH))] == [0, 1, 1]
    assert "1 lists for 2 pictures" in error_of(post(gate, {**body, "regions": [BOX]}, PATH), 400)["message"]


def test_a_conversation_goes_on_about_the_newest_picture_and_boxes():
    first = chat_body()["messages"][0]
    turns = [
        {"role": "system", "content": "You describe."},
        first,
        {"role": "assistant", "content": "a cup", "refusal": None, "annotations": []},
        {"role": "user", "content": 'And here? {"bbox_2d": [8, 8, 50, 50]}'},
    ]
    asked, box_format, _ = read_chat(parse(ChatRequest, json.dumps({"model": "m", "messages": turns}).encode()))
    assert [region.bbox_2d for region in asked[0].regions] == [[8, 8, 50, 50]] and box_format == "xyxy"
    turns[-1] = chat_body('{"bbox_2d": [1, 2, 30, 40]}')["messages"][0]
    asked, _, _ = read_chat(parse(ChatRequest, json.dumps({"model": "m", "messages": turns}).encode()))
    assert len(asked) == 1 and asked[0].where == "messages[3].content[0]"


def test_a_stream_tells_region_after_region_and_then_the_end(gate):
    changes = {"text": "", "regions": [BOX, BOX], "stream": True}
    answer = ask(gate, **changes)
    assert answer.headers["content-type"].startswith("text/event-stream")
    pieces, done = events(answer.text)
    assert done and [each["choices"][0]["delta"].get("content") for each in pieces] == [
        "",
        "0:0: 0:0 at 4",
        "\n0:1: 0:1 at 4",
        None,
    ]
    assert {each["object"] for each in pieces} == {"chat.completion.chunk"} and len(
        {each["id"] for each in pieces}
    ) == 1
    assert [each["choices"][0]["finish_reason"] for each in pieces] == [None, None, None, "stop"]
    assert [each.get("regions", [{}])[0].get("id") for each in pieces] == [None, "0:0", "0:1", None]
    pieces, _ = events(ask(gate, **changes, stream_options={"include_usage": True}).text)
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["completion_tokens"] == 6
    assert all(each["usage"] is None for each in pieces[:-1])


def test_what_is_wrong_with_a_streamed_request_is_told_by_the_status(gate):
    assert error_of(ask(gate, stream=True, options={"words": ["bad"]}), 400)
    assert error_of(ask(gate, stream=True, text='{"bbox_2d": [9, 9, 4, 4]}'), 400)


def test_what_goes_wrong_later_is_an_event():
    model = StubModel()
    gate = gate_of(model, max_batch=1)
    model.fail = {"0:1": RuntimeError("secret")}
    pieces, done = events(ask(gate, text="", regions=[BOX, BOX, BOX], stream=True).text)
    assert pieces[1]["choices"][0]["delta"]["content"] == "0:0: 0:0 at 4" and done
    assert pieces[-1]["error"]["code"] == "model_failed" and "secret" not in json.dumps(pieces)
    assert gate.service.memory.used == gate.working == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_text_can_be_the_structured_results(gate, stream):
    changes = {"text": "", "regions": [BOX, BOX], "response_format": {"type": "json_object"}}
    if stream:
        pieces, _ = events(ask(gate, **changes, stream=True).text)
        text = "".join(each["choices"][0]["delta"].get("content", "") for each in pieces)
    else:
        text = ask(gate, **changes).json()["choices"][0]["message"]["content"]
    assert [one["box"] for one in json.loads(text)["regions"]] == [BOX, BOX]
    assert json.loads(ask(gate, **{**changes, "regions": []}).json()["choices"][0]["message"]["content"]) == {
        "regions": []
    }


def options_of(gate, **changes):
    gate.service.model.batches.clear()
    assert ask(gate, **changes).status_code == 200
    ((_, options),) = gate.service.model.batches
    return {name: value for name, value in vars(options).items() if value is not None}


def test_sampling_settings_become_the_models_options(gate):
    assert options_of(gate) == {}
    assert options_of(gate, temperature=0) == {"do_sample": False}
    assert options_of(gate, temperature=0.5, top_p=0.9) == {
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "num_beams": 1,
    }
    assert options_of(gate, top_p=0.5) == {"do_sample": True, "temperature": 1.0, "top_p": 0.5, "num_beams": 1}
    assert options_of(gate, top_p=1, n=1, presence_penalty=0, user="me") == {}
    assert options_of(gate, max_tokens=7) == options_of(gate, max_completion_tokens=7) == {"max_new_tokens": 7}
    assert options_of(gate, options={"words": ["red"]}) == {"words": ["red"]}
    assert ask(gate, max_tokens=3).json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n": 2}, "n 2: this server does not offer it"),
        ({"stop": ["."]}, "stop ['.']: this server does not offer it"),
        ({"logprobs": True}, "logprobs True: this server does not offer it"),
        ({"presence_penalty": 1.0}, "presence_penalty 1.0"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temperature": 3}, "temperature: input should be less than or equal to 2; got 3"),
        ({"temperature": True}, "temperature: input should be a valid number"),
        ({"top_p": 0}, "top_p: input should be greater than 0"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": 9, "max_completion_tokens": 8}, "max_tokens and max_completion_tokens differ"),
        ({"max_tokens": 10**6}, "max_new_tokens 1000000; this server allows at most 512"),
        ({"max_tokens": 9, "options": {"max_new_tokens": 8}}, "max_new_tokens is given by a field of the request too"),
        ({"temprature": 1}, "unknown key 'temprature' (temprature). Did you mean 'temperature'?"),
        ({"response_format": {"type": "json_schema"}}, "response_format.type: input should be 'text' or 'json_object'"),
        ({"messages": []}, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages: no picture of a user"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role: input should be 'system'"),
        ({"text": '{"bbox_2d": [1, 2, 3]}'}, "bbox_2d [1, 2, 3]; expected four numbers"),
        ({"text": '{"bbox_2d": [1, 2, 3, "a"]}'}, "expected four numbers"),
        ({"image": "/etc/hostname"}, "messages[0].content[0]: neither a data URI nor base64"),
        ({"image": "http://169.254.169.254/latest"}, "this server fetches no addresses"),
    ],
)
def test_what_cannot_be_honoured_is_refused(gate, changes, message):
    assert message in error_of(ask(gate, **changes), 400)["message"]


def test_long_texts_are_refused_with_413(gate):
    assert "1000001 letters, at most 1000000" in error_of(ask(gate, text="a" * 1_000_001), 413)["message"]
    body = {"model": "stub", "messages": [{"role": "user", "content": "a" * 1_000_001}]}
    assert error_of(post(gate, body, PATH), 413)["param"] == "messages[0].content"


def test_other_parts_and_models_are_refused(gate):
    body = chat_body()
    body["messages"][0]["content"].append({"type": "input_audio", "input_audio": {}})
    assert (
        "does not match any of the expected tags: 'text', 'image_url'"
        in error_of(post(gate, body, PATH), 400)["message"]
    )
    assert error_of(ask(gate, model="gpt-4o"), 404)["param"] == "model"


def test_a_family_without_texts_refuses_what_it_cannot_honour():
    from tests.toy_family import ToyConfig, ToyModel, ToyProcessor

    model = ToyModel(ToyConfig(categories=["cup", "lamp"])).eval()
    model.processor = ToyProcessor(model.config)
    gate = gate_of(model)
    answer = ask(gate, temperature=0, top_p=1, seed=3).json()
    assert answer["choices"][0]["message"]["content"] in ("cup", "lamp") and answer["usage"]["completion_tokens"] == 0
    for name, value in (("temperature", 0.7), ("top_p", 0.5), ("max_tokens", 20)):
        error = error_of(ask(gate, **{name: value}), 400)
        assert error["param"] == name and error["code"] == "unsupported_value" and "this model" in error["message"]


def test_many_brackets_take_no_time():
    text = '"bbox_2d": [' * 80_000
    with pytest.raises(Exception, match="no regions|no picture"):
        request = parse(
            ChatRequest, json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
        )
        read_chat(request)


# --- the official client, over the application itself ---


def with_client(gate, use):
    async def run():
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(gate))
        async with openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="key", http_client=http, max_retries=0
        ) as client:
            return await use(client)

    return asyncio.run(run())


def messages_of(image):
    return chat_body('{"bbox_2d": [4, 4, 40, 30]}', image=image)["messages"]


def test_the_official_client_reads_whole_answers(tiny_gate):
    async def use(client):
        assert [model.id async for model in client.models.list()] == ["stub"]
        assert (await client.models.retrieve("stub")).owned_by == "dynrefer"
        return await client.chat.completions.create(
            model="stub",
            messages=messages_of(uri(picture())),
            max_tokens=5,
            temperature=0.0,
            extra_body={"regions": [list(BOXES[0]), list(BOXES[1])], "options": {"control": "red"}},
        )

    answer = with_client(tiny_gate, use)
    assert [one["box"] for one in answer.regions] == [list(box) for box in BOXES[:2]]
    assert answer.choices[0].message.content.startswith("0:0: ") and answer.usage.completion_tokens > 0
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_the_official_client_reads_streams(tiny_gate):
    async def use(client):
        stream = await client.chat.completions.create(
            model="stub", messages=messages_of(uri(picture())), stream=True, stream_options={"include_usage": True}
        )
        return [chunk async for chunk in stream]

    whole = with_client(
        tiny_gate, lambda client: client.chat.completions.create(model="stub", messages=messages_of(uri(picture())))
    )
    chunks = with_client(tiny_gate, use)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and text
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_official_client_raises_its_own_errors(gate):
    def refused(kind, gate=gate, **changes):
        async def use(client):
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(
                    **{"model": "stub", "messages": messages_of(uri(blank()))} | changes
                )
            return caught.value

        return with_client(gate, use)

    error = refused(openai.BadRequestError, n=2)
    assert error.code == "unsupported_value" and error.param == "n"
    assert refused(openai.NotFoundError, model="other").code == "model_not_found"
    assert refused(openai.AuthenticationError, gate_of(api_key="another")).code == "invalid_api_key"
    ending = gate_of()
    ending.draining = True
    assert refused(openai.InternalServerError, ending).status_code == 503


def test_sampling_changes_what_a_real_model_says(tiny_gate):
    def said(**changes):
        answer = ask(tiny_gate, image=uri(picture()), **changes)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    assert said(temperature=0) == said() == said(seed=5)
    drawn = said(temperature=2.0, seed=5)
    assert (
        drawn == said(temperature=2.0, seed=5) and len({drawn, *[said(temperature=2.0, seed=n) for n in range(4)]}) > 2
    )
    assert len(said(max_tokens=2)) < len(said())
