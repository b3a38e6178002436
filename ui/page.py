"""The page as a whole: its head, its four tabs, how it looks, and the web application that serves it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI

from trainer import paths
from trainer.data import dataset
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import LANGUAGE, say
from ui import api
from ui.server import media
from ui.state import page_memory
from ui.state.run_watcher import Watch
from ui.state.sampler_client import Painter
from ui.tabs import download, plan, run_view, try_out
from ui.tabs import images as datasets
from ui.tabs import train as training
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import STATIC

SESSIONS = 300  # pages whose components' state is kept, about 0.4 MB each; of more the oldest are forgotten
SUBTITLE = say("Teach Stable Diffusion a character or a style from a handful of pictures.")
# Gradio takes the browser's language for that of the page, whatever the page says.
SPOKEN = f"() => {{ document.documentElement.lang = '{LANGUAGE}'; }}"
LEAVE = f" <a href='/logout'>{say('Log out')}</a>"


@dataclass(frozen=True)
class Head:
    """Components above the tabs."""

    project: gr.Dropdown
    pill: gr.HTML
    new: gr.Button
    new_row: gr.Row
    new_name: gr.Textbox
    create: gr.Button


def make_app(*, leave: bool = False) -> FastAPI:
    """The web application, without its guard; with a way to log out, if there was one in."""
    painter, watch = Painter(), Watch()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tidying = asyncio.create_task(_tidy())
        yield
        tidying.cancel()
        painter.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(media.router)
    gr.mount_gradio_app(
        app, build(painter, watch, leave=leave), path="/", allowed_paths=[],
        blocked_paths=[str(paths.datasets()), str(paths.outputs())],
        max_file_size="2gb", ssr_mode=False, pwa=False, enable_monitoring=False, run_history=False, footer_links=[],
        show_error=False, mcp_server=False, theme=theme(), css_paths=[STATIC / "style.css"],
        favicon_path=str(STATIC / "favicon.svg"), js=SPOKEN,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    return app


async def _tidy() -> None:
    """Look after uploads that nobody took in, now and then."""
    while True:
        media.forget_uploads()
        await asyncio.sleep(600)


def theme() -> gr.themes.Base:
    """Calm colours, system fonts: nothing is fetched from anywhere."""
    return gr.themes.Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"], radius_size="lg",
    ).set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white", button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700", button_primary_text_color_dark="white",
        link_text_color_dark="*primary_300", link_text_color_visited_dark="*primary_300",
        link_text_color_hover_dark="*primary_200", link_text_color_active_dark="*primary_200",
    )  # fmt: skip


def build(painter: Painter, watch: Watch, *, leave: bool = False) -> gr.Blocks:
    """Draw the page and connect its parts."""
    with gr.Blocks(title="Limner", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        head = _head(LEAVE if leave else "")
        with gr.Tabs(selected="images", elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab(say("1 · Images"), id="images", elem_id="tab-images"):
                images = datasets.build(head.project)
            with gr.Tab(say("2 · Train"), id="train", elem_id="tab-train") as train_tab:
                train = training.build(head.project, head.pill, painter, watch)
            with gr.Tab(say("3 · Try out"), id="try", elem_id="tab-try") as try_tab:
                trying = try_out.build(painter, watch)
            with gr.Tab(say("4 · Download"), id="download", elem_id="tab-download") as download_tab:
                files_tab = download.build(watch)

        def warm_and_offer(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the tab
            if not watch.active():
                painter.warm()
            return try_out.offer(watch, *given)

        train_tab.select(handled(plan.plan), train.answers, train.planned, **QUIET)
        try_tab.select(handled(warm_and_offer), trying.asked, trying.offered, **QUIET)
        # All pictures were looked at: what was found belongs into the plan.
        images.parts.grid.end(handled(plan.plan), train.answers, train.planned, **QUIET)
        download_tab.select(handled(lambda: download.show(watch)), None, files_tab.shown, **QUIET)
        train.live.buttons["try-it"].click(
            handled(warm_and_offer), [train.live.picker, *trying.asked[1:]], trying.offered, **QUIET
        ).then(lambda: gr.Tabs(selected="try"), None, tabs, **QUIET)
        images.forward.click(lambda: gr.Tabs(selected="train"), None, tabs, **QUIET).then(
            handled(plan.plan), train.answers, train.planned, **QUIET
        )
        _share_trigger(head.project, images, train)
        _connect_projects(head, images, train)
        page.load(
            handled(lambda: _load(watch)), None,
            [tabs, head.project, *images.shown, *train.shown, *train.live.outputs], **QUIET,
        )  # fmt: skip
        api.build(painter, watch)
    page.queue(default_concurrency_limit=4, max_size=64)
    page.state_session_capacity = SESSIONS
    return page


def _head(leave: str) -> Head:
    with gr.Row(elem_id="head", equal_height=False):
        gr.HTML(f"<h1>Limner</h1><p>{SUBTITLE}{leave}</p>", elem_id="title")
        pill = gr.HTML(elem_id="pill")
        with gr.Row(elem_id="projects", equal_height=False):
            project = gr.Dropdown([], label=say("Project"), elem_id="project", interactive=True, min_width=180, scale=3)
            new = gr.Button(say("New project"), elem_id="new-project", size="md", min_width=110, scale=1)
    with gr.Row(visible=False, elem_id="new-row", elem_classes="bottom") as new_row:
        new_name = gr.Textbox(
            label=say("Name of the new project"), info=say("Letters, digits, - and _."), max_lines=1,
            elem_id="new-name", interactive=True, scale=4,
        )  # fmt: skip
        create = gr.Button(say("Create"), variant="primary", elem_id="create", scale=1, min_width=110)
    return Head(project, pill, new, new_row, new_name, create)


def _connect_projects(head: Head, images: datasets.Tab, train: training.Tab) -> None:
    shown = [*images.shown, *train.shown]
    head.project.input(handled(_choose), head.project, [head.new_row, *shown], **QUIET)
    head.new.click(lambda: gr.Row(visible=True), None, head.new_row, **QUIET)
    datasets.connect_files(images.parts, _place, [head.project, *shown])
    gr.on(
        [head.create.click, head.new_name.submit], handled(_create), head.new_name,
        [head.project, head.new_name, head.new_row, *shown], **QUIET,
    )  # fmt: skip


def _share_trigger(project: gr.Dropdown, images: datasets.Tab, train: training.Tab) -> None:
    """The trigger word stands in two tabs and is one thing: a change in one shows in the other and is remembered."""

    def share(name: str | None, word: str) -> str:
        training.keep(name, "trigger", one_line(word or ""))
        return word

    for here, there in ((images.trigger, train.trigger), (train.trigger, images.trigger)):
        # Some ways to fill in a text, pasting among them, are no input event: hence also when the box is left.
        gr.on([here.input, here.blur], handled(share), [project, here], there, trigger_mode="always_last", **QUIET)


def _load(watch: Watch) -> list[Any]:
    """Everything as it is on disk, for a page that was just opened."""
    project = page_memory.project()
    active = watch.active()
    selected = gr.Tabs(selected="train") if active else gr.skip()
    picker = gr.Dropdown(dataset.names(), value=project or None)
    return [selected, picker, *datasets.show(project), *training.show(project), *run_view.draw(watch, watch.default())]


def _choose(project: str | None) -> list[Any]:
    """Another project was chosen in the list."""
    return [gr.Row(visible=False), *_open(project)]


def _open(project: str | None) -> list[Any]:
    """Show another project."""
    page_memory.remember_project(project or "")
    return [*datasets.show(project or ""), *training.show(project or "")]


def _place(project: str | None, uploads: list[str] | None) -> Any:  # noqa: ANN401 - values, or nothing to change
    """Pictures were dropped: where there is no project for them, show the one that they begin."""
    name = datasets.place(project) if uploads else None
    if name is None or name == project:
        return gr.skip()
    return [gr.Dropdown(dataset.names(), value=name), *_open(name)]


def _create(name: str) -> list[Any]:
    """Make a new, empty project and show it."""
    name = (name or "").strip()
    if name in dataset.names():
        raise UserError(
            "There is a project {name!r} already.", "Choose another name, or choose it in the list.", name=name
        )
    if not name:
        raise UserError("The new project has no name yet.", "Type one.")
    dataset.create(name)
    picker = gr.Dropdown(dataset.names(), value=name)
    return [picker, "", gr.Row(visible=False), *_open(name)]
