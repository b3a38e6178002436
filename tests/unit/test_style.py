"""A ratchet: figures of size and style that may only fall. Lower a maximum in the commit that makes its figure smaller.

Targets are in parentheses. A limit is no target for a single file: what belongs together stays together.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

CORE = ("trainer", "ui")
PROGRAM, ALL = (*CORE, "limner_extensions"), ("app.py", *CORE, "limner_extensions", "scripts")
ASKS = re.compile(r"(What|Whether|How|Where|Whose|Who|Which|Tell whether) ")
VAGUE = {"one", "found", "told", "said", "shown", "given", "asked"}  # names that do not say what they hold
PROSE = ("README.md", "docs")
Figure = Callable[[], Counter[str]]  # the figure of each file


@cache
def files(suffix: str, *places: str) -> list[str]:
    """List the tracked files below some places."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *places], cwd=CHECKOUT, capture_output=True, text=True)
    names = listed.stdout.split("\0") or [str(path) for place in places for path in Path(CHECKOUT, place).rglob("*")]
    return [name for name in names if name.endswith(suffix) and (CHECKOUT / name).is_file()]


@cache
def text(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


@cache
def nodes(name: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text(name))))


def lines(suffix: str, *places: str) -> Figure:
    return lambda: Counter({name: len(text(name).splitlines()) for name in files(suffix, *places)})


def matches(pattern: str, *places: str) -> Figure:
    return lambda: Counter({name: len(re.findall(pattern, text(name))) for name in files(".py", *places)})


def counted(count: Callable[[str], int], *places: str) -> Figure:
    return lambda: Counter({name: count(name) for name in files(".py", *places)})


def vague(name: str) -> int:
    """Count variables, loops and arguments of comprehensions with a name that says nothing."""
    return sum(
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE for node in nodes(name)
    )


def asking(name: str) -> int:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return sum(bool(ASKS.match(ast.get_docstring(node) or "")) for node in nodes(name) if isinstance(node, documented))


def conditional(name: str) -> int:
    return sum(isinstance(node, ast.IfExp) for node in nodes(name))


def positional(name: str) -> int:
    """Count functions that return lists or tuples of more than three values, which are told apart by their place."""
    functions = [node for node in nodes(name) if isinstance(node, ast.FunctionDef)]
    return sum(any(map(is_long, ast.walk(function))) for function in functions)


def is_long(node: ast.AST) -> bool:
    return isinstance(node, ast.Return) and isinstance(node.value, ast.List | ast.Tuple) and len(node.value.elts) > 3


def modules() -> Counter[str]:
    """Return the packages with more than 16 modules."""
    sizes = Counter(name.rpartition("/")[0] for name in files(".py", *PROGRAM) if not name.endswith("__init__.py"))
    return Counter({package: 1 for package, size in sizes.items() if size > 16})


def lengths(name: str) -> Iterator[int]:
    for node in nodes(name):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1


def longest_function() -> Counter[str]:
    return Counter({name: max(lengths(name), default=0) for name in files(".py", *PROGRAM)})


def per_thousand_words(pattern: str) -> float:
    code_tables_and_quotes = r"```.*?```|`[^`]*`|\|[^\n]*|\n> [^\n]*"
    prose = re.sub(code_tables_and_quotes, "", "\n".join(map(text, files(".md", *PROSE))), flags=re.S)
    return 1000 * len(re.findall(pattern, prose)) / len(prose.split())


# Title, maximum, figure; the target is in the title.
TOTALS: list[tuple[str, int, Figure]] = [
    ("lines of trainer and ui (27,000)", 36_878, lines(".py", *CORE)),
    ("lines of Python but tests and benchmarks (35,500)", 47_369, lines(".py", *ALL)),
    ("lines of tests (22,000)", 27_560, lines(".py", "tests")),
    ("lines of JavaScript (1,372)", 1_888, lines(".js", "ui")),
    ("packages with more than 16 modules (0)", 0, modules),
    ("functions of more than 60 lines (1)", 1, counted(lambda name: sum(n > 60 for n in lengths(name)), *PROGRAM)),
    ("positional results of more than three values in ui (0)", 2, counted(positional, "ui")),
    ("`fmt: skip` in the program (0)", 1, matches(r"# fmt: skip", *ALL)),
    ("`fmt: skip` in tests (0)", 49, matches(r"# fmt: skip", "tests")),
    ("`noqa` in the program (25)", 21, matches(r"# noqa", *ALL)),
    ("docstrings that ask or begin with `Tell whether` (0)", 0, counted(asking, *ALL)),
    ("conditional expressions (12 per 1,000 lines)", 741, counted(conditional, *PROGRAM)),
    ("variables whose names say nothing, in the program (0)", 0, counted(vague, *ALL)),
    ("variables whose names say nothing, in tests (20)", 3, counted(vague, "tests")),
]
LONGEST: list[tuple[str, int, Figure]] = [
    ("lines of the longest function (80)", 77, longest_function),
    ("lines of the longest file (450)", 449, lines(".py", *PROGRAM)),
    ("bytes of the README (8,192)", 4_801, lambda: Counter({"README.md": len(text("README.md").encode())})),
]
RATES: list[tuple[str, float, str]] = [
    ("semicolons in 1,000 words of prose (4)", 0.25, ";"),
    ("`those that` in 1,000 words of prose (0.3)", 0.05, r"\b[Tt]hose that\b"),
    ("`there is no` in 1,000 words of prose (0.3)", 0.05, r"\b[Tt]here is no\b"),
]


def where(figure: Counter[str]) -> str:
    """Name the files that a figure may have got worse in: those of this change, else those with the most."""
    commands = [["git", "diff", "--name-only", "HEAD"], ["git", "diff", "--name-only", "HEAD~1", "HEAD"]]
    changed = [
        name
        for command in commands
        for name in subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True).stdout.splitlines()
    ]
    suspects = [name for name in dict.fromkeys(changed) if figure[name]] or [name for name, _ in figure.most_common(3)]
    return ", ".join(f"{name} ({figure[name]})" for name in suspects[:8])


@pytest.mark.parametrize(("title", "most", "figure"), TOTALS, ids=[row[0] for row in TOTALS])
def test_totals_only_fall(title: str, most: int, figure: Figure) -> None:
    counts = figure()
    assert counts.total() <= most, f"{title}: {counts.total()}, at most {most}. Look at {where(counts)}."
    assert counts.total() > 0.98 * most - 1, (
        f"{title}: {counts.total()}. Lower its maximum, now {most}, in this commit."
    )


@pytest.mark.parametrize(("title", "most", "figure"), LONGEST, ids=[row[0] for row in LONGEST])
def test_the_longest_only_get_shorter(title: str, most: int, figure: Figure) -> None:
    ((name, length),) = figure().most_common(1)
    assert length <= most, f"{title}: {length} in {name}, at most {most}."
    assert length > 0.9 * most, f"{title}: {length}. Lower its maximum, now {most}, in this commit."


@pytest.mark.parametrize(("title", "most", "pattern"), RATES, ids=[row[0] for row in RATES])
def test_habits_of_prose_only_get_rarer(title: str, most: float, pattern: str) -> None:
    rate, found_in = (
        per_thousand_words(pattern),
        Counter({name: len(re.findall(pattern, text(name))) for name in files(".md", *PROSE)}),
    )
    assert rate <= most, f"{title}: {rate:.2f}, at most {most}. Look at {where(found_in)}."
    assert rate > 0.9 * most - 0.05, f"{title}: {rate:.2f}. Lower its maximum, now {most}, in this commit."
