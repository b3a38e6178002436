"""Caption runs: write the captions that a run asks for, by a model in a confined process or by a server. Torch-free.

A model comes from a stranger. The libraries that build it follow what its files say, so they run in a process that
writes to a folder of its own alone and has no network, as far as the system offers that (`trainer.confinement`).
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from trainer import captioning, confinement, foreign_text, processes
from trainer.captioning import CaptionConfig, kinds, server
from trainer.data import images
from trainer.errors import UserError
from trainer.i18n import _
from trainer.machine import nvidia
from trainer.runs import Run, StopRequestedError, events

SAVE_EVERY = 8  # images
MAX_LINE = 2**20  # characters of an answer
MAX_LOG = 2**20  # characters that such a process may add to the log of the run
Describe = Callable[[Path], str]  # returns the caption of an image file; "" for a file that is not an image


def caption(run: Run) -> None:
    """Write the captions that a run asks for; a run that is stopped, or whose model fails, keeps those that it has.

    Raises:
        UserError: something that the user can change, usually the model.
        StopRequestedError: the run was asked to stop.
    """
    settings = captioning.load(run)
    files = captioning.images_to_caption(settings)
    run.progress(_("Loading the caption model"), 0, 1)
    with _by_server(settings) if settings.server else _by_model(run, settings) as (describe, device):
        captions = captioning.read_captions(run)
        run.report(events.Started(step=0, steps=len(files), pid=psutil.Process().pid, device=device))
        try:
            for number, path in enumerate(files):
                run.progress(_("Writing captions"), number, len(files))
                if path.name not in captions:
                    captions[path.name] = describe(path)
                if number % SAVE_EVERY == 0:
                    captioning.save(run, captions)
        except (StopRequestedError, UserError):
            captioning.finish(run, settings, captions)
            raise
        captioning.finish(run, settings, captions)
    run.report(events.Finished(step=len(files), export=""))


@contextmanager
def _by_server(settings: CaptionConfig) -> Iterator[tuple[Describe, str]]:
    """Yield what asks a server about an image; it needs no device here."""
    captioner = server.load(settings.with_length(kinds.SERVER.tokens))

    def describe(path: Path) -> str:
        try:
            image = images.decode(path.read_bytes())
        except (UserError, FileNotFoundError):
            return ""
        return captioner(image)

    yield describe, ""


@contextmanager
def _by_model(run: Run, settings: CaptionConfig) -> Iterator[tuple[Describe, str]]:
    """Yield what asks a model about an image, and its device; the model's process ends with this.

    Raises:
        UserError: the model cannot be used.
        RuntimeError: it failed in another way.
    """
    if caution := confinement.caution():
        run.warn(caution)
    nvidia.make_devices()  # the process may not
    with tempfile.TemporaryDirectory(prefix="limner-captions-") as folder:
        command = confinement.command(["trainer.captioning.models", folder], [Path(folder)])
        pipe = processes.PIPE
        with processes.start(command, stdin=pipe, stdout=pipe, stderr=pipe, outlives=True) as process:
            assert process.stderr
            logging = threading.Thread(target=_log, args=(process.stderr,), daemon=True)
            logging.start()
            try:
                device = _ask(process, settings.model_dump(mode="json"))["device"]
                yield lambda path: str(_ask(process, str(path))["caption"]), str(device)
            finally:
                process.kill()
                logging.join()
                with suppress(OSError):  # what was not sent cannot be sent any more
                    process.communicate()


def _ask(process: subprocess.Popen[str], request: object) -> dict[str, Any]:
    """Send a request to the process of a model, and return its answer.

    Raises:
        UserError: the model cannot be used.
        RuntimeError: it failed in another way.
    """
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = foreign_text.parse_json(process.stdout.readline(MAX_LINE))
    except (OSError, ValueError):  # it has ended, or answered with something else
        answer = None
    if not isinstance(answer, dict):
        raise UserError(
            "The process of the caption model ended without an answer.",
            "There may be too little memory for it: choose a smaller model. The log of the run may say more.",
        )
    if "failure" in answer:
        raise RuntimeError(str(answer["failure"]))
    if "error" in answer:
        raise UserError(str(answer["error"]), str(answer.get("remedy", "")))
    return answer


def _log(errors: IO[str]) -> None:
    """Pass on what a process says, without what would control a terminal, and not more than a log should have."""
    left = MAX_LOG
    while line := errors.readline(MAX_LINE):
        if left > 0:
            print("".join(letter for letter in line if letter.isprintable()), file=sys.stderr)
        left -= len(line)
