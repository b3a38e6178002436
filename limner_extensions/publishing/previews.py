"""Previews of a run that can be shown: image files in its folder, whatever its log says."""

from trainer import storage
from trainer.runs import View, events


def by_prompt(view: View) -> dict[int, dict[int, events.Preview]]:
    """Return the previews whose files are there, by the number of their prompt, then by step, both ascending."""
    rows, folder = {}, view.run.folder
    for number, row in view.state.previews_by_prompt().items():
        here = {step: preview for step, preview in row.items() if storage.is_regular_file(folder / preview.file)}
        if here:
            rows[number] = here
    return rows
