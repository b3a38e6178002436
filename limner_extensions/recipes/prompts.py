"""Preview prompts of other programs, as lines with flags."""

from collections.abc import Iterable, Mapping

from limner_extensions.recipes.draft import EMPTY, Draft
from trainer.config import prompt_lines
from trainer.errors import UserError
from trainer.i18n import _

MOST, READ = 16, 200


def line(prompt: str, flags: Mapping[str, object]) -> str:
    """Return a prompt with the flags that have a value."""
    words = [f"--{name} {value}" for name, value in flags.items() if value not in EMPTY and value is not False]
    return " ".join([prompt_lines.without_flags(" ".join(prompt.split())), *words])


def set_prompts(draft: Draft, lines: Iterable[str], *keys: str) -> None:
    """Set the preview prompts; those that Limner does not understand are named."""
    prompts = []
    for text in list(lines)[:READ]:
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        try:
            prompt_lines.parse_prompt_line(text)
            prompts.append(text.strip())
        except UserError as error:
            draft.note(_("A preview prompt is left out: {reason}", reason=error.message))
    if len(prompts) > MOST:
        draft.note(_("The first {count} preview prompts are taken.", count=MOST))
    if prompts:
        draft.set("preview.prompts", prompts[:MOST], *keys)
