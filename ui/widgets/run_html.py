"""HTML of a run: status, progress bar, previews, warnings. Pure functions of a view of the run."""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from trainer import runs, storage
from trainer.base_models import MICRO
from trainer.errors import UserError
from trainer.i18n import _, duration, file_size, ngettext
from trainer.runs import View, cards, checkpoints, events, queue
from ui.state import base_model_choices, device_load, documentation
from ui.templates import RichText, render, rich_text

FULL = 2**20  # bytes that are free on a disk on which hardly anything can be written
Button = tuple[str, str, str, str]  # act, text, event that it triggers, look


def time_left(view: View) -> str:
    """Describe the time left of a run; "" if unknown."""
    if view.seconds_left is None:
        return ""
    return _("about {time} left", time=duration(view.seconds_left))


def status_label(view: View) -> str:
    """Return the status in one or two words."""
    if view.is_silent(time.time()):
        return _("Not responding")
    if view.status in runs.ACTIVE and (view.run.folder / "ask" / "stop").exists():
        return _("Stopping")
    if view.paused:
        return _("Paused")
    if view.status in runs.ACTIVE and view.state.phase:
        return _("Preparing")
    return runs.STATUS_LABELS[view.status]


def progress(view: View) -> float:
    """Return the progress, from 0 to 1; a run that has finished may have ended before its last step."""
    if view.status == "finished":
        return 1.0
    if not view.state.steps:
        return 0.0
    return min(1.0, view.state.step / view.state.steps)


def share_done(view: View) -> float | None:
    """Return how far a run is, or what it does before its steps, from 0 to 1; None if nobody knows."""
    if view.status not in runs.ACTIVE or view.is_silent(time.time()):
        return progress(view)
    if current := view.state.phase:
        return current.done / current.total if current.total > 1 else None
    if view.status == "waiting" and not _wait(view):
        return None
    return progress(view)


def _wait(view: View) -> str:
    """Describe what a waiting run waits for; "" for its own process, which has not said anything yet."""
    if view.run.on_hold:
        return _("on hold")
    if view.run.cluster and (view.run.folder / "ask" / "start").exists():
        return _("waiting for a node of {cluster}", cluster=runs.short_address(view.run.cluster))
    if not view.state.phase and (place := queue.position(view.run)):
        return _("number {place} in the queue", place=place)
    return ""


def dock(view: View | None, more: int, buttons: Sequence[Button]) -> str:
    """Render the run that trains, for the foot of the page: newest preview, state, progress, buttons; else "".

    Args:
        view: a run.
        more: other runs that train, too.
        buttons: those of the run.
    """
    if view is None or view.status not in runs.ACTIVE:
        return ""
    facts = [status_label(view)]
    if view.status == "running" and not view.state.phase:
        facts += filter(None, [f"{progress(view):.0%}", time_left(view)])
    if more > 0:
        facts.append(ngettext("{n} more run", "{n} more runs", more))
    newest = max(view.state.previews, key=lambda preview: preview.step, default=None)
    image = _preview(view.run.id, newest, _look(view)) if newest else None
    return render("dock.html", run=view.run.id, facts=facts, newest=image, share=share_done(view), listed=buttons)


def phase(current: events.Phase) -> str:
    """Describe the current phase and its progress, outside training steps."""
    if current.total > 1:
        return _("{what} ({done} of {total})", what=current.name, done=current.done, total=current.total)
    return current.name


def failure(state: events.State) -> str:
    """Render why a job failed, and what to do."""
    help_link = documentation.link(state.template or state.message)
    return render("alarm.html", title=state.message, text=state.remedy, help=help_link)


def _alarm(text: RichText) -> str:
    """Render a warning, with a link to the help for it."""
    return render("alarm.html", title="", text=text, help=documentation.link(text.message))


def work(view: View, label: str) -> str:
    """Render what an active job does that is no training, and how far it is; `label` names the progress bar."""
    text, share = status_label(view), share_done(view)
    if view.status == "waiting" and runs.is_locked(view.run.lock) and not cards.free():
        text, share = _("Another run has the device: this one begins after it."), 0.0
    elif view.state.phase:
        text = phase(view.state.phase)
    return render("work.html", text=text, share=share, label=label)


