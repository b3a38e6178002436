"""Show a run in TensorBoard: its events as scalars and images of the folder `tensorboard` inside the run."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from trainer import config
from trainer.errors import UserError
from trainer.runs import events
from trainer.runs.run import Run

FOLDER = "tensorboard"
MAX_TAG = 80  # characters of a prompt that name its images


@contextmanager
def shown(run: Run) -> Iterator[Run]:
    """Yield the run with a listener that also writes its events for TensorBoard.

    A worker that starts after some steps replaces what was written of the steps that it repeats.

    Raises:
        UserError: the package tensorboard is not installed.
    """
    try:
        library = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise UserError(
            "TensorBoard is not installed.",
            "Install it with: pip install 'limner[tensorboard]', or turn training.tensorboard off.",
        ) from None
    writer: Any = None  # since the latest start of the loop

    def write(event: events.Event) -> None:
        nonlocal writer
        if run.listener:
            run.listener(event)
        if isinstance(event, events.Started):
            if writer:
                writer.close()
            writer = library.SummaryWriter(str(run.folder / FOLDER), purge_step=event.step + 1)
            writer.add_text("settings", f"```\n{config.dump(run.config())}```", event.step)
        elif writer:
            _add(writer, run, event)

    try:
        yield replace(run, listener=write)
    finally:
        if writer:
            writer.close()


def _add(writer: Any, run: Run, event: events.Event) -> None:  # noqa: ANN401 - an optional package
    if isinstance(event, events.Step):
        scalars = {
            "loss": event.loss,
            "learning rate": event.learning_rate,
            "gradient norm": event.grad_norm,
            "seconds per step": event.seconds,
        }
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, event.step)
    elif isinstance(event, events.HeldOut):
        writer.add_scalar("loss of held-out images", event.loss, event.step)
    elif isinstance(event, events.Preview):
        with Image.open(run.folder / event.file) as image:
            pixels = np.asarray(image.convert("RGB"))
        writer.add_image(f"{event.prompt[:MAX_TAG]}, seed {event.seed}", pixels, event.step, dataformats="HWC")
        writer.flush()
