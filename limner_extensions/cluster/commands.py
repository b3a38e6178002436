"""Commands that nodes of a cluster run."""

import os
import sys
import threading
from pathlib import Path

import typer

from limner_extensions.cluster import node_server
from trainer import worker
from trainer.runs import Run

app = typer.Typer()


@app.command("work-on-node", hidden=True)
def work_on_node(root: Path, folder: Path) -> None:
    """Work on a copy of a run (started by a node of a cluster), until the process that started this one ends.

    The paths in its settings begin at `root`, so that they are the same on every node.
    """
    threading.Thread(target=_end_with_node, daemon=True).start()
    os.environ["LIMNER_HOME"] = str(folder.parents[1].resolve())
    os.environ.pop("LIMNER_SHARED", None)
    folder = folder.resolve()
    os.chdir(root)
    raise typer.Exit(worker.work(Run(folder), may_retry=False))


def _end_with_node() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns only at the end of the input
    os._exit(1)


@app.command("serve-node", hidden=True)
def serve_node() -> None:
    """Be a node for a relay on another machine (started through SSH)."""
    node_server.main()
