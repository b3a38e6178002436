"""Kinds of adapters: their settings, and how peft is told to build them. Torch-free until `build()` is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.schema import Section

if TYPE_CHECKING:
    from peft import PeftConfig


class Lora(Section):
    """Low-rank adaptation, Hu et al. 2021, https://arxiv.org/abs/2106.09685 (section 4.1)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(
        16,
        ge=1,
        le=512,
        title="Rank",
        description="Size of the update; a larger rank holds more and makes a larger file.",
    )
    alpha: float = Field(
        16.0,
        gt=0,
        le=1024,
        title="Alpha",
        description="The update is scaled by alpha / rank; keep it, whatever the rank.",
    )

    def build(self, targets: Sequence[str]) -> PeftConfig:
        """Peft's configuration for the modules whose names end in one of `targets`."""
        import peft

        # peft declares alpha as int, but takes and keeps any number.
        return peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(targets))