def status(view: View) -> str:
    """Render status, step, time left, the progress bar, and what the user can do next."""
    state, is_active = view.state, view.status in runs.ACTIVE
    # A run that has ended may have had a file before it was to go on.
    left = None if view.status == "finished" or is_active else export(view)
    return render(
        "status.html",
        status=view.status,
        run=view.run.id,
        label=status_label(view),
        step=state.step,
        steps=state.steps,
        facts=_facts(view),
        share=share_done(view),
        phase=phase(state.phase) if state.phase and is_active else "",
        next=_next(view),
        left=left,
        exported=state.exported,
    )


def _facts(view: View) -> list[str]:
    """Describe what is known of a run besides its step."""
    facts = []
    if remaining := time_left(view):
        facts.append(remaining)
    if view.status == "waiting" and (wait := _wait(view)):
        facts.append(wait)
    elif view.status == "waiting" and not view.state.phase:
        facts.append(_("Starting, this can take a minute"))
    if view.status == "running":
        facts += _device_facts(view)
    return facts


def _device_facts(view: View) -> list[str]:
    """Describe the pace of a run, its learning rate, and what it takes of its device."""
    state, facts = view.state, []
    if pace := view.seconds_per_step:
        if pace < 1:
            facts.append(_("{n:.1f} steps per second", n=1 / pace))
        else:
            facts.append(_("{n:.1f} s per step", n=pace))
    if state.device:
        facts.append(_("on {device}", device=state.device))
        if state.cards:
            facts.append(cards.describe(state.cards))
    if load := _load(view):
        facts.append(_("{share:.0%} busy", share=load.busy))
    if state.step:
        facts.append(_("learning rate {rate:.2g}", rate=state.learning_rate))
        peak = state.memory / 2**30
        facts.append(
            _("{memory:.1f} of {total:.0f} GB of memory", memory=peak, total=load.total / 2**30)
            if load
            else _("{memory:.1f} GB of memory", memory=peak)
        )
    return facts


def _load(view: View) -> device_load.Load | None:
    """Return the load of the device of a run, if it is one of this machine and known."""
    state = view.state
    if not state.device or view.run.cluster:
        return None
    return device_load.current(state.device, next(iter(state.cards), ""))


def _next(view: View) -> str:
    if waiting := _waiting(view, time.time()):
        return _alarm(waiting)
    match view.status:
        case "finished":
            return _done(view)
        case "stopped" if view.state.step and not _resumes_at(view):
            return _alarm(rich_text("Stopped. Its checkpoints are no longer there: <b>Resume</b> starts again."))
        case "stopped":
            return render("stopped.html")
        case "interrupted":
            return _interrupted(view)
        case "failed":
            return failure(view.state)
        case _:
            return ""


def _resumes_at(view: View) -> int:
    """Return the step of the newest checkpoint that is still there; 0 without any."""
    return max((int(folder.name) for folder in checkpoints.folders(view.run)), default=0)


def _interrupted(view: View) -> str:
    """Render what to do about a run whose worker is gone; on a full disk it could not write why."""
    step = _resumes_at(view)
    if storage.free_space(view.run.folder) < FULL:
        return _alarm(
            rich_text(
                "<b>The disk is full.</b> Free some space, then click <b>Resume</b>: it continues from step {step}.",
                step=step,
            )
        )
    return _alarm(rich_text("<b>Training was interrupted.</b> <b>Resume</b> continues from step {step}.", step=step))


def _done(view: View) -> str:
    """Render what came of a run: the file, the programs that load it, and the next step."""
    verified = next((check for check in view.state.verified if check.file == view.state.export), None)
    programs = [program for program, loads, _unused in verified.verdicts if loads] if verified else []
    return render("outcome.html", file=export(view), programs=programs)


def newest_image(view: View, of: str) -> dict[str, Any] | None:
    """Return what is drawn of the newest preview, with a caption that says what it is of; None without previews."""
    newest = max(view.state.previews, key=lambda preview: preview.step, default=None)
    if newest is None:
        return None
    caption = f"{of} · {newest.prompt}"
    return _preview(view.run.id, newest, _look(view)) | {"caption": caption, "title": caption}


