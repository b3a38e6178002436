"""Extensions: packages that add commands, jobs, places to run, panels and routes, and that the core never imports.

One is found by an entry point of the group `limner.extensions` that names an `Extension`, so that anybody can publish
one (see docs/development/extensions.md). This module imports nothing that reads the environment, which depends on what
the commands of extensions need.
"""

import importlib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

Loaded = Any  # whatever an extension names
GROUP = "limner.extensions"
LOG = logging.getLogger("limner")


@dataclass(frozen=True)
class Extension:
    """Additions of a package. Values are names such as "package.module:function", imported when they are needed."""

    name: str
    commands: str = ""  # a `typer.Typer`, whose commands join those of `limner`
    unattended: Collection[str] = ()  # its commands that other programs start, in the language of the page
    # Its commands that may use a network, each with the start of the option that allows it; "" = always.
    online: Mapping[str, str] = field(default_factory=dict)
    routes: str = ""  # a `fastapi.APIRouter` of the page
    # Functions that work on a run in a worker, by the `task` in its settings.
    jobs: Mapping[str, str] = field(default_factory=dict)
    # Functions of a run and an address that have it trained elsewhere and return the exit code, by the scheme of the
    # address; "" is for addresses without one.
    places: Mapping[str, str] = field(default_factory=dict)
    # Functions that fill a slot. The slots and their arguments are listed in docs/development/extensions.md.
    panels: Mapping[str, str] = field(default_factory=dict)


@cache
def installed() -> tuple[Extension, ...]:
    """Return the installed extensions, by name. One whose package is gone or broken is left out with a warning."""
    extensions = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            extension = entry.load()
        except Exception as error:  # of another author's code: it must not keep the program from starting
            LOG.warning("The extension %s cannot be used: %s", entry.name, error)
            continue
        if isinstance(extension, Extension):
            extensions.append(extension)
        else:
            LOG.warning("The extension %s cannot be used: %s is not an Extension", entry.name, entry.value)
    return tuple(extensions)


def load(name: str) -> Loaded:
    """Import an object by its name, "package.module:name"."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def named(kind: Literal["commands", "routes"]) -> list[Any]:
    """Return the objects that the extensions name in a field; those without one have none."""
    return [load(name) for own in installed() if (name := getattr(own, kind))]


def panels(slot: str) -> list[Callable[..., Any]]:
    """Return the functions that fill a slot, in the order of the extensions' names."""
    return [load(extension.panels[slot]) for extension in installed() if slot in extension.panels]


def job(task: str) -> Callable[..., None]:
    """Return the function that works on runs of a task.

    Raises:
        UserError: no installed extension has it.
    """
    from trainer.errors import UserError

    if function := _find("jobs", task):
        return function
    raise UserError("No installed extension does {task!r}.", "Install the extension that this run needs.", task=task)


def place(address: str) -> Callable[..., int]:
    """Return the function that has runs trained at an address.

    Raises:
        UserError: no installed extension has it.
    """
    from trainer.errors import UserError

    scheme, mark, _ = address.partition("://")
    if (function := _find("places", scheme if mark else "")) and (mark or re.fullmatch(r"\S+:\d+(\?\S*)?", address)):
        return function
    raise UserError(
        "No installed extension sends runs to {address}.",
        "Check the address, or install the extension for it.",
        address=address,
    )


def _find(kind: str, key: str) -> Callable[..., Any] | None:
    return next((load(getattr(own, kind)[key]) for own in installed() if key in getattr(own, kind)), None)
