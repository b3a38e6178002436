"""Head of the page: the projects, and the state of the active run, which leads to that run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from trainer import nvidia
from trainer.i18n import _
from ui.state import page_memory, projects
from ui.widgets.handlers import QUIET, TOGETHER, handled
from ui.widgets.templates import read


@dataclass(frozen=True)
class Head:
    """Components above the tabs."""

    project: gr.Dropdown
    pill: gr.HTML
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


def build(log_out: str) -> Head:
    """Draw the head; `log_out` are links for users who logged in."""
    with gr.Row(elem_id="head", equal_height=False):
        gr.HTML("<img src='/favicon.ico' alt=''><h1>Limner</h1>", elem_id="title", js_on_load=read("viewer.js"))
        pill = gr.HTML(elem_id="pill", js_on_load=read("pill.js"))
        with gr.Row(elem_id="projects", equal_height=False):
            project = gr.Dropdown(
                [], label=_("Project"), elem_id="project", interactive=True, container=False, min_width=120, scale=3
            )
            manage = gr.Button(_("Manage"), elem_id="manage-project", size="sm", min_width=60, scale=0)
            new = gr.Button(_("New project"), elem_id="new-project", size="sm", min_width=60, scale=0)
        if log_out:
            gr.HTML(log_out, elem_id="account")
    if advice := nvidia.advice():
        gr.HTML(f"<p class='alarm' role='alert'>{escape(advice)}</p>")
    with gr.Row(visible=False, elem_id="new-row", elem_classes="bottom side") as new_row:
        new_name = gr.Textbox(
            label=_("Name of the new project"), max_lines=1, elem_id="new-name", interactive=True, scale=4
        )
        create = gr.Button(_("Create"), variant="primary", elem_id="create", scale=0, min_width=100)
    return Head(project, pill, new, manage, new_row, new_name, create, *_manage())


def _manage() -> tuple[gr.Row, gr.Textbox, gr.Button, gr.Button, gr.Button]:
    with gr.Row(visible=False, elem_id="manage-row", elem_classes="bottom side") as row:
        title = gr.Textbox(
            label=_("Name of this project"), max_lines=1, elem_id="project-title", interactive=True, scale=4
        )
        rename = gr.Button(_("Rename"), elem_id="rename-project", scale=0, min_width=90)
        delete = gr.Button(_("Delete"), variant="stop", elem_id="delete-project", scale=0, min_width=90)
        restore = gr.Button(_("Restore the last deleted project"), elem_id="restore-project", scale=0, min_width=120)
    return row, title, rename, delete, restore


def connect(head: Head, show: Callable[[str], list[Any]], outputs: Sequence[Any]) -> None:
    """Connect the buttons; `show` returns values for `outputs` that show a project."""

    def opened(name: str) -> list[Any]:
        page_memory.remember_project(name)
        return [choices(name), gr.Row(visible=False), gr.Row(visible=False), "", *show(name)]

    def create(title: str | None) -> list[Any]:
        return opened(projects.create(title or ""))

    def rename(name: str, title: str | None) -> list[Any]:
        projects.rename(name, title or "")
        return [choices(name), gr.Row(visible=False)]

    def delete(name: str | None) -> list[Any] | dict[str, Any]:
        if not name:
            return dict(gr.skip())
        projects.delete(name)
        return opened(page_memory.project())

    def restore() -> list[Any]:
        return opened(projects.restore_last())

    project_and_all = [head.project, head.new_row, head.manage_row, head.new_name, *outputs]
    head.project.input(handled(lambda name: opened(name or "")), head.project, project_and_all, **TOGETHER)
    gr.on([head.create.click, head.new_name.submit], handled(create), head.new_name, project_and_all, **QUIET)
    gr.on(
        [head.rename.click, head.title.submit],
        handled(rename),
        [head.project, head.title],
        [head.project, head.manage_row],
        **QUIET,
    )
    head.delete.click(handled(delete), head.project, project_and_all, js=read("delete_project.js"), **QUIET)
    head.restore.click(handled(restore), None, project_and_all, **QUIET)
    rows = [head.new_row, head.manage_row]
    head.new.click(lambda: [gr.Row(visible=True), gr.Row(visible=False)], None, rows, **QUIET)
    head.manage.click(handled(_manageable), head.project, [*rows, head.title, head.restore], **QUIET)


def _manageable(name: str | None) -> list[Any]:
    """Show the fields that rename and delete the current project, and bring back a deleted one."""
    is_there = bool(name)
    title = gr.Textbox(projects.title(name) if name else "", visible=is_there)
    return [gr.Row(visible=False), gr.Row(visible=True), title, gr.Button(visible=bool(projects.deleted()))]


def choices(name: str) -> gr.Dropdown:
    """Return the list of projects with one of them chosen."""
    return gr.Dropdown(projects.choices(), value=name or None)
