"""Commands that add and remove accounts."""

import typer

from limner_extensions.people import accounts
from trainer.i18n import _

app = typer.Typer()


@app.command("add-person")
def add_person(name: str) -> None:
    """Create an account with a workspace of its own, or give it a new password, which is printed only here."""
    print(_("Password of {name}: {password}", name=name, password=accounts.add(name)))


@app.command("remove-person")
def remove_person(name: str) -> None:
    """Remove an account. Its folder stays."""
    accounts.remove(name)
    folder = accounts.home(name)
    print(_("{name} can no longer log in. Their files stay in {folder}.", name=folder.name, folder=folder))
