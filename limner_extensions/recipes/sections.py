"""Parts of recipes that several programs have: base model, preview prompts, resolutions, ranks of convolutions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from limner_extensions.recipes.draft import Draft
from limner_extensions.recipes.values import EMPTY, number, text
from trainer.base_models import hub
from trainer.config import prompt_lines
from trainer.errors import UserError
from trainer.i18n import _

MOST, READ = 16, 200
Side = tuple[int, bool]  # of a square of the same area, as `draft.side` reads it, and whether that is exact
MASKS = _("Limner keeps the mean weight of a masked image at 1, so that small masks count for more.")
_PARTS = ("conv1", "conv2", "samplers.0.conv")  # of the names of all convolutions of 3 x 3, and of no other layer


def set_base(draft: Draft, key: str) -> None:
    """Set the base model if the recipe names one on the hub, or else say what it was."""
    base = draft.get(key, text, "")
    if hub.NAME.fullmatch(base) and not base.lower().endswith((".ckpt", ".pt")):
        draft.set("model.base", base, key)
    elif base:
        draft.leave("of that machine", key)
        note_base(draft, PurePath(base.replace("\\", "/")).name)


def set_adapter_file(draft: Draft, path: str, key: str) -> None:
    """Set an adapter beside the base model if the recipe names one on the hub, or else say that it had one."""
    name = draft.get(key, text, "")
    if hub.NAME.fullmatch(name) and name.endswith(".safetensors"):
        draft.set(path, name, key)
        draft.note("Download the adapter of the recipe first: limner download {name}.", name=name)
    elif name:
        draft.leave("of that machine", key)
        file = PurePath(name.replace("\\", "/")).name
        draft.note(
            "The recipe names the adapter {file} ({key}): choose yours for {path}.", file=file[:100], key=key, path=path
        )


def note_base(draft: Draft, name: str) -> None:
    """Say which base model a recipe was for, if that cannot be taken."""
    draft.note("The recipe was for the base model {name}; choose yours.", name=name[:100])


def note_epochs(draft: Draft, count: int) -> None:
    """Say that the steps of a recipe are not known."""
    draft.note(
        "The recipe counts {count} epochs, and its steps follow from the number of images: read it for a dataset, or "
        "set training.steps.",
        count=count,
    )


def set_kind(draft: Draft, kind: str, kinds: Mapping[str, str], *keys: str) -> str:
    """Set the kind of the adapter, and return it: a LoRA if Limner does not have theirs."""
    if kind not in kinds:
        draft.leave("no counterpart", *keys)
        draft.note("Limner does not train adapters of the kind {kind}; it trains a LoRA instead.", kind=kind[:40])
    ours = kinds.get(kind, "lora")
    draft.set("adapter.kind", ours, *keys)
    return ours


def set_dropout(draft: Draft, key: str) -> None:
    """Set the dropout of a LoRA, which other programs apply elsewhere."""
    dropout = draft.get(key, number, 0.0)
    draft.set("adapter.dropout", dropout, key)
    if dropout:
        draft.note("Dropout hides inputs of a layer here, and values between down and up there.")


def prompt_line(prompt: str, flags: Mapping[str, object]) -> str:
    """Return a prompt with the flags that have a value."""
    words = [f"--{name} {value}" for name, value in flags.items() if value not in EMPTY and value is not False]
    return " ".join([prompt_lines.without_flags(" ".join(prompt.split())), *words])


def numbered_prompts(
    draft: Draft, prefix: str, names: Mapping[str, str], usual: Mapping[str, object] | None = None
) -> tuple[list[str], list[str]]:
    """Return the preview prompts of a list of tables as lines, and the keys that they follow from.

    `names` are their settings by our flags, `usual` the values of flags that a table does not have.
    """
    lines, keys = [], list[str]()
    for place in range(READ):
        prompt = draft.values.get(f"{prefix}.{place}.prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            continue
        own = {flag: draft.values.get(f"{prefix}.{place}.{name}") for flag, name in names.items()}
        flags = dict(usual or {}) | {flag: value for flag, value in own.items() if value is not None}
        lines.append(prompt_line(prompt, flags))
        keys += [f"{prefix}.{place}.{name}" for name in ("prompt", *names.values())]
    return lines, keys


def set_prompts(draft: Draft, lines: Iterable[str], *keys: str) -> None:
    """Set the preview prompts; those that Limner does not understand are named."""
    prompts = []
    for prompt in list(lines)[:READ]:
        if not prompt.strip() or prompt.lstrip().startswith("#"):
            continue
        try:
            prompt_lines.parse_prompt_line(prompt)
            prompts.append(prompt.strip())
        except UserError as error:
            draft.note("A preview prompt is left out: {reason}", reason=error.message)
    if len(prompts) > MOST:
        draft.note("The first {count} preview prompts are taken.", count=MOST)
    if prompts:
        draft.set("preview.prompts", prompts[:MOST], *keys)


def set_resolutions(draft: Draft, sides: Iterable[Side], said: object, *keys: str) -> None:
    """Set the resolutions of a draft as some keys have them; `said` is what the recipe says, for a note."""
    sides = list(sides)
    largest, *further = sorted({pixels for pixels, _exact in sides}, reverse=True)
    draft.set("training.resolution", largest, *keys)
    if further:
        draft.set("training.further_resolutions", further, *keys)
    if len(sides) > 1 + len(further) or not all(exact for _pixels, exact in sides):
        taken = ", ".join(map(str, (largest, *further)))
        draft.note(
            "Images have the area of a square of {side} pixels here; the recipe says {size}.",
            side=taken,
            size=str(said)[:40],
        )


def set_convolution_rank(draft: Draft, rank: int, alpha: float, *keys: str) -> None:
    """Give convolutions their own rank (`conv_dim`), or say that they have that of all layers.

    sd-scripts, LyCORIS and ai-toolkit give it to the convolutions of 3 x 3. Those of 1 x 1 have the rank of linear
    layers. Only a LoRA has ranks of blocks, and all layers have one alpha.
    """
    common = draft.settings["adapter.rank"], draft.settings["adapter.alpha"]
    if (rank, alpha) == common:
        return
    if draft.settings["adapter.kind"] == "lora" and alpha == common[1]:
        draft.set("adapter.ranks", convolution_ranks(rank), *keys)
        return
    draft.note(
        "Convolutions have rank {rank} and alpha {alpha} in the recipe; here all layers have the same.",
        rank=rank,
        alpha=alpha,
    )


def convolution_ranks(rank: int) -> list[str]:
    """Return the ranks of blocks that give convolutions a rank."""
    return [f"{part} = {rank}" for part in _PARTS]


def find_convolution_rank(ranks: Sequence[str]) -> int | None:
    """Return the rank that ranks of blocks give to convolutions; None if they say anything else."""
    rank = ranks[0].rpartition("=")[2].strip() if ranks else ""
    return int(rank) if rank and list(ranks) == convolution_ranks(int(rank)) else None
