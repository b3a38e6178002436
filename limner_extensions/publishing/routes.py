"""Route of the page that serves the folder to publish of a run, and the link to it."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from limner_extensions.publishing import publishing
from trainer import runs
from ui.server.media import made_zip, or_404
from ui.templates import renderer

render = renderer(Path(__file__).parent / "templates")
router = APIRouter()


@router.get("/publish/{run_id}")
def published_run(run_id: str) -> FileResponse:
    """Make the folder to publish of a run, and serve it as a zip."""
    run = or_404(lambda: runs.find(run_id))
    name = or_404(lambda: run.config().name)
    return made_zip(f"{name}-publish.zip", lambda file: publishing.write_zip(run, file))


def links(view: runs.View) -> str:
    """Render the link of a run in the Download tab."""
    if not view.state.export or view.status in runs.ACTIVE:
        return ""
    return render("links.html", run=view.run.id)
