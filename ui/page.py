"""The page as a whole: head, four tabs, theme, and the web application that serves it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from fastapi import FastAPI

from trainer import nvidia, paths
from trainer.data import dataset
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import LANGUAGE, _
from ui import api
from ui.server import media, upload_route
from ui.state import hub_downloads, page_memory, pending_uploads, projects
from ui.state.answers import with_answers
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import download, plan, run_view, try_out
from ui.tabs import images as datasets
from ui.tabs import train as training
from ui.tabs.sample_form import SampleForm, with_form
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import STATIC

SESSIONS = 300  # pages whose component state is kept, about 0.4 MB each; the oldest are dropped
SUBTITLE = _("Teach Stable Diffusion a character or a style from a handful of images.")
# Gradio would set the browser's language as that of the page, whatever language the page is in.
SET_LANGUAGE = f"() => {{ document.documentElement.lang = '{LANGUAGE}'; }}"
LOG_OUT = f" <a href='/sessions'>{_('Logged in')}</a> · <a href='/logout'>{_('Log out')}</a>"
PRIMARY = {
    "background_fill": "*primary_600",
    "background_fill_hover": "*primary_700",
    "text_color": "white",
    "background_fill_dark": "*primary_600",
    "background_fill_hover_dark": "*primary_700",
    "text_color_dark": "white",
}
LINKS_IN_THE_DARK = {
    "link_text_color_dark": "*primary_300",
    "link_text_color_visited_dark": "*primary_300",
    "link_text_color_hover_dark": "*primary_200",
    "link_text_color_active_dark": "*primary_200",
}


@dataclass(frozen=True)
class Head:
    """Components above the tabs."""

    project: gr.Dropdown
    pill: gr.HTML
    new: gr.Button
    new_row: gr.Row
    new_name: gr.Textbox
    create: gr.Button


def make_app(*, log_out: bool = False) -> FastAPI:
    """Create the web application, without the security middleware; `log_out` adds a link for users who logged in."""
    sampler, watch = SamplerClient(), RunWatcher()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        cleaning = asyncio.create_task(_clean_up())
        yield
        cleaning.cancel()
        sampler.close()
        hub_downloads.end()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(media.router)
    app.include_router(upload_route.router)  # before Gradio's own
    gr.mount_gradio_app(
        app,
        build(sampler, watch, log_out=log_out),
        path="/",
        allowed_paths=[],
        blocked_paths=[str(paths.datasets()), str(paths.outputs())],
        max_file_size="2gb",
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        show_error=False,
        mcp_server=False,
        theme=theme(),
        css_paths=[STATIC / "style.css"],
        favicon_path=str(STATIC / "favicon.svg"),
        js=SET_LANGUAGE,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return app


async def _clean_up() -> None:
    """Delete uploads that were never imported, now and then."""
    while True:
        pending_uploads.delete_expired()
        await asyncio.sleep(600)


def theme() -> gr.themes.Base:
    """Return the theme: calm colors, and system fonts, so that nothing is fetched from anywhere."""
    base = gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="lg",
    )
    return base.set(**{f"button_primary_{name}": color for name, color in PRIMARY.items()}, **LINKS_IN_THE_DARK)


def build(sampler: SamplerClient, watch: RunWatcher, *, log_out: bool = False) -> gr.Blocks:
    """Draw the page and connect its parts."""
    with gr.Blocks(title="Limner", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        head = _head(LOG_OUT if log_out else "")
        with gr.Tabs(selected="images", elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab(_("1 · Images"), id="images", elem_id="tab-images"):
                images = datasets.build(head.project)
            with gr.Tab(_("2 · Train"), id="train", elem_id="tab-train") as train_tab:
                train = training.build(head.project, head.pill, sampler, watch)
            with gr.Tab(_("3 · Try out"), id="try", elem_id="tab-try") as try_tab:
                trying = try_out.build(sampler, watch)
            with gr.Tab(_("4 · Download"), id="download", elem_id="tab-download") as download_tab:
                files_tab = download.build(watch)

        def warm_and_offer(form: SampleForm, defaults: tuple[str, float, float, float]) -> list[Any]:
            if not watch.active():
                sampler.warm()
            return try_out.offer(watch, form, defaults)

        train_tab.select(with_answers(plan.plan), train.form, train.planned, **QUIET)
        try_tab.select(with_form(warm_and_offer), trying.inputs, trying.offered, **QUIET)
        # When all images have been measured, the plan changes.
        images.parts.grid.end(with_answers(plan.plan), train.form, train.planned, **QUIET)
        download_tab.select(handled(lambda: download.show(watch)), None, files_tab.outputs, **QUIET)
        adapter_of_run = [train.view.picker, *trying.inputs[1:]]
        train.view.buttons["try-it"].click(with_form(warm_and_offer), adapter_of_run, trying.offered, **QUIET).then(
            lambda: gr.Tabs(selected="try"), None, tabs, **QUIET
        )
        images.forward.click(lambda: gr.Tabs(selected="train"), None, tabs, **QUIET).then(
            with_answers(plan.plan), train.form, train.planned, **QUIET
        )
        _share_trigger(head.project, images, train)
        _connect_projects(head, images, train)
        loaded = [tabs, head.project, *images.outputs, *train.outputs, *train.view.outputs]
        page.load(handled(lambda: _load(watch)), None, loaded, **QUIET)
        api.build(sampler, watch)
    page.queue(default_concurrency_limit=4, max_size=64)
    page.state_session_capacity = SESSIONS
    return page


def _head(log_out: str) -> Head:
    with gr.Row(elem_id="head", equal_height=False):
        advice = nvidia.advice()
        alarm = f"<p class='alarm' role='alert'>{escape(advice)}</p>" if advice else ""
        gr.HTML(f"<h1>Limner</h1><p>{SUBTITLE}{log_out}</p>{alarm}", elem_id="title")
        pill = gr.HTML(elem_id="pill")
        with gr.Row(elem_id="projects", equal_height=False):
            project = gr.Dropdown([], label=_("Project"), elem_id="project", interactive=True, min_width=180, scale=3)
            new = gr.Button(_("New project"), elem_id="new-project", size="md", min_width=110, scale=1)
    with gr.Row(visible=False, elem_id="new-row", elem_classes="bottom") as new_row:
        new_name = gr.Textbox(
            label=_("Name of the new project"),
            info=_("Letters, digits, - and _."),
            max_lines=1,
            elem_id="new-name",
            interactive=True,
            scale=4,
        )
        create = gr.Button(_("Create"), variant="primary", elem_id="create", scale=1, min_width=110)
    return Head(project, pill, new, new_row, new_name, create)


def _connect_projects(head: Head, images: datasets.Tab, train: training.Tab) -> None:
    outputs = [*images.outputs, *train.outputs]
    head.project.input(handled(_choose), head.project, [head.new_row, *outputs], **QUIET)
    head.new.click(lambda: gr.Row(visible=True), None, head.new_row, **QUIET)
    datasets.connect_files(images.parts, _project_for, [head.project, *outputs])
    created = [head.project, head.new_name, head.new_row, *outputs]
    gr.on([head.create.click, head.new_name.submit], handled(_create), head.new_name, created, **QUIET)


def _share_trigger(project: gr.Dropdown, images: datasets.Tab, train: training.Tab) -> None:
    """Keep the trigger word of the two tabs the same: a change in one shows in the other and is remembered."""

    def share(name: str | None, word: str) -> str:
        training.remember(name, "trigger", one_line(word or ""))
        return word

    for source, target in ((images.trigger, train.trigger), (train.trigger, images.trigger)):
        # Some ways to fill in a text, such as pasting, trigger no input event; so share it on leaving the box as well.
        gr.on(
            [source.input, source.blur], handled(share), [project, source], target, trigger_mode="always_last", **QUIET
        )


def _load(watch: RunWatcher) -> list[Any]:
    """Return everything as it is on disk, for a page that was just opened."""
    project = page_memory.project()
    selected = gr.skip()
    if watch.active():
        selected = gr.Tabs(selected="train")
    picker = gr.Dropdown(dataset.names(), value=project or None)
    return [selected, picker, *datasets.show(project), *training.show(project), *run_view.draw(watch, watch.default())]


def _choose(project: str | None) -> list[Any]:
    """Show the project that was chosen in the list."""
    return [gr.Row(visible=False), *_open(project or "")]


def _open(project: str) -> list[Any]:
    """Show another project."""
    page_memory.remember_project(project)
    return [*datasets.show(project), *training.show(project)]


def _project_for(project: str | None, uploads: list[str] | None) -> list[Any] | dict[str, Any]:
    """Show the project that dropped images go to, or `gr.skip()` if that is the current one."""
    skip: dict[str, Any] = gr.skip()
    if not uploads:
        return skip
    name = projects.for_upload(project)
    if name == project:
        return skip
    return [gr.Dropdown(dataset.names(), value=name), *_open(name)]


def _create(name: str | None) -> list[Any]:
    """Create a new, empty project and show it."""
    name = (name or "").strip()
    if not name:
        raise UserError("The new project has no name yet.", "Type one.")
    projects.create(name)
    return [gr.Dropdown(dataset.names(), value=name), "", gr.Row(visible=False), *_open(name)]
