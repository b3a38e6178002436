"""Image grid of a project, read from its folder: the cards of a page, the problems, the tags.

Nothing here waits until images are measured; `Project.left` says how many still have to be.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import gradio as gr

from trainer import config as configs
from trainer import paths, storage
from trainer.base_models import MICRO
from trainer.data import caption_edits, checks, dataset, image_edits, token_count, undo
from trainer.data.captions import with_trigger
from trainer.data.dataset import Example
from trainer.data.problems import KINDS, Group, Problem, group_by_kind, score_files
from trainer.i18n import _, ngettext
from ui.state import page_memory
from ui.state.order import UNKNOWN, Moment
from ui.state.shared_reads import shared
from ui.templates import render

PAGE = 100
SMALL = 200  # pixels; images with a shorter side are enlarged without smoothing
BAND = 0.02  # share of a side that must be cropped for the crop to be drawn
TAGS = 150
BARS = 12  # buckets that are drawn
PAIRS = 200  # of images that are nearly the same
ORDERS = {"name": _("By name"), "added": _("Newest first"), "problems": _("Problems first")}


@dataclass(frozen=True)
class Selection:
    """The images to show: a page, in an order; only those with a kind of problem, or with a tag. `sent` says when."""

    page: int = 1
    order: str = "name"
    kind: str = ""
    tag: str = ""
    sent: Moment = field(default=UNKNOWN, compare=False)

    @property
    def choice(self) -> dict[str, object]:
        """Values that the browser compares with those chosen there."""
        return {"page": self.page, "order": self.order, "kind": self.kind, "tag": self.tag}

    @classmethod
    def read(cls, value: object) -> "Selection":
        """Read what the browser sends; what is missing or makes no sense is as it is at first."""
        sent = value if isinstance(value, Mapping) else {}
        page, order = sent.get("page"), str(sent.get("order", ""))
        if not isinstance(page, int) or page < 1:
            page = 1
        if order not in ORDERS:
            order = "name"
        return cls(page, order, str(sent.get("kind", "")), str(sent.get("tag", "")), Moment.read(sent.get("sent")))


@dataclass(frozen=True)
class Project:
    """A project as its folder is now; `read_at` is the monotonic time just before it was read."""

    name: str
    trigger: str
    examples: tuple[Example, ...] = ()
    problems: tuple[Problem, ...] = ()
    base: str = MICRO
    resolution: int = 0
    left: int = 0  # images that have not been measured yet
    proposed: Mapping[str, str] = field(default_factory=dict)  # captions by a model, by the name of the image
    read_at: float = 0.0

    @property
    def folder(self) -> Path | None:
        """The folder of the project, if it exists."""
        folder = paths.datasets() / self.name
        return folder if self.name and folder.is_dir() else None

    @cached_property
    def badges(self) -> Mapping[str, Sequence[str]]:
        """Badges on the cards by the name of the image: mere hints are in the list alone, an empty field is seen."""
        badges = defaultdict(list)
        for problem in self.problems:
            if problem.kind != "no caption" and not problem.hint:
                badges[problem.name].append(problem.message)
        return badges


def read(name: str | None, trigger: str = "") -> Project:
    """Read a project; measurements that are known are not repeated."""
    project = Project(name or "", trigger, read_at=time.monotonic())
    folder = project.folder
    if folder is None:
        return project
    preset, base = page_memory.answer(project.name, "preset"), page_memory.answer(project.name, "base") or MICRO
    if preset not in get_args(configs.Preset):
        preset = "character"
    resolution = _resolution(project.name, preset, base)
    examined = checks.examine(
        folder,
        trigger,
        preset=preset,
        base=base,
        resolution=resolution,
        examples=page_memory.examples(project.name),
    )
    return replace(
        project,
        examples=examined.examples,
        problems=tuple(examined.problems),
        base=base,
        resolution=resolution,
        left=examined.unmeasured,
        proposed={name: edit.after for name, edit in caption_edits.read_proposals(folder).items()},
    )


def _resolution(name: str, preset: str, base: str) -> int:
    """Return the resolution that is chosen in the Train tab, or else that of the preset."""
    training = (page_memory.settings(name) or {}).get("training")
    chosen = training.get("resolution") if isinstance(training, dict) else None
    if isinstance(chosen, int) and 64 <= chosen <= 8192:
        return chosen
    return int(configs.preset(preset, base).get("training", {}).get("resolution", 0))


# Cards ----------------------------------------------------------------------------------------------------------


def cards(project: Project, selection: Selection) -> dict[str, Any]:
    """Return what captions.js draws; all of it is plain text."""
    selected = select(project, selection)
    last = max(1, -(-len(selected) // PAGE))
    page = min(max(1, selection.page), last)
    crops = checks.crop_losses(project.examples, project.resolution)
    cuts = {example.name: cut for example, (_, cut) in zip(project.examples, crops, strict=True)}
    sizes = checks.assigned_buckets(project.examples, project.resolution)
    buckets = dict(zip((example.name for example in project.examples), sizes, strict=True))
    edited = image_edits.edited(project.folder) if project.folder else set()
    visible = selected[(page - 1) * PAGE : page * PAGE]
    return {
        "project": project.name,
        "at": project.read_at,
        "selection": replace(selection, page=page).choice,
        "page": page,
        "last": last,
        "left": project.left,
        "items": [
            _card(project, example, cuts[example.name], buckets[example.name])
            | {"edited": "yes" if example.name in edited else ""}
            for example in visible
        ],
        "any": bool(project.examples),
        "proposals": _proposals(project),
        "only": filter_label(selection, len(selected)),
        "orders": [_order(key, title, selection) for key, title in ORDERS.items()],
        "paged": last > 1,
        "pages": [_page(number, page, len(selected)) for number in range(1, last + 1)],
    }


def _proposals(project: Project) -> str:
    number = sum(1 for example in project.examples if example.name in project.proposed)
    return ngettext("{n} proposed caption", "{n} proposed captions", number) if number else ""


def _order(key: str, title: str, selection: Selection) -> dict[str, str]:
    return {"key": key, "title": title, "selected": "selected" if key == selection.order else ""}


def _page(number: int, current: int, total: int) -> dict[str, Any]:
    first, last = (number - 1) * PAGE + 1, min(number * PAGE, total)
    return {
        "number": number,
        "current": " current" if number == current else "",
        "label": _("{first} to {last}", first=first, last=last),
    }


def _card(project: Project, example: Example, crop: tuple[float, float], bucket: tuple[int, int]) -> dict[str, Any]:
    mask = dataset.mask_file(example.path)
    return {
        "name": example.name,
        "url": _url("dataset", project, example.name, example.path),
        "large_mask": _url("mask", project, f"{example.name}/large", mask) if mask.is_file() else "",
        "large": _url("image", project, example.name, example.path),
        "size": [example.width, example.height],
        "crop": list(crop),
        "facts": _facts(project, example, bucket),
        "mask": _url("mask", project, example.name, mask) if mask.is_file() else "",
        "caption": example.text(),
        "proposed": project.proposed.get(example.name, ""),
        "look": "small" if min(example.width, example.height) < SMALL else "",
        "ratio": f"{example.width / example.height:.4f}",
        "cut": _inset(*crop),
        "badges": project.badges.get(example.name, []),
        **token_usage(project, example.caption),
    }


def _facts(project: Project, example: Example, bucket: tuple[int, int]) -> str:
    """Return the size of an image, and that of its bucket if the resolution is known."""
    size = _("{width} x {height} pixels", width=example.width, height=example.height)
    if not project.resolution:
        return size
    return size + " · " + _("trained at {width} x {height}", width=bucket[0], height=bucket[1])


def _inset(across: float, down: float) -> str:
    """Return the crop of an image as the CSS inset of its frame; "" if almost nothing is cropped."""
    if max(across, down) <= BAND:
        return ""
    vertical, horizontal = (50 * share if share > BAND else 0 for share in (down, across))
    return f"{vertical:.1f}% {horizontal:.1f}%"


def _url(route: str, project: Project, name: str, path: Path) -> str:
    """Return the URL of a file's thumbnail; it changes with the file."""
    return f"/media/{route}/{quote(project.name)}/{quote(name, safe='/')}?t={path.stat().st_mtime_ns}"


