"""Values of the page's forms, as their handlers get them, and a sampler that only records what it is asked for."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.config import PictureConfig
from ui.state.answers import ENTRIES, Answers
from ui.tabs.sample_form import SampleForm
from ui.widgets import settings_form

FILLED = settings_form.fill(ENTRIES, "character", "micro", {})
FORM = FILLED.values


def form_values(
    project: str = "rin", preset: str = "character", name: str = "rin", trigger: str = "miraxo", **changes: object
) -> dict[str, Any]:
    """The components' values, as `Answers.from_form` gets them; `changes` by the ids of the widgets."""
    about = {"sent": None, "project": project, "preset": preset, "name": name, "trigger": trigger, "base": "micro"}
    settings_by_id = dict(zip([entry.id for entry in ENTRIES], FORM, strict=True))
    return {**about, "filled": asdict(FILLED), **settings_by_id, **changes}


def answers(**changes: object) -> Answers:
    return Answers.from_form(form_values(**changes))


def sample_form(adapter: str, **changes: Any) -> SampleForm:  # noqa: ANN401 - a field of any kind
    return SampleForm(**{"adapter": adapter, "prompt": "miraxo", "seed": 1.0, "steps": 20.0, **changes})


class FakeSampler:
    def __init__(self) -> None:
        self.requests: list[PictureConfig] = []
        self.notes: dict[str, list[str]] = {}

    def generate(self, request: PictureConfig) -> Iterator[tuple[int, int]]:
        self.requests.append(request)
        yield 0, 2
        yield 1, 2
        Path(request.out).write_bytes(b"png")
