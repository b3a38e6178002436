"""The endpoints as a table for docs/api.md, from the page itself, so that it cannot go stale."""

import inspect

import gradio as gr

from ui import page
from ui.state.run_watcher import Watch
from ui.state.sampler_client import Painter


def endpoints() -> str:
    """A row for each endpoint: its name, what it takes and what it does, as Markdown."""
    rows = ["| endpoint | takes | does |", "| --- | --- | --- |"]
    blocks: gr.Blocks = page.build(Painter(), Watch())
    for one in blocks.fns.values():
        if one.api_visibility != "public" or not one.fn:
            continue
        taken = [
            str(parameter).replace("typing.", "").replace(" | None = None", " = {}").replace("|", "or")
            for parameter in inspect.signature(one.fn).parameters.values()
        ]
        says = " ".join((inspect.getdoc(one.fn) or "").split("\n\n")[0].split())
        rows.append(f"| `{one.api_name}` | {', '.join(f'`{text}`' for text in taken)} | {says} |")
    return "\n".join(rows) + "\n"
