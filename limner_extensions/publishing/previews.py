"""Previews of a run that can be shown: image files in its folder, whatever its log says."""

import re
from pathlib import Path

from trainer import storage
from trainer.runs import Run, View, events

_FILE = re.compile(r"previews/\d{1,9}_(\d{1,3})\.png")  # a log may come with a backup, from anywhere


def file(run: Run, preview: events.Preview) -> Path | None:
    """Return the image file of a preview; None if it is gone, or no preview of this run."""
    path = run.folder / preview.file
    return path if _FILE.fullmatch(preview.file) and storage.is_regular_file(path) else None


def by_prompt(view: View) -> dict[int, dict[int, events.Preview]]:
    """Return the previews by the number of their prompt, then by step, both ascending."""
    rows: dict[int, dict[int, events.Preview]] = {}
    for preview in sorted(view.state.previews, key=lambda preview: preview.step):
        match = _FILE.fullmatch(preview.file)
        if match and file(view.run, preview):
            rows.setdefault(int(match[1]), {})[preview.step] = preview
    return dict(sorted(rows.items()))
