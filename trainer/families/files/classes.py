"""Classes of a family's pipeline and model, by what its spec says; the installed diffusers may be older than it."""

from importlib import import_module

import diffusers

from trainer.base_models.spec import FamilySpec
from trainer.devices import Untyped
from trainer.errors import UserError


def pipeline(spec: FamilySpec) -> Untyped:
    """Return the class of a family's pipeline: of diffusers, or its own.

    Raises:
        UserError: the installed diffusers is older than the family.
    """
    if spec.own_pipeline:
        return of_family(spec, spec.own_pipeline)
    kind = getattr(diffusers, spec.pipeline, None)
    if kind is None:
        raise _too_old(spec)
    return kind


def of_family(spec: FamilySpec, path: str) -> Untyped:
    """Return a class of a family by its module in `trainer.families` and its name.

    Raises:
        UserError: the installed diffusers is older than the family.
    """
    module, _, name = path.partition(".")
    try:
        return getattr(import_module(f"trainer.families.{module}"), name)
    except ImportError as error:
        raise _too_old(spec) from error


def _too_old(spec: FamilySpec) -> UserError:
    return UserError(
        "{family} needs a newer version of diffusers than {version}, which is installed.",
        "Update it with: pip install --upgrade diffusers",
        family=spec.title,
        version=diffusers.__version__,
    )
