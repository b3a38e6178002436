"""Several resolutions in a recipe: the largest is that of the training, and batches take turns with the others."""

from collections.abc import Iterable

from limner_extensions.recipes.draft import Draft
from trainer.i18n import _

Side = tuple[int, bool]  # of a square of the same area, as `draft.side` reads it, and whether that is exact


def set_resolutions(draft: Draft, sides: Iterable[Side], said: object, *keys: str) -> None:
    """Set the resolutions of a draft as some keys have them; `said` is what the recipe says, for a note."""
    sides = list(sides)
    largest, *further = sorted({pixels for pixels, _exact in sides}, reverse=True)
    draft.set("training.resolution", largest, *keys)
    if further:
        draft.set("training.further_resolutions", further, *keys)
    if len(sides) > 1 + len(further) or not all(exact for _pixels, exact in sides):
        taken = ", ".join(map(str, (largest, *further)))
        draft.note(_("Images have the area of a square of {side} pixels here; the recipe says {size}.", side=taken,
                   size=str(said)[:40]))  # fmt: skip
