"""The report of a run to share: one HTML file that needs no script, no network and no other file.

Nothing in it tells where anything lies: of each path only the last part, of the dataset only numbers and words.
"""

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from html import escape
from pathlib import Path

from limner_extensions.publishing import dataset_facts, loss_svg, previews
from trainer import __version__, config, extension, paths, runs, storage
from trainer.base_models import MICRO
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig, comparison
from trainer.data import images
from trainer.errors import UserError
from trainer.i18n import LANGUAGE, _, duration, file_size, ngettext
from trainer.runs import Run, View, events

MAX_STEPS = 12  # columns of previews, so that a report can still be sent by mail
# Whatever is in the texts of a run: nothing is fetched, nothing is run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Fact = tuple[str, str]  # name, and value as HTML


def write(run: Run, file: Path) -> None:
    """Write the report of a run.

    Raises:
        UserError: its settings cannot be read.
    """
    storage.write(file, render(run))


def render(run: Run) -> str:
    """Return the report of a run as an HTML document.

    Raises:
        UserError: its settings cannot be read.
    """
    view, settings = runs.look(run), run.config()
    facts = dataset_facts.of(settings, _begun(run))
    public = config.without_paths(settings)
    sections = [
        _section(_("Previews"), _previews(view, public)),
        _section(_("Loss"), loss_svg.draw(view.state)),
        *(_section(*describe(run)) for describe in extension.panels("report")),
        _section(_("Recipe"), _recipe(public, facts.images if facts else 0)),
        _section(_("Dataset"), _dataset(facts) if facts else ""),
        _section(_("Programs that load the file"), _verdicts(view)),
        _section(_("Checksums (SHA-256)"), _checksums(view, public)),
    ]
    title = escape(_("Training of {name}", name=public.name))
    made = _("Made with Limner {version}.", version=public.record.program or __version__)
    return (
        f"<!doctype html>\n<html lang='{LANGUAGE}'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{_style()}</style></head><body>"
        f"<header><h1>{escape(public.name)}</h1>{_status(view)}</header>"
        f"{_section('', _facts(view, public))}{''.join(sections)}<footer>{escape(made)}</footer></body></html>\n"
    )


@cache
def _style() -> str:
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def _begun(run: Run) -> datetime | None:
    starts = (event.time for event in events.read(run.log)[0] if isinstance(event, events.Started))
    return next(starts, None)


def _section(title: str, content: str) -> str:
    """Render a section; "" if it has no content."""
    if not content:
        return ""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{content}</section>"


def _status(view: View) -> str:
    state, facts = view.state, [runs.STATUS_LABELS[view.status]]
    if state.steps:
        facts.append(_("step {step} of {steps}", step=state.step, steps=state.steps))
    if state.updated:
        facts.append(_("{time:%d %b %Y}", time=state.updated.astimezone()))
    failure = f"<p class='no'>{escape(state.message)}</p>" if view.status == "failed" else ""
    return f"<p class='quiet'>{escape(' · '.join(facts))}</p>{failure}"


def _facts(view: View, public: TrainConfig) -> str:
    state = view.state
    base = _("micro, built into Limner") if public.model.base == MICRO else public.model.base
    family = next((spec.title for name, spec in FAMILIES.items() if name == public.model.family), "")
    facts = [(_("Base model"), escape(base if not family or public.model.base == MICRO else f"{base} ({family})"))]
    if public.trigger:
        facts.append((_("Trigger word"), f"<code>{escape(public.trigger)}</code>"))
    export = view.run.export
    if state.export and export.is_file():
        facts.append((_("File"), escape(f"{export.name} ({file_size(export.stat().st_size)})")))
    if state.seconds:
        facts.append((_("Duration"), escape(duration(state.seconds))))
    if state.device:
        facts.append((_("Device"), escape(state.device)))
    return _list(facts)


def _list(facts: Iterable[Fact]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>" if rows else ""


# Sections -------------------------------------------------------------------------------------------------------


def _previews(view: View, public: TrainConfig) -> str:
    """Render a table of previews: a row for each prompt, a column for each step; of many steps, some, evenly spaced."""
    rows = previews.by_prompt(view)
    steps = _spaced(sorted({step for row in rows.values() for step in row}))
    if not steps:
        return ""
    heads = "".join(f"<th scope='col'>{step}</th>" for step in steps)
    lines = []
    for row in rows.values():
        cells = "".join(f"<td>{_image(view.run, row[step]) if step in row else ''}</td>" for step in steps)
        lines.append(f"<tr><th scope='row'>{escape(next(iter(row.values())).prompt)}</th>{cells}</tr>")
    look = "previews pixels" if public.model.base == MICRO else "previews"
    corner = f"<th scope='col'>{escape(_('Step'))}</th>"
    return (
        f"<div class='wide' tabindex='0'><table class='{look}'><thead><tr>{corner}{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _spaced(steps: Sequence[int]) -> list[int]:
    if len(steps) <= MAX_STEPS:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (MAX_STEPS - 1))] for place in range(MAX_STEPS)]


