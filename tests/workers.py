"""Real workers, each a process of its own that can be killed, without the time that their imports take.

One process imports all there is to import and forks for each run that it is told of.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests import faults
from tests.conftest import CHECKOUT, unmeasured
from trainer.runs import Run


@dataclass
class Workers:
    process: subprocess.Popen[str] = field(init=False)
    newest: int = 0

    def __post_init__(self) -> None:
        command, env = [sys.executable, "-m", "tests.workers"], {**unmeasured(), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=CHECKOUT, text=True, env=env, **pipes)

    def start(self, run: Run, fault: str = "") -> int:
        """Begin to work on a run; returns the number of the process."""
        self.newest = self._ask([str(run.folder.resolve()), os.environ.get("LIMNER_HOME", ""), fault, sys.executable])
        return self.newest

    def wait(self, number: int = 0) -> int:
        """The exit code of a worker, by default the newest; negative if a signal ended it.

        Until somebody waits, its number is not given to another process, so that it can be killed whatever it does.
        """
        return self._ask(number or self.newest)

    def work(self, run: Run, fault: str = "") -> int:
        self.start(run, fault)
        return self.wait()

    def close(self) -> None:
        self.process.communicate()

    def _ask(self, question: list[str] | int) -> int:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def _child(folder: str, home: str, fault: str, python: str) -> None:
    os.setsid()
    sys.executable = python
    os.environ.update(LIMNER_HOME=home)
    if fault:
        faults.install(fault)
    log = os.open(Path(folder) / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    from trainer.cli.commands import main

    code = 1
    try:
        code = main(["work", folder])
    finally:
        os._exit(code)


def _serve() -> None:
    import diffusers
    import torch

    import trainer.cli.commands
    import trainer.train

    diffusers.StableDiffusionPipeline, trainer.cli.commands, trainer.train  # noqa: B018 - loaded when they are named
    torch.set_num_threads(1)  # threads would not live on in the worker
    while line := sys.stdin.readline():
        question = json.loads(line)
        if isinstance(question, int):
            _, status = os.waitpid(question, 0)
            print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
            continue
        number = os.fork()
        if number == 0:
            _child(*question)
        print(number, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve()
