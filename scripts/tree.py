"""Draw the map of the code in architecture.md from the first lines of its modules' docstrings."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {
    "benchmarks/": "speed and quality beside other trainers, run by hand",
    "datasets/": "your datasets, and two examples",
    "docker/": "a Limner for each of several people on one machine, behind Caddy",
    "docs/": "guides for users; docs/development is for those who change the code",
    "outputs/": "your runs",
    "scripts/": "the checks, and how the built-in base model was made",
    "tests/": "unit and integration tests on tiny real models, and the page in a real browser",
}
WIDTH = 26


def tree() -> str:
    """Return a line for each package and module at the top of the code, as a text block."""
    lines = [_line("app.py", ROOT / "app.py")]
    for package in ("trainer", "ui", "limner_extensions"):
        folder = ROOT / package
        lines.append(_line(f"{package}/", folder / "__init__.py"))
        packages = sorted(path.parent for path in folder.glob("*/__init__.py"))
        lines += [_line(f"  {path.name}/", path / "__init__.py") for path in packages]
        modules = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__init__"))
        lines += [_line(f"  {path.name}", path) for path in modules]
    lines += [f"{name:{WIDTH}}{description}" for name, description in OTHERS.items() if (ROOT / name).is_dir()]
    return "\n".join(lines)


def _line(name: str, path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{name:{WIDTH}}{docstring.splitlines()[0].rstrip('.')}"