def _image(run: Run, preview: events.Preview) -> str:
    """Render the thumbnail of a preview; "" if its file is damaged."""
    title = escape(_("Step {step}: {prompt}", step=preview.step, prompt=preview.prompt))
    try:
        data = images.thumbnail(run.folder / "previews", run.folder / preview.file)
    except (UserError, OSError):
        return ""
    return f"<img alt='{title}' src='data:image/webp;base64,{base64.b64encode(data).decode()}'>"


def _recipe(public: TrainConfig, image_count: int) -> str:
    preset = {"character": _("Character"), "style": _("Style"), "plain": _("Plain LoRA")}[public.preset]
    rows = "".join(
        f"<tr><th scope='row'>{escape(each.title)}</th><td>{escape(comparison.shown(each.value))}</td>"
        f"<td class='quiet'>{escape(comparison.shown(each.usual) or _('empty'))}</td></tr>"
        for each in comparison.differences(public, image_count)
    )
    heads = "".join(f"<th scope='col'>{escape(head)}</th>" for head in (_("Setting"), _("Value"), _("Preset")))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    changed = table if rows else f"<p>{escape(_('No setting differs from the preset.'))}</p>"
    return (
        f"<p>{escape(_('Preset: {preset}', preset=preset))}</p><div class='wide' tabindex='0'>{changed}</div>"
        f"<details><summary>{escape(_('All settings'))}</summary><pre>{escape(config.dump(public))}</pre></details>"
    )


def _dataset(facts: dataset_facts.DatasetFacts) -> str:
    with_captions = _("{n} with a caption", n=facts.captioned)
    sizes = _size(facts.smallest)
    if facts.largest != facts.smallest:
        sizes = _("{smallest} to {largest}", smallest=sizes, largest=_size(facts.largest))
    buckets = ", ".join(f"{_size(size)} ({count})" for size, count in facts.buckets.items())
    count = ngettext("{n} image", "{n} images", facts.images)
    rows = [(_("Images"), f"{count}, {with_captions}"), (_("Sizes"), sizes), (_("Buckets"), buckets)]
    words = "".join(f"<li>{escape(word)} <b>{count}</b></li>" for word, count in facts.words)
    title = f"<p class='quiet'>{escape(_('Words of the captions, and how many captions have them:'))}</p>"
    changed = _("The images or captions were changed after this run began; these are the present ones.")
    return (
        _list((name, escape(value)) for name, value in rows)
        + (f"<p class='quiet'>{escape(changed)}</p>" if facts.changed else "")
        + (f"{title}<ul class='words'>{words}</ul>" if words else "")
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _verdicts(view: View) -> str:
    parts = []
    for verified in view.state.verified:
        if not (view.run.folder / verified.file).is_file():
            continue
        rows = "".join(
            f"<tr><th scope='row'>{escape(program)}</th><td class='{'yes' if loads else 'no'}'>"
            f"{escape(_('yes') if loads else _('no'))}</td><td>{escape(words)}</td></tr>"
            for program, loads, words in verified.verdicts
        )
        notes = "".join(f"<p class='quiet'>{escape(note)}</p>" for note in (*verified.problems, *verified.notes))
        parts.append(f"<p><code>{escape(verified.file)}</code></p><div class='wide' tabindex='0'><table>{rows}</table>")
        parts.append(f"</div>{notes}")
    return "".join(parts)


def _checksums(view: View, public: TrainConfig) -> str:
    record = public.record
    known = {name: checksum for name, checksum in view.state.sha256.items() if name.endswith(".safetensors")}
    known |= {_("Dataset"): record.dataset_sha256, _("Base model"): record.base_sha256, "VAE": record.vae_sha256}
    return _list((name, f"<code>{escape(checksum)}</code>") for name, checksum in known.items() if checksum)


def file_name(run: Run) -> str:
    """Return the name of the report's file."""
    return f"{paths.safe_name(run.config().name, 'run')}-report.html"
