"""Requests that share batches: who goes with whom, what happens to the others when one fails, waits or leaves."""

import asyncio
import contextlib

import httpx2
import pytest

from tests import tiny_dynrefer
from tests.serving import StubModel, error_of, gate_of, post, regions_body, uri
from tests.tiny_dynrefer import BOXES, picture

BOX = [4, 4, 40, 30]


def region(name, x=4):
    return {"id": name, "box": [x, 4, 60, 30]}


@contextlib.asynccontextmanager
async def client_of(gate):
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(gate), base_url="http://server", timeout=60) as client:
        yield client


async def send(gate, client, body, path="/v1/regions"):
    """A request on its way: it waits in the queue, runs, or is answered already."""
    batcher, queued = gate.service.batcher, asyncio.Event()
    submit = batcher.submit

    def seen(job):
        submit(job)
        queued.set()

    batcher.submit = seen
    task = asyncio.create_task(client.post(path, json=body))
    arrived = asyncio.create_task(queued.wait())
    await asyncio.wait((task, arrived), return_when=asyncio.FIRST_COMPLETED)
    batcher.submit = submit
    arrived.cancel()
    return task


async def send_all(gate, client, bodies, path="/v1/regions"):
    """The first runs, and does not end before `model.go_on`; the others wait in their order."""
    model = gate.service.model
    model.started.clear()
    model.go_on.clear()
    tasks = []
    for body in bodies:
        tasks.append(await send(gate, client, body, path))
        await asyncio.to_thread(model.started.wait, 30)
    return tasks


def together(gate, bodies, path="/v1/regions"):
    """Answers to requests; the first runs alone, then those that waited meanwhile."""

    async def run():
        async with client_of(gate) as client:
            tasks = await send_all(gate, client, bodies, path)
            gate.service.model.go_on.set()
            return await asyncio.gather(*tasks)

    return asyncio.run(run())


def captions(answer):
    assert answer.status_code == 200, answer.text
    return [[result["caption"] for result in image["regions"]] for image in answer.json()["images"]]


def test_requests_with_the_same_options_share_a_batch_and_get_their_own_answers():
    model = StubModel()
    gate = gate_of(model)
    bodies = [regions_body(region("first"))]  # the model is busy with it while the others come
    bodies += [regions_body(region(f"a{n}", n), region(f"b{n}", n)) for n in range(1, 4)]
    bodies += [regions_body(region("other"), options={"words": ["red"]})]
    answers = together(gate, bodies)
    for n in range(1, 4):
        assert captions(answers[n]) == [[f"a{n} at {n}", f"b{n} at {n}"]]
    assert captions(answers[4]) == [["other at 4 red"]]
    assert [ids for ids, _ in model.batches] == [["first"], ["a1", "b1", "a2", "b2", "a3", "b3"], ["other"]]
    assert model.threads == {"model"}


def test_a_batch_that_is_not_full_waits_for_more():
    model = StubModel()
    gate = gate_of(model, max_wait_ms=2000.0, max_batch=3)

    async def run():
        async with client_of(gate) as client:
            return await asyncio.gather(*[client.post("/v1/regions", json=regions_body(region(n))) for n in "abc"])

    assert [captions(answer)[0][0][0] for answer in asyncio.run(run())] == ["a", "b", "c"]
    assert [sorted(ids) for ids, _ in model.batches] == [["a", "b", "c"]]


def test_a_large_request_lets_others_pass_after_each_of_its_batches():
    model = StubModel()
    gate = gate_of(model, max_batch=4)
    large, small = (
        regions_body(*[region(f"l{n}") for n in range(10)]),
        regions_body(region("s"), options={"words": ["x"]}),
    )
    answers = together(gate, [large, small])
    assert captions(answers[0]) == [[f"l{n} at 4" for n in range(10)]]
    assert [ids[0] for ids, _ in model.batches] == ["l0", "s", "l4", "l8"]


def test_pictures_of_a_joint_family_are_never_cut():
    model = StubModel(joint=True)
    gate = gate_of(model, max_batch=4)
    bodies = [regions_body(region("first")), regions_body(*[region(f"a{n}") for n in range(3)])]
    bodies += [regions_body(*[region(f"b{n}") for n in range(6)]), regions_body(region("c"))]
    answers = together(gate, bodies)
    assert all(answer.status_code == 200 for answer in answers)
    assert [ids for ids, _ in model.batches] == [
        ["first"],
        ["a0", "a1", "a2", "c"],
        [f"b{n}" for n in range(6)],
    ]


def test_batched_answers_are_those_of_each_request_alone():
    model, _ = tiny_dynrefer.model()
    gate = gate_of(model, max_wait_ms=200.0, max_batch=5)
    bodies = [
        {"images": [{"image": uri(picture(n)), "regions": [list(box) for box in BOXES[: 1 + n % 4]]}]} for n in range(6)
    ]
    alone = [post(gate, body).json()["images"] for body in bodies]

    async def run():
        async with client_of(gate) as client:
            return await asyncio.gather(*[client.post("/v1/regions", json=body) for body in bodies])

    for found, expected in zip(asyncio.run(run()), alone, strict=True):
        (image,), (wanted,) = found.json()["images"], expected
        for one, other in zip(image["regions"], wanted["regions"], strict=True):
            assert (one["id"], one["box"], one["caption"]) == (other["id"], other["box"], other["caption"])
            assert one["score"] == pytest.approx(other["score"], rel=1e-3)


