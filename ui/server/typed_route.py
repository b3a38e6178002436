"""Route that stores what people enter, field by field: captions, answers, settings and removals of images.

Gradio's requests end with their page. This one goes on, as it is sent with `keepalive`, and names what it is about.
"""

import asyncio
import threading
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from trainer import foreign_text
from trainer.errors import UserError
from ui.state import order, projects, run_settings
from ui.state.order import Moment
from ui.widgets.handlers import sentence

router = APIRouter()
TYPED = "/typed"
_LOCK = threading.Lock()


@router.post(TYPED)
async def receive(request: Request) -> Response:
    """Store each caption, field and removal under its project and name; says what is wrong with refused fields."""
    try:
        sent = foreign_text.parse_json((await request.body()).decode())
        captions, fields, removals = (list(sent.get(kind, [])) for kind in ("captions", "fields", "removals"))
    except (foreign_text.ForeignTextError, UnicodeDecodeError, AttributeError, TypeError):
        return PlainTextResponse("", 400)
    try:
        return JSONResponse({"refused": await asyncio.to_thread(_store, captions, fields, removals)})
    except OSError as error:  # the browser says so and sends all of it again
        return JSONResponse({"refused": [sentence(error)]}, 507)


def _store(captions: list[Any], fields: list[Any], removals: list[Any]) -> list[str]:
    for draft in filter(_is_mapping, captions):
        with suppress(UserError):  # it stays in the browser, which says so, as does a conflict
            image = projects.find_image(str(draft.get("project")), str(draft.get("name")))
            projects.save_caption(image, str(draft.get("text", "")), draft.get("base"), Moment.read(draft))
    for removal in filter(_is_mapping, removals):
        with suppress(UserError, KeyError, TypeError):  # the next page of the browser's tab asks again
            projects.remove_images(str(removal["project"]), list(removal["names"]))
    refused = []
    for field in filter(_is_mapping, fields):
        try:
            _store_field(field)
        except UserError as error:
            refused.append(sentence(error))
    return refused


def _store_field(field: dict[str, Any]) -> None:
    """Store a field, unless the page that sends it has sent a later value: requests may arrive in another order."""
    project, name = (str(field.get(key, "")) for key in ("project", "name"))
    with _LOCK:
        if order.edit(Moment.read(field), project, name):
            run_settings.store(project, {name: field.get("value")})


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)
