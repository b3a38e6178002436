"""Run view of the Train tab: status, loss curve and previews of a run, and the buttons that control it."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from zlib import crc32

import gradio as gr

from trainer import runs
from trainer.config import comparison
from trainer.data import dataset
from trainer.errors import UserError
from trainer.i18n import LANGUAGE, _
from trainer.runs import Run, queue
from ui.state import projects, run_actions
from ui.state.run_watcher import RunWatcher, label, log_tail, stamp
from ui.state.sampler_client import SamplerClient
from ui.templates import render
from ui.widgets import loss_chart, queue_list, run_html, settings_form
from ui.widgets.fields import field
from ui.widgets.handlers import ACT, CHOICE, START, TICK, VIEW, listen
from ui.widgets.run_html import Button
from ui.widgets.scripts import read

REFRESHED_EVERY = 1.0  # seconds, while a run is active
LOOKED_EVERY = 5.0  # seconds, for runs that were started elsewhere: a page that is left open costs little
START_TITLE, NEXT_TITLE = _("Start training"), _("Queue another run")
MOST_SHOWN = 24  # images of a project that has no run yet
TITLES = {".".join(entry.path): entry.title for entry in settings_form.entries()}
COMMANDS: dict[str, runs.Command] = {"stop": "stop", "save-now": "checkpoint", "preview-now": "preview"}
PAUSES = {"pause": False, "go-on": True}  # as the button says, also if the click arrives late: whether the run goes on
# Buttons that start a worker.
STARTS: dict[str, Callable[[str | None, SamplerClient], Run]] = {
    "resume": run_actions.resume,
    "more": run_actions.extend,
    "again": run_actions.retry,
}
CHOSEN = "(run) => { window.limnerRun.choose(run); window.limner.show({ run }); }"
SEEN = "(run, compared, project) => [run, compared, project, window.limnerRun.seen(run)]"
_REVISIONS = itertools.count(int(1000 * time.time()))  # they grow from one start of the server to the next, too


class RunView:
    """The components of the view; `outputs` are those that `draw` and `tick` return values for.

    All that is said of a run is one value, `panel`, so that no part of it is about another run than the others.
    """

    def __init__(self, start: gr.Button) -> None:
        with gr.Row(elem_classes="tools"):
            runs_of_project = {"choices": [], "min_width": 160}
            self.picker = field(gr.Dropdown, "run", _("Run"), scale=2, **runs_of_project)
            several = {**runs_of_project, "multiselect": True, "visible": False}
            self.compared = field(gr.Dropdown, "compared-runs", _("Compare the loss with"), **several)
        self.seen = gr.JSON(visible=False)  # given by the browser
        self.timer = gr.Timer(REFRESHED_EVERY)
        template = render("run_view.html", chart=render("chart.html"))
        scripts = [read("run_view.js"), *(_scoped(part) for part in ("queue", "notify", "film", "chart"))]
        self.panel = gr.HTML({}, html_template=template, js_on_load="\n".join(scripts), elem_id="run-view")
        self.outputs = {
            "picker": self.picker,
            "compared": self.compared,
            "timer": self.timer,
            "panel": self.panel,
            "start": start,
        }


def _scoped(part: str) -> str:
    """Return the script of a part of the view, which has names of its own; only the chart has a value."""
    value = "{ get value() { return drawn?.chart; } }"
    return f"((element, props) => {{\n{read(f'{part}.js')}\n}})(root.querySelector('#{part}'), {value});"


def connect(view: RunView, project: gr.Dropdown, sampler: SamplerClient, watch: RunWatcher) -> None:
    """Connect the buttons, and the timer that refreshes the view."""
    picked = {"run_id": view.picker, "compared": view.compared, "project": project}

    def act(event: gr.EventData) -> dict[str, Any]:
        run, name = str(event.run), str(event.act)
        if name in PAUSES:
            run_actions.pause(run, sampler, go_on=PAUSES[name])
        else:
            run_actions.ask(run, COMMANDS[name])
        return tick(watch, run)

    def begin(event: gr.EventData) -> dict[str, Any]:
        run = STARTS[str(event.act)](str(event.run), sampler)
        return tick(watch, run.id, choose=run.id != event.run)

    def arrange(event: gr.EventData, run_id: str, compared: list[str], project: str) -> dict[str, Any]:
        run_actions.arrange(str(event.run), str(event.act), int(event.place))
        return tick(watch, run_id, None, compared, project)

    listen(view.panel.edit, act, fills=view.outputs, kind=ACT)
    listen(view.panel.apply, begin, fills=view.outputs, kind=START)
    listen(view.panel.select, arrange, picked, view.outputs, kind=ACT)
    listen(view.panel.expand, lambda event: draw(watch, str(event.run)), fills=view.outputs, kind=VIEW)
    listen(view.picker.input, None, {"run": view.picker}, js=CHOSEN)
    listen([view.picker.input, view.compared.input], partial(tick, watch), picked, view.outputs, kind=CHOICE)
    listen(view.timer.tick, partial(tick, watch), {**picked, "seen": view.seen}, view.outputs, kind=TICK, js=SEEN)


def draw(watch: RunWatcher, run_id: str | None, project: str | None = "") -> dict[str, Any]:
    """Return values of `RunView.outputs` for a run that is to be chosen now, whatever the page shows."""
    return tick(watch, run_id, project=project, choose=True)


def tick(
    watch: RunWatcher,
    run_id: str | None,
    seen: dict[str, Any] | None = None,
    compared: Sequence[str] = (),
    project: str | None = "",
    *,
    choose: bool = False,
) -> dict[str, Any]:
    """Return values of `RunView.outputs`, in their order; none if what the browser has `seen` is still the state.

    The browser drops them if another run was chosen meanwhile, unless they are to `choose` one.
    """
    listed, training = watch.runs_and_active(project or "")
    active = next(iter(training), None)
    known, before = [run.id for run in listed], (seen or {}).get("runs")
    view = watch.find(run_id)
    is_new = active is not None and before is not None and active.run.id not in before
    if view is None or (view.status not in runs.ACTIVE and is_new):
        view = watch.find(watch.default(project or ""))  # another page started a run
    others = [other for other in map(watch.find, compared or ()) if other and view and other.run.id != view.run.id]
    line = queue.line()
    held = [(run.id, run.on_hold) for run in line]
    state = (known, stamp(view), (stamp(active), len(training)), held, _last_change(view, project or ""))
    mark = f"{crc32(repr((*state, *map(stamp, others))).encode()):08x}"
    if seen and seen.get("stamp") == mark:
        return {}
    chosen = view.run.id if view else ""
    choose = choose or chosen != run_id
    panel = {
        "revision": next(_REVISIONS),
        "asked": "" if choose else chosen,
        "run": chosen,
        "stamp": mark,
        "runs": known,
        "parts": {
            "queue": queue_list.draw(line),
            "dock": run_html.dock(active, len(training) - 1, controls(active)),
            **_parts(view, project or "", active),
        },
        "chart": loss_chart.chart([(label(drawn.run), drawn) for drawn in (view, *others) if drawn]),
    }
    return {
        **_pickers(listed, chosen, [other.run.id for other in others], changed=before != known, choose=choose),
        "timer": gr.Timer(REFRESHED_EVERY if active else LOOKED_EVERY),
        "panel": panel,
        "start": _start(active),
    }


def _start(active: runs.View | None) -> dict[str, Any]:
    if active:
        return dict(gr.update(value=NEXT_TITLE, variant="secondary"))
    return dict(gr.update(value=START_TITLE, variant="primary"))


def _pickers(listed: Sequence[Run], chosen: str, others: list[str], *, changed: bool, choose: bool) -> dict[str, Any]:
    """Return the lists of runs if they change; the choice in the first is left alone unless another run is shown."""
    if not changed and not choose:
        return {"picker": gr.skip(), "compared": gr.skip()}
    names = [label(run) for run in listed]
    times = Counter(names)
    # Two that began within a minute have their seconds, too.
    choices = [
        (name + f":{run.id[15:17]}" * (times[name] > 1), run.id) for name, run in zip(names, listed, strict=True)
    ]
    rest = [choice for choice in choices if choice[1] != chosen]
    choice = {"value": chosen or None} if choose else {}
    return {
        "picker": gr.Dropdown(choices, visible=bool(rest), **choice),
        "compared": gr.Dropdown(rest, value=others, multiselect=True, visible=bool(rest)),
    }


def _last_change(view: runs.View | None, project: str) -> int:
    """Return when files of a project came or went, without listing its folder; 0 if it is gone or a run is shown."""
    with suppress(UserError, OSError):
        if view is None:
            return projects.folder(project).stat().st_mtime_ns
    return 0


def _mosaic(project: str) -> str:
    """Render some images of a project, which are shown until there are previews; "" if it is gone."""
    with suppress(UserError):
        names = [path.name for path in dataset.image_files(projects.folder(project))[:MOST_SHOWN]]
        return render("mosaic.html", project=project, names=names)
    return ""


def _dataset(view: runs.View) -> str:
    try:
        return view.run.config().dataset
    except (UserError, OSError):  # its settings cannot be read
        return ""


def _parts(view: runs.View | None, project: str, docked: runs.View | None) -> dict[str, str]:
    """Return the HTML of the parts of the view, by their ids; the run in the dock has its main buttons there."""
    if view is None:
        empty = render("empty.html", text=_("The loss curve and preview images appear here once training starts."))
        parts = {"status": empty, "run-buttons": "", "newest": "", "notes": "", "log-text": ""}
        return {**parts, "previews": _mosaic(project)}
    above = [] if docked and docked.run.id == view.run.id else controls(view)
    return {
        "status": run_html.status(view),
        "run-buttons": render("buttons.html", run=view.run.id, listed=[*above, *buttons(view)]),
        "newest": run_html.newest(view),
        "previews": run_html.previews(view) or _mosaic(_dataset(view)),
        "notes": run_html.warnings(view.state),
        "log-text": render("text.html", text=log_tail(view.run)),
    }


def controls(view: runs.View | None) -> list[Button]:
    """Return the buttons that stop a run, which are at the foot of the page for the one that trains."""
    listed: list[Button] = []
    if view and view.status == "running":
        listed.append(("go-on", _("Continue"), "edit", "") if view.paused else ("pause", _("Pause"), "edit", ""))
    if view and view.status in runs.ACTIVE:
        stop = _("End now") if view.is_unresponsive(time.time()) else _("Stop and save")
        listed.append(("stop", stop, "edit", "stop"))
    return listed


def buttons(view: runs.View) -> list[Button]:
    """Return the other buttons of a run, which depend on its state alone."""
    status, change = view.status, view.state.change
    listed: list[Button] = []
    if status in ("stopped", "interrupted", "failed"):
        listed.append(("resume", _("Resume"), "apply", "primary"))
    if status == "failed":
        fix = ", ".join(f"{_title(path)} {comparison.shown(value) or _('empty')}" for path, value in change.items())
        again = _("Train again with {settings}", settings=fix) if change else _("Train again")
        listed.append(("again", again, "apply", "primary"))
    if status == "finished":
        more = _("Train {steps} more steps", steps=run_actions.extra_steps(view))
        listed += [("try-it", _("Try it out"), "end", "primary"), ("more", more, "apply", "")]
    if status == "running":
        listed += [("save-now", _("Save now"), "edit", ""), ("preview-now", _("Preview now"), "edit", "")]
    return listed


def _title(path: str) -> str:
    """Return a setting's title inside a sentence: lower case in English, not in German."""
    title = TITLES.get(path, path)
    return title.lower() if LANGUAGE == "en" else title
