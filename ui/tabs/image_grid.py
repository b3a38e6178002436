"""Image grid of a project, read from its folder: the cards of a page, the problems, the tags.

Nothing here waits for pictures to be measured; `left` says how many still have to be.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import config as configs
from trainer import paths, storage
from trainer.base_models import MICRO
from trainer.data import caption_edits, checks, dataset, image_stats, reach, token_count
from trainer.data.captions import with_trigger
from trainer.data.dataset import Example
from trainer.data.problems import KINDS, Problem, group_by_kind, score_files
from trainer.errors import UserError
from trainer.i18n import count, say
from ui.state import page_memory

PAGE = 100
SMALL = 200  # pixels; pictures with a smaller side are enlarged without blurring them
BAND = 0.02  # share of a side that has to be cut off for the cut to be drawn
TAGS = 150
ORDERS = {"name": say("By name"), "added": say("Newest first"), "problems": say("Problems first")}


@dataclass(frozen=True)
class Look:
    """Selection of images: a page, in an order; only those with a kind of problem, or with a tag."""

    page: int = 1
    order: str = "name"
    kind: str = ""
    tag: str = ""


@dataclass(frozen=True)
class Project:
    """A project as its folder is now; `read_at` is the moment by the monotonic clock before it was looked at."""

    name: str
    trigger: str
    examples: tuple[Example, ...] = ()
    problems: tuple[Problem, ...] = ()
    base: str = MICRO
    resolution: int = 0
    left: int = 0  # pictures that have not been measured yet
    read_at: float = 0.0

    @property
    def folder(self) -> Path | None:
        """Its folder, if it is there."""
        folder = paths.datasets() / self.name
        return folder if self.name and folder.is_dir() else None

    def badges(self, name: str) -> list[str]:
        """Return the badges of a card; mere remarks stand only in the list."""
        return [one.message for one in self.problems if one.name == name and not one.hint]


def folder_of(project: str | None) -> Path:
    """The folder of the project at hand.

    Raises:
        UserError: there is none.
    """
    if not project:
        raise UserError("There is no project yet.", "Choose New project above and give it a name.")
    folder = paths.datasets() / paths.check_name(project, "project")
    if not folder.is_dir():
        raise UserError(
            "The project {project!r} is no longer there.", "Reload the page to see which there are.", project=project
        )
    return folder


def read(name: str | None, trigger: str = "") -> Project:
    """Look at a project; what it is known for already is not measured again."""
    project = Project(name or "", trigger, read_at=time.monotonic())
    if project.folder is None:
        return project
    preset, base = page_memory.answer(project.name, "preset"), page_memory.answer(project.name, "base") or MICRO
    preset = preset if preset in ("character", "style") else "character"
    resolution = int(configs.preset(preset, base).get("training", {}).get("resolution", 0))
    found = checks.find(
        project.folder, trigger, preset=preset, base=base, resolution=resolution,
        stats=image_stats.known(project.folder),
    )  # fmt: skip
    unseen = reach.missing(project.folder) if base == MICRO else []
    return replace(
        project, examples=dataset.read(project.folder), problems=tuple(found), base=base, resolution=resolution,
        left=len(image_stats.missing(project.folder) or unseen),
    )  # fmt: skip


def cards(project: Project, look: Look) -> dict[str, Any]:
    """Return what captions.js draws, which is plain text throughout."""
    shown = chosen(project, look)
    pages = max(1, -(-len(shown) // PAGE))
    page = min(max(1, look.page), pages)
    cuts = dict(
        zip(
            (one.name for one in project.examples),
            checks.crop_losses(project.examples, project.resolution),
            strict=True,
        )
    )
    return {
        "project": project.name,
        "at": project.read_at,
        "page": page,
        "last": pages,
        "left": project.left,
        "items": [_card(project, one, cuts[one.name][1]) for one in shown[(page - 1) * PAGE : page * PAGE]],
        "any": bool(project.examples),
        "only": only(look, len(shown)),
        "orders": [
            {"key": key, "title": title, "selected": "selected" if key == look.order else ""}
            for key, title in ORDERS.items()
        ],
        "paged": pages > 1,
        "pages": [
            {
                "number": number,
                "current": " current" if number == page else "",
                "label": say("{first} to {last}", first=(number - 1) * PAGE + 1, last=min(number * PAGE, len(shown))),
            }
            for number in range(1, pages + 1)
        ],
    }


def _card(project: Project, one: Example, cut: tuple[float, float]) -> dict[str, Any]:
    across, down = (50 * share if share > BAND else 0 for share in cut)
    mask = dataset.mask_file(one.path)
    return {
        "name": one.name,
        "url": _address("dataset", project, one.name, one.path),
        "mask": _address("mask", project, one.name, mask) if mask.is_file() else "",
        "caption": one.caption,
        "look": "small" if min(one.width, one.height) < SMALL else "",
        "ratio": f"{one.width / one.height:.4f}",
        "cut": f"{down:.1f}% {across:.1f}%" if across or down else "",
        "badges": project.badges(one.name),
        **length(project, one.caption),
    }


def _address(route: str, project: Project, name: str, path: Path) -> str:
    """Return where the page gets the thumbnail of a file, which changes when the file does."""
    return f"/media/{route}/{quote(project.name)}/{quote(name)}?t={path.stat().st_mtime_ns}"


def length(project: Project, caption: str) -> dict[str, Any]:
    """Return the tokens of a caption as it is trained, and how many are read."""
    long, read = (
        token_count.count(with_trigger(caption, project.trigger), project.base),
        token_count.limit(project.base),
    )
    return {"tokens": f"{long} / {read}", "long": "long" if long > read else ""}


def chosen(project: Project, look: Look) -> list[Example]:
    """The pictures that are shown, in their order."""
    named = {one.name for one in project.problems if one.kind == look.kind} if look.kind else None
    found = [
        one
        for one in project.examples
        if (named is None or one.name in named) and (not look.tag or look.tag in caption_edits.split_tags(one.caption))
    ]
    ranks = score_files(project.problems) if look.order == "problems" else {}
    keys: dict[str, Callable[[Example], Any]] = {
        "added": lambda one: -one.path.stat().st_mtime_ns,
        "problems": lambda one: -ranks.get(one.name, 0),
    }
    return sorted(found, key=keys.get(look.order, lambda one: one.name))


def only(look: Look, shown: int) -> str:
    """Describe what the grid leaves out; "" if nothing."""
    if look.kind:
        return count(
            "Only {n} picture with this to look at: {kind}", "Only {n} pictures with this to look at: {kind}", shown,
            kind=say(look.kind),
        )  # fmt: skip
    if look.tag:
        return count("Only {n} picture with the tag {tag!r}", "Only {n} pictures with the tag {tag!r}", shown,
                     tag=look.tag)  # fmt: skip
    return ""


def overview(project: Project) -> dict[str, Any]:
    """Return what overview.js draws above the grid: findings and tags, all of it plain text."""
    readable = {one.name for one in project.examples}
    findings = []
    for one in group_by_kind(project.problems):
        kind = KINDS[one.kind]
        findings.append(
            {
                "kind": one.kind,
                "title": one.title,
                "effect": say(kind.effect),
                "remedy": say(kind.remedy),
                "look": "fatal" if kind.fatal else "hint" if kind.hint else "",
                "files": "" if readable & set(one.names) else ", ".join(one.names[:8]),
                "show": "yes" if readable & set(one.names) else "",
                "button": say(kind.button),
            }
        )
    counted = caption_edits.count_tags(one.caption for one in project.examples).most_common(TAGS)
    serious = sum(1 for one in findings if one["look"] != "hint")
    return {
        "findings": findings,
        "heading": _heading(project, serious, len(findings) - serious),
        "serious": "yes" if serious else "",
        "tags": [{"tag": tag, "count": often} for tag, often in counted],
    }


def _heading(project: Project, serious: int, hints: int) -> str:
    if not project.examples:
        return ""
    things = count("{n} thing to look at", "{n} things to look at", serious) if serious else ""
    good = count("{n} hint", "{n} hints", hints) if hints else ""
    return say("{things} and {hints}", things=things, hints=good) if things and good else things or good


def summary(project: Project) -> str:
    """One line: how many pictures and captions, and what stands in the way of training."""
    if not project.name:
        return say("Make a project first: choose <b>New project</b> above.")
    captions = sum(1 for one in project.examples if one.caption)
    fatal = [f"{one.message} {one.remedy}" for one in project.problems if one.fatal]
    parts = [
        f"<b>{count('{n} picture', '{n} pictures', len(project.examples))}</b>",
        count("{n} caption", "{n} captions", captions),
    ]
    if project.left:
        parts.append(count("looking at {n} picture", "looking at {n} pictures", project.left))
    return " &middot; ".join([*parts, *map(escape, fatal or [say("ready to train")])])


def draw(name: str, trigger: str, look: Look = Look()) -> list[Any]:
    """Values of the parts that show a project: what is shown, grid, overview, summary, and the two ways back."""
    project = read(name, trigger)
    grid = cards(project, look)
    folder = project.folder
    removed = folder is not None and any((folder / storage.BIN).glob("*"))
    return [
        replace(look, page=grid["page"]), grid, overview(project), summary(project),
        gr.Button(visible=removed), undo_button(folder),
    ]  # fmt: skip


def undo_button(folder: Path | None) -> gr.Button:
    """The button that takes back the last change of captions, which it names."""
    what = caption_edits.last_title(folder) if folder else ""
    return gr.Button(say("Undo: {what}", what=what) if what else say("Undo"), visible=bool(what))


def changes(edits: Sequence[caption_edits.Edit]) -> str:
    """Render a preview of a change of captions."""
    if not edits:
        return f"<p class='quiet'>{say('No caption would change.')}</p>"
    empty = say("(empty)")
    rows = "".join(
        f"<li><span class='quiet'>{escape(one.name)}</span> <del>{escape(one.before) or empty}</del> "
        f"<ins>{escape(one.after) or empty}</ins></li>"
        for one in edits[:5]
    )
    more = f"<p class='quiet'>{say('and {number} more', number=len(edits) - 5)}</p>" if len(edits) > 5 else ""
    told = count("{n} caption changes", "{n} captions change", len(edits))
    return f"<div class='changes' role='status'><p><b>{told}:</b></p><ul>{rows}</ul>{more}</div>"
