"""Kinds of adapters and their file: their settings, and how peft is told to build them. Torch-free until `build()`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from trainer.i18n import say
from trainer.schema import Section

if TYPE_CHECKING:
    from peft import PeftConfig

# What a denoiser of the diffusers library calls its layers outside attention: residual blocks, the layers that change
# the size, and the 1x1 convolutions or linear layers around the transformer blocks.
CONVOLUTIONS = (
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "proj_in",
    "proj_out",
)  # fmt: skip
Targets = Literal["attention", "attention+ff", "conv"]


def _rank() -> Any:  # noqa: ANN401 - a Field
    return Field(
        16, ge=1, le=512, title="Rank",
        description="Size of the update; a larger rank holds more and makes a larger file.",
    )  # fmt: skip


def _alpha(advice: str = "keep it, whatever the rank") -> Any:  # noqa: ANN401 - a Field
    return Field(16.0, gt=0, le=1024, title="Alpha", description=f"The update is scaled by alpha / rank; {advice}.")


def _targets() -> Any:  # noqa: ANN401 - a Field
    return Field(
        "attention+ff", title="Layers",
        description="Which layers of the denoiser are adapted: attention, with feed-forward, or with convolutions too.",
    )  # fmt: skip


def _blocks() -> Any:  # noqa: ANN401 - a Field
    return Field(
        (), max_length=64, title="Blocks",
        description="One a line; only layers of the denoiser whose name has one of these (up_blocks); none = all.",
    )  # fmt: skip


def _rank_dropout() -> Any:  # noqa: ANN401 - a Field
    return Field(
        0.0, ge=0, lt=1, title="Rank dropout", description="Share of the ranks that are left out at random in a step."
    )


class Lora(Section):
    """Low-rank adaptation, Hu et al. 2021, https://arxiv.org/abs/2106.09685 (section 4.1).

    Its file is read by every program, with convolutions (LoCon) too. With DoRA (Liu et al. 2024, arXiv 2402.09353)
    by ComfyUI, Forge and programs with LyCORIS, which differ slightly in its norm; not by diffusers.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(
        16, ge=0, le=512, title="Rank",
        description="Size of the update; a larger rank holds more and makes a larger file. 0 = 8, 16 or 32, from the "
        "number of pictures.",
    )  # fmt: skip
    alpha: float = _alpha()
    targets: Targets = _targets()
    blocks: tuple[str, ...] = _blocks()
    dropout: float = Field(
        0.0, ge=0, lt=1, title="Dropout", description="Share of a layer's inputs that the adapter does not see."
    )
    rank_dropout: float = _rank_dropout()
    rslora: bool = Field(
        False, title="rsLoRA",
        description="Scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732); the file loads everywhere.",
    )  # fmt: skip
    dora: bool = Field(
        False, title="DoRA",
        description="Learn size and direction of each weight apart; slower, and not every program loads the file.",
    )  # fmt: skip
    up_factor: float = Field(
        1.0, gt=0, le=64, title="LoRA+ ratio",
        description="Rate of up over that of down (Hayou et al. 2024, arXiv 2402.12354); 1 = off.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _dora_sees_all_ranks(self) -> Lora:
        if self.dora and self.rank_dropout:
            raise ValueError(say("rank_dropout: DoRA's norm needs all ranks; set it to 0"))
        return self

    @property
    def file_alpha(self) -> float:
        """The alpha that a file must hold, for programs that scale by alpha / rank."""
        return self.alpha * math.sqrt(self.rank) if self.rslora else self.alpha

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Module and arguments under which the programs that read `ss_network_module` know the file."""
        conv = {"conv_dim": self.rank, "conv_alpha": self.file_alpha} if self.targets == "conv" else {}
        return ("lycoris.kohya", {"algo": "lora", "dora_wd": True, **conv}) if self.dora else ("networks.lora", conv)

    def build(self, names: Sequence[str]) -> PeftConfig:
        """Peft's configuration for the modules of these names."""
        import peft

        # peft declares alpha as int, but takes and keeps any number.
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(names),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )


