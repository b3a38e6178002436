"""The route that stores edited fields: what no page sends is refused by name."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ui.server import field_route
from ui.state import page_memory


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(field_route.router)
    return TestClient(app)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("form-gone", "1"), ("preset", "odd"), ("trigger", "x"), ("name", ["x"]), ("base", "x" * 20_001),
        ("form-training-steps", "nan"), ("form-training-steps", 7), ("form-training-text-encoder", "yes"),
        ("form-optimizer-kind", "odd"), ("form-optimizer-kind", {}), ("form-subjects", "x" * 20_001),
    ],
)  # fmt: skip
def test_a_field_that_no_page_sends_is_refused(character: Path, client: TestClient, field: str, value: object) -> None:
    answer = client.post("/field", json={"project": "rin", "fields": {"form-seed": "3", field: value}})
    assert answer.status_code == 400
    assert "cannot be stored" in answer.text
    assert page_memory.settings("rin") == {}


def test_an_edit_is_of_a_project_and_its_fields(character: Path, client: TestClient) -> None:
    for edit, status in (({"project": "gone", "fields": {}}, 400), ({"project": "rin"}, 422), ([], 422)):
        assert client.post("/field", json=edit).status_code == status
    edit = {"project": "rin", "fields": {"form-optimizer-kind": "Lion", "form-training-steps": "7"}}
    assert client.post("/field", json=edit).status_code == 204
    assert page_memory.settings("rin") == {"optimizer": {"kind": "lion"}, "training": {"steps": 7}}
