"""Route that receives what was typed into fields without a button, when typing pauses and when a page is left.

Gradio's requests end with their page. This one goes on, as it is sent with `keepalive`, and it names the project.
"""

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from trainer import foreign_text, paths
from trainer.data import dataset
from trainer.data.captions import one_line
from trainer.errors import UserError
from ui.state import page_memory, projects

router = APIRouter()
TYPED = "/typed"
FIELDS = ("trigger", "name", "class")  # answers of a project that are typed
LONGEST = 1000  # characters


@router.post(TYPED)
async def receive(request: Request) -> Response:
    """Store captions and answers, each under its project and its name; what cannot be stored is left out."""
    try:
        sent = foreign_text.parse_json((await request.body()).decode())
        captions, fields = list(sent.get("captions", [])), list(sent.get("fields", []))
    except (foreign_text.ForeignTextError, UnicodeDecodeError, AttributeError, TypeError):
        return PlainTextResponse("", 400)
    await asyncio.to_thread(_store, captions, fields)
    return JSONResponse({})


def _store(captions: list[Any], fields: list[Any]) -> None:
    for draft in filter(_is_mapping, captions):
        with suppress(UserError):  # it stays in the browser, which says so, as does a conflict
            image = projects.find_image(str(draft.get("project")), str(draft.get("name")))
            projects.save_caption(image, str(draft.get("text", "")), draft.get("base"))
    known = dataset.names()
    for field in filter(_is_mapping, fields):
        project, name, value = (str(field.get(key, "")) for key in ("project", "name", "value"))
        value = one_line(value[:LONGEST])
        if project in known and name in FIELDS and (name != "name" or paths.is_name(value)):
            page_memory.remember(project, name, value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)
