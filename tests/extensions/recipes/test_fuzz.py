"""Damaged recipes: each is read, or refused with a sentence."""

import json
from pathlib import Path

import pytest

from limner_extensions.recipes import reading
from tests.extensions.recipes.examples import GUI, RECIPES
from tests.hostile.test_fuzz import files, fuzz

__all__ = ["files"]

pytestmark = pytest.mark.timeout(300)


def test_recipes(home: Path, files: int) -> None:
    texts = {"json": json.dumps(GUI), **{Path(name).suffix[1:]: text for name, text in sorted(RECIPES.items())}}
    seeds = [f"{form}\n{text}".encode() for form, text in texts.items()]

    def read(data: bytes) -> None:
        form, _, text = data.partition(b"\n")
        suffix = form.decode(errors="replace") if form in (b"json", b"toml", b"yaml") else "json"
        path = home / "outputs" / f"x.{suffix}"
        path.write_bytes(text)
        reading.read(path, images=14)

    fuzz("recipes", seeds, read, files)