def export(view: View) -> dict[str, str] | None:
    """Return address, name and size of the adapter file of a run; None without one."""
    file = view.run.folder / view.state.export
    if not view.state.export or not file.is_file():
        return None
    url = f"/download/{quote(view.run.id)}/{quote(file.name)}"
    return {"url": url, "name": file.name, "size": file_size(file.stat().st_size)}


def _waiting(view: View, now: float) -> RichText | None:
    """Return the warning about a worker that is silent or does not respond; None if there is none."""
    if silence := view.silence(now):
        if view.seconds_per_step is not None:
            return rich_text(
                "<b>The run is not responding.</b> Wait, or click <b>End now</b> and then <b>Resume</b>: it continues "
                "from its last checkpoint."
            )
        return rich_text(
            "<b>No response for {time}.</b> Reading a large base model from a slow disk may take that long. Wait, or "
            "click <b>End now</b> and then <b>Resume</b>: it continues from its last checkpoint, if it has one.",
            time=duration(silence),
        )
    if view.is_unresponsive(now):
        return rich_text(
            "<b>The run has not stopped yet.</b> It stops when it has finished its current work. Wait, or click "
            "<b>End now</b>; that loses the steps since the last checkpoint."
        )
    return None


def practice(view: View) -> str:
    """Return a note on a run with the built-in base: it is for practice, and how to use a real one; else ""."""
    try:
        return base_model_choices.practice(view.run.config().model.base)
    except (UserError, OSError):  # its settings cannot be read
        return ""


# Previews and warnings ------------------------------------------------------------------------------------------


def newest(view: View) -> str:
    """Render the newest preview of each prompt, with its step; "" without any."""
    rows = view.state.previews_by_prompt().values()
    if not rows:
        return ""
    look = _look(view)
    return render("newest.html", previews=[_preview(view.run.id, row[max(row)], look) for row in rows])


def previews(view: View) -> str:
    """Render the previews: a row for each prompt, a column for each step, which `film.js` shows large; else ""."""
    rows = view.state.previews_by_prompt()
    if not rows:
        return ""
    look, lines = _look(view), []
    steps = sorted({preview.step for preview in view.state.previews})
    for row in rows.values():
        cells = [_preview(view.run.id, row[step], look) if step in row else None for step in steps]
        lines.append((next(iter(row.values())).prompt, cells))
    return render("previews.html", count=len(view.state.previews), steps=steps, rows=lines)


def _look(view: View) -> str:
    """Return the class of the images of a run: those of micro are so small that they are enlarged without smoothing."""
    try:
        return "pixels" if view.run.config().model.base == MICRO else ""
    except (UserError, OSError):  # its settings cannot be read
        return ""


def _preview(run_id: str, preview: events.Preview, look: str) -> dict[str, Any]:
    """Return what the templates draw of a preview."""
    link, version = _link(run_id, preview)
    step, seed = _("step {step}", step=preview.step), _("seed {seed}", seed=preview.seed)
    return {
        "link": f"{link}{version}",
        "small": f"{link}/small{version}",
        "nearest": f"{link}/nearest",
        "name": preview.file.rsplit("/", 1)[-1],
        "look": look,
        "title": _("Step {step}: {prompt}", step=preview.step, prompt=preview.prompt),
        "caption": f"{preview.prompt} · {step}, {seed}",
    }


def small_image(run_id: str, preview: events.Preview) -> str:
    """Return the address of a small version of a preview."""
    link, version = _link(run_id, preview)
    return f"{link}/small{version}"


def _link(run_id: str, preview: events.Preview) -> tuple[str, str]:
    """Return the address of a preview and the version of it, as a later one may take its name."""
    name = preview.file.rsplit("/", 1)[-1]
    return f"/media/run/{quote(run_id)}/{quote(name)}", f"?t={preview.time.timestamp():.0f}"


def warnings(state: events.State) -> str:
    """Render the worker's warnings, folded if there are many."""
    if not state.warnings:
        return ""
    listed = [(warning, documentation.link(warning)) for warning in state.warnings]
    return render("warnings.html", warnings=listed)
