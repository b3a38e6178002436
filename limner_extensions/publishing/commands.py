"""Command that makes a folder to publish."""

from pathlib import Path
from typing import Annotated

import typer

from limner_extensions.publishing import publishing
from trainer.cli.adapter_files import check_out
from trainer.cli.console import echo
from trainer.cli.run_queue import RunName, find

app = typer.Typer()


@app.command()
def publish(
    run: RunName,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder to make (default: NAME).")] = None,
    push: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Upload it to this repository on the Hugging Face Hub.")
    ] = "",
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a repository that does not exist yet.")
    ] = False,
) -> None:
    """Make a folder to publish: adapter, model card, samples and checksums; upload it only with --push."""
    trained = find(run)
    folder = to or Path(trained.config().name)
    check_out(folder)
    publishing.write_folder(trained, folder)
    echo(f"{folder} is ready to be published. Add a license to its README.md.")
    if push:
        from limner_extensions.publishing import hub_upload

        uploaded = hub_upload.push(folder, push, public=public)
        echo(f"Uploaded: {uploaded.url}")
        if uploaded.kept_card:
            echo("The repository has a README.md already, which was left as it is.")
