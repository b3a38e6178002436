"""Memory of the page between visits, in `outputs/.page.json`: the current project, and each project's answers.

It is not essential: without the file, the answers are guessed from the dataset.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from trainer import foreign_text, paths, storage
from trainer.data import caption_edits, checks, dataset
from trainer.data.dataset import Example
from ui.state.shared_reads import shared

PAGE = ".page.json"
EXAMPLE = "example-character"
NEARLY_ALL = 0.8  # share of the captions
ARTICLES = {"a", "an", "the"}
_LOCK = threading.Lock()


def project() -> str:
    """Return the project to show first: the last one used, else the example, else any, else ""."""
    known = dataset.names()
    last = str(_read().get("project", ""))
    for name in (last, EXAMPLE, *known):
        if name in known:
            return name
    return ""


def model_folders() -> list[str]:
    """Return the folders of other programs whose base models are listed too."""
    folders = _read().get("model_folders", [])
    return [str(folder) for folder in folders] if isinstance(folders, list) else []


def keeps_location() -> bool:
    """Return True if the place where photos were taken is kept in images that are added."""
    return _read().get("keep_location") is True


def remember_of_page(**values: str | bool | list[str]) -> None:
    """Remember what no project has for itself, by the names under which the functions above read it."""
    _save(lambda data: data | values)


def answer(project: str, key: str) -> str:
    """Return an answer of a project (`trigger`, `name`, `preset`, `base` and so on), or the best guess."""
    known = _read()["answers"].get(project, {})
    if key in known:
        return str(known[key])
    match key:
        case "trigger":
            return guess_trigger(captions(project))
        case "base" | "settings" | "class" | "without-trigger":
            return ""
        case "caption-model" | "caption-server" | "caption-server-model":
            return ""
        case "preset":
            return "style" if "style" in project.lower() else "character"
        case _:
            return project


def answered() -> list[str]:
    """Return the names of all projects that have answers, also of deleted ones."""
    return list(_read()["answers"])


def settings(project: str) -> dict[str, Any] | None:
    """Return the settings of a project as they were left in the form; None if what is remembered cannot be read."""
    try:
        data = foreign_text.parse_json(answer(project, "settings") or "{}")
    except foreign_text.ForeignTextError:
        return None
    return data if isinstance(data, dict) else None


def remember(project: str, key: str, value: str) -> None:
    """Remember an answer."""
    remember_computed(project, lambda: {key: value})


def settle(project: str, **guesses: str) -> None:
    """Remember answers that were guessed so far; those that were typed are stored in the order of typing."""

    def unknown() -> dict[str, str]:
        known = _read()["answers"].get(project, {})
        return {key: value for key, value in guesses.items() if key not in known}

    remember_computed(project, unknown)


def remember_computed(project: str, compute: Callable[[], Mapping[str, str]]) -> None:
    """Remember answers that depend on the remembered ones, which nobody changes meanwhile."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        known = data["answers"]
        return data | {"answers": known | {project: {**known.get(project, {}), **compute()}}}

    _save(change)


def examples(project: str) -> tuple[Example, ...]:
    """Return the examples of a project; none if it does not exist."""
    folder = paths.datasets() / project
    if not paths.is_name(project) or not folder.is_dir():
        return ()
    return shared(("examples", project), lambda: dataset.read(folder))


def captions(project: str) -> list[str]:
    """Return all captions of a project; none if it does not exist."""
    return [example.caption for example in examples(project)]


def guess_trigger(captions: list[str]) -> str:
    """Return the tag that nearly all captions share, the one they begin with or else the only one; "" for a class."""
    if len(captions) < 2:
        return ""
    tagged = [caption_edits.split_tags(caption) for caption in captions]
    firsts = Counter(tags[0] for tags in tagged if tags)
    counts = Counter(tag for tags in tagged for tag in set(tags))
    least = NEARLY_ALL * len(captions)
    shared = [tag for tag, number in counts.items() if number > least]
    guess = next((tag for tag in shared if firsts[tag] > least), shared[0] if len(shared) == 1 else "")
    words = {*guess.lower().split()} - ARTICLES
    return "" if words and words <= checks.NOUNS else guess


def _read() -> dict[str, Any]:
    """Return what is remembered, with the answers of each project that are whole."""
    data = foreign_text.read_own_table(paths.outputs() / PAGE)
    stored = data.get("answers")
    if not isinstance(stored, dict):
        stored = {}
    return data | {"answers": {project: answers for project, answers in stored.items() if isinstance(answers, dict)}}


def _save(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with _LOCK:
        paths.outputs().mkdir(parents=True, exist_ok=True)
        storage.write(paths.outputs() / PAGE, json.dumps(change(_read()), indent=1))
