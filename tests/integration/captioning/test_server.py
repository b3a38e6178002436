"""Captions by a server: what is asked and sent, and what is said when it refuses, dawdles or answers garbage."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from tests import fake_caption_server
from tests.fake_caption_server import FakeCaptionServer
from trainer.captioning import CaptionConfig, server
from trainer.errors import UserError

IMAGE = Image.new("RGB", (3000, 1500), "red")
IMAGE.info["comment"] = b"taken at home"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCaptionServer]:
    for name in ("OPENAI_API_KEY", "LIMNER_CAPTION_KEY"):
        monkeypatch.delenv(name, raising=False)
    with fake_caption_server.serving() as made:
        yield made


def load(address: str, **settings: object) -> server.Server:
    return server.load(CaptionConfig(dataset="rin", model="some-vlm", server=address, **settings))


def test_a_server_is_asked_with_prompt_and_image(fake: FakeCaptionServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # of no concern to this machine
    assert load(fake.url, prompt="What is it?", tokens=70)(IMAGE) == "caption\n1"
    ((path, headers, request),) = fake.requests
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (request["model"], request["max_tokens"]) == ("some-vlm", 70)
    text, image = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == (1024, 512)
    assert b"home" not in base64.b64decode(data)
    assert IMAGE.size == (3000, 1500)
    for ending in ("/v1", "/v1/", "/v1/chat/completions"):
        assert load(fake.url + ending)(IMAGE)
        assert fake.requests[-1][0] == "/v1/chat/completions"


def test_a_key_is_sent_to_its_own_server_alone(fake: FakeCaptionServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    load(fake.url)(IMAGE)
    assert "Authorization" not in fake.requests[-1][1]
    assert load("https://api.openai.com/v1").client.headers["Authorization"] == "Bearer sk-openai"
    assert "Authorization" not in load("http://api.openai.com/v1").client.headers, "a key is not sent in the clear"
    monkeypatch.setenv("LIMNER_CAPTION_KEY", "own")
    load(fake.url)(IMAGE)
    assert fake.requests[-1][1]["Authorization"] == "Bearer own"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b'{"error": {"message": "bad\\nkey"}}', r"refused \(401\): bad key .*LIMNER_CAPTION_KEY"),
        (404, b'{"error": "no model"}', r"refused \(404\): no model .*name of the model"),
        (500, b"<html>oops</html>", r"refused \(500\)\. See what the server logged"),
        (200, b"<html>hello</html>", "not a caption"),
        (200, b'{"choices": []}', "not a caption"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "not a caption"),
        (200, b"[" * 100_000, "not a caption"),
        (200, b" " * (server.MAX_BYTES + 10), "not a caption"),
    ],
)
def test_refusals_and_garbage_are_explained(fake: FakeCaptionServer, status: int, body: bytes, expected: str) -> None:
    fake.status, fake.body = status, body
    with pytest.raises(UserError, match=expected):
        load(fake.url)(IMAGE)


def test_a_redirect_is_not_followed_and_an_answer_that_trickles_in_given_up(fake: FakeCaptionServer) -> None:
    fake.status, fake.location = 307, f"{fake.url}/elsewhere"
    with pytest.raises(UserError, match=r"refused \(307\)"):
        load(fake.url)(IMAGE)
    assert len(fake.requests) == 1
    fake.status, fake.seconds_per_byte = 200, 0.05
    with pytest.raises(UserError, match="did not answer in time"):
        replace(load(fake.url), seconds=0.2)(IMAGE)


def test_what_is_not_an_address_or_has_no_server_is_refused() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached"):
        load("http://127.0.0.1:9")(IMAGE)
    for address in ("file:///etc/passwd", "127.0.0.1:1234", "http://", "http://a:b@c/v1", "http://[/"):
        with pytest.raises(UserError, match="is not the address of a server"):
            load(address)
