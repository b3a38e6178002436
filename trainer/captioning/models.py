"""Writes captions with a model of transformers: one that describes a picture in words, or one that names tags.

The model is read from safetensors files of a folder or of the hub's cache; no program that comes with it is run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image
from safetensors import SafetensorError

from trainer import captioning, devices
from trainer.base_models import detect
from trainer.captioning import SUGGESTED, CaptionConfig
from trainer.data import images
from trainer.errors import UserError
from trainer.i18n import say
from trainer.runs import Run, StopRequestedError, events

Writer = Callable[[Image.Image], str]
SAVED = 8  # pictures after which the words are saved
REMEDY = say(
    "Download one once, for example with: hf download {model}. Then give its name, or a folder with a model in "
    "safetensors form.",
    model=SUGGESTED,
)


def caption(run: Run) -> None:
    """Write the captions that a run asks for; a run that is stopped keeps those that it has.

    Raises:
        UserError: something that a person can change, the model above all.
        StopRequestedError: the run was asked to stop.
    """
    settings = captioning.load(run)
    pictures = captioning.wanted(settings)
    run.progress(say("Loading the caption model"), 0, 1)
    device = devices.best()
    write = load(settings, device)
    written = captioning.words(run)
    run.report(events.Started(step=0, steps=len(pictures), pid=psutil.Process().pid, device=str(device).upper()))
    try:
        for number, path in enumerate(pictures):
            run.progress(say("Writing captions"), number, len(pictures))
            if path.name not in written:
                written[path.name] = described(write, path)
            if number % SAVED == 0:
                captioning.keep(run, written)
    except StopRequestedError:
        captioning.keep(run, written)
        captioning.put(settings, written)
        raise
    captioning.keep(run, written)
    captioning.put(settings, written)
    run.report(events.Finished(step=len(pictures), export=""))


def described(write: Writer, path: Path) -> str:
    """The words for a picture; none for a file that is no picture or is gone."""
    try:
        image = images.decode(path.read_bytes())
    except (UserError, FileNotFoundError):
        return ""
    with torch.inference_mode():
        return write(image)


def load(settings: CaptionConfig, device: torch.device) -> Writer:
    """Load a captioning model; returns a function that writes the caption of an image.

    Raises:
        UserError: there is no such model here, or it is of a kind that writes no captions.
    """
    folder = locate(settings)
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        tags = any("ImageClassification" in name for name in kind.architectures or ())
        model_class = transformers.AutoModelForImageClassification if tags else transformers.AutoModelForImageTextToText
        options = {"local_files_only": True, "use_safetensors": True}
        model: Any = model_class.from_pretrained(folder, **options).to(device).eval()
        reads: Any = (transformers.AutoImageProcessor if tags else transformers.AutoProcessor).from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].replace(str(folder), folder.name)
        raise UserError(
            "The model {name!r} cannot be used for captions: {reason}", REMEDY, name=folder.name, reason=reason[:200]
        ) from error
    return _tagger(model, reads, settings) if tags else _describer(model, reads, settings)


def locate(settings: CaptionConfig) -> Path:
    """The folder of the model; from the hub it is fetched if need be and allowed.

    Raises:
        UserError: it is not here and cannot be fetched.
    """
    if not detect.is_hub_name(settings.model):
        folder = Path(settings.model).expanduser()
        if not folder.is_dir() or not detect.is_here(settings.model):
            raise UserError("There is no model {name!r} on this machine.", REMEDY, name=folder.name[:100])
        return folder
    try:
        return Path(
            snapshot_download(
                settings.model, revision=settings.revision or None, allow_patterns=["*.json", "*.txt", "*.safetensors"]
            )
        )
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError("The model {model!r} is not on this machine.", REMEDY, model=settings.model) from error


def _describer(model: Any, reads: Any, settings: CaptionConfig) -> Writer:  # noqa: ANN401 - transformers is untyped
    """Describes a picture in words, the likeliest of three beams."""

    def write(image: Image.Image) -> str:
        inputs = reads(images=image, return_tensors="pt").to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=settings.tokens, num_beams=3, do_sample=False)
        return str(reads.batch_decode(tokens, skip_special_tokens=True)[0]).strip()

    return write


def _tagger(model: Any, reads: Any, settings: CaptionConfig) -> Writer:  # noqa: ANN401 - transformers is untyped
    """Names the tags that a classifier is sure of, the surest first; of classes of which one must be, the likeliest."""
    single = model.config.problem_type == "single_label_classification"

    def write(image: Image.Image) -> str:
        logits = model(**reads(images=image, return_tensors="pt").to(model.device)).logits[0].float()
        sure = logits.softmax(0) if single else logits.sigmoid()
        order = sure.argsort(descending=True).tolist()
        found = order[:1] if single else [place for place in order if sure[place] > settings.threshold]
        return ", ".join(str(model.config.id2label[place]).replace("_", " ") for place in found)

    return write
