"""Kinds of adapters and the exported file: settings, and configs for peft. Torch-free until `build()`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trainer.i18n import _
from trainer.schema import Conflict, FilePath, Section

if TYPE_CHECKING:
    from peft import PeftConfig

# Layers outside attention, as diffusers' UNets name them: residual blocks, layers that change the size, and the 1x1
# convolutions or linear layers around the transformer blocks.
CONVOLUTIONS = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "proj_in",
    "proj_out",
)
MAX_RANK = 512
Targets = Literal["attention", "attention+ff", "conv"]
Alpha = Annotated[
    float,
    Field(
        gt=0,
        le=1024,
        title="Alpha",
        description="The update is scaled by alpha / rank; keep it equal to the rank.",
    ),
]
TargetLayers = Annotated[
    Targets,
    Field(
        title="Layers",
        description="Layers of the denoiser to adapt: attention, with feed-forward, or also with convolutions.",
    ),
]
Blocks = Annotated[
    tuple[str, ...],
    Field(
        max_length=64,
        title="Blocks",
        description="One per line; adapt only layers of the denoiser whose name contains one (up_blocks); none = all.",
    ),
]
RankDropout = Annotated[
    float,
    Field(ge=0, lt=1, title="Rank dropout", description="Share of the ranks that are dropped at random in a step."),
]


class Lora(Section, title="LoRA"):
    """Low-rank adaptation, Hu et al. 2021, https://arxiv.org/abs/2106.09685 (section 4.1).

    Its file is read by every program, also with convolutions (LoCon). With DoRA (Liu et al. 2024, arXiv 2402.09353) it
    is read by all but diffusers, which leaves the magnitudes out.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(
        16,
        ge=0,
        le=MAX_RANK,
        title="Rank",
        description="Inner size of the update; a higher rank can hold more and makes a larger file. 0 = 8, 16 or 32, "
        "from the number of images.",
    )
    alpha: Alpha = Field(16.0, description="The update is scaled by alpha / rank; leave it at 16, whatever the rank.")
    targets: TargetLayers = "attention+ff"
    blocks: Blocks = ()
    ranks: tuple[str, ...] = Field(
        (),
        max_length=64,
        title="Ranks of blocks",
        description="One per line, such as up_blocks.1 = 32: another rank for layers whose name contains up_blocks.1; "
        "the last line that fits counts.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, title="Dropout", description="Share of a layer's inputs that is hidden from the adapter."
    )
    rank_dropout: RankDropout = 0.0
    rslora: bool = Field(
        False,
        title="rsLoRA",
        description="Scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732); the file works everywhere.",
    )
    dora: bool = Field(
        False,
        title="DoRA",
        description="Learn lengths and directions of the weights separately; slower, and diffusers ignores lengths.",
    )
    lora_plus_ratio: float = Field(
        1.0,
        gt=0,
        le=64,
        title="LoRA+ ratio",
        description="Learning rate of up over that of down (Hayou et al. 2024, arXiv 2402.12354); 1 = off.",
    )

    start: FilePath = Field(
        "",
        max_length=1000,
        title="Start from",
        description="An adapter file whose effect the training begins with; one of another rank is converted.",
    )

    @field_validator("ranks")
    @classmethod
    def _are_ranks(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            _parse_rank(line)
        return lines

    @model_validator(mode="after")
    def _dora_sees_all_ranks(self) -> Lora:
        if self.dora and self.start:
            raise Conflict("dora", _("a DoRA cannot start from another adapter; turn it off"), False)
        if self.dora and self.rank_dropout:
            raise Conflict("rank_dropout", _("DoRA's norm needs all ranks; set it to 0"), 0.0)
        return self

    @property
    def file_alpha(self) -> float:
        """Alpha to write to a file, for programs that scale by alpha / rank; the factors of a DoRA hold their scale."""
        if self.dora:
            return float(self.rank)
        return self.alpha * math.sqrt(self.rank) if self.rslora else self.alpha

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Module and arguments of the file, for programs that read `ss_network_module`."""
        conv = {"conv_dim": self.rank, "conv_alpha": self.file_alpha} if self.targets == "conv" else {}
        if self.dora:
            return "lycoris.kohya", {"algo": "lora", "dora_wd": True, "wd_on_output": False, **conv}
        return "networks.lora", conv

    def build(self, names: Sequence[str]) -> PeftConfig:
        """Return peft's config for the modules of these names."""
        import peft

        # peft declares alpha as int, but takes and keeps any number.
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(names),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            rank_pattern={re.escape(name): rank for name in names if (rank := self.rank_of(name)) != self.rank},
        )

    def rank_of(self, layer: str) -> int:
        """Return the rank of a layer, by the path of its module."""
        ranks = [rank for part, rank in map(_parse_rank, self.ranks) if part in layer]
        return ranks[-1] if ranks else self.rank


