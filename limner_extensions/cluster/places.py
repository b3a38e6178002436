"""Places to run: another machine through SSH, and a cluster of Ray."""

import os

from limner_extensions.cluster import ray_cluster, relay, ssh_machine
from trainer.errors import UserError
from trainer.runs import Run


def work_on_machine(run: Run, address: str) -> int:
    """Have a run trained on the machine at an address such as `ssh://user@host`; return the exit code."""
    _check_alone()
    return relay.work(run, ssh_machine.SshMachine(address))


def work_on_ray(run: Run, address: str) -> int:
    """Have a run trained on a node of the Ray cluster at an address; return the exit code."""
    _check_alone()
    return relay.work(run, ray_cluster.RayCluster(address))


def _check_alone() -> None:
    if os.environ.get("LIMNER_SHARED"):
        raise UserError(
            "Runs of a server with several people are not sent to a cluster, which keeps nobody's files apart.",
            "Train on this machine, or use a page of your own.",
        )
