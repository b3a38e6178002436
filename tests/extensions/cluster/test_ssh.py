"""Runs on a machine that a real server of OpenSSH stands for, whose connections are cut."""

from pathlib import Path

import pytest

from limner_extensions.cluster.ssh_machine import SshMachine
from tests.extensions.cluster.test_ray import submit
from tests.extensions.cluster.test_relay import hash_of, make, settings
from tests.integration.runs.test_processes import status, wait_until
from tests.ssh import machine, needs_sshd
from tests.workers import Workers
from trainer import config, runs, storage
from trainer.errors import UserError
from trainer.runs import events

pytestmark = needs_sshd


def never() -> None:
    raise AssertionError("nothing to wait for")


@pytest.mark.slow
def test_a_run_whose_connection_is_cut_goes_on_there(
    character: Path, tiny_sd: Path, tmp_path: Path, workers: Workers
) -> None:
    file = tmp_path / "rin.toml"
    storage.write(file, config.dump(settings(str(tiny_sd), steps=9)))
    with machine(tmp_path / "machine", fault="hang@6") as there:
        first = submit(file, there.address)
        wait_until(lambda: runs.look(first).state.step == 5)
        second = submit(file, there.address)
        wait_until(lambda: len(list(there.home.glob("outputs/.cluster/runs/*/"))) == 2)
        assert status(second) == "waiting", "the machine has one device, which is taken"
        command = tmp_path / "machine" / "limner"
        command.write_text(command.read_text().replace("hang@6", ""))
        there.cut()
        runs.request(second, "stop")
        wait_until(lambda: status(second) == "stopped")
        wait_until(lambda: status(first) == "finished")
        wait_until(lambda: not there.processes)
        assert not list(there.home.glob("outputs/.cluster/runs/*/")), "nothing of the runs stays there"
        assert len(list(there.home.glob("outputs/.cluster/files/*"))) == 2, "the dataset and the base model do"
    state = runs.look(first).state
    assert state.warnings[-1] == "The node of this run was lost; it goes on elsewhere from step 3."
    assert [event.step for event in events.read(first.log)[0] if isinstance(event, events.Started)] == [0, 3]
    undisturbed = make(str(tiny_sd))
    assert workers.work(undisturbed) == 0
    assert hash_of(first) == hash_of(undisturbed)
    assert [(first.folder / preview.file).is_file() for preview in state.previews] == [True] * 4


def test_a_machine_that_is_unknown_or_has_no_limner_says_so(tmp_path: Path) -> None:
    with machine(tmp_path / "machine") as there:
        command = tmp_path / "machine" / "limner"
        with pytest.raises(UserError, match=r"127\.0\.0\.1 does not find the command '/nowhere/limner'\."):
            SshMachine(there.address.removesuffix(str(command)) + "/nowhere/limner").place(1, never)
        command.write_text("#!/bin/sh\necho '│ No such command. │' >&2\necho '╰──╯' >&2\nexit 2\n")
        with pytest.raises(UserError, match=r"could not be started on 127\.0\.0\.1: No such command\."):
            SshMachine(there.address).place(1, never)
        there.known_hosts.write_text("")
        with pytest.raises(UserError, match="cannot be reached: Host key verification failed") as refused:
            SshMachine(there.address).place(1, never)
        assert "needs a key" in refused.value.remedy
    with pytest.raises(UserError, match="cannot be reached"):
        SshMachine(there.address).place(1, never)
