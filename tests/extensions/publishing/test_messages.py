"""The message that a run has ended: sent by its worker, with the newest preview, and never a reason to fail."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from limner_extensions.publishing import messages
from tests import loopback
from trainer import config, runs, worker
from trainer.runs import Run


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What arrives at the address that the environment names."""
    arrived: list[dict[str, Any]] = []

    class Service(loopback.Handler):
        def do_POST(self) -> None:
            arrived.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply(200, {})

    with loopback.serving(Service) as address:
        monkeypatch.setenv(messages.ADDRESSES, address.replace("http:", "json:"))
        yield arrived


def test_a_finished_run_comes_with_its_newest_preview(run: Run, received: list[dict[str, Any]]) -> None:
    messages.send(run)
    [message] = received
    assert (message["title"], message["message"]) == ("rin: Done", "Step 4 of 4, 2 min.")
    [attached] = message["attachments"]
    assert base64.b64decode(attached["base64"]) == (run.folder / "previews/000004_0.png").read_bytes()
    assert not runs.look(run).state.warnings


def test_a_worker_tells_why_its_run_failed(character: object, received: list[dict[str, Any]]) -> None:
    run = runs.create(config.build({"name": "rin", "dataset": "rin", "model": {"base": "/nowhere/base.safetensors"}}))
    assert worker.work(run) == 2
    [message] = received
    assert message["title"] == "rin: Failed"
    assert message["message"] == runs.look(run).state.message != ""
    assert message["attachments"] == []


@pytest.mark.parametrize("addresses", ["json://127.0.0.1:9/", "nothing://secret-topic"])
def test_what_cannot_be_sent_is_a_warning(run: Run, addresses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(messages.ADDRESSES, addresses)
    messages.send(run)
    [warning] = runs.look(run).state.warnings
    assert "could not be sent" in warning
    assert addresses not in run.log.read_text(encoding="utf-8")
    assert runs.look(run).status == "finished"
