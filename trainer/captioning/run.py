"""Caption runs: their settings and folders, and applying the captions that they write.

A caption run is a run like any other, with folder, log, queue and stop. Its captions are saved in its folder, and only
at its end they are written beside the images, as a single change that can be undone.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from trainer import config as configs
from trainer import foreign_text, paths, runs, storage
from trainer.data import caption_edits, dataset
from trainer.data.captions import one_line, read_text
from trainer.errors import UserError
from trainer.runs import Run
from trainer.schema import Section

FOLDER = ".captions"
CAPTIONS = "captions.json"
Existing = Literal["keep", "add", "replace"]
Result = Literal["save", "review", "none"]
Category = Literal["general", "character", "rating"]
CATEGORIES: dict[Category, int] = {"general": 0, "character": 4, "rating": 9}  # numbers in the list of a WD14 tagger
FlorenceTask = Literal["caption", "detailed_caption", "more_detailed_caption"]
PROMPT = "Describe this image in one sentence, as a caption."


class CaptionConfig(Section):
    """One run that writes captions."""

    task: Literal["caption"] = Field("caption", description="Kind of task.")
    dataset: str = Field(min_length=1, max_length=1000, description="Name of a dataset, or the path of a folder.")
    model: str = Field(
        min_length=1,
        max_length=1000,
        description="A model that writes captions or tags: its folder, its name on the Hugging Face hub, or, with a "
        "server, its name there.",
    )
    revision: str = Field("", max_length=100, description="Of a model from the hub; empty = the newest.")
    server: str = Field(
        "", max_length=500, description="Address of an OpenAI-compatible server that writes the captions; empty = none."
    )
    existing: Existing = Field("keep", description="Keep existing captions, add to them, or replace them.")
    result: Result = Field("save", description="Save the captions, keep them for review, or only record them.")
    tokens: int = Field(
        0, ge=0, le=2000, description="Maximum length of a caption, in tokens of the model; 0 = what suits the model."
    )
    threshold: float = Field(0.35, gt=0, lt=1, description="Minimum probability of a tag.")
    character_threshold: float = Field(0.85, gt=0, lt=1, description="Minimum probability of the tag of a character.")
    categories: tuple[Category, ...] = Field(
        ("general", "character"), description="Kinds of tags that a WD14 tagger names."
    )
    blacklist: str = Field("", description="Tags that are left out, separated by commas.")
    florence_task: FlorenceTask = Field("detailed_caption", description="What Florence-2 is asked for.")
    prompt: str = Field(PROMPT, min_length=1, description="What a server is asked.")

    @property
    def task_token(self) -> str:
        """The token of Florence-2's task, such as <DETAILED_CAPTION>."""
        return f"<{self.florence_task.upper()}>"

    def with_length(self, tokens: int) -> "CaptionConfig":
        """Return the settings with a maximum length of captions, unless they have one."""
        return self if self.tokens else self.model_copy(update={"tokens": tokens})


def create(settings: CaptionConfig) -> Run:
    """Create the folder of a new run.

    Raises:
        UserError: there is no such dataset, or it has no image to caption.
    """
    if not images_to_caption(settings):
        raise UserError("Every image already has a caption.", "Choose to add to them or to replace them.")
    name = paths.safe_name(Path(settings.dataset).name, "pictures")
    run = Run(runs.new_folder(paths.outputs() / FOLDER, name))
    (run.folder / "ask").mkdir()
    storage.write(run.config_file, configs.dump(settings))
    return run


def load(run: Run) -> CaptionConfig:
    """Read the settings of a run.

    Raises:
        UserError: they cannot be read.
    """
    return configs.check(CaptionConfig, configs.load_partial(run.config_file))


def newest(name: str) -> Run | None:
    """Return the caption run of a dataset that was created last; None if there is none."""
    for folder in sorted((paths.outputs() / FOLDER).glob("*"), reverse=True):
        run = Run(folder)
        try:
            if load(run).dataset == name:
                return run
        except UserError:
            continue
    return None


def images_to_caption(settings: CaptionConfig) -> list[Path]:
    """Return the images that need a caption.

    Raises:
        UserError: there is no such dataset, or it has no images.
    """
    images = dataset.image_files(dataset.find_folder(settings.dataset))
    if not images:
        raise UserError("There are no images in this dataset.", "Add some first.")
    if settings.existing == "keep":
        return [path for path in images if not read_text(path)]
    return images


def read_captions(run: Run) -> dict[str, str]:
    """Return the captions written so far, by the name of the image."""
    try:
        data = foreign_text.read_json(run.folder / CAPTIONS, most=foreign_text.MAX_OWN)
        return {str(name): str(text) for name, text in data.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def save(run: Run, captions: dict[str, str]) -> None:
    """Save the captions written so far, in the run's folder."""
    storage.write(run.folder / CAPTIONS, json.dumps(captions, indent=1))


def finish(run: Run, settings: CaptionConfig, captions: dict[str, str]) -> None:
    """Save the captions of a run that ends, and do with them what it asks for."""
    save(run, captions)
    if settings.result == "save":
        apply(settings, captions)
    elif settings.result == "review":
        folder = dataset.find_folder(settings.dataset)
        caption_edits.propose(folder, _edits(folder, settings, captions))


def apply(settings: CaptionConfig, captions: dict[str, str]) -> int:
    """Write captions beside the images, as a single change that can be undone; returns how many changed.

    With `keep`, a caption that the user wrote in the meantime stays as it is.
    """
    folder = dataset.find_folder(settings.dataset)
    with dataset.captions_lock(folder):
        edits = _edits(folder, settings, captions)
        caption_edits.apply(folder, edits, caption_edits.PROPOSALS_TITLE)
    return len(edits)


def _edits(folder: Path, settings: CaptionConfig, captions: dict[str, str]) -> list[caption_edits.Edit]:
    """Return the changes that captions make to those that are there."""
    edits = []
    for path in dataset.image_files(folder):
        before, after = read_text(path), one_line(captions.get(path.name, ""))
        if not after or (settings.existing == "keep" and before):
            continue
        if settings.existing == "add" and before:
            if before.endswith(f", {after}"):  # added before the run was stopped
                continue
            after = f"{before}, {after}"
        if after != before:
            edits.append(caption_edits.Edit(path.name, before, after))
    return edits
