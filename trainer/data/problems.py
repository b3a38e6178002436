"""Problems that a dataset can have: what each kind does to the adapter, and what to do about it (`problems.toml`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import foreign_text
from trainer.i18n import _, ngettext

Action = Literal["", "remove", "rename", "trigger", "background", "mask"]


@dataclass(frozen=True)
class Kind:
    """A kind of problem: title for the whole dataset, effect on the result, and remedy.

    In `title`, {n} is a count, and [one|many] depends on it; `action` is what the program itself can do about it. The
    texts are English here and are translated where they are shown.
    """

    title: str
    effect: str
    remedy: str
    action: Action = ""
    button: str = ""
    fatal: bool = False
    hint: bool = False  # good to know, but not a mistake
    excludes: bool = False  # files that people may take for part of the dataset are not trained

    @property
    def titles(self) -> tuple[str, str]:
        """The title for one and for many."""
        singular, plural = (re.sub(r"\[(.*?)\|(.*?)\]", rf"\{number}", self.title) for number in (1, 2))
        return singular, plural


KINDS = {name: Kind(**values) for name, values in foreign_text.read_toml(Path(__file__).with_suffix(".toml")).items()}


@dataclass(frozen=True)
class Problem:
    """Something about a dataset that the user should know; `name` is the file, "" for the whole dataset."""

    kind: str
    name: str
    message: str
    other: str = ""  # the file that this one is compared with

    @property
    def effect(self) -> str:
        """Effect of the problem on the adapter."""
        return _(KINDS[self.kind].effect)

    @property
    def remedy(self) -> str:
        """Advice on the problem."""
        return _(KINDS[self.kind].remedy)

    @property
    def fatal(self) -> bool:
        """True if the problem prevents training."""
        return KINDS[self.kind].fatal

    @property
    def hint(self) -> bool:
        """True if this is a remark rather than a mistake."""
        return KINDS[self.kind].hint

    @property
    def severity(self) -> int:
        """1 for a hint, 2 for a mistake, 3 if it prevents training."""
        if self.fatal:
            return 3
        return 1 if self.hint else 2


@dataclass(frozen=True)
class Group:
    """All problems of a kind: their title and the files they concern."""

    kind: str
    title: str
    names: tuple[str, ...]


def group_by_kind(problems: Sequence[Problem]) -> list[Group]:
    """Group problems by kind, in the order in which the kinds come."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    groups = []
    for kind, members in by_kind.items():
        names = tuple(problem.name for problem in members if problem.name)
        title = ngettext(*KINDS[kind].titles, len(names)) if names else members[0].message
        groups.append(Group(kind, title, names))
    return groups


def score_files(problems: Sequence[Problem]) -> dict[str, int]:
    """Score each file for sorting: the more and the more severe its problems, the higher."""
    scores: dict[str, int] = {}
    for problem in problems:
        scores[problem.name] = scores.get(problem.name, 0) + 10 ** (problem.severity - 1)
    return scores