def _parse_rank(line: str) -> tuple[str, int]:
    """Return the part of layers' names and their rank that a line such as `up_blocks.1 = 32` gives.

    Raises:
        ValueError: it has another form.
    """
    match = re.fullmatch(r"([\w.]+) *= *([0-9]{1,3})", line.strip(), re.ASCII)
    if not match or not 1 <= int(match[2]) <= MAX_RANK:
        raise ValueError(_("{line!r} should be like up_blocks.1 = 32, with a rank of 1 to 512", line=line[:80]))
    return match[1], int(match[2])


class _Lycoris(Section):
    """Settings that LoHa and LoKr share. Diffusers does not read their files.

    Keep alpha equal to rank: LyCORIS 4.1 merges with alpha / rank squared, so that only a scale of 1 means the same
    everywhere.
    """

    # What only a LoRA can have.
    dora: ClassVar[bool] = False
    lora_plus_ratio: ClassVar[float] = 1.0
    start: ClassVar[str] = ""

    kind: str
    rank: int = Field(
        16,
        ge=1,
        le=MAX_RANK,
        title="Rank",
        description="Inner size of the update; a higher rank can hold more and makes a larger file.",
    )
    alpha: Alpha = 16.0
    targets: TargetLayers = "attention+ff"
    blocks: Blocks = ()
    rank_dropout: RankDropout = 0.0

    @property
    def file_alpha(self) -> float:
        """Alpha to write to a file."""
        return self.alpha

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Module and arguments of the file, for programs that read `ss_network_module`."""
        own = self.model_dump(include={"factor"})  # which LoKr alone has
        return "lycoris.kohya", {"algo": self.kind, **own, "conv_dim": self.rank, "conv_alpha": self.alpha}

    def _arguments(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments that peft's configs for both have, for the modules of these names."""
        own = {"r": self.rank, "alpha": self.alpha, "rank_dropout": self.rank_dropout}
        return own | {"target_modules": list(names)}


class LoHa(_Lycoris, title="LoHa"):
    """Product, entry by entry, of two low-rank updates, Hyeon-Woo et al. 2022, https://arxiv.org/abs/2108.06098.

    Its file is read by ComfyUI, Forge, A1111 and programs with LyCORIS.
    """

    kind: Literal["loha"] = "loha"

    def build(self, names: Sequence[str]) -> PeftConfig:
        """Return peft's config for the modules of these names."""
        import peft

        return peft.LoHaConfig(**self._arguments(names))


class LoKr(_Lycoris, title="LoKr"):
    """Kronecker product of a small and a large, low-rank matrix, Yeh et al. 2024, https://arxiv.org/abs/2309.14859.

    Its file is small and read by ComfyUI, Forge, A1111 and programs with LyCORIS. The factor is bounded so that its
    square is below the narrowest layer of a real model (320), as LyCORIS expects the smaller matrix first.
    """

    kind: Literal["lokr"] = "lokr"
    factor: int = Field(8, ge=2, le=16, title="Factor", description="Side of the small matrix, or the next that fits.")

    def build(self, names: Sequence[str]) -> PeftConfig:
        """Return peft's config for the modules of these names."""
        import peft

        return peft.LoKrConfig(**self._arguments(names), decompose_factor=self.factor)


AdapterConfig = Lora | LoHa | LoKr


class ExportConfig(Section):
    """Settings of the finished file."""

    precision: Literal["fp16", "bf16", "fp32"] = Field(
        "fp16", title="Precision", description="Of the weights in the file; fp32 doubles its size."
    )
    peft: bool = Field(
        False,
        title="Also for diffusers",
        description="Also write peft/pytorch_lora_weights.safetensors, in the format of PEFT and diffusers.",
    )
    cover: bool = Field(
        True,
        title="Cover image",
        description="Store a small copy of the newest preview in the file.",
    )
    strip: bool = Field(
        False,
        title="Strip",
        description="Leave out metadata that loading does not need: training config, tags, trigger word, cover.",
    )


def target_layers(targets: Targets, usual: Sequence[str]) -> tuple[str, ...]:
    """Return the name endings of the denoiser's layers to adapt, from the `usual` ones of its family."""
    match targets:
        case "attention":
            return tuple(name for name in usual if not name.startswith(("ff", "feed_forward")))
        case "attention+ff":
            return tuple(usual)
        case "conv":
            return (*usual, *CONVOLUTIONS)