def token_usage(project: Project, caption: str) -> dict[str, str]:
    """Return the number of tokens of a caption with the trigger word, and whether that is more than is read."""
    tokens = token_count.count(with_trigger(caption, project.trigger), project.base)
    limit = token_count.limit(project.base)
    return {"tokens": f"{tokens} / {limit}", "long": "long" if tokens > limit else ""}


def select(project: Project, selection: Selection) -> list[Example]:
    """Return the examples of a selection, in its order, on all pages."""
    examples = list(project.examples)
    if selection.kind:
        names = {problem.name for problem in project.problems if problem.kind == selection.kind}
        examples = [example for example in examples if example.name in names]
    if selection.tag:
        examples = [example for example in examples if selection.tag in caption_edits.split_tags(example.caption)]
    return sorted(examples, key=_sort_key(project, selection.order))


def _sort_key(project: Project, order: str) -> Callable[[Example], Any]:
    if order == "added":
        return lambda example: -example.path.stat().st_mtime_ns
    if order == "problems":
        ranks = score_files(project.problems)
        return lambda example: -ranks.get(example.name, 0)
    return lambda example: example.name


def filter_label(selection: Selection, number: int) -> str:
    """Describe the filter of the grid; "" if it shows all images."""
    if selection.kind:
        return ngettext(
            "Only {n} image with this problem: {kind}",
            "Only {n} images with this problem: {kind}",
            number,
            kind=_(selection.kind),
        )
    if selection.tag:
        return ngettext(
            "Only {n} image with the tag {tag!r}", "Only {n} images with the tag {tag!r}", number, tag=selection.tag
        )
    return ""


