"""The documentation says what the program says: its messages, its links, its commands."""

import errno
import re
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from trainer.errors import UserError
from ui.state import documentation
from ui.widgets import settings_form
from ui.widgets.handlers import help_link

USERS = sorted((CHECKOUT / "docs").glob("*.md"))
DEVELOPERS = sorted((CHECKOUT / "docs" / "development").glob("*.md"))
MEASUREMENTS = sorted((CHECKOUT / "benchmarks").glob("*.md"))
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *USERS, *DEVELOPERS, *MEASUREMENTS]
LONGEST = 2000  # words of a page for users, but for the generated list of all settings
# In emphasis like a label of our page, but of another program.
ELSEWHERE = ("Add LoRA", "Add Model", "Model Manager", "Load LoRA", "Load Checkpoint", "Lora", "Refresh")
ELSEWHERE += ("Settings", "Access Tokens", "Add python.exe to PATH", "More info", "Run anyway")
SOURCE = (CHECKOUT / "app.py").read_text(encoding="utf-8")
for kind in ("*.py", "static/*.*", "*.html", "problems.toml"):
    for folder in ("trainer", "ui", "limner_extensions"):
        SOURCE += "\n".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / folder).rglob(kind))


def test_a_message_that_is_explained_is_one_that_is_said() -> None:
    joined = re.sub(r'"\s*f?"', "", re.sub(r"\s*\n\s*", "", SOURCE))  # sentences that go over several lines
    explained = [part for parts, _anchor in documentation.messages() for part in parts]
    assert len(explained) > 40
    assert [part for part in explained if part not in joined] == []


def test_an_error_leads_to_what_explains_it() -> None:
    def place(error: Exception) -> str:
        return help_link(error).partition("#")[2].partition('"')[0]

    memory = UserError("There is not enough memory to load {name!r}.", "Close others.", name="a.safetensors")
    assert place(memory) == "out-of-memory-while-loading-a-model"
    assert place(UserError("There is not enough memory.", "")) == "cuda-out-of-memory"
    assert place(OSError(errno.ENOSPC, "full")) == "the-disk-is-full"
    assert place(RuntimeError("a fault of Limner")) == "something-went-wrong"
    assert help_link(UserError("This name is taken.", "Choose another.")) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for place, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if "://" not in place:
            there = (page.parent / place if place else page).read_text(encoding="utf-8")
            anchors = {documentation.anchor(head) for head in re.findall(r"^#+ (.+)$", there, re.M)}
            assert anchor in anchors, anchor
    for name in re.findall(r"`((?:trainer|ui|limner_extensions|tests|scripts)/[\w./-]+)`", text):
        assert (CHECKOUT / name).exists(), name


def test_the_readme_shows_the_way_to_every_page() -> None:
    readme, contributing = (page.read_text(encoding="utf-8") for page in PAGES[:2])
    index = (CHECKOUT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [link for link in ("(docs/README.md)", "(CONTRIBUTING.md)") if link not in readme] == []
    assert [page.name for page in USERS if page.name != "README.md" and f"({page.name})" not in index] == []
    assert all(f"docs/development/{page.name}" in contributing for page in DEVELOPERS)


def test_no_page_is_longer_than_a_reader_has_time_for() -> None:
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in USERS}
    assert {name: count for name, count in words.items() if count > LONGEST and name != "reference.md"} == {}


def test_what_looks_like_a_label_is_one_of_the_page() -> None:
    """Emphasis in the pages for users stands for labels, so a label that was renamed is found there."""
    entries = settings_form.entries()
    labels = {entry.title for entry in entries} | {entry.group for entry in entries} | set(ELSEWHERE)
    source = re.sub(r'"\s*\n\s*f?"', "", SOURCE).replace("{steps} ", "")
    others = re.compile(r"```.*?```|<!--.*?-->|`[^`\n]*`|\*\*.+?\*\*", re.DOTALL)
    for page in USERS:
        text = others.sub("", page.read_text(encoding="utf-8"))
        for emphasis in re.findall(r"(?<![*\w])\*([^*|\s][^*|]*?)\*(?![*\w])", text):
            named = {words.rstrip(" .") for words in " ".join(emphasis.split()).split(", ")}
            assert [label for label in named - labels if label not in source] == [], page.name


def test_each_promise_names_tests_that_are_there() -> None:
    text = (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")
    promises = re.findall(r"^\* \*\*(.+?)\*\*", text.partition("## Tests of the promises")[0], re.M)
    rows = re.findall(r"^\| (?!promise|---)(.+?) \| (.+) \|$", text, re.M)
    assert len(rows) == len(promises) >= 16
    for promise, (title, tests) in zip(promises, rows, strict=True):
        assert title.casefold().rstrip(".") in promise.casefold(), title
        for name, path in re.findall(r"\[`(\w+)(?:\.py)?`\]\((.+?)\)", tests):
            assert path.endswith(f"/{name}.py") or f"def {name}(" in (CHECKOUT / path).read_text(encoding="utf-8"), name
