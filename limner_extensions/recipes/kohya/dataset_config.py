"""Datasets of kohya's scripts (`--dataset_config`), as the subjects of a run and their regularization images, and back.

The meaning was read from kohya-ss/sd-scripts at commit 48d368f (library/config_util.py, library/train_util.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit

from limner_extensions.recipes.draft import Draft, Reason
from limner_extensions.recipes.sections import Side
from limner_extensions.recipes.values import side, words
from trainer.config import TrainConfig, subject_lines
from trainer.data import captions, dataset
from trainer.data.dataset import Part, Subject
from trainer.errors import UserError

MOST = 17  # datasets of a run
FURTHER = "training.further_resolutions"
SHARE = 0.5  # of regularization images there: they are repeated until they are as many as the others
# What each subset has for itself there, and a whole run here.
OF_A_RUN = words("shuffle_caption keep_tokens caption_dropout_rate caption_tag_dropout_rate enable_wildcard flip_aug")


@dataclass(frozen=True, eq=False)
class Subset:
    """A folder of images: its own settings, those of its dataset, and those for all, each with the prefix of its keys.

    `number` is that of its dataset.
    """

    levels: tuple[tuple[str, Mapping[str, Any]], ...]
    number: int

    def key(self, name: str) -> str:
        """Return the key in a draft that one of its settings has; "" if it has none."""
        return next((f"{prefix}{name}" for prefix, values in self.levels if name in values), "")

    def get(self, name: str) -> Any:  # noqa: ANN401 - any value of TOML
        """Return one of its settings, its own or an inherited one; None if there is none."""
        return next((values[name] for _prefix, values in self.levels if name in values), None)

    def text(self, name: str) -> str:
        """Return one of its settings that is a text; "" if it is none."""
        value = self.get(name)
        return captions.one_line(value) if isinstance(value, str) else ""

    @property
    def repeats(self) -> int:
        """Number of times that its images are seen in an epoch; 0 = it is ignored."""
        value = self.get("num_repeats")
        return max(0, value) if isinstance(value, int) else 1

    @property
    def is_used(self) -> bool:
        """True if it is a folder of images with captions beside them, and not off."""
        return bool(self.text("image_dir")) and self.repeats > 0 and self.get("metadata_file") is None


def are_in(data: Mapping[str, Any]) -> bool:
    """Return True if a table names datasets of sd-scripts."""
    return any(subset.text("image_dir") for subset in subsets(data))


def subsets(data: Mapping[str, Any]) -> Iterator[Subset]:
    """Yield all subsets of all datasets in a table, with keys as `kohya.lifted` makes them."""
    common: dict[str, Any] = {}
    for name, value in data.items():
        common |= value if isinstance(value, Mapping) else {name: value}
    datasets = data.get("datasets")
    for number, table in enumerate(datasets if isinstance(datasets, list) else []):
        own = table.get("subsets") if isinstance(table, Mapping) else None
        for place, values in enumerate(own if isinstance(own, list) else []):
            if isinstance(values, Mapping):
                of_dataset = "" if number == 0 else f"datasets.{number}."
                prefix = "" if number == place == 0 else f"datasets.{number}.subsets.{place}."
                yield Subset(((prefix, values), (of_dataset, table), ("", common)), number)


def find_repeated(data: Mapping[str, Any]) -> dict[int, Side]:
    """Return the resolution of each dataset, by its number, if they repeat the same subsets at several; else {}."""
    sides: dict[int, Side] = {}
    contents: dict[int, list[tuple[str, str, int, bool]]] = {}
    for subset in subsets(data):
        if not subset.is_used:
            continue
        try:
            sides[subset.number] = side(subset.get("resolution"))
        except ValueError:
            return {}
        content = subset.text("image_dir"), subset.text("class_tokens"), subset.repeats, subset.get("is_reg") is True
        contents.setdefault(sides[subset.number][0], []).append(content)
    distinct = {tuple(sorted(content)) for content in contents.values()}
    return sides if len(contents) > 1 and len(distinct) == 1 else {}


def apply(draft: Draft, data: Mapping[str, Any]) -> None:
    """Set datasets, trigger words, class words and regularization images of a draft as the subsets of a table say."""
    used, again = _sorted_out(draft, data)
    others = [subset for subset in used if subset.get("is_reg") is True]
    own = {subset: _subject(subset, others) for subset in used if subset not in others}
    if not own:
        return
    taught = _with_regularization(draft, _told_apart(draft, own), others)
    least = min(subject.repeats for subject in taught.values())
    main = next(subset for subset, subject in taught.items() if subject.repeats == least)
    _set_main(draft, main, taught[main])
    lines, keys = [], [main.key("num_repeats")]
    for subset, subject in taught.items():
        if subset is not main:
            lines.append(subject_lines.write(replace(subject, repeats=_rounded(draft, subject.repeats, least))))
            keys += [subset.key(name) for name in ("image_dir", "num_repeats", "class_tokens")]
    if lines:
        draft.set("subjects", lines, *keys)
    for subset in again:
        keys = [subset.key(name) for name in ("image_dir", "num_repeats", "class_tokens", "is_reg")]
        draft.set(FURTHER, draft.settings[FURTHER], *keys)
    _compare(draft, [*taught, *(subset for subset in again if subset.get("is_reg") is not True)])
    _count(draft, taught, others)
    for subset in (*used, *again):
        if subset.text("caption_extension") not in ("", *captions.FORMS):
            draft.leave("no counterpart", subset.key("caption_extension"))


def _sorted_out(draft: Draft, data: Mapping[str, Any]) -> tuple[list[Subset], list[Subset]]:
    """Return the subsets that are used, and those that repeat them at further resolutions; say why others are not."""
    used: list[Subset] = []
    again: list[Subset] = []
    repeated = find_repeated(data)
    for subset in subsets(data):
        if not subset.is_used:
            reason: Reason = "no counterpart" if subset.repeats else "off"
            draft.leave(reason, *(subset.key(name) for name in ("image_dir", "metadata_file", "class_tokens")))
        elif repeated and used and repeated[subset.number][0] != repeated[used[0].number][0]:
            again.append(subset)
        else:
            used.append(subset)
    return used, again


def _subject(subset: Subset, others: Iterable[Subset]) -> Subject:
    """Return what a subset teaches.

    Of its `class_tokens`, those that regularization images have too are the class word, or else all but the first word.
    """
    tokens = subset.text("class_tokens")
    words = (other.text("class_tokens") for other in others)
    class_word = next((word for word in words if word and f" {tokens}".endswith(f" {word}")), "")
    trigger = tokens.removesuffix(class_word).strip()
    if not class_word:
        trigger, _space, class_word = tokens.partition(" ")
    if trigger and captions.contains_trigger(class_word, trigger):
        class_word = ""
    return Subject(subset.text("image_dir"), trigger, subset.repeats, class_word)


def _told_apart(draft: Draft, own: Mapping[Subset, Subject]) -> dict[Subset, Subject]:
    """Return the subjects that can be taught in one run, and name the others: each needs a trigger word of its own."""
    taught: dict[Subset, Subject] = {}
    for subset, subject in own.items():
        if not taught or (len(taught) < MOST and _fits(subject, taught.values())):
            taught[subset] = subject
    if left := [subject.dataset for subset, subject in own.items() if subset not in taught]:
        draft.note(
            "Left out: {folders}. Each of at most {most} datasets needs a trigger word of its own here, which "
            "the first word of class_tokens gives.",
            folders=", ".join(left),
            most=MOST,
        )
    if words := [f"{subject.trigger} ({subject.class_word or '-'})" for subject in taught.values() if subject.trigger]:
        draft.note(
            "Trigger words and, in parentheses, class words follow from class_tokens: {words}. Limner puts "
            "the trigger word in front of each caption that lacks it.",
            words=", ".join(words),
        )
    return taught


def _fits(subject: Subject, taught: Iterable[Subject]) -> bool:
    """Return True if a subject can be taught beside others, as a line."""
    subjects = [*taught, subject]
    triggers = {other.trigger.casefold() for other in subjects}
    folders = {other.dataset for other in subjects}
    if "" in triggers or len(triggers) < len(subjects) or len(folders) < len(subjects) or not _is_line(subject):
        return False
    return not any(captions.contains_trigger(other.class_word, trigger) for other in subjects for trigger in triggers)


def _is_line(subject: Subject) -> bool:
    """Return True if a subject can be written as a line: not if its folder or words look like flags."""
    once = replace(subject, repeats=1)
    try:
        return subject_lines.parse_subject_line(subject_lines.write(once)) == once
    except UserError:
        return False


def _with_regularization(
    draft: Draft, taught: Mapping[Subset, Subject], others: Iterable[Subset]
) -> dict[Subset, Subject]:
    """Return the subjects with the regularization images of their class, or else of their dataset, where there are any.

    Those that remain are named as without a counterpart.
    """
    pairs = dict(taught)
    triggers = [subject.trigger for subject in taught.values() if subject.trigger]
    for other in others:
        word = other.text("class_tokens")
        free = [subset for subset, subject in pairs.items() if not subject.regularization]
        alike = [subset for subset in free if word and pairs[subset].class_word == word]
        near = [subset for subset in free if subset.number == other.number]
        keys = [other.key(name) for name in ("image_dir", "is_reg", "class_tokens")]
        for subset in (alike or near)[:1]:
            subject = replace(pairs[subset], regularization=other.text("image_dir"))
            if not subject.class_word and not any(captions.contains_trigger(word, trigger) for trigger in triggers):
                subject = replace(subject, class_word=word)
            if word != subject.class_word:
                draft.leave("no counterpart", keys.pop())
            pairs[subset] = subject
            draft.set("regularization.share", SHARE, *keys)
            draft.leave("decided here", other.key("num_repeats"))
            keys = []
        draft.leave("no counterpart", *keys)
    return pairs


def _set_main(draft: Draft, subset: Subset, subject: Subject) -> None:
    draft.set("dataset", subject.dataset, subset.key("image_dir"))
    if subject.trigger:
        draft.set("trigger", subject.trigger, subset.key("class_tokens"))
    if subject.class_word:
        draft.set("class_word", subject.class_word, subset.key("class_tokens"))
    if subject.regularization:
        draft.set("regularization.dataset", subject.regularization)


def _rounded(draft: Draft, repeats: int, least: int) -> int:
    """Return how often images are seen for each time that those of the main dataset are, as a line can say it."""
    rounded = min(subject_lines.MAX_REPEATS, round(repeats / least))
    if rounded * least != repeats:
        draft.note(
            "Repeats of {first} and {second} become 1 and {rounded} here.", first=least, second=repeats, rounded=rounded
        )
    return rounded


def _compare(draft: Draft, taught: Sequence[Subset]) -> None:
    """Name the settings in which subsets differ, while a run has one value: that of the first."""
    differing = []
    for name in OF_A_RUN:
        values = [subset.get(name) or 0 for subset in taught]
        if any(value != values[0] for value in values):
            differing.append(name)
        elif (path := next(iter(draft.mapped.get(name, ())), "")) in draft.settings:
            draft.set(path, draft.settings[path], *(subset.key(name) for subset in taught))
    if differing:
        draft.note(
            "The subsets differ in {settings}; here all have what the first one has.", settings=", ".join(differing)
        )


def _count(draft: Draft, taught: Mapping[Subset, Subject], others: Iterable[Subset]) -> None:
    """Count the images of an epoch, if all folders are here."""
    balanced = {other.number for other in others}
    seen = images = 0
    for subset, subject in taught.items():
        try:
            count = len(dataset.image_files(dataset.find_folder(subject.dataset)))
        except UserError:
            return
        images += count
        seen += count * subset.repeats * (2 if subset.number in balanced else 1)
    draft.images, draft.seen = images, seen


def write(config: TrainConfig) -> str:
    """Return the datasets of a config as a file for `--dataset_config`, with the paths of their folders."""
    tables = []
    for subject in config.taught:
        words = " ".join(filter(None, (subject.trigger, subject.class_word)))
        tables += [_table(part, words, subject.repeats) for part in _parts(subject.dataset)]
        if subject.regularization:
            parts = _parts(subject.regularization)
            tables += [{**_table(part, subject.class_word, 1), "is_reg": True} for part in parts]
    sides = config.training.resolutions
    if len(sides) == 1:  # which the other file says
        return tomlkit.dumps({"datasets": [{"subsets": tables}]})
    return tomlkit.dumps({"datasets": [{"resolution": pixels, "subsets": tables} for pixels in sides]})


def _parts(name: str) -> list[Part]:
    try:
        return dataset.parts(dataset.find_folder(name))
    except UserError:  # a config may be written for another machine
        return [Part(Path(name))]


def _table(part: Part, words: str, repeats: int) -> dict[str, Any]:
    tokens = part.caption or words
    table = {"image_dir": str(part.folder), "num_repeats": repeats * part.repeats, "caption_extension": ".txt"}
    return table | ({"class_tokens": tokens} if tokens else {})