def overview(project: Project) -> dict[str, Any]:
    """Return what overview.js draws above the grid: findings and tags, all of it plain text."""
    readable = {example.name for example in project.examples}
    findings = [_finding(problem, readable) for problem in group_by_kind(project.problems)]
    pairs = _pairs(project)
    for finding in findings:
        finding["pairs"] = pairs if finding["kind"] == "copy" else []
    tags = caption_edits.count_tags(example.caption for example in project.examples).most_common(TAGS)
    serious = sum(1 for finding in findings if finding["look"] != "hint")
    return {
        "findings": findings,
        "heading": _heading(project, serious, len(findings) - serious),
        "serious": "yes" if serious else "",
        "sizes": _sizes(project),
        "tags": [{"tag": tag, "count": number} for tag, number in tags],
    }


def _sizes(project: Project) -> list[dict[str, Any]]:
    """Return how many images each bucket has, the most common first."""
    if not project.examples or not project.resolution:
        return []
    counts = Counter(checks.assigned_buckets(project.examples, project.resolution)).most_common(BARS)
    return [{"label": f"{width} x {height}", "count": count} for (width, height), count in counts]


def _pairs(project: Project) -> list[list[dict[str, str]]]:
    """Return the pairs of images that are nearly the same, each with what the viewer shows of it."""
    examples = {example.name: example for example in project.examples}
    sides = []
    for problem in project.problems:
        if problem.kind == "copy" and problem.name in examples and problem.other in examples:
            sides.append([_side(project, examples[name]) for name in (problem.other, problem.name)])
    return sides[:PAIRS]


def _side(project: Project, example: Example) -> dict[str, str]:
    size = _("{width} x {height} pixels", width=example.width, height=example.height)
    text = " · ".join(filter(None, (example.name, size, example.caption)))
    return {"name": example.name, "url": _url("image", project, example.name, example.path), "text": text}


def _finding(problem: Group, readable: set[str]) -> dict[str, Any]:
    kind = KINDS[problem.kind]
    look = "hint" if kind.hint else ""
    if kind.fatal:
        look = "fatal"
    files, show = ", ".join(problem.names[:8]), ""
    if readable & set(problem.names):
        files, show = "", "yes"  # the images themselves can be shown
    return {
        "kind": problem.kind,
        "title": problem.title,
        "effect": _(kind.effect),
        "remedy": _(kind.remedy),
        "look": look,
        "remove": list(problem.names) if kind.action == "remove" else [],  # so that no other is removed
        "files": files,
        "show": show,
        "button": _(kind.button),
    }


def _heading(project: Project, serious: int, hints: int) -> str:
    if not project.examples:
        return ""
    problems = ngettext("{n} problem", "{n} problems", serious)
    good = ngettext("{n} hint", "{n} hints", hints)
    if serious and hints:
        return _("{things} and {hints}", things=problems, hints=good)
    if serious:
        return problems
    return good if hints else ""


def summary(project: Project) -> str:
    """Return one line of HTML: how many images and captions there are, and what prevents training; "" without any."""
    if not project.examples:
        return ""
    captions = sum(1 for example in project.examples if example.caption)
    images = ngettext("{n} image", "{n} images", len(project.examples))
    parts = [ngettext("{n} caption", "{n} captions", captions)]
    if project.left:
        parts.append(ngettext("checking {n} image", "checking {n} images", project.left))
    fatal = [f"{problem.message} {problem.remedy}" for problem in project.problems if problem.fatal]
    parts += fatal or [_("ready to train")]
    return render("dataset_summary.html", project=project.name, images=images, parts=parts)


def draw(
    project: str, trigger: str, selection: Selection = Selection(), *, asked: Selection | None = None
) -> dict[str, Any]:
    """Return values of `images.Parts.view`.

    The browser draws the grid if it still shows the selection that it `asked` for, and goes on with this one.
    """
    key = "grid", project, trigger, selection
    folder, drawn = shared(key, lambda: _draw(project, trigger, selection))
    label = undo_label(folder)
    return {
        **drawn,
        "grid": {**drawn["grid"], "asked": (asked or selection).choice},
        "restore": gr.Button(visible=bool(folder and any((folder / storage.BIN).glob("*")))),
        "undo": gr.Button(label or _("Undo"), visible=bool(label)),
    }


def _draw(name: str, trigger: str, selection: Selection) -> tuple[Path | None, dict[str, Any]]:
    project, above, text = shared(("project", name, trigger), lambda: _look(name, trigger))
    return project.folder, {"grid": cards(project, selection), "overview": above, "summary": text}


def _look(name: str, trigger: str) -> tuple[Project, dict[str, Any], str]:
    """Return what all pages and orders of a project have in common."""
    project = read(name, trigger)
    return project, overview(project), summary(project)


def undo_label(folder: Path | None) -> str:
    """Return the label of the button that undoes the last change, which it names; "" if there is none."""
    change = undo.last_title(folder) if folder else ""
    return _("Undo: {what}", what=change) if change else ""


def changes(edits: Sequence[caption_edits.Edit]) -> str:
    """Render a preview of a change of captions."""
    return render("caption_changes.html", edits=edits)
