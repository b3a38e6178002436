"""Raw calls of the API, as `curl` sends them: in full, without values that have a default, and wrong ones."""

import json
from typing import Any

import httpx

from tests.e2e.conftest import Server


def answer(server: Server, endpoint: str, body: Any) -> str:  # noqa: ANN401 - JSON, or what is none
    content = body if isinstance(body, str) else json.dumps(body)
    with httpx.Client(base_url=server.url, timeout=60) as web:
        submitted = web.post(
            f"/gradio_api/call/{endpoint}", content=content, headers={"Content-Type": "application/json"}
        )
        if submitted.status_code != 200:
            assert submitted.status_code == 400, submitted.text
            return str(submitted.json()["error"])
        event = submitted.json()["event_id"]
        return web.get(f"/gradio_api/call/{endpoint.removeprefix('v2/')}/{event}").text


def test_raw_calls_may_leave_out_what_has_a_default(shared: Server) -> None:
    assert 'data: ["raw"]' in answer(shared, "create_project", {"data": ["raw"]})
    assert 'data: ["named"]' in answer(shared, "v2/create_project", {"name": "named"})
    for endpoint, body in (("start_training", {"data": ["raw"]}), ("v2/start_training", {"project": "raw"})):
        assert "There are no images in this dataset." in answer(shared, endpoint, body)


def test_a_wrong_call_gets_a_sentence(shared: Server) -> None:
    for endpoint, body, sentence in (
        ("create_project", {"data": []}, "missing a required argument: 'name'."),
        ("create_project", {"data": ["a", "b"]}, "too many positional arguments."),
        ("v2/create_project", {"title": "a", "name": "b"}, "got an unexpected keyword argument 'title'."),
        ("create_project", "nonsense", "Expecting value: line 1 column 1 (char 0)."),
        ("create_project", {"data": 3}, "the body is not a JSON object with values."),
    ):
        assert answer(shared, endpoint, body) == f"create_project: {sentence} It takes: name: str."
    assert answer(shared, "nothing", {"data": []}) == "The API has no endpoint 'nothing'. docs/api.md lists all."
