"""Places to run: another machine through SSH, and a cluster of Ray."""

from limner_extensions.cluster import ray_cluster, relay, ssh_machine
from trainer.runs import Run


def work(run: Run, address: str) -> int:
    """Have a run trained at an address, `ssh://user@host` or that of a Ray cluster; return the exit code."""
    is_ssh = address.startswith(ssh_machine.SCHEME)
    return relay.work(run, ssh_machine.SshMachine(address) if is_ssh else ray_cluster.RayCluster(address))
