import base64
import io
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from dynrefer.endpoint import Endpoint, NoAnswer
from tests.chat_server import chat_server


def test_an_answer_with_its_tokens():
    with chat_server(lambda asked: "a red cup") as server:
        reply = Endpoint(server.url, "small", key="secret").ask("What is it?")
    assert (reply.text, reply.tokens, reply.finish) == ("a red cup", (3, 3), "stop")
    (asked,) = server.asked
    assert (asked.model, asked.text, asked.pictures) == ("small", "What is it?", [])
    assert asked.headers["Authorization"] == "Bearer secret"


def test_pictures_stand_among_the_texts_where_they_were_put():
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[1, 2] = 7
    with chat_server(lambda asked: "yes") as server:
        Endpoint(server.url, "small").ask(["Before.", picture, "Behind."])
    (asked,) = server.asked
    assert asked.text == "Before.\nBehind." and "Authorization" not in asked.headers
    (address,) = asked.pictures
    stored = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    assert (np.asarray(stored) == picture).all()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    with chat_server(lambda asked: (status, {}, {}) if len(server.asked) < 3 else "now") as server:
        assert Endpoint(server.url, "small", wait=0).ask("?").text == "now" and len(server.asked) == 3
        server.asked.clear()
        with pytest.raises(NoAnswer, match=f"gave no answer: .*{status}") as error:
            Endpoint(server.url, "small", attempts=2, wait=0).ask("?")
        assert len(server.asked) == 2 and not error.value.refused


def test_a_server_says_how_long_to_wait(monkeypatch):
    waited = []
    monkeypatch.setattr("dynrefer.endpoint.time.sleep", waited.append)
    said = iter([(429, {}, {"Retry-After": "7"}), (429, {}, {"Retry-After": "9999"}), (503, {}, {}), "now"])
    with chat_server(lambda asked: next(said)) as server:
        assert Endpoint(server.url, "small", wait=2).ask("?").text == "now"
    assert waited == [7, 120, 8]


def test_a_connection_that_breaks_off_is_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        count = []

        def hang_up():
            while len(count) < 3:
                listener.accept()[0].close()
                count.append(1)

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(NoAnswer, match="the model 'small' at http.* gave no answer"):
            Endpoint(url, "small", attempts=3, wait=0, timeout=5).ask("?")
        thread.join()
    assert len(count) == 3


@pytest.mark.parametrize(("status", "refused"), [(400, True), (413, True), (401, False), (404, False)])
def test_a_refusal_is_told_from_a_wrong_address(status, refused):
    with chat_server(lambda asked: (status, {"error": "no such thing"}, {})) as server:
        with pytest.raises(NoAnswer, match=f"{status}.*no such thing") as error:
            Endpoint(server.url, "small", key="secret").ask("?")
    assert error.value.refused == refused and len(server.asked) == 1 and "secret" not in str(error.value)


@pytest.mark.parametrize("answer", [{"choices": []}, {"choices": [{"message": {"content": None}}]}, [], {"error": "x"}])
def test_an_answer_of_another_form_is_an_error(answer):
    with chat_server(lambda asked: (200, answer, {})) as server:
        with pytest.raises(NoAnswer, match="gave no answer"):
            Endpoint(server.url, "small").ask("?")


def test_an_endpoint_without_a_scheme_is_an_error():
    with pytest.raises(NoAnswer, match="gave no answer"):
        Endpoint("localhost:80/v1", "small", wait=0).ask("?")
    assert "secret" not in repr(Endpoint("http://a/v1", "small", key="secret"))
