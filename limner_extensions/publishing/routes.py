"""Routes of the page that serve the report of a run and the folder to publish, and the links to them."""

from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from limner_extensions.publishing import publishing, report
from trainer import runs
from ui import audit
from ui.server.media import FRESH, made_zip, or_404
from ui.templates import renderer

render = renderer(Path(__file__).parent / "templates")
router = APIRouter()


@router.get("/report/{run_id}")
def run_report(run_id: str) -> Response:
    """Make the report of a run, and serve it as a file to save."""
    run = or_404(lambda: runs.find(run_id))
    content, name = or_404(lambda: (report.render(run), report.file_name(run)))
    audit.record("download", what=name)
    headers = FRESH | {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}
    return Response(content, media_type="text/html", headers=headers)


@router.get("/publish/{run_id}")
def published_run(run_id: str) -> FileResponse:
    """Make the folder to publish of a run, and serve it as a zip."""
    run = or_404(lambda: runs.find(run_id))
    name = or_404(lambda: run.config().name)
    return made_zip(f"{name}-publish.zip", lambda file: publishing.write_zip(run, file))


def links(view: runs.View) -> str:
    """Render the links of a run in the Download tab."""
    has_file = bool(view.state.export) and view.status not in runs.ACTIVE
    return render("links.html", run=view.run.id, has_report=bool(view.state.started), has_file=has_file)
