"""Caption models in a process of their own: load the one that the settings name, and ask it about each image.

Each kind of model has a file of its own. The model is read from files of a folder or of the hub's cache; no code that
comes with it is run. Requests are JSON lines on standard input, the settings first, then images by their paths; answers
are JSON lines on standard output.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError

from trainer import config, devices, foreign_text
from trainer.captioning import SUGGESTED, CaptionConfig, classifier, describer, kinds, wd14
from trainer.data import images
from trainer.errors import UserError

# Returns the caption of an image in RGB, "" if there is nothing to say. It raises a UserError if it cannot answer, and
# would not for another image either.
Captioner = Callable[[Image.Image], str]
# Loads the model in a folder to a device. `load` explains its errors.
Loader = Callable[[Path, CaptionConfig, torch.device], Captioner]
LOADERS: dict[kinds.Kind, Loader] = {
    kinds.DESCRIBER: describer.load_describer,
    kinds.FLORENCE: describer.load_florence,
    kinds.CLASSIFIER: classifier.load_classifier,
    kinds.WD14: wd14.load_wd14,
}


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
        return LOADERS[kind](folder, settings.with_length(kind.tokens), device)
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].replace(str(folder), folder.name)
        raise UserError(
            "The model {name!r} cannot be used for captions: {reason}",
            kinds.REMEDY,
            name=folder.name,
            reason=reason[:200],
        ) from error


def main() -> None:
    """Answer requests until standard input ends. Libraries write what they must to the folder of the arguments."""
    os.environ |= dict.fromkeys(("TMPDIR", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR"), sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries must not print between the answers

    def answer(**values: str) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        settings = config.check(CaptionConfig, foreign_text.parse_json(sys.stdin.readline()))
        device = devices.best()
        captioner = load(settings, device)
        answer(device=str(device).upper())
        for line in sys.stdin:
            answer(caption=caption_file(captioner, Path(foreign_text.parse_json(line))))
    except UserError as error:
        answer(error=error.message, remedy=error.remedy)
    except Exception as error:
        traceback.print_exc()
        answer(failure=f"{type(error).__name__}: {error}"[:2000])
