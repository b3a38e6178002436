"""Commands on recipes: settings of other trainers read as ours, and ours written for kohya's scripts."""

import sys
from pathlib import Path
from typing import Annotated

import tomlkit
import typer

from limner_extensions.recipes import reading
from limner_extensions.recipes.kohya import writing
from trainer import config, paths, storage
from trainer.cli.adapter_files import check_out
from trainer.cli.console import echo
from trainer.config import subject_lines
from trainer.data import dataset
from trainer.data.dataset import Subject
from trainer.errors import UserError
from trainer.runs import Run

app = typer.Typer()


@app.command("import-recipe")
def import_recipe(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Settings of another trainer, a run folder, or an adapter.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="CONFIG.toml", help="Config to write (default: print it).")
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--dataset",
            metavar="DATASET",
            help="What to train on, in place of the datasets in the file; its size gives the steps of epochs.",
        ),
    ] = "",
) -> None:
    """Read the settings of another trainer, of a run or of an adapter, and say what differs."""
    images = len(dataset.image_files(dataset.find_folder(name))) if name else 0
    recipe = reading.read(file, images, datasets=not name)
    own = {"name": paths.safe_name(out.stem if out else file.stem, "recipe"), **({"dataset": name} if name else {})}
    text = tomlkit.dumps({**own, **recipe.settings})
    for note in recipe.notes:
        print(note, file=sys.stderr)
    if out is None:
        echo(text.rstrip())
        return
    check_out(out)
    storage.write(out, text)
    echo(f"{out} has {len(recipe.mapped)} settings of {recipe.source}.")


def named_datasets(folder: Path) -> list[str]:
    """Describe the datasets that files for kohya's `--dataset_config` in a folder name, as lines of `subjects`."""
    named = []
    for file in sorted(folder.glob("*.toml")):
        try:
            settings = reading.read(file, datasets=True).settings
        except UserError:  # of another program
            continue
        if "dataset" in settings:
            own = {key: settings.get(key, "") for key in ("dataset", "trigger", "class_word")}
            main = Subject(**own, regularization=settings.get("regularization", {}).get("dataset", ""))
            lines = [subject_lines.write(main), *settings.get("subjects", [])]
            named.append(f"{file.name} names {', '.join(lines)}; limner import-recipe reads it.")
    return named


@app.command("export-recipe")
def export_recipe(
    source: Annotated[Path, typer.Argument(metavar="CONFIG.toml|RUN", help="Config, or run folder.")],
    out: Annotated[Path, typer.Option(metavar="KOHYA.toml", help="File for --config_file of kohya's scripts.")],
    datasets: Annotated[
        Path | None,
        typer.Option(metavar="DATASETS.toml", help="Also write the datasets, with their paths, for --dataset_config."),
    ] = None,
) -> None:
    """Write settings for kohya's scripts, and say what they cannot express."""
    settings = config.load(Run(source).config_file if source.is_dir() else source)
    try:
        images = len(dataset.read_subjects(settings.taught))
    except UserError:  # a config may be written for another machine
        images = 0
    exported = writing.export(settings, images, datasets=datasets is not None)
    for note in exported.notes:
        print(note, file=sys.stderr)
    for file, text in ((out, exported.text), (datasets, exported.datasets)):
        if file is not None:
            check_out(file)
            storage.write(file, text)
            echo(f"{file} is written.")
