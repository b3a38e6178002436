"""The page as a whole: head, four tabs, theme, and the web application that serves it."""

import asyncio
import copy
import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import routes as gradio_routes

from trainer import extension, paths
from trainer.data import dataset
from trainer.i18n import LANGUAGE, _
from ui import api, head
from ui.server import content_policy, media, no_fetching, page_state, typed_route, upload_route
from ui.server.api_calls import ApiCalls
from ui.state import hub_downloads, page_memory, pending_uploads, warm_worker
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.state.shared_reads import shared
from ui.tabs import download, run_view, settings, try_out
from ui.tabs import images as datasets
from ui.tabs import train as training
from ui.widgets import direct_errors
from ui.widgets.handlers import CHOICE, VIEW, Several, Untyped, listen
from ui.widgets.scripts import STATIC, read

QUEUE_LOOKED_EVERY = 0.05  # seconds; Gradio looks a thousand times a second, which keeps a core 5 % busy
PROGRESS_SENT_EVERY = 0.2  # seconds; Gradio looks for some a hundred times a second, which keeps a core 1 % busy
SESSIONS = 300  # pages whose component state is kept; the oldest are dropped
TABS = ("images", "train", "try", "download")
# What a page is to show stands in its address; what another one had to report was left behind for it.
ADDRESS = (
    "() => [{...Object.fromEntries(new URL(location.href).searchParams), "
    "report: sessionStorage.getItem('limner-report') ?? ''}]"
)
PRIMARY = {
    "background_fill": "*primary_600",
    "background_fill_hover": "*primary_700",
    "text_color": "white",
    "background_fill_dark": "*primary_600",
    "background_fill_hover_dark": "*primary_700",
    "text_color_dark": "white",
}
# Fields without frames of their own, on panels whose color differs from that of the page.
FLAT = {
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_border_width_dark": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_text_weight": "600",
    "block_title_text_weight": "600",
    "block_title_text_color": "*body_text_color",
    "block_title_text_color_dark": "*body_text_color",
    "body_background_fill": "*neutral_50",
    "body_background_fill_dark": "*neutral_950",
    "form_gap_width": "14px",
    "layout_gap": "14px",
    "input_padding": "7px 10px",
    "button_small_padding": "5px 12px",
}
LINKS_IN_THE_DARK = {
    "link_text_color_dark": "*primary_300",
    "link_text_color_visited_dark": "*primary_300",
    "link_text_color_hover_dark": "*primary_200",
    "link_text_color_active_dark": "*primary_200",
}


def make_app(*, log_out: bool = False) -> FastAPI:
    """Create the web application, without the security middleware; `log_out` adds a link for users who logged in."""
    no_fetching.apply()
    content_policy.apply(gradio_routes.templates.env)
    sampler, watch = SamplerClient(), RunWatcher()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        cleaning = asyncio.create_task(_clean_up())
        yield
        cleaning.cancel()
        sampler.close()
        warm_worker.close()
        hub_downloads.end()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    replacing = upload_route.router, direct_errors.router  # routes of Gradio, so that they come before it
    for router in (*extension.named("routes"), media.router, typed_route.router, *replacing):
        app.include_router(router)
    blocks = build(sampler, watch, log_out=log_out)
    gr.mount_gradio_app(
        app,
        blocks,
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
        js=read("start.js").replace("{language}", LANGUAGE),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    blocks.state_holder.__class__ = page_state.States
    public = [block for block in blocks.fns.values() if block.api_visibility == "public" and block.fn]
    app.add_middleware(direct_errors.Refusals)
    app.add_middleware(ApiCalls, endpoints={str(each.api_name): inspect.signature(each.fn) for each in public})
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
        spacing_size="sm",
    )
    colors = {f"button_primary_{name}": color for name, color in PRIMARY.items()}
    return base.set(**colors, **LINKS_IN_THE_DARK, **FLAT)


