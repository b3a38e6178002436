"""Automatic captions: the settings of a run that writes them, where such runs lie, and what becomes of their words.

A caption run is a run like any other, with folder, log, queue and stop. Its words are kept in its folder, and only at
its end they are put beside the pictures, as one change that can be taken back.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from trainer import config as configs
from trainer import paths, storage
from trainer.data import caption_edits, dataset
from trainer.data.captions import one_line, read_caption
from trainer.errors import UserError
from trainer.runs import Run
from trainer.schema import Section

FOLDER = ".captions"
SUGGESTED = "Salesforce/blip-image-captioning-large"
WORDS = "captions.json"
Existing = Literal["keep", "add", "replace"]


class CaptionConfig(Section):
    """One run that writes captions."""

    task: Literal["caption"] = Field("caption", description="Kind of task.")
    dataset: str = Field(min_length=1, max_length=1000, description="Name of a data set, or the path of a folder.")
    model: str = Field(
        min_length=1, max_length=1000,
        description="A model of transformers that writes captions (BLIP, GIT) or names tags (an image classifier): its "
        "folder, or its name on the Hugging Face hub.",
    )  # fmt: skip
    revision: str = Field("", max_length=100, description="Of a model from the hub; empty = the newest.")
    existing: Existing = Field("keep", description="Captions that are there: keep them, add to them, or replace them.")
    tokens: int = Field(40, ge=4, le=200, description="The longest that a caption may be, in tokens of the model.")
    threshold: float = Field(0.35, gt=0, lt=1, description="How sure a tagger has to be of a tag.")


def create(settings: CaptionConfig) -> Run:
    """Make the folder of a new run.

    Raises:
        UserError: there is no such data set, or no picture whose caption could be written.
    """
    if not wanted(settings):
        raise UserError("Every picture has a caption already.", "Choose to add to them or to replace them.")
    stem = f"{datetime.now():%Y-%m-%d_%H%M%S}_{paths.safe_name(Path(settings.dataset).name, 'pictures')}"[:60]
    folder, number = paths.outputs() / FOLDER / stem, 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{stem}-{number}")
    (folder / "ask").mkdir(parents=True)
    run = Run(folder)
    storage.write(run.config_file, configs.dump(settings))
    return run


def load(run: Run) -> CaptionConfig:
    """The settings of a run.

    Raises:
        UserError: they cannot be read.
    """
    return configs.check(CaptionConfig, configs.load_partial(run.config_file))


def newest(name: str) -> Run | None:
    """The caption run of a data set that was started last; None if there is none."""
    root = paths.outputs() / FOLDER
    for folder in sorted(root.iterdir(), reverse=True) if root.is_dir() else ():
        run = Run(folder)
        try:
            if load(run).dataset == name:
                return run
        except UserError:
            continue
    return None


def wanted(settings: CaptionConfig) -> list[Path]:
    """The pictures that a caption is to be written for."""
    pictures = dataset.image_files(dataset.find_folder(settings.dataset))
    if not pictures:
        raise UserError("There are no images in this dataset.", "Add some first.")
    return [path for path in pictures if settings.existing != "keep" or not read_caption(path)]


def words(run: Run) -> dict[str, str]:
    """Return the captions written so far, by the name of the image."""
    try:
        data = json.loads((run.folder / WORDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(text) for name, text in data.items()} if isinstance(data, dict) else {}


def keep(run: Run, written: dict[str, str]) -> None:
    """Keep what has been written so far."""
    storage.write(run.folder / WORDS, json.dumps(written, indent=1))


def put(settings: CaptionConfig, written: dict[str, str]) -> int:
    """Put what was written beside the pictures, as one change that can be taken back; returns how many changed.

    With `keep`, a caption that a person wrote in the meantime stays as it is.
    """
    folder = dataset.find_folder(settings.dataset)
    changes = []
    with dataset.captions_lock(folder):
        for path in dataset.image_files(folder):
            before, new = read_caption(path), one_line(written.get(path.name, ""))
            if not new or (settings.existing == "keep" and before):
                continue
            after = f"{before}, {new}" if settings.existing == "add" and before else new
            if after != before:
                changes.append(caption_edits.Edit(path.name, before, after))
        caption_edits.apply(folder, changes, "automatic captions")
    return len(changes)
