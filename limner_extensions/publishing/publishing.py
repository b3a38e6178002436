"""The folder to publish of a finished run: adapter, model card, samples, settings and checksums.

NAME.safetensors                 the adapter
pytorch_lora_weights.safetensors the same in the format of PEFT and diffusers, if the run wrote it
README.md                        the model card
samples/1.png                    the newest preview of each prompt, without metadata
settings.toml                    all settings, without paths
SHA256SUMS                       for `sha256sum -c`; the card is not in it, as it is there to be edited
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from limner_extensions.publishing import model_card, previews
from limner_extensions.publishing.model_card import Sample
from trainer import config, runs, storage
from trainer.data import images
from trainer.errors import UserError
from trainer.runs import Run, backup

SAMPLES = "samples"
PEFT = "pytorch_lora_weights.safetensors"
SUMS = "SHA256SUMS"
PIECE = 2**20
Contents = Mapping[str, bytes | Path]  # content, or a file that holds it, by its path in the folder


def contents(run: Run) -> Contents:
    """Return the files to publish.

    Raises:
        UserError: the run has no finished adapter file, or its settings cannot be read.
    """
    view, export = runs.look(run), run.export
    if not view.state.export or not storage.is_regular_file(export):
        raise UserError("This run has no finished adapter file.", "Publish it once it has finished.")
    public = config.without_paths(run.config())
    files: dict[str, bytes | Path] = {export.name: export}
    as_peft = run.folder / "peft" / PEFT
    if storage.is_regular_file(as_peft):
        files[PEFT] = as_peft
    adapters = {name: storage.sha256(path) for name, path in files.items() if isinstance(path, Path)}
    samples, pictures = _samples(view)
    files |= pictures
    files["settings.toml"] = config.dump(public).encode()
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if isinstance(data, bytes)}
    files[SUMS] = "".join(f"{checksum}  {name}\n" for name, checksum in (adapters | checksums).items()).encode()
    programs = _programs(view)
    files[model_card.NAME] = model_card.card(public, view.state.exported, samples, programs, adapters).encode()
    return files


def _programs(view: runs.View) -> list[str]:
    """Return the programs that load the adapter file."""
    checks = (verified for verified in view.state.verified if verified.file == view.run.export.name)
    return [program for verified in checks for program, loads, _words in verified.verdicts if loads]


def _samples(view: runs.View) -> tuple[list[Sample], dict[str, bytes]]:
    """Return the newest preview of each prompt that shows what the file holds: that of a run may be of an earlier step.

    They are decoded and encoded again, so that no metadata come along.
    """
    samples: list[Sample] = []
    pictures: dict[str, bytes] = {}
    for row in previews.by_prompt(view).values():
        steps = [step for step in row if step <= view.state.exported]
        if not steps:
            continue
        newest = row[max(steps)]
        try:
            picture = images.png(images.decode((view.run.folder / newest.file).read_bytes()))
        except UserError:  # damaged
            continue
        name = f"{SAMPLES}/{len(samples) + 1}.png"
        samples.append(Sample(name, newest.prompt, newest.seed))
        pictures[name] = picture
    return samples, pictures


def write_folder(run: Run, folder: Path) -> None:
    """Write the files to publish to a new folder.

    Raises:
        UserError: as `contents`, or there is such a folder already.
    """
    files = contents(run)

    def fill(target: Path) -> None:
        for name, content in files.items():
            path = target / name
            path.parent.mkdir(exist_ok=True)
            storage.write_unsynced(path, _pieces(content))
        storage.sync_folder(target / SAMPLES if (target / SAMPLES).is_dir() else target)

    try:
        storage.create_folder(folder, fill)
    except FileExistsError:
        raise UserError("There is already a folder {name!r}.", "Choose another one.", name=folder.name) from None


def write_zip(run: Run, file: Path) -> None:
    """Write the files to publish as a zip, in a folder of the adapter's name.

    Raises:
        UserError: as `contents`.
    """
    backup.write_zip(file, run.export.stem, contents(run))


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
