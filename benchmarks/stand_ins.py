"""Import parts of other programs from checkouts, without what starts the whole program.

A checkout is named by an environment variable, `LIMNER_BENCH_COMFYUI` for ComfyUI. Packages that a program imports and
that are not installed, and its own modules that would start all of it, are replaced by empty ones.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


def variable(program: str) -> str:
    """Name of the environment variable that holds the path of a program's checkout."""
    return f"LIMNER_BENCH_{program.upper().replace('-', '_').replace('.', '')}"


@dataclass(frozen=True)
class Checkout:
    """A program's source, from the environment."""

    path: Path

    @classmethod
    def of(cls, program: str) -> "Checkout":
        return cls(Path(os.environ[variable(program)]))

    def add(self, *folders: str) -> None:
        sys.path[:0] = [str(self.path / folder) for folder in folders]


class Anything(type):
    """A class that has any attribute, which is itself, and whose calls return it; a function decorated by it stays."""

    def __getattr__(cls, name: str) -> Any:  # noqa: ANN401 - stands in for anything
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *given: Any, **_: Any) -> Any:  # noqa: ANN401 - stands in for anything
        return given[0] if len(given) == 1 and callable(given[0]) else cls

    def __getitem__(cls, _: object) -> Any:  # noqa: ANN401 - stands in for anything
        return cls


class Nothing(types.ModuleType):
    """An empty stand-in for a package that is not installed; any attribute of it is a class that does nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - stands in for anything
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        made = Anything(name, (), {"__init__": lambda *_, **__: None})
        setattr(self, name, made)
        return made


def importer() -> str:
    """File of the code that imports something."""
    frame = sys._getframe(2)
    while frame.f_back and ("importlib" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return frame.f_code.co_filename


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what nothing else finds: the packages that are named, or any that is imported below a folder."""

    def __init__(self, *packages: str, below: Path | None = None) -> None:
        self.packages, self.below = packages, below

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        allowed = any(f"{name}.".startswith(f"{package}.") for package in self.packages)
        allowed = allowed or (self.below is not None and importer().startswith(str(self.below)))
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if allowed else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Nothing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def stand_in(*packages: str, first: bool = False) -> None:
    sys.meta_path.insert(0 if first else len(sys.meta_path), StandIns(*packages))


def stub(name: str, **attributes: object) -> types.ModuleType:
    """A module with these attributes, in place of one of the program that would start all of it."""
    module = Nothing(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules.get(parent) or stub(parent), child, module)
    return module


def real(name: str, file: Path) -> types.ModuleType:
    """Import a module of a program from its file, below packages that are stand-ins."""
    if name in sys.modules and not isinstance(sys.modules[name], Nothing):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    spec.loader.exec_module(module)
    return module
