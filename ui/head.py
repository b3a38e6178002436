"""Head of the page: the projects."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from trainer.i18n import _
from trainer.machine import nvidia
from ui.state import documentation, projects
from ui.templates import render
from ui.widgets.fields import field
from ui.widgets.handlers import ANSWERED_FIRST, START, listen
from ui.widgets.scripts import read

OPEN = "(next) => { if (next) window.limner.open(next.name); return []; }"

# One of two rows opens, and the other closes.
OPEN_ROW = """() => {
  const focus = (again = 50) => { // the field is drawn in a moment
    const field = document.querySelector("#WHICH-row :is(input, textarea)");
    if (field) field.select();
    else if (again) setTimeout(focus, 20, again - 1);
  };
  focus();
  return ["new", "manage"].map((row) => ({ __type__: "update", visible: row === "WHICH" }));
}"""


@dataclass(frozen=True)
class Head:
    """Components above the tabs. `project` stays the same while the page lives; `opened` is to be shown next."""

    project: gr.Textbox
    opened: gr.JSON
    chooser: gr.Dropdown
    new: gr.Button
    manage: gr.Button
    new_row: gr.Row
    new_name: gr.Textbox
    create: gr.Button
    manage_row: gr.Row
    title: gr.Textbox
    rename: gr.Button
    delete: gr.Button
    restore: gr.Button

    @property
    def outputs(self) -> dict[str, Any]:
        """The components that `show` returns values for."""
        return {name: getattr(self, name) for name in ("project", "chooser", "title", "restore")}


def build(*, log_out: bool) -> Head:
    """Draw the head, with links to log out for users who logged in."""
    with gr.Row(elem_id="head", equal_height=False):
        gr.HTML(render("title.html"), elem_id="title", js_on_load=read("viewer.js"))
        gr.HTML(js_on_load=read("fields.js"))
        gr.HTML(js_on_load=read("unfinished.js"))
        with gr.Row(elem_id="projects", equal_height=False):
            narrow = {"container": False, "min_width": 120, "scale": 3}
            chooser = field(gr.Dropdown, "project", _("Project"), choices=[], **narrow)
            manage = gr.Button(_("Manage"), elem_id="manage-project", size="sm", min_width=60, scale=0)
            new = gr.Button(_("New project"), elem_id="new-project", size="sm", min_width=60, scale=0)
        help_pages = documentation.ADDRESS + documentation.START
        gr.HTML(render("account.html", help=help_pages, log_out=log_out), elem_id="account")
    if advice := nvidia.advice():
        gr.HTML(render("said.html", role="alert", look="alarm", text=advice))
    with gr.Row(visible=False, elem_id="new-row", elem_classes="bottom side") as new_row:
        new_name = field(gr.Textbox, "new-name", _("Name of the new project"), max_lines=1, scale=4)
        create = gr.Button(_("Create"), variant="primary", elem_id="create", scale=0, min_width=100)
    project = gr.Textbox(visible=False, elem_id="page-project")
    opened = gr.JSON(visible=False)
    with gr.Row(visible=False, elem_id="manage-row", elem_classes="bottom side") as manage_row:
        title = field(gr.Textbox, "project-title", _("Name of this project"), max_lines=1, scale=4)
        rename = gr.Button(_("Rename"), elem_id="rename-project", scale=0, min_width=90)
        delete = gr.Button(_("Delete"), variant="stop", elem_id="delete-project", scale=0, min_width=90)
        restore = gr.Button(_("Restore the last deleted project"), elem_id="restore-project", scale=0, min_width=120)
    above = project, opened, chooser, new, manage
    return Head(*above, new_row, new_name, create, manage_row, title, rename, delete, restore)


def connect(head: Head) -> None:
    """Connect the buttons. Another project is another page: nothing that is under way for this one can reach it."""
    listen(head.chooser.input, None, {"name": head.chooser}, js="(name) => { window.limner.open(name); return []; }")
    opening = {"opened": head.opened, "new_row": head.new_row, "manage_row": head.manage_row}
    acts = [
        listen([head.create.click, head.new_name.submit], _create, {"title": head.new_name}, opening, kind=START),
        listen(head.delete.click, _delete, {"name": head.project}, opening, js=read("delete_project.js"), kind=START),
        listen(head.restore.click, _restore_deleted, {}, opening, kind=START, js=ANSWERED_FIRST),
    ]
    for act in acts:
        listen(act.success, None, {"next": head.opened}, js=OPEN)
    renaming = {"name": head.project, "title": head.title}
    renamed = {"chooser": head.chooser, "manage_row": head.manage_row}
    listen([head.rename.click, head.title.submit], _rename, renaming, renamed)
    rows = {"new_row": head.new_row, "manage_row": head.manage_row}
    listen(head.new.click, None, {}, rows, js=OPEN_ROW.replace("WHICH", "new"))
    listen(head.manage.click, None, {}, rows, js=OPEN_ROW.replace("WHICH", "manage"))


def _opened(name: str) -> dict[str, Any]:
    return {"opened": {"name": name}, "new_row": gr.Row(visible=False), "manage_row": gr.Row(visible=False)}


def _create(title: str | None) -> dict[str, Any]:
    return _opened(projects.create(title or ""))


def _delete(name: str | None) -> dict[str, Any]:
    if name is None:  # there was no yes
        return {"opened": None}
    projects.delete(name)
    return _opened("")


def _restore_deleted() -> dict[str, Any]:
    return _opened(projects.restore_last())


def _rename(name: str, title: str | None) -> dict[str, Any]:
    projects.rename(name, title or "")
    return {"chooser": choices(name), "manage_row": gr.Row(visible=False)}


def show(name: str) -> dict[str, Any]:
    """Return values of `Head.outputs` for a project."""
    return {
        "project": name,
        "chooser": choices(name),
        "title": gr.Textbox(name and projects.title(name), visible=bool(name)),
        "restore": gr.Button(visible=bool(projects.deleted())),
    }


def choices(name: str) -> gr.Dropdown:
    """Return the list of projects with one of them chosen."""
    return gr.Dropdown(projects.choices(), value=name or None)
