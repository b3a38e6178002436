"""The documentation says what the program says: its messages, its links, its commands."""

import re
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

USERS = sorted((CHECKOUT / "docs").glob("*.md"))
DEVELOPERS = sorted((CHECKOUT / "docs" / "development").glob("*.md"))
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *USERS, *DEVELOPERS]
SOURCE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("trainer", "ui", "limner_extensions")
    for path in (CHECKOUT / folder).rglob("*.py")
) + (CHECKOUT / "app.py").read_text(encoding="utf-8")


def messages() -> list[str]:
    rows = (CHECKOUT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return [
        words for row in rows if row.startswith("| **") for words in re.findall(r"\*\*(.+?)\*\*", row.split(" | ")[0])
    ]


def test_a_message_that_is_explained_is_one_that_is_said() -> None:
    joined = re.sub(r'"\s*f?"', "", re.sub(r"\s*\n\s*", "", SOURCE))  # sentences that go over several lines
    assert len(messages()) > 20
    assert [words for words in messages() if words not in joined and words not in SOURCE] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for place, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if "://" not in place:
            there = (page.parent / place if place else page).read_text(encoding="utf-8")
            anchors = {
                re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.+)$", there, re.M)
            }
            assert anchor in anchors, anchor


def test_the_readme_shows_the_way_to_every_page() -> None:
    readme, contributing = (page.read_text(encoding="utf-8") for page in PAGES[:2])
    assert all(f"docs/{page.name}" in readme for page in USERS)
    assert all(f"docs/development/{page.name}" in contributing for page in DEVELOPERS)
    assert "(CONTRIBUTING.md)" in readme


def test_each_promise_names_tests_that_are_there() -> None:
    text = (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")
    promises = re.findall(r"^\* \*\*(.+?)\*\*", text.partition("## Tests of the promises")[0], re.M)
    rows = re.findall(r"^\| (?!promise|---)(.+?) \| (.+) \|$", text, re.M)
    assert len(rows) == len(promises) >= 16
    for promise, (title, tests) in zip(promises, rows, strict=True):
        assert title.casefold().rstrip(".") in promise.casefold(), title
        for name, path in re.findall(r"\[`(\w+)(?:\.py)?`\]\((.+?)\)", tests):
            assert path.endswith(f"/{name}.py") or f"def {name}(" in (CHECKOUT / path).read_text(encoding="utf-8"), name
