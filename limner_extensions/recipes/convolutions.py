"""Convolutions with a rank of their own (`conv_dim`), as ranks of blocks, and back.

sd-scripts, LyCORIS and ai-toolkit give it to the convolutions of 3 x 3; those of 1 x 1 have the rank of linear layers.
"""

from collections.abc import Sequence

from limner_extensions.recipes.draft import Draft
from trainer.i18n import _

_PARTS = ("conv1", "conv2", "samplers.0.conv")  # of the names of all convolutions of 3 x 3, and of no other layer


def set_rank(draft: Draft, rank: int, alpha: float, *keys: str) -> None:
    """Give convolutions their own rank, or say that they have that of all layers.

    Only a LoRA has ranks of blocks, and all layers have one alpha.
    """
    common = draft.settings["adapter.rank"], draft.settings["adapter.alpha"]
    if (rank, alpha) == common:
        return
    if draft.settings["adapter.kind"] == "lora" and alpha == common[1]:
        draft.set("adapter.ranks", lines(rank), *keys)
        return
    draft.note(_("Convolutions have rank {rank} and alpha {alpha} in the recipe; here all layers have the same.",
               rank=rank, alpha=alpha))  # fmt: skip


def lines(rank: int) -> list[str]:
    """Return the ranks of blocks that give convolutions a rank."""
    return [f"{part} = {rank}" for part in _PARTS]


def find_rank(ranks: Sequence[str]) -> int | None:
    """Return the rank that ranks of blocks give to convolutions; None if they say anything else."""
    rank = ranks[0].rpartition("=")[2].strip() if ranks else ""
    return int(rank) if rank and list(ranks) == lines(int(rank)) else None
