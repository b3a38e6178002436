"""Base models of recipes: those on the hub are taken; of a file only its name means something on another machine."""

from pathlib import PurePath

from limner_extensions.recipes.draft import Draft, text
from trainer.base_models import hub
from trainer.i18n import _


def set_base(draft: Draft, key: str) -> None:
    """Set the base model if the recipe names one on the hub, or else say what it was."""
    base = draft.get(key, text, "")
    if hub.NAME.fullmatch(base) and not base.lower().endswith((".ckpt", ".pt")):
        draft.set("model.base", base, key)
    elif base:
        draft.leave("of that machine", key)
        name = PurePath(base.replace("\\", "/")).name
        draft.note(_("The recipe was for the base model {name}; choose yours.", name=name[:100]))
