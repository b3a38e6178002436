"""Table of the settings of other programs that are read one to one, for docs/recipes.md."""

from limner_extensions.recipes import ai_toolkit, kohya, onetrainer


def table() -> str:
    """Return a Markdown table: our setting, and what it is called in each program."""
    programs = [kohya.DIRECT, onetrainer.DIRECT, ai_toolkit.DIRECT]
    paths = sorted({path for direct in programs for path, _read in direct.values()})
    rows = ["| Limner | sd-scripts | OneTrainer | ai-toolkit |", "| --- | --- | --- | --- |"]
    for path in paths:
        cells = []
        for direct in programs:
            keys = [f"`{key}`".replace(".0.", "[0].") for key, (ours, _read) in direct.items() if ours == path]
            cells.append(", ".join(keys))
        rows.append(f"| `{path}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
