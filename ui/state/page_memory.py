"""Memory of the page between visits, in `outputs/.page.json`: the current project, and each project's answers.

Nothing here is needed: without the file the answers are guessed from the data set.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from trainer import paths, storage
from trainer.data import caption_edits, dataset
from trainer.data.captions import read_caption

EXAMPLE = "example-character"
NEARLY_ALL = 0.8  # share of the captions
_LOCK = threading.Lock()


def project() -> str:
    """The project to show first: the last one used, else the shipped example, else any, else none."""
    known = dataset.names()
    last = str(_load().get("project", ""))
    if last in known:
        return last
    return EXAMPLE if EXAMPLE in known else (known[0] if known else "")


def remember_project(name: str) -> None:
    """Show this project first the next time."""
    _save(lambda data: data | {"project": name})


def answer(project: str, key: str) -> str:
    """Return a project's answer (`trigger`, `name`, `preset`, `base` and so on), or the best guess."""
    answers = _load().get("answers", {}).get(project, {})
    if key in answers:
        return str(answers[key])
    match key:
        case "trigger":
            return guess_trigger(captions(project))
        case "base" | "settings" | "class" | "caption-model" | "without-trigger":
            return ""
        case "preset":
            return "style" if "style" in project.lower() else "character"
        case _:
            return project


def remember(project: str, key: str, value: str) -> None:
    """Keep an answer."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        answers = data.get("answers", {})
        return data | {"answers": answers | {project: answers.get(project, {}) | {key: value}}}

    _save(change)


def captions(project: str) -> list[str]:
    """All captions of a project; none if it is not there."""
    folder = paths.datasets() / project
    if not paths.NAME.fullmatch(project) or not folder.is_dir():
        return []
    return [read_caption(path) for path in dataset.image_files(folder)]


def guess_trigger(captions: list[str]) -> str:
    """Return the tag that nearly all captions share: the one they begin with, or else the only one."""
    if len(captions) < 2:
        return ""
    tagged = [caption_edits.split_tags(caption) for caption in captions]
    firsts = Counter(tags[0] for tags in tagged if tags)
    shared = [tag for tag, number in Counter(tag for tags in tagged for tag in set(tags)).items()
              if number > NEARLY_ALL * len(captions)]  # fmt: skip
    leading = [tag for tag in shared if firsts[tag] > NEARLY_ALL * len(captions)]
    return leading[0] if leading else shared[0] if len(shared) == 1 else ""


def _load() -> dict[str, Any]:
    try:
        data = json.loads((paths.outputs() / ".page.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    answers = data.get("answers")
    known = answers.items() if isinstance(answers, dict) else ()
    return data | {"answers": {project: told for project, told in known if isinstance(told, dict)}}


def _save(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with _LOCK:
        paths.outputs().mkdir(parents=True, exist_ok=True)
        storage.write(paths.outputs() / ".page.json", json.dumps(change(_load()), indent=1))
