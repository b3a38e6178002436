"""Runs on the machines of a cluster: a worker there, and a relay here that keeps the run's folder up to date."""

from trainer.extension import Extension

EXTENSION = Extension(
    "cluster",
    commands="limner_extensions.cluster.commands:app",
    unattended=("serve-node", "work-on-node"),
    places=dict.fromkeys(("ssh", "ray", ""), "limner_extensions.cluster.places:work"),
)
