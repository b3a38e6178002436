"""Write the captions of a caption run: load the model that its settings name, and ask it about each image.

Each kind of model has a file of its own. The model is read from files of a folder or of the hub's cache; no code that
comes with it is run.
"""

from pathlib import Path
from typing import Protocol

import psutil
import torch
from PIL import Image
from safetensors import SafetensorError

from trainer import captioning, devices
from trainer.captioning import SUGGESTED, CaptionConfig, chat, classifier, describer, florence, kinds, server, wd14
from trainer.data import images
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run, StopRequestedError, events

SAVE_EVERY = 8  # images


class Captioner(Protocol):
    """A model that writes captions."""

    def __call__(self, image: Image.Image) -> str:
        """Return the caption of an image in RGB; "" if there is nothing to say.

        Raises:
            UserError: it cannot answer, and would not for another image either.
        """


class Loader(Protocol):
    """Loads the model in a folder to a device."""

    def __call__(self, folder: Path, settings: CaptionConfig, device: torch.device, /) -> Captioner:
        """Return the model, ready to write captions.

        Raises:
            UserError: it cannot be used; other errors are explained by `load`.
        """


LOADERS: dict[kinds.Kind, Loader] = {
    kinds.DESCRIBER: describer.load,
    kinds.FLORENCE: florence.load,
    kinds.CHAT: chat.load,
    kinds.CLASSIFIER: classifier.load,
    kinds.WD14: wd14.load,
}


def caption(run: Run) -> None:
    """Write the captions that a run asks for; a run that is stopped, or whose model fails, keeps those that it has.

    Raises:
        UserError: something that the user can change, usually the model.
        StopRequestedError: the run was asked to stop.
    """
    settings = captioning.load(run)
    files = captioning.images_to_caption(settings)
    run.progress(_("Loading the caption model"), 0, 1)
    device = devices.best()
    captioner = load(settings, device)
    captions = captioning.read_captions(run)
    run.report(events.Started(step=0, steps=len(files), pid=psutil.Process().pid, device=str(device).upper()))
    try:
        for number, path in enumerate(files):
            run.progress(_("Writing captions"), number, len(files))
            if path.name not in captions:
                captions[path.name] = caption_file(captioner, path)
            if number % SAVE_EVERY == 0:
                captioning.save(run, captions)
    except (StopRequestedError, UserError):
        captioning.finish(run, settings, captions)
        raise
    captioning.finish(run, settings, captions)
    run.report(events.Finished(step=len(files), export=""))


def caption_file(captioner: Captioner, path: Path) -> str:
    """Return the caption of an image file; "" for a file that is not an image or is gone."""
    try:
        image = images.decode(path.read_bytes())
    except (UserError, FileNotFoundError):
        return ""
    with torch.inference_mode():
        return captioner(image)


def load(settings: CaptionConfig, device: torch.device) -> Captioner:
    """Load the model that the settings name.

    Raises:
        UserError: there is no such model here, or it is not one that writes captions.
    """
    if settings.server:
        return server.load(_with_length(settings, kinds.SERVER))
    folder = kinds.find(settings.model, settings.revision)
    if folder is None:
        raise UserError(
            "The caption model {name!r} is not on this machine.",
            "Download it with: limner download {suggested}. Or give the folder of one.",
            name=Path(settings.model).name[:100],
            suggested=settings.model if kinds.is_hub_name(settings.model) else SUGGESTED,
        )
    kind = kinds.look(folder)
    try:
        return LOADERS[kind](folder, _with_length(settings, kind), device)
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].replace(str(folder), folder.name)
        raise UserError(
            "The model {name!r} cannot be used for captions: {reason}",
            kinds.REMEDY,
            name=folder.name,
            reason=reason[:200],
        ) from error


def _with_length(settings: CaptionConfig, kind: kinds.Kind) -> CaptionConfig:
    """Return the settings with a maximum length of captions that suits the kind, unless they have one."""
    return settings if settings.tokens else settings.model_copy(update={"tokens": kind.tokens})
