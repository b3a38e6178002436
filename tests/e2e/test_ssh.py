"""A run that the page sends to a machine behind SSH: watched and stopped as ever, though the connection is cut."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, Visit, make_home, serving, wait
from tests.e2e.test_feel import keep
from tests.e2e.test_page import advanced, step
from tests.ssh import Machine, machine, needs_sshd
from trainer import runs
from trainer.runs import Run

pytestmark = [pytest.mark.nightly, needs_sshd]
SETTINGS = {"training_steps": 400, "preview_every": 5, "preview_steps": 2, "checkpoint_every": 5}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "machine") as made:
        yield made


@pytest.fixture
def server(there: Machine, tmp_path: Path) -> Iterator[Server]:
    with serving(make_home(tmp_path / "home"), LIMNER_CLUSTER=there.address, PATH=os.environ["PATH"]) as made:
        yield made


def test_a_run_on_another_machine_is_watched_and_stopped(there: Machine, server: Server, visit: Visit) -> None:
    page = visit(server)
    advanced(page, **SETTINGS)
    page.get_by_role("radio", name=runs.short_address(there.address)).check()
    page.get_by_role("button", name="Start training").click()
    page.locator("#previews img").nth(1).wait_for(timeout=120_000)
    wait(lambda: step(page) > 10)
    keep(page, "ssh")
    there.cut()
    page.get_by_text("The node of this run was lost").wait_for(timeout=60_000)
    reached = step(page)
    wait(lambda: step(page) > reached)
    page.get_by_role("button", name="Stop and save").click()
    page.locator("#status [data-status=stopped]").wait_for(timeout=60_000)
    run = next(Run(file.parent) for file in server.home.glob("outputs/*/cluster"))
    assert runs.look(run).state.checkpoints[-1].step == runs.look(run).state.step
    wait(lambda: not there.processes)
    assert not list(there.home.glob("outputs/.cluster/runs/*/"))
