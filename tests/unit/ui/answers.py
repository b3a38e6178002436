"""Values of the page's tabs, as their handlers get them, and a painter that only takes notes."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.config import PictureConfig
from ui.tabs import train, try_out
from ui.widgets import settings_form

FILLED = settings_form.fill(train.ENTRIES, "character", "micro", {})
FORM = FILLED.values


def given(
    project: str = "rin", preset: str = "character", name: str = "rin", trigger: str = "miraxo", **changes: object
) -> list[Any]:
    values = [changes.get(entry.id, value) for entry, value in zip(train.ENTRIES, FORM, strict=True)]
    return [project, preset, name, trigger, "micro", asdict(FILLED), *values]


def answers(**changes: object) -> train.Answers:
    return train.Answers.of(*given(**changes))


def asked_for(adapter: str, **changes: Any) -> try_out.Asked:  # noqa: ANN401 - a field of any kind
    values = {
        "adapter": adapter, "prompt": "miraxo", "strength": 1.0, "view": "one", "seed": 1.0, "fresh": False,
        "steps": 20.0, "guidance": 3.0, "size": "", "negative": "", "last": [], "base": "",
    }  # fmt: skip
    return try_out.Asked(**(values | changes))


class FakePainter:
    def __init__(self) -> None:
        self.asked = []
        self.given_up = 0

    def paint(self, picture: PictureConfig) -> Iterator[tuple[int, int]]:
        self.asked.append(picture)
        yield 0, 2
        yield 1, 2
        Path(picture.out).write_bytes(b"png")
