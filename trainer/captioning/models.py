"""Write captions with a model of transformers: one that describes an image, or one that names tags.

The model is read from safetensors files of a folder or of the hub's cache; no code that comes with it is run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

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
from trainer.i18n import _
from trainer.runs import Run, StopRequestedError, events

Captioner = Callable[[Image.Image], str]
Untyped: TypeAlias = Any  # models and processors: transformers is untyped
SAVE_EVERY = 8  # images
REMEDY = _(
    "Download one, for example with: hf download {model}. Then enter its name, or the folder of a model in safetensors "
    "format.",
    model=SUGGESTED,
)


def caption(run: Run) -> None:
    """Write the captions that a run asks for; a run that is stopped keeps those that it has.

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
    except StopRequestedError:
        captioning.save(run, captions)
        captioning.apply(settings, captions)
        raise
    captioning.save(run, captions)
    captioning.apply(settings, captions)
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
    """Load a captioning model; returns a function that writes the caption of an image.

    Raises:
        UserError: there is no such model here, or it is not one that writes captions.
    """
    folder = locate(settings)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        is_tagger = any("ImageClassification" in name for name in config.architectures or ())
        if is_tagger:
            model_class, processor_class = transformers.AutoModelForImageClassification, transformers.AutoImageProcessor
        else:
            model_class, processor_class = transformers.AutoModelForImageTextToText, transformers.AutoProcessor
        model: Any = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
        processor: Any = processor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].replace(str(folder), folder.name)
        raise UserError(
            "The model {name!r} cannot be used for captions: {reason}", REMEDY, name=folder.name, reason=reason[:200]
        ) from error
    return _tagger(model, processor, settings) if is_tagger else _describer(model, processor, settings)


def locate(settings: CaptionConfig) -> Path:
    """Return the folder of the model; one of the hub is downloaded if needed and allowed.

    Raises:
        UserError: it is not here and cannot be downloaded.
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


def _describer(model: Untyped, processor: Untyped, settings: CaptionConfig) -> Captioner:
    """Return a function that describes an image: the most likely of three beams."""

    def describe(image: Image.Image) -> str:
        inputs = processor(images=image, return_tensors="pt").to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=settings.tokens, num_beams=3, do_sample=False)
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()

    return describe


def _tagger(model: Untyped, processor: Untyped, settings: CaptionConfig) -> Captioner:
    """Return a function that names tags above the threshold, the most likely first.

    If the classes exclude each other, it names the most likely one.
    """
    single = model.config.problem_type == "single_label_classification"

    def name_tags(image: Image.Image) -> str:
        inputs = processor(images=image, return_tensors="pt").to(model.device)
        logits = model(**inputs).logits[0].float()
        if single:
            classes = [int(logits.argmax())]
        else:
            probabilities = logits.sigmoid()
            order = probabilities.argsort(descending=True).tolist()
            classes = [number for number in order if probabilities[number] > settings.threshold]
        return ", ".join(str(model.config.id2label[number]).replace("_", " ") for number in classes)

    return name_tags
