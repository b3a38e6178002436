"""Table of the API endpoints for docs/api.md, made from the page itself so that it cannot go stale."""

import inspect

import gradio as gr

from ui import page
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient


def endpoints() -> str:
    """Return a Markdown table with a row for each endpoint: its name, its parameters and what it does."""
    rows = ["| endpoint | takes | does |", "| --- | --- | --- |"]
    blocks: gr.Blocks = page.build(SamplerClient(), RunWatcher())
    for endpoint in blocks.fns.values():
        if endpoint.api_visibility == "public" and endpoint.fn:
            parameters = map(_parameter, inspect.signature(endpoint.fn).parameters.values())
            summary = (inspect.getdoc(endpoint.fn) or "").split("\n\n")[0]
            rows.append(f"| `{endpoint.api_name}` | {', '.join(parameters)} | {' '.join(summary.split())} |")
    return "\n".join(rows) + "\n"


def _parameter(parameter: inspect.Parameter) -> str:
    text = str(parameter).replace("typing.", "").replace(" | None = None", " = {}").replace("|", "or")
    return f"`{text}`"
