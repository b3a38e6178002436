"""Route that stores edited fields of the Train tab.

The browser cancels the requests of Gradio when the page is left. One of our own survives that (`keepalive` of `fetch`),
so that what was typed last is stored as well, in the project that it was typed in.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict

from trainer.errors import UserError
from ui.state import run_settings

router = APIRouter()


class Edit(BaseModel):
    """Edited fields of a project's form, and their values."""

    model_config = ConfigDict(extra="forbid")
    project: str
    fields: dict[str, Any]


@router.post("/field")
def store(edit: Edit) -> Response:
    """Store the fields; other fields of the project stay."""
    try:
        run_settings.store(edit.project, edit.fields)
    except UserError as error:
        return PlainTextResponse(f"{error.message} {error.remedy}", 400)
    return Response(status_code=204)
