"""HTML of a run: status, progress bar, previews, warnings. Pure functions of a view of the run."""

import time
from html import escape
from urllib.parse import quote

from trainer import runs, storage
from trainer.base_models import MICRO
from trainer.errors import UserError
from trainer.i18n import _, duration, file_size, ngettext
from trainer.runs import View, cards, checkpoints, events, queue
from ui.state import base_model_choices, device_load, documentation

FULL = 2**20  # bytes that are free on a disk on which hardly anything can be written


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
        return escape(_("waiting for a node of {cluster}", cluster=runs.short_address(view.run.cluster)))
    if not view.state.phase and (place := queue.position(view.run)):
        return _("number {place} in the queue", place=place)
    return ""


def _bar(share: float | None, label: str = "") -> str:
    """Render a progress bar, which keeps moving if nobody knows how far it is; without a label, as decoration."""
    role, value, width = "", "", ""
    if share is not None:
        value, width = f"aria-valuenow='{100 * share:.0f}'", f" style='width:{share:.1%}'"
    if label:
        role = f"role='progressbar' aria-label='{escape(label)}' aria-valuemin='0' aria-valuemax='100' {value}"
    return f"<span class='bar' {role}><i{width}></i></span>"


def dock(view: View | None, more: int, buttons: str) -> str:
    """Render the run that trains, for the foot of the page: newest preview, state, progress, buttons; else "".

    Args:
        view: a run.
        more: other runs that train, too.
        buttons: HTML.
    """
    if view is None or view.status not in runs.ACTIVE:
        return ""
    facts = [status_label(view)]
    if view.status == "running" and not view.state.phase:
        facts += [f"{progress(view):.0%}", time_left(view)]
    if more > 0:
        facts.append(ngettext("{n} more run", "{n} more runs", more))
    newest = max(view.state.previews, key=lambda preview: preview.step, default=None)
    image = ""
    if newest:
        image = _image(view.run.id, newest, _look(view), "")
    text, title = escape(" · ".join(filter(None, facts))), escape(_("Show the run"))
    act = f"data-act='show' data-event='expand' data-run='{escape(view.run.id)}'"
    return (
        f"<button type='button' class='act show' {act} title='{title}'>{image}<span><span role='status'>{text}</span>"
        f"{_bar(share_done(view))}</span></button>{buttons}"
    )


def phase(current: events.Phase) -> str:
    """Describe the current phase and its progress, outside training steps."""
    if current.total > 1:
        return _("{what} ({done} of {total})", what=current.name, done=current.done, total=current.total)
    return current.name


def failure(state: events.State) -> str:
    """Render why a job failed, and what to do."""
    return _alarm(f"<b>{escape(state.message)}</b> {escape(state.remedy)}", state.template or state.message)


def _warning(template: str, /, **values: object) -> str:
    """Render a warning, translated, with a link to the help for it."""
    return _alarm(_(template, **values), template)


def _alarm(text: str, message: str) -> str:
    """Render a warning, with a link to the help for it; `message` is what it says in English."""
    return f"<div class='alarm' role='alert'>{text} {documentation.link(message)}</div>"


def work(view: View, label: str) -> str:
    """Render what an active job does that is no training, and how far it is; `label` names the progress bar."""
    text, share = status_label(view), share_done(view)
    if view.status == "waiting" and runs.is_locked(view.run.lock) and not cards.free():
        text, share = _("Another run has the device: this one begins after it."), 0.0
    elif view.state.phase:
        text = phase(view.state.phase)
    return f"<p role='status'>{escape(text)}</p>{_bar(share, label)}"


def status(view: View) -> str:
    """Render status, step, time left, the progress bar, and what the user can do next."""
    note = ""
    if view.state.phase and view.status in runs.ACTIVE:
        note = f"<p class='quiet'>{escape(phase(view.state.phase))}</p>"
    return (
        f"<div class='status' data-status='{view.status}' data-run='{escape(view.run.id)}'>"
        f"<span class='pill {view.status}' role='status'>{status_label(view)}</span>"
        f"<span>{' · '.join(_facts(view))}</span></div>"
        f"{_bar(share_done(view), _('Training progress'))}{note}{_next(view)}{_left(view)}"
    )


def _facts(view: View) -> list[str]:
    state, facts = view.state, []
    if state.steps:
        now = f"<b id='step-now'>{state.step}</b>"
        facts.append(_("step {step} of {steps}", step=now, steps=state.steps))
    if remaining := time_left(view):
        facts.append(remaining)
    if view.status == "waiting" and (wait := _wait(view)):
        facts.append(wait)
    elif view.status == "waiting" and not state.phase:
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
        facts.append(_("on {device}", device=escape(state.device)))
        if state.cards:
            facts.append(escape(cards.describe(state.cards)))
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
        return waiting
    match view.status:
        case "finished":
            return _done(view)
        case "stopped" if view.state.step and not _resumes_at(view):
            return _warning("Stopped. Its checkpoints are no longer there: <b>Resume</b> starts again.")
        case "stopped":
            return f"<p>{_('Stopped. All progress is saved; <b>Resume</b> continues from here.')}</p>"
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
        return _warning(
            "<b>The disk is full.</b> Free some space, then click <b>Resume</b>: it continues from step {step}.",
            step=step,
        )
    return _warning("<b>Training was interrupted.</b> <b>Resume</b> continues from step {step}.", step=step)


def _done(view: View) -> str:
    """Render what came of a run: the file, the programs that load it, and the next step."""
    ready = _("The adapter is ready. Try it out, or download it.")
    works = ""
    verified = next((check for check in view.state.verified if check.file == view.state.export), None)
    if verified:
        programs = ", ".join(program for program, loads, _unused in verified.verdicts if loads)
        works = escape(_("Works in {programs}.", programs=programs)) if programs else ""
    return (
        f"<div class='outcome'>{export_link(view)}<div><p class='good'>{ready}</p>"
        f"<p class='quiet'>{works}</p></div></div>"
    )


