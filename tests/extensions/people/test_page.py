"""Two people on one server, each with a browser and a project of the same name: neither meets what is the other's."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import HANG, python, wait
from tests.e2e.conftest import EXAMPLES, Server, Visit, browser, make_home, refused, serving, visit
from tests.e2e.test_page import advanced, cards, finished, new_project, points, start, tab, upload
from trainer import runs

__all__ = ["browser", "refused", "visit"]

pytestmark = [pytest.mark.browser, pytest.mark.nightly]

NAMES = ("anna", "ben")
PICTURES = {"anna": EXAMPLES / "example-character", "ben": EXAMPLES / "example-style"}


@dataclass(frozen=True)
class Visitor:
    """A person of a server, as a program sees it for them."""

    name: str
    password: str
    web: httpx.Client
    home: Path

    def call(self, endpoint: str, *data: object) -> str:
        """Call an endpoint; returns what the server says."""
        joined = self.web.post(f"/gradio_api/call/{endpoint}", json={"data": data})
        return self.web.get(f"/gradio_api/call/{endpoint}/{joined.json()['event_id']}").text

    def told(self, endpoint: str, *data: object) -> Any:  # noqa: ANN401 - JSON
        output = self.call(endpoint, *data)
        assert output.startswith("event: complete"), output
        return json.loads(output.partition("data: ")[2])[0]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Server, Visitor, Visitor]]:
    home = make_home(tmp_path)
    environment = {"LIMNER_HOME": str(home)}
    with ExitStack() as stack:
        passwords = [output.rpartition(" ")[2].strip() for output in (add(name, environment) for name in NAMES)]
        server = stack.enter_context(serving(home))
        people = []
        for name, password in zip(NAMES, passwords, strict=True):
            web = stack.enter_context(httpx.Client(base_url=server.url, timeout=HANG))
            assert web.post("/login", data={"name": name, "password": password}).status_code == 303
            web.get("/")  # their servers start at the same time
            people.append(Visitor(name, password, web, home / "people" / name))
        yield server, *people


def add(name: str, environment: dict[str, str]) -> str:
    added = python("-m", "trainer", "add-person", name, environment=os.environ | environment)
    assert added.returncode == 0, added.stderr
    return added.stdout


def test_two_people_do_not_meet_what_is_the_others(both: tuple[Server, Visitor, Visitor], visit: Visit) -> None:
    server, anna, ben = both
    pages = {}
    for who, numbers in ((anna, range(1, 8)), (ben, range(1, 6))):
        page = pages[who.name] = visit(server, login=(who.name, who.password))
        new_project(page, "mira")
        folder = PICTURES[who.name]
        upload(page, [folder / f"{number:02d}.{kind}" for number in numbers for kind in ("png", "txt")])
        cards(page, len(numbers))
    hers, his = pages["anna"], pages["ben"]
    his.reload()
    cards(his, 5)
    assert hers.get_by_label("Caption of 02.png").input_value() != his.get_by_label("Caption of 02.png").input_value()
    pictures = [item.get_attribute("src") or "" for item in hers.locator("#captions .card .shape img").all()]
    assert len(pictures) == 7
    for number, address in enumerate(pictures):
        seen = anna.web.get(address).content
        assert seen.startswith(b"RIFF")
        answer = ben.web.get(address)
        assert answer.status_code == (200 if number < 5 else 404)  # of the same name, but his own
        assert answer.content != seen
        assert httpx.get(server.url + address).status_code == 401

    hers.get_by_label("Trigger word").first.fill("miraxo")
    advanced(hers, training_steps=60, preview_every=30, preview_prompts="miraxo, smiling")
    run = start(hers)
    # A run of his, whose settings name her pictures, waits for hers, and finds nothing when it is its turn.
    theft = ben.told(
        "start_training", "mira", "character", {"name": "theft", "dataset": str(anna.home / "datasets" / "mira")}
    )
    wait(lambda: points(hers) >= 3)
    before = points(hers)
    for endpoint, *more in (("control", "stop"), ("delete_run",), ("rename_run", "mine"), ("status",)):
        output = ben.call(endpoint, run, *more)
        assert output.startswith("event: error")
        assert f"There is no run '{run}'" in output
    assert [item["run"] for item in ben.told("list_runs")] == [theft["run"]]
    assert ben.told("list_adapters") == [item for item in ben.told("list_adapters") if not item["key"]]
    tab(his, "Train")
    assert not his.locator(f"[data-run='{run}']").count()
    wait(lambda: points(hers) > before)
    assert ben.told("status", theft["run"])["status"] == "waiting"
    finished(hers)
    assert points(hers) == 60
    wait(lambda: ben.told("status", theft["run"])["status"] == "failed")
    assert ben.told("status", theft["run"])["message"] == "There is no dataset 'mira'."

    tab(hers, "Download")
    with hers.expect_download() as download:
        hers.locator("#runs a.download").click()
    file = (anna.home / "outputs" / run / "mira.safetensors").read_bytes()
    assert Path(download.value.path()).read_bytes() == file
    status = anna.told("status", run)
    addresses = [*status["previews"], status["adapter"], f"/download/{run}/checkpoint/60"]
    assert len(addresses) == 5
    uploads = anna.web.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).json()
    for address in (*addresses, f"/gradio_api/file={uploads[0]}"):
        assert anna.web.get(address).status_code in ((200,) if address in addresses else (200, 403))
        assert ben.web.get(address).status_code in (403, 404)
        assert httpx.get(server.url + address).status_code == 401
    tab(his, "Download")
    his.get_by_label("Of all projects").check()
    his.locator("#runs").get_by_text("theft").first.wait_for()
    assert not his.locator("#runs a.download").count()
    assert run not in his.content()
    assert anna.told("delete_run", run) == []
    assert "event: error" in ben.call("restore_run")
    assert (anna.told("restore_run"), runs.look(runs.Run(anna.home / "outputs" / run)).status) == (run, "finished")

    hers.get_by_role("link", name="Log out").click()
    hers.get_by_label("Password").wait_for()
    assert hers.request.get(f"{server.url}/config").status == 401
    assert his.request.get(f"{server.url}/config").status == 200
