"""The per-user proxy behind the security middleware, in place of the page if there are accounts."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from limner_extensions.people import accounts
from trainer import paths, storage
from trainer.errors import UserError
from ui import launch

if TYPE_CHECKING:
    from ui.server.security import App


def make(options: argparse.Namespace) -> "App | None":
    """Create the proxy, which needs neither Gradio nor torch; None if there are no accounts.

    Raises:
        UserError: the options or the environment do not go with accounts, or this system has no Unix sockets.
    """
    if not accounts.read():
        return None
    if os.environ.get("LIMNER_CLUSTER"):
        raise UserError(
            "--cluster is for a page without accounts: a cluster keeps nobody's files apart.",
            "Leave it out, or remove the accounts with limner remove-person.",
        )
    if os.environ.get("LIMNER_PASSWORD"):
        raise UserError(
            "LIMNER_PASSWORD sets one password for everyone, but people.toml has accounts with their own.",
            "Unset it, or remove the accounts with limner remove-person.",
        )
    if os.environ.get("LIMNER_NOTIFY"):
        raise UserError(
            "LIMNER_NOTIFY would send the previews of everyone to the same addresses.",
            "Unset it, or remove the accounts with limner remove-person.",
        )
    launch.choose_password(options, has_accounts=True)
    if sys.platform == "win32":
        raise UserError("Accounts work only on Linux and macOS.", "Remove people.toml to use Limner without accounts.")
    else:
        from limner_extensions.people.per_user_proxy import PerUserProxy
        from ui.server.security import SecurityMiddleware

        def room() -> int:
            return storage.usable_space(paths.home())  # of all users together; each page counts its own besides

        hosts = launch.allowed_hosts(options)
        return SecurityMiddleware(PerUserProxy(), accounts=accounts.read, upload_room=room, **hosts)