def _left(view: View) -> str:
    """Render the file that a run which has ended had finished before it was to go on; "" if there is none."""
    link = export_link(view)
    if not link or view.status in ("finished", *runs.ACTIVE):
        return ""
    text = escape(_("The adapter of step {step} is still here.", step=view.state.exported))
    return f"<div class='outcome'>{link}<p class='quiet'>{text}</p></div>"


def newest_image(view: View, of: str) -> str:
    """Render the newest preview of a run, with a caption that says what it is of; "" without previews."""
    newest = max(view.state.previews, key=lambda preview: preview.step, default=None)
    if newest is None:
        return ""
    return f"<span class='strip'>{_cell(view.run.id, newest, _look(view), f'{of} · {newest.prompt}')}</span>"


def export_link(view: View, title: str = "") -> str:
    """Render the link that downloads the adapter file of a run, with a title or its name, and its size; else ""."""
    export = view.run.folder / view.state.export
    if not view.state.export or not export.is_file():
        return ""
    url, size = f"/download/{quote(view.run.id)}/{quote(export.name)}", file_size(export.stat().st_size)
    return f"<a class='download' download href='{url}'>{escape(title or export.name)} ({size})</a>"


def _waiting(view: View, now: float) -> str:
    """Render the warning about a worker that is silent or does not respond; "" if there is none."""
    if silence := view.silence(now):
        if view.seconds_per_step is not None:
            return _warning(
                "<b>The run is not responding.</b> Wait, or click <b>End now</b> and then <b>Resume</b>: it continues "
                "from its last checkpoint."
            )
        return _warning(
            "<b>No response for {time}.</b> Reading a large base model from a slow disk may take that long. Wait, or "
            "click <b>End now</b> and then <b>Resume</b>: it continues from its last checkpoint, if it has one.",
            time=duration(silence),
        )
    if view.is_unresponsive(now):
        return _warning(
            "<b>The run has not stopped yet.</b> It stops when it has finished its current work. Wait, or click "
            "<b>End now</b>; that loses the steps since the last checkpoint."
        )
    return ""


def practice(view: View) -> str:
    """Render a note on a run with the built-in base: it is for practice, and how to use a real one; else ""."""
    try:
        sentence = base_model_choices.practice(view.run.config().model.base)
    except (UserError, OSError):  # its settings cannot be read
        return ""
    return f"<p class='quiet'>{escape(sentence)}</p>" if sentence else ""


# Previews and warnings ------------------------------------------------------------------------------------------


def newest(view: View) -> str:
    """Render the newest preview of each prompt, with its step; "" without any."""
    figures, style = [], _look(view)
    for row in view.state.previews_by_prompt().values():
        last = row[max(row)]
        about = escape(_("Step {step}: {prompt}", step=last.step, prompt=last.prompt))
        figures.append(f"<figure>{_cell(view.run.id, last, style)}<figcaption>{about}</figcaption></figure>")
    if not figures:
        return ""
    return f"<div class='newest'>{''.join(figures)}</div>"


def previews(view: View) -> str:
    """Render the previews: a row for each prompt, a column for each step, which `film.js` shows large; else ""."""
    rows = view.state.previews_by_prompt()
    if not rows:
        return ""
    steps = sorted({preview.step for preview in view.state.previews})
    heads = "".join(f"<th scope='col' data-step='{step}'>{step}</th>" for step in steps)
    style, lines = _look(view), []
    for row in rows.values():
        prompt = escape(next(iter(row.values())).prompt)
        cells = "".join(f"<td>{_cell(view.run.id, row.get(step), style)}</td>" for step in steps)
        lines.append(f"<tr><th scope='row' title='{prompt}'><span>{prompt}</span></th>{cells}</tr>")
    step = escape(_("Step"))
    return (
        f"<div class='previews' data-count='{len(view.state.previews)}' tabindex='0'><table><thead><tr>"
        f"<th scope='col'>{step}</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _look(view: View) -> str:
    """Return the class of the images of a run: those of micro are so small that they are enlarged without smoothing."""
    try:
        return "pixels" if view.run.config().model.base == MICRO else ""
    except (UserError, OSError):  # its settings cannot be read
        return ""


def _cell(run_id: str, preview: events.Preview | None, style: str, caption: str = "") -> str:
    if preview is None:
        return ""
    name = preview.file.rsplit("/", 1)[-1]
    link, version = _link(run_id, preview)
    step = _("step {step}", step=preview.step)
    title = caption or _("Step {step}: {prompt}", step=preview.step, prompt=preview.prompt)
    caption = caption or f"{preview.prompt} · {step}, {_('seed {seed}', seed=preview.seed)}"
    return (
        f"<a href='{link}{version}' target='_blank' data-caption='{escape(caption)}' data-file='{escape(name)}' "
        f"data-nearest='{link}/nearest'>{_image(run_id, preview, style, title)}</a>"
    )


def _image(run_id: str, preview: events.Preview, style: str, title: str) -> str:
    return f"<img class='{style}' loading='lazy' src='{small_image(run_id, preview)}' alt='{escape(title)}'>"


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
    lines = "".join(f"<li>{escape(warning)} {documentation.link(warning)}</li>" for warning in state.warnings)
    number = len(state.warnings)
    expanded = " open" if number < 4 else ""
    summary = _("Notes ({number})", number=number)
    return f"<details class='notes'{expanded}><summary>{summary}</summary><ul>{lines}</ul></details>"
