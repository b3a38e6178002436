"""Commands on recipes: settings of other trainers read as ours, and ours written for kohya's scripts."""

import sys
from pathlib import Path
from typing import Annotated

import tomlkit
import typer

from trainer import config, paths, recipes, storage
from trainer.cli.adapter_files import check_out
from trainer.cli.console import echo
from trainer.data import dataset
from trainer.errors import UserError

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
        str, typer.Option("--dataset", metavar="DATASET", help="What to train on; its size gives the steps of epochs.")
    ] = "",
) -> None:
    """Read the settings of another trainer, of a run or of an adapter, and say what differs."""
    images = len(dataset.image_files(dataset.find_folder(name))) if name else 0
    recipe = recipes.read(file, images)
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


@app.command("export-recipe")
def export_recipe(
    source: Annotated[Path, typer.Argument(metavar="CONFIG.toml|RUN", help="Config, or run folder.")],
    out: Annotated[Path, typer.Option(metavar="KOHYA.toml", help="File for --config_file of kohya's scripts.")],
) -> None:
    """Write settings for kohya's scripts, and say what they cannot express."""
    settings = config.load(source / "config.toml" if source.is_dir() else source)
    try:
        images = len(dataset.image_files(dataset.find_folder(settings.dataset)))
    except UserError:  # a config may be written for another machine
        images = 0
    exported = recipes.export(settings, images)
    for note in exported.notes:
        print(note, file=sys.stderr)
    check_out(out)
    storage.write(out, exported.text)
    echo(f"{out} is written.")