def build(sampler: SamplerClient, watch: RunWatcher, *, log_out: bool = False) -> gr.Blocks:
    """Draw the page and connect its parts."""
    with gr.Blocks(title="Limner", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        top = head.build(log_out=log_out)
        with gr.Tabs(selected="images", elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab(_("Images"), id="images", elem_id="tab-images"):
                images = datasets.build(top.project)
            with gr.Tab(_("Train"), id="train", elem_id="tab-train") as train_tab:
                train = training.build(top.project, sampler, watch)
            with gr.Tab(_("Try out"), id="try", elem_id="tab-try") as try_tab:
                trying = try_out.build(top.project, sampler, watch)
            with gr.Tab(_("Download"), id="download", elem_id="tab-download") as download_tab:
                files_tab = download.build(top.project, watch)
        with gr.Row(elem_id="start-bar", elem_classes="side"):
            for part in train.dock:
                part.render()

        def warm_and_offer(run: str | None = None, **asked: Untyped) -> dict[str, Any]:
            if not watch.active():
                sampler.warm()
            return try_out.offer(watch, chosen=run, **asked)

        ready, about = partial(_warm_and_plan, watch), {"project": top.project}
        about_images = {name: part for name, part in train.planned.items() if name != "notes"}
        listen(train_tab.select, ready, about, about_images, kind=CHOICE)
        try_out.offer_on(try_tab.select, warm_and_offer, trying)
        changed = [images.overview.change, train.view.panel.stop]  # the images, or what is known of this machine's pace
        listen(changed, training.plan_images, about, about_images, kind=CHOICE)
        listen(download_tab.select, partial(download.listed, watch), files_tab.takes, files_tab.outputs, kind=VIEW)
        questions = {"preset": train.whole.preset, "base": train.whole.base}
        filling = settings.fill_on(files_tab.listing.apply, settings.use_run, train.whole, fills=questions)
        offering = try_out.offer_on(train.view.panel.end, warm_and_offer, trying, run=train.view.picker)
        for shows, tab in ((filling.success, "train"), (offering.success, "try")):
            listen(shows, None, js=f"() => document.querySelector('#tab-{tab}-button').click()")
        _share_trigger(images, train)
        head.connect(top)
        parts = {"images": images.outputs, "train": Several(train.outputs), "view": Several(train.view.outputs)}
        settings.fill_opened(_connect_loading(page, watch, top, {"tabs": tabs, **parts}), train.whole)
        api.build(sampler, watch)
    page.queue(default_concurrency_limit=4, max_size=64)
    page._queue.sleep_when_free = QUEUE_LOOKED_EVERY  # Gradio has no setting for it, or for the next one
    page._queue.progress_update_sleep_when_free = PROGRESS_SENT_EVERY
    page.state_session_capacity = SESSIONS
    return page


def _warm_and_plan(watch: RunWatcher, project: str) -> dict[str, Any]:
    if not watch.active():
        warm_worker.prepare()
    warm_worker.wait_until_measured()
    return training.plan_images(project)


def _share_trigger(images: datasets.Tab, train: training.Tab) -> None:
    """Keep the trigger word of the two tabs the same: a change in one shows in the other at once."""
    for source, target in ((images.trigger, train.trigger), (train.trigger, images.trigger)):
        # Some ways to fill in a text, such as pasting, trigger no input event; so share it on leaving the box as well.
        listen([source.input, source.blur], None, {"word": source}, {"target": target}, js="(word) => [word]")


def _connect_loading(page: gr.Blocks, watch: RunWatcher, top: head.Head, parts: Mapping[str, Any]) -> Untyped:
    """Fill the page when it opens, from its address: the project, the tab, and what another page had to report."""
    address = gr.JSON(visible=False)
    filled = {**top.outputs, **parts}
    loading = listen(page.load, partial(_load, watch), {"address": address}, filled, kind=VIEW, js=ADDRESS)
    arrived = "(project) => { window.limner.arrive(project); return []; }"
    listen(loading.success, None, {"project": top.project}, js=arrived)
    return loading


def _load(watch: RunWatcher, address: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return everything as it is on disk, for a page that was just opened at an address."""
    address = address or {}  # a program may send none
    wanted, tab, report = (str(address.get(name, "")) for name in ("project", "tab", "report"))
    project = wanted
    if wanted not in dataset.names():
        project = page_memory.project()
        if wanted:
            report = _("The project {project!r} no longer exists.", project=wanted)
    page_memory.remember_of_page(project=project)
    if tab not in TABS:
        tab = "images"
        if watch.active() and not wanted:
            tab = "train"
    values = _show(watch, project, str(address.get("run", "")))
    if report:
        values["images"] |= {"report": datasets.status(report)}
    return {**head.show(project), "tabs": gr.Tabs(selected=tab), **values}


def _show(watch: RunWatcher, project: str, run: str) -> dict[str, Any]:
    """Return values that show a project on all tabs, and a run. Pages that ask for it at once get the same ones."""
    if not watch.find(run):
        run = watch.default(project)

    def show() -> dict[str, Any]:
        return {
            "images": datasets.show(project),
            "train": training.show(project),
            "view": run_view.draw(watch, run, project),
        }

    values = shared(("project on all tabs", project, run), show)
    # Gradio changes updates.
    return {part: {name: copy.copy(value) for name, value in named.items()} for part, named in values.items()}
