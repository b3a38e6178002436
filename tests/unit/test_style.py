"""Rules of style, each about one place: a function, a file, a name or a comment."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

MAX_FUNCTION_LINES, MAX_FILE_LINES, MAX_POSITIONAL_VALUES = 80, 450, 3
QUESTION = re.compile(r"(What|Whether|How|Where|Whose|Who|Which|Tell whether) ")
VAGUE_NAMES = {"one", "found", "told", "said", "shown", "given", "asked"}
# Functions that may return longer tuples, with the reason.
TUPLES = {
    "trainer/runs/view.py:_cost": "compared as a whole",
    "ui/state/run_watcher.py:stamp": "compared as a whole",
    "trainer/training/inputs/augment.py:crop_box": "a box in the order of Pillow",
    "ui/tabs/image_tools.py:_box": "a box in the order of Pillow",
    "trainer/training/inputs/augment.py:size_conditioning": "the order in which SDXL reads it",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Breach = tuple[int, str]  # line and what is wrong there
Rule = Callable[[Path], Iterator[Breach]]


def files(*folders: str) -> list[Path]:
    python = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    return [path for path in python if "node_modules" not in path.parts]


PROGRAM = [CHECKOUT / "app.py", *files("trainer", "ui", "limner_extensions", "scripts")]
TESTS = files("tests")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in nodes(path) if isinstance(node, Function))


def comments(path: Path, pattern: str) -> Iterator[int]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.search(pattern, line):
            yield number


def long_functions(path: Path) -> Iterator[Breach]:
    for function in functions(path):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield function.lineno, f"{function.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def long_files(path: Path) -> Iterator[Breach]:
    length = len(path.read_text(encoding="utf-8").splitlines())
    if length > MAX_FILE_LINES:
        yield length, f"a file has at most {MAX_FILE_LINES} lines"


def questions(path: Path) -> Iterator[Breach]:
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and QUESTION.match(ast.get_docstring(node) or ""):
            yield getattr(node, "lineno", 1), "a docstring begins with a verb or names the thing"


def vague_names(path: Path) -> Iterator[Breach]:
    for node in nodes(path):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE_NAMES:
            yield node.lineno, f"the name {node.id} does not say what it holds"


def positional_results(path: Path) -> Iterator[Breach]:
    for function in functions(path):
        returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
        lengths = [len(value.elts) for value in returned if isinstance(value, ast.Tuple)]
        name = f"{path.relative_to(CHECKOUT).as_posix()}:{function.name}"
        if max(lengths, default=0) > MAX_POSITIONAL_VALUES and name not in TUPLES:
            yield function.lineno, f"{function.name} returns {max(lengths)} values by position: give them names"


def noqa_without_reason(path: Path) -> Iterator[Breach]:
    for number in comments(path, r"# (ruff: )?noqa(?!: [A-Z0-9, ]+ - \w)"):
        yield number, "`noqa` names its rules and a reason: `# noqa: S102 - the notebook is ours`"


def skipped_formatting(path: Path) -> Iterator[Breach]:
    for number in comments(path, r"# fmt: (skip|off)"):
        yield number, "the formatter decides"


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        (long_functions, PROGRAM),
        (long_files, PROGRAM),
        (questions, PROGRAM),
        (positional_results, PROGRAM),
        (vague_names, PROGRAM + TESTS),
        (noqa_without_reason, PROGRAM + TESTS),
        (skipped_formatting, PROGRAM + TESTS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_place_keeps_the_rule(rule: Rule, paths: list[Path]) -> None:
    breaches = [
        f"{path.relative_to(CHECKOUT)}:{line}: {problem}"
        for path in paths
        if path != Path(__file__)  # it quotes them
        for line, problem in rule(path)
    ]
    assert breaches == []
