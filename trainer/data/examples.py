"""Example datasets of an installed package; a checkout has them in its `datasets/`."""

import os
import shutil
from pathlib import Path

from trainer import paths

PACKAGED = paths.CODE / "trainer" / "examples"  # only in a wheel


def find(name: str) -> Path:
    """Return the folder of an example, in the checkout or in the installed package."""
    return (PACKAGED if PACKAGED.is_dir() else paths.CODE / "datasets") / name


def install() -> None:
    """Copy the examples into a home folder that has no datasets yet."""
    datasets = paths.datasets()
    if datasets.exists() or not PACKAGED.is_dir():
        return
    datasets.parent.mkdir(parents=True, exist_ok=True)
    partial = datasets.with_name(f"datasets.tmp-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(PACKAGED, partial)
    partial.rename(datasets)
