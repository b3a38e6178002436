"""Example datasets of an installed package; a checkout has them in its `datasets/`."""

import os
import shutil

from trainer import paths

PACKAGED = paths.CODE / "trainer" / "examples"  # only in a wheel


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