def test_one_requests_error_is_not_the_others():
    model = StubModel()
    model.fail = {"bad": ValueError("bad: this region cannot be described"), "broken": RuntimeError("secret")}
    gate = gate_of(model)
    answers = together(gate, [regions_body(region(name)) for name in ("first", "a", "bad", "b", "broken", "c")])
    assert error_of(answers[2], 400)["message"] == "bad: this region cannot be described"
    assert "secret" not in error_of(answers[4], 500)["message"]
    assert [captions(answers[n])[0][0] for n in (0, 1, 3, 5)] == [f"{name} at 4" for name in ("first", "a", "b", "c")]
    assert gate.service.batcher.healthy


def test_a_full_queue_is_refused_with_the_time_to_come_again():
    model = StubModel()
    gate = gate_of(model, max_queue=4, max_regions=4)
    answers = together(gate, [regions_body(region(name), region(name)) for name in "abcd"])
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429], "one runs, two wait"
    error = error_of(answers[3], 429)
    assert error["type"] == "rate_limit_error" and error["code"] == "queue_full"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 60
    assert gate.service.batcher.waiting == gate.working == gate.service.memory.used == 0


def test_too_many_requests_at_once_are_refused():
    gate = gate_of(StubModel(), max_requests=2)
    answers = together(gate, [regions_body(region(name)) for name in "abc"])
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert error_of(answers[2], 429)["code"] == "too_many_requests"


def test_who_waits_too_long_gets_503_and_who_runs_too_long_504():
    model = StubModel()
    gate = gate_of(model, timeout=0.3)

    async def run():
        async with client_of(gate) as client:
            tasks = await send_all(gate, client, [regions_body(region(name)) for name in "ab"])
            answers = await asyncio.gather(*tasks)
            model.go_on.set()
            return answers

    running, waiting = asyncio.run(run())
    assert error_of(running, 504)["code"] == "timeout"
    assert error_of(waiting, 503)["code"] == "busy" and waiting.headers["retry-after"] == "10"
    assert post(gate, regions_body(region("c"))).status_code == 200
    assert [ids for ids, _ in model.batches if ids == ["b"]] == [], "what nobody waits for is not described"
    assert gate.service.memory.used == 0


def test_who_leaves_is_not_described():
    model = StubModel()
    gate = gate_of(model)

    async def run():
        leave, sent = asyncio.Event(), []
        body = httpx2.Request("POST", "http://server/v1/regions", json=regions_body(region("gone")))
        messages = [{"type": "http.request", "body": body.read()}]

        async def receive():
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send_message(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/regions", "query_string": b"", "http_version": "1.1"}
        scope |= {"headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "scheme": "http"}
        async with client_of(gate) as client:
            (first,) = await send_all(gate, client, [regions_body(region("first"))])
            second = asyncio.create_task(gate(dict(scope), receive, send_message))
            while gate.service.batcher.waiting != 1:
                await asyncio.sleep(0.01)
            leave.set()
            await asyncio.wait_for(second, 5)
            assert gate.service.batcher.waiting == 0
            model.go_on.set()
            assert (await first).status_code == 200

    asyncio.run(run())
    assert [ids for ids, _ in model.batches] == [["first"]]
    assert gate.working == gate.service.memory.used == 0
    assert 'status="499"' in gate.service.metrics.page().decode()


def test_a_seed_draws_the_same_and_shares_no_batch():
    import torch

    drawn = []

    class Drawing(StubModel):
        def predict(self, batch, options):
            drawn.append(torch.rand(1).item())
            return super().predict(batch, options)

    model = Drawing()
    gate = gate_of(model, max_batch=2)

    bodies = []
    for seed in (None, 7, 7, 8):
        content = [{"type": "image_url", "image_url": {"url": uri(picture())}}]
        body = {"model": "stub", "regions": [BOX] * 3, "temperature": 1.0, "seed": seed}
        bodies.append({**body, "messages": [{"role": "user", "content": content}]})
    answers = together(gate, bodies, "/v1/chat/completions")
    assert all(answer.status_code == 200 for answer in answers)
    sizes = [len(ids) for ids, _ in model.batches]
    assert sorted(sizes) == [1, 1, 1, 1, 2, 2, 2, 2]
    seeded = [value for value in drawn if drawn.count(value) == 2]
    assert len(set(seeded)) == 2, "two batches of one seed, other draws in each"


def test_closing_refuses_what_waits():
    model = StubModel()
    gate = gate_of(model)

    async def run():
        async with client_of(gate) as client:
            tasks = await send_all(gate, client, [regions_body(region(name)) for name in "ab"])
            closing = asyncio.get_running_loop().run_in_executor(None, gate.service.batcher.close)
            await tasks[1]
            model.go_on.set()
            await closing
            return await asyncio.gather(*tasks)

    assert [answer.status_code for answer in asyncio.run(run())] == [200, 503]
    assert not gate.service.batcher.healthy
