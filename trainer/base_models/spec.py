"""FamilySpec: the facts about a family of base models that the rest of the program goes by. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
MAX_CLIP_SKIP = 12  # layers of the text encoder of Stable Diffusion 1.x


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a family, and its names in diffusers folders, in adapter files and in single files."""

    component: str  # its folder in diffusers form
    title: str
    prefix: str  # of its layers in adapter files
    single_file: str  # prefix of its layers in a single file; `resblocks.` means OpenCLIP's names below it
    embedding: str  # key of its embedding in a single file, by which it is recognized
    width: int  # of its hidden states
    tokenizer: str  # component of its tokenizer
    pad_token: str

    @property
    def old_embedding(self) -> str:
        """Key of its embedding in files of 2022 and merges of them (NAI, Anything V3), which lack `text_model.`."""
        return self.embedding.replace(".text_model.", ".")


@dataclass(frozen=True)
class Variant:
    """A kind of base model within a family: its names in the metadata of adapter files, and its native resolution."""

    architecture: str  # `modelspec.architecture` without `/lora`
    base_version: str  # `ss_base_model_version`
    resolution: int  # side in pixels


@dataclass(frozen=True)
class FamilySpec:
    """A family of base models: how to recognize one, the names of its parts, and its marks in adapter files."""

    name: str
    title: str
    model: str  # module and class in `trainer.families` that load it
    pipeline: str  # class in a folder's `model_index.json`
    pipeline_options: Mapping[str, object]  # arguments that keep diffusers from loading parts that are not used
    context_width: int  # of the keys in cross-attention
    vae_scale: float  # factor that brings the VAE's latents to about unit variance
    transformer_depth: int  # transformer blocks in its deepest attention
    linear_projections: bool  # linear layers around attention, not 1 x 1 convolutions
    size_conditioned: bool  # its denoiser is told image sizes
    original_names: bool  # adapter files name the denoiser's layers as the original code does, not as diffusers does
    kohya_v2: bool  # `ss_v2` in the metadata of adapter files
    metadata_prefixes: tuple[str, ...]  # of architecture and base version, in files of any program
    text_encoders: tuple[TextEncoder, ...]
    variants: Mapping[PredictionType, Variant]
    recipe_names: tuple[str, ...]  # in recipes of other programs: ai-toolkit's `arch`, OneTrainer's `model_type`
    kohya_script: str = "train_network.py"  # of sd-scripts, which trains it
    ambiguous: bool = False  # its single files do not tell which variant they are
    clip_skip: bool = False  # programs let the user skip the last layers of its text encoder

    @property
    def prefixes(self) -> dict[str, str]:
        """Prefixes of the text encoders' layers in adapter files, by component."""
        return {encoder.component: encoder.prefix for encoder in self.text_encoders}
