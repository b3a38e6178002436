"""Runs that the page sends to two nodes of a cluster of Ray: watched, paused and stopped as ever; a node is killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clusters import TwoNodes, needs_ray, two_nodes
from tests.e2e.conftest import Server, Visit, make_home, serving, wait
from tests.e2e.test_page import advanced, step
from tests.integration.cluster.test_relay import hash_of
from trainer import runs
from trainer.runs import Run
from ui.tabs import train

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.nightly, needs_ray]
SETTINGS = {"training_steps": 40, "preview_every": 5, "preview_steps": 2, "checkpoint_every": 5}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path / "nodes") as nodes:
        yield nodes


@pytest.fixture
def server(cluster: TwoNodes, tmp_path: Path) -> Iterator[Server]:
    home = make_home(tmp_path / "home")
    environment = {"LIMNER_CLUSTER": cluster.address, "OMP_NUM_THREADS": "1"}
    with serving(home, **environment) as made:
        yield made


def begin(page: "Page", server: Server, count: int) -> Run:
    """Click Start; return the run, which is that many in all."""
    page.get_by_role("button", name="Start training").click()
    wait(lambda: len(all_of(server)) == count)
    run = all_of(server)[-1]
    page.locator(f"#status [data-run='{run.id}']").wait_for()
    page.wait_for_timeout(1000 * train.DOUBLE_CLICK)  # the next click is not a second one of this
    return run


def all_of(server: Server) -> list[Run]:
    return [Run(file.parent) for file in sorted(server.home.glob("outputs/*/cluster"))]


def choose(page: "Page", number: int) -> None:
    """Show a run, the newest of which is 0."""
    page.locator("#run input").click()
    page.get_by_role("option").filter(has_text="example-character").nth(number).click()


def test_four_runs_on_two_nodes_of_which_one_dies(cluster: TwoNodes, server: Server, visit: Visit) -> None:
    page = visit(server)
    advanced(page, **SETTINGS)
    page.get_by_role("radio", name=runs.short_address(cluster.address)).check()
    first = begin(page, server, 1)
    page.locator("#previews img").nth(1).wait_for(timeout=120_000)
    assert "CPU, " in page.locator("#status").inner_text(), "it says on which node"
    wait(lambda: step(page) > 5)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Continue").wait_for()
    second, third, fourth = (begin(page, server, count) for count in (2, 3, 4))
    page.get_by_text("waiting for a node of").wait_for()
    assert [cluster.of(run.id) == "" for run in (first, second, third, fourth)].count(True) == 2
    assert runs.look(first).state.checkpoints
    cluster.kill(cluster.of(first.id))
    page.get_by_role("button", name="Stop and save").click()
    page.locator("#status [data-status=stopped]").wait_for(timeout=60_000)
    choose(page, 3)
    page.get_by_text("The node of this run was lost").wait_for(timeout=60_000)
    page.get_by_role("button", name="Continue").click(timeout=120_000)
    page.locator("#status [data-status=finished]").wait_for(timeout=120_000)
    wait(lambda: all(runs.look(run).status == "finished" for run in (second, third)), seconds=120)
    assert hash_of(first) == hash_of(second) == hash_of(third)
    assert not any("lost" in warning for run in (second, third) for warning in runs.look(run).state.warnings)
    assert runs.look(fourth).status == "stopped"
