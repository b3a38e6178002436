"""Problems that a dataset can have: what each kind does to the adapter, and what to do about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.i18n import _, ngettext

Action = Literal["", "remove", "rename", "trigger", "background", "mask"]


@dataclass(frozen=True)
class Kind:
    """A kind of problem: title for the whole dataset, effect on the result, and remedy.

    In `title`, {n} is a count, and [one|many] depends on it; `action` is what the program itself can do about it. The
    texts are English here and are translated where they are shown.
    """

    title: str
    effect: str
    remedy: str
    action: Action = ""
    button: str = ""
    fatal: bool = False
    hint: bool = False  # good to know, but not a mistake

    @property
    def titles(self) -> tuple[str, str]:
        """The title for one and for many."""
        singular, plural = (re.sub(r"\[(.*?)\|(.*?)\]", rf"\{number}", self.title) for number in (1, 2))
        return singular, plural


KINDS = {
    "empty": Kind(
        title="There are no images in this dataset.",
        effect="There is nothing to learn from.",
        remedy="Add at least 5; 10 to 30 work best.",
        fatal=True,
    ),
    "few": Kind(
        title="There are only a few images.",
        effect="The adapter memorizes these images rather than what they have in common.",
        remedy="It will train, but 10 to 30 images work best.",
    ),
    "unreadable": Kind(
        title="{n} [file|files] cannot be read as an image.",
        effect="Such files are not trained.",
        remedy="Export them again as PNG or JPEG.",
        action="remove",
        button="Remove",
    ),
    "folder": Kind(
        title="{n} [subfolder has|subfolders have] images.",
        effect="Images in subfolders are not read, as in kohya's folders such as 10_name.",
        remedy="Move them into the dataset itself; how often each is seen follows from the settings.",
    ),
    "shared caption": Kind(
        title="{n} caption [file is|files are] shared by several images.",
        effect="These images are trained with the same caption.",
        remedy="Give the images different names.",
        action="rename",
        button="Give each its own",
    ),
    "lonely caption": Kind(
        title="{n} caption [file has|files have] no image.",
        effect="Such files are ignored.",
        remedy="Add the image or remove the file.",
        action="remove",
        button="Remove",
    ),
    "other caption": Kind(
        title="{n} caption [file is|files are] not read, as there is a .txt file too.",
        effect="Of several captions of an image, that of its .txt file counts.",
        remedy="Remove the file, or the .txt file if this caption is the right one.",
    ),
    "lonely mask": Kind(
        title="{n} [mask has|masks have] no image.",
        effect="Such files are ignored.",
        remedy="Add the image or remove the file.",
        action="remove",
        button="Remove",
    ),
    "mask": Kind(
        title="{n} [image has|images have] a mask.",
        effect="Masks are used only if Masks is on.",
        remedy="Turn it on in the Train tab under Advanced, Objective.",
        hint=True,
    ),
    "small": Kind(
        title="{n} [image is|images are] smaller than the training resolution.",
        effect="Small images are enlarged, and the adapter learns to draw just as softly.",
        remedy="Use a larger version.",
        action="remove",
        button="Remove",
    ),
    "blank": Kind(
        title="{n} [image is|images are] a single color.",
        effect="There is nothing to learn from it.",
        remedy="Remove it.",
        action="remove",
        button="Remove",
    ),
    "blurred": Kind(
        title="{n} [image is|images are] blurred.",
        effect="The adapter learns the blur as part of what you teach.",
        remedy="Look at them and use sharper ones.",
        action="remove",
        button="Remove",
    ),
    "copy": Kind(
        title="{n} [image is|images are] nearly the same as another.",
        effect="Images seen more often are memorized: their pose, light and background come up unasked.",
        remedy="Keep one of each.",
        action="remove",
        button="Keep the best of each",
    ),
    "cropped": Kind(
        title="{n} [image loses|images lose] much at the edges.",
        effect="Images are cropped to a few aspect ratios, and what is cut off is not seen.",
        remedy="Crop them yourself so that what matters is in the middle.",
    ),
    "transparent": Kind(
        title="{n} [image is|images are] partly transparent.",
        effect="They are put on plain white, and the adapter learns to draw on white.",
        remedy="Choose Background: random in the Train tab under Advanced, Images.",
        action="mask",
        button="Make masks from it",
    ),
    "backdrop": Kind(
        title="Most images have the same background.",
        effect="It is learned together with what you teach and comes up unasked.",
        remedy="Add images with other backgrounds, or name it in each caption so that it can be told apart.",
        action="background",
        button="Name it in the captions",
    ),
    "scenery": Kind(
        title="Most images have the same background.",
        effect="It is learned together with what you teach and comes up unasked.",
        remedy="Add images with other backgrounds, or describe it in each caption so that it can be told apart.",
    ),
    "no caption": Kind(
        title="{n} [image has|images have] no caption.",
        effect="Everything in the image goes into the trigger word, including clothes and background.",
        remedy="Describe what can be seen and may change.",
    ),
    "odd letters": Kind(
        title="{n} [caption has|captions have] unreadable characters.",
        effect="They are learned as they stand and mean nothing.",
        remedy="Type the caption again, or save its file as UTF-8.",
    ),
    "same caption": Kind(
        title="{n} images have the same caption.",
        effect="The adapter cannot tell what differs between them.",
        remedy="Describe what is different in each.",
    ),
    "long caption": Kind(
        title="{n} [caption is|captions are] too long.",
        effect="The rest is not read.",
        remedy="Shorten it, or raise Max token length in the Train tab under Advanced, Captions.",
    ),
    "no trigger": Kind(
        title="{n} [caption lacks|captions lack] the trigger word.",
        effect="Nothing is lost: it is put in front for the training.",
        remedy="Put it there yourself to see what is trained.",
        action="trigger",
        button="Put it in front",
        hint=True,
    ),
    "no class": Kind(
        title="No caption says what your character is.",
        effect="The trigger word has to carry all of it; a word that the base model knows gives it a start.",
        remedy="Name its kind in each caption, such as woman, cat or robot.",
        hint=True,
    ),
    "turned": Kind(
        title="{n} [image is stored on its side|images are stored on their sides].",
        effect="They are turned upright here, as in image viewers; other trainers may not do that.",
        remedy="There is nothing to do.",
        hint=True,
    ),
}


@dataclass(frozen=True)
class Problem:
    """Something about a dataset that the user should know; `name` is the file, "" for the whole dataset."""

    kind: str
    name: str
    message: str
    other: str = ""  # the file that this one is compared with

    @property
    def effect(self) -> str:
        """Effect of the problem on the adapter."""
        return _(KINDS[self.kind].effect)

    @property
    def remedy(self) -> str:
        """Advice on the problem."""
        return _(KINDS[self.kind].remedy)

    @property
    def fatal(self) -> bool:
        """True if the problem prevents training."""
        return KINDS[self.kind].fatal

    @property
    def hint(self) -> bool:
        """True if this is a remark rather than a mistake."""
        return KINDS[self.kind].hint

    @property
    def severity(self) -> int:
        """1 for a hint, 2 for a mistake, 3 if it prevents training."""
        if self.fatal:
            return 3
        return 1 if self.hint else 2


@dataclass(frozen=True)
class Group:
    """All problems of a kind: their title and the files they concern."""

    kind: str
    title: str
    names: tuple[str, ...]


def group_by_kind(problems: Sequence[Problem]) -> list[Group]:
    """Group problems by kind, in the order in which the kinds come."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    groups = []
    for kind, members in by_kind.items():
        names = tuple(problem.name for problem in members if problem.name)
        title = ngettext(*KINDS[kind].titles, len(names)) if names else members[0].message
        groups.append(Group(kind, title, names))
    return groups


def score_files(problems: Sequence[Problem]) -> dict[str, int]:
    """Score each file for sorting: the more and the more severe its problems, the higher."""
    scores: dict[str, int] = {}
    for problem in problems:
        scores[problem.name] = scores.get(problem.name, 0) + 10 ** (problem.severity - 1)
    return scores
