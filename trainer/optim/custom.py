"""Optimizers by the dotted name of their class, which a config of somebody else may name, too.

Importing a module runs it. So only packages are imported that somebody has installed on this machine: never a file in
the working directory, or one beside the config, whatever its name.
"""

import importlib
import importlib.util
import inspect
import json
import re
import site
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, Any

from trainer import foreign_text
from trainer.errors import UserError
from trainer.i18n import _

if TYPE_CHECKING:
    from torch.optim import Optimizer

NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)  # nothing private, nor `__main__`
_PATH = re.compile(r"(?<![\w.])(/|[A-Za-z]:\\)[^'\")]*")
REMEDY = _("Correct the settings of the optimizer, or choose another one.")


def parse(lines: Iterable[str]) -> dict[str, object]:
    """Return the arguments in lines such as `betas = [0.9, 0.99]`, whose values are TOML.

    Raises:
        ValueError: a line is not an argument, or it is one that Limner sets.
    """
    arguments: dict[str, object] = {}
    for line in lines:
        name, _equals, value = map(str.strip, line.partition("="))
        if name in ("params", "lr"):
            raise ValueError(_("{name} is set by Limner, leave it out", name=name))
        try:
            (parsed,) = foreign_text.parse_toml(f"value = {value}").values()
        except (foreign_text.ForeignTextError, ValueError):
            parsed = None
        if not name.isidentifier() or not isinstance(parsed, bool | int | float | str | list):
            raise ValueError(_("{line!r} is not an argument, such as weight_decay = 0.01", line=line[:100]))
        if isinstance(parsed, list):  # betas are a tuple in all optimizers
            parsed = tuple(parsed)
        arguments[name] = parsed
    return arguments


@contextmanager
def _explained(message: str, path: str) -> Iterator[None]:
    """Explain whatever a foreign class finds wrong, without paths of this machine."""
    try:
        yield
    except Exception as error:
        reason = _PATH.sub("...", f"{type(error).__name__}: {error}")[:300]
        raise UserError(message, REMEDY, path=path, reason=reason) from error


def construct(path: str, groups: list[dict[str, Any]], arguments: dict[str, object]) -> "Optimizer":
    """Construct the optimizer whose class has this dotted name.

    Raises:
        UserError: it cannot be imported, is not an optimizer, does not take an argument, or cannot train here.
    """
    optimizer_class = find_class(path)
    parameters = inspect.signature(optimizer_class).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise UserError("{path} does not take the argument {name}.", REMEDY, path=path, name=name)
    with _explained(_("{path} refuses its arguments ({reason})."), path):
        optimizer: Optimizer = optimizer_class(groups, **arguments)
    with _explained(_("{path} cannot take a step ({reason})."), path):
        plain = _plain_state(optimizer_class, groups[0], arguments)
    for name, value in plain.items():
        with _explained(_("{path} keeps a state that a checkpoint cannot hold ({reason})."), f"{path} ({name})"):
            json.dumps(value)
    return optimizer


def _plain_state(optimizer_class: "type[Any]", group: dict[str, Any], arguments: dict[str, object]) -> dict[str, Any]:
    """Return what an optimizer keeps of a weight besides tensors, after a step with a copy of one."""
    import torch

    weight = group["params"][0].detach().clone().requires_grad_()
    weight.grad = torch.ones_like(weight)
    with torch.random.fork_rng(devices=[]):
        optimizer = optimizer_class([{**group, "params": [weight]}], **arguments)
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.step()
    state = optimizer.state.get(weight, {})
    return {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}


def find_class(path: str) -> "type[Any]":
    """Import an optimizer's class from an installed package.

    Raises:
        UserError: no installed package has it, importing it fails, or it is not an optimizer.
    """
    import torch

    module_name, _dot, class_name = path.rpartition(".")
    package = path.partition(".")[0]
    if not is_installed(package):
        raise UserError(
            "No installed package has the module {package}, which {path} needs.",
            "Install the package with pip, or choose another optimizer.",
            package=package,
            path=path,
        )
    with _explained(_("{path} cannot be imported ({reason})."), path):
        optimizer_class = getattr(importlib.import_module(module_name), class_name)
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise UserError("{path} is not a subclass of torch.optim.Optimizer.", REMEDY, path=path)
    return optimizer_class


def is_installed(package: str) -> bool:
    """Return True if an import of this package would run the files of an installed distribution, not others."""
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    installed, imported = PathFinder.find_spec(package, folders), importlib.util.find_spec(package)
    if package not in packages_distributions() or not installed or not imported:
        return False
    return installed.origin is not None and installed.origin == imported.origin
