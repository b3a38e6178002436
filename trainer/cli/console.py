"""Output on a terminal: facts in columns on stdout, a run's progress on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from trainer import worker
from trainer.runs import Run, events

PIPE_WIDTH = 10_000  # columns where there is no terminal, so that nothing is wrapped for the program that reads it


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def echo(text: str) -> None:
    """Print a line of results."""
    _console().print(text)


def echo_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows in aligned columns."""
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    _console().print(table, soft_wrap=False)


def echo_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print facts as a table for people, or as one line of JSON for programs."""
    if as_json:
        print(json.dumps(facts))
        return
    echo_table([(key.replace("_", " "), _cell(value)) for key, value in facts.items()])


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def work_visibly(run: Run) -> int:
    """Work on a run in this process, with its progress on stderr; return the exit code."""
    with Progress() as progress:
        return worker.work(Run(run.folder, progress))


def track(portions: Sequence[int], title: str) -> Iterable[int]:
    """Yield portions of some work, with a progress bar on stderr on a terminal, and nothing elsewhere."""
    console = _console(stderr=True)
    return rich.progress.track(portions, title, console=console, disable=not console.is_terminal)


class DownloadBar:
    """Bytes of a download on stderr: a progress bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        console = _console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
        self._bar = ProgressBar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show how much is here."""
        self._bar.update(self._task, completed=done, total=total)


class Progress:
    """A run's events on stderr: a progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._bar = ProgressBar(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            auto_refresh=False,  # no thread: the processes of a run may be forked from this one
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._steps = 0
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()  # shows the cursor again

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.Started():
                self._start(event)
            case events.Phase() if event.name != self._phase:
                self._phase = event.name
                self._print(f"{event.name} ...")
            case events.Step():
                self._step(event)
            case events.Warned():
                self._print(f"Note: {event.message}")
            case events.Verified():
                loads = [program for program, fine, _ in event.verdicts if fine]
                self._print(f"{event.file} loads in: {', '.join(loads) or 'none of the programs'}.")
            case events.Finished():
                self._end(f"Finished after {event.step} steps: {event.export}" if event.export else "Finished")
            case events.Stopped():
                self._end(f"Stopped after {event.step} steps. Continue with: limner resume FOLDER")
            case events.Failed():
                self._end(f"Failed: {event.message} {event.remedy}")

    def _start(self, event: events.Started) -> None:
        self._steps = event.steps
        self._print(f"Running on {event.device}, from step {event.step} of {event.steps}.")
        if self._task is None:
            self._task = self._bar.add_task("", total=event.steps, completed=event.step, visible=False)

    def _step(self, event: events.Step) -> None:
        text = f"loss {event.loss:.4f}  {event.seconds:.2f} s/step"
        if self._console.is_terminal and self._task is not None:
            self._bar.start()
            self._bar.update(self._task, completed=event.step, description=text, visible=True)
            self._bar.refresh()
        elif event.step % max(1, self._steps // 20) == 0 or event.step == self._steps:
            self._print(f"step {event.step}/{self._steps}  {text}")

    def _end(self, text: str) -> None:
        self._bar.stop()
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text)
        sys.stderr.flush()