class LoHa(Section):
    """Product, entry by entry, of two low-rank updates, Hyeon-Woo et al. 2022, https://arxiv.org/abs/2108.06098.

    Its file is read by ComfyUI, Forge, A1111 and programs with LyCORIS; not by diffusers. Keep alpha equal to rank:
    LyCORIS 4.1 merges with alpha / rank squared, so that only a scale of 1 means the same everywhere.
    """

    kind: Literal["loha"] = "loha"
    rank: int = _rank()
    alpha: float = _alpha("keep it equal to the rank")
    targets: Targets = _targets()
    blocks: tuple[str, ...] = _blocks()
    rank_dropout: float = _rank_dropout()

    @property
    def file_alpha(self) -> float:
        """The alpha that a file must hold."""
        return self.alpha

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Module and arguments under which the programs that read `ss_network_module` know the file."""
        return "lycoris.kohya", {"algo": "loha", "conv_dim": self.rank, "conv_alpha": self.alpha}

    def build(self, names: Sequence[str]) -> PeftConfig:
        """Peft's configuration for the modules of these names."""
        import peft

        return peft.LoHaConfig(
            r=self.rank, alpha=self.alpha, target_modules=list(names), rank_dropout=self.rank_dropout
        )


class LoKr(Section):
    """Kronecker product of a small and a large, low-rank matrix, Yeh et al. 2024, https://arxiv.org/abs/2309.14859.

    Its file is small and read by ComfyUI, Forge, A1111 and programs with LyCORIS; not by diffusers for this family.
    Keep alpha equal to rank: LyCORIS 4.1 merges with alpha / rank squared. The factor is bounded so that its square is
    below the narrowest layer of a real model (320), as LyCORIS expects the smaller matrix first.
    """

    kind: Literal["lokr"] = "lokr"
    rank: int = _rank()
    alpha: float = _alpha("keep it equal to the rank")
    targets: Targets = _targets()
    blocks: tuple[str, ...] = _blocks()
    rank_dropout: float = _rank_dropout()
    factor: int = Field(8, ge=2, le=16, title="Factor", description="Side of the small matrix, or the next that fits.")

    @property
    def file_alpha(self) -> float:
        """The alpha that a file must hold."""
        return self.alpha

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Module and arguments under which the programs that read `ss_network_module` know the file."""
        values = {"algo": "lokr", "factor": self.factor, "conv_dim": self.rank, "conv_alpha": self.alpha}
        return "lycoris.kohya", values

    def build(self, names: Sequence[str]) -> PeftConfig:
        """Peft's configuration for the modules of these names."""
        import peft

        return peft.LoKrConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=list(names),
            rank_dropout=self.rank_dropout,
            decompose_factor=self.factor,
        )


AdapterConfig = Lora | LoHa | LoKr


class ExportConfig(Section):
    """The finished file."""

    precision: Literal["fp16", "bf16", "fp32"] = Field(
        "fp16", title="Precision", description="Of the numbers in the file; fp32 makes it twice as large."
    )
    peft: bool = Field(
        False, title="Also for diffusers",
        description="Write a second file in the form of PEFT and diffusers, peft/pytorch_lora_weights.safetensors.",
    )  # fmt: skip
    cover: bool = Field(
        True, title="Cover picture", description="Put the newest preview, small, into the file, where programs show it."
    )
    strip: bool = Field(
        False, title="Strip",
        description="Leave out of the file what no program needs to load it: recipe, tags, trigger word, cover.",
    )  # fmt: skip


def chosen(targets: Targets, usual: Sequence[str]) -> tuple[str, ...]:
    """Endings of the names of the denoiser's layers to adapt, from the `usual` ones of its family."""
    if targets == "attention":
        return tuple(name for name in usual if not name.startswith("ff."))
    return (*usual, *CONVOLUTIONS) if targets == "conv" else tuple(usual)
