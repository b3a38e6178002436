"""FamilySpec: the facts about a family of base models that the rest of the program goes by. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

PredictionType = Literal["epsilon", "v_prediction", "flow"]
Shape = tuple[int, ...]
DENOISERS = ("unet", "transformer")  # components, as in folders in diffusers form
DENOISER_KEYS = "model.diffusion_model."  # how the keys of a denoiser begin in a single file
NET = "net."  # the same in files of Cosmos' kind, which have nothing else; left out when they are read
VAE_ENTRIES = ("conv_in", "conv1")  # first layers of a VAE's halves; the latter in those of videos by their own names
QKV = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1}  # parts of joined layers, with their shares of the rows
ADD_QKV = {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1}
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
    file_name: str = ""  # how files begin that hold it alone; "" if there are none
    projected: bool = True  # whether its pooled embedding is projected, where its class can do that

    @property
    def old_embedding(self) -> str:
        """Key of its embedding in files of 2022 and merges of them (NAI, Anything V3), which lack `text_model.`."""
        return self.embedding.replace(".text_model.", ".")


def openai_clip(root: str, title: str, prefix: str) -> TextEncoder:
    """Return CLIP-L, the first text encoder, as single files with a UNet have it below `root`."""
    return TextEncoder(
        component="text_encoder",
        title=title,
        prefix=prefix,
        single_file=f"{root}transformer.",
        embedding=f"{root}transformer.text_model.embeddings.position_embedding.weight",
        width=768,
        tokenizer="tokenizer",
        pad_token="<|endoftext|>",
    )


def openclip(root: str, title: str, prefix: str, number: str, width: int) -> TextEncoder:
    """Return a text encoder of OpenCLIP as single files with a UNet have it below `root`.

    Args:
        root: how its keys in single files begin.
        title: of the encoder.
        prefix: of its layers in adapter files.
        number: what its component and its tokenizer have after their names: "" or "_2".
        width: of its hidden states.
    """
    return TextEncoder(
        component=f"text_encoder{number}",
        title=title,
        prefix=prefix,
        single_file=f"{root}model.transformer.resblocks.",
        embedding=f"{root}model.token_embedding.weight",
        width=width,
        tokenizer=f"tokenizer{number}",
        pad_token="!",
    )


def clip_l(title: str, *, projected: bool = True) -> TextEncoder:
    """Return CLIP-L, the first text encoder, as single files with a transformer have it."""
    prefix = "text_encoders.clip_l.transformer."
    return TextEncoder(
        component="text_encoder",
        title=title,
        prefix="lora_te1_",
        single_file=prefix,
        embedding=f"{prefix}text_model.embeddings.position_embedding.weight",
        width=768,
        tokenizer="tokenizer",
        pad_token="<|endoftext|>",
        file_name="clip_l",
        projected=projected,
    )


@dataclass(frozen=True)
class LargeEncoder:
    """A text encoder of billions of parameters, which takes no adapter: quantized with the denoiser, never in fp16."""

    component: str
    tokenizer: str
    title: str
    model: str  # class of transformers
    texts: str  # folder of its tokenizer in the configs
    single_file: str  # prefix of its layers in a single file
    words: str  # key of its embedding below that prefix, by which it is recognized
    file_name: str  # how files begin that hold it alone
    blocks: str  # name of the list of its blocks
    shapes: Callable[[Mapping[str, Any]], dict[str, Shape]]  # weight shapes by path, from its config; width first
    needed: bool = True  # else zeros take the place of its embeddings
    first_level: tuple[str, ...] = ()  # prefixes of its layers in files, which its class leaves out; the longest first
    unused: tuple[str, ...] = ()  # how keys in files begin, without these, that its class does not have
    twice: frozenset[str] = frozenset()  # keys of one weight, of which a file need have one
    in_adapters: bool = False  # adapter files can have its layers

    @property
    def key(self) -> str:
        """Key of a single file that has it."""
        return self.single_file + self.words


@dataclass(frozen=True)
class Conditioner:
    """A model between a family's text encoder and its transformer, in whose single file it lies; it stays frozen."""

    component: str
    model: str  # class of diffusers
    single_file: str  # how its keys begin beside those of the transformer
    tokenizer: str  # component of a tokenizer of its own
    texts: str  # folder of that in the configs


@dataclass(frozen=True)
class Modules:
    """Names of a denoiser's modules as diffusers has them, by which memory is saved and features are read."""

    blocks: tuple[str, ...]  # lists of transformer blocks; all of the image passes the first
    feed_forwards: tuple[str, ...]  # layers of such a block, the largest in training
    quantized: tuple[str, ...]  # lists of modules whose linear layers take fewer bits
    other_blocks: tuple[str, ...] = ()  # lists of blocks without a transformer


@dataclass(frozen=True)
class UNet:
    """A denoiser of down and up blocks with cross-attention (Rombach et al. 2022, section 3.3)."""

    context_width: int  # of the keys in cross-attention
    depth: int  # transformer blocks in its deepest attention
    linear_projections: bool  # linear layers around attention, not 1 x 1 convolutions
    size_conditioned: bool = False  # it is told image sizes
    original_names: bool = False  # adapter files name its layers as the original code does, not as diffusers does
    modules: Modules = Modules(("transformer_blocks",), ("ff",), ("attentions",), ("resnets",))


# What passes a block: text and image with weights of their own, the same weights for both, one of them alone, or the
# image, which looks at the text in a layer of its own (`attn2`).
Tokens = Literal["apart", "both", "image", "text", "crossed"]


@dataclass(frozen=True)
class Blocks:
    """Blocks of a transformer that are alike: their names, and those of their layers, in diffusers and originally.

    Where the original code joins layers to one, it has a name here as in diffusers, which can join them too.
    """

    original: str
    layers: Mapping[str, str]  # original names by those of diffusers, both within a block
    joined: Mapping[str, Mapping[str, int]]  # parts of joined layers, in the order of their rows, with their shares
    feed_forwards: tuple[str, ...] = ()  # layers of each block that keep most for the backward pass, if one does
    tokens: Tokens = "apart"
    apart_layers: int = 1  # of the text encoder that a token has; if several, they see each other alone


def repeated(name: str, count: int, layers: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the layers of equal blocks by their paths."""
    return {f"{name}.{number}.{path}": shape for number in range(count) for path, shape in layers.items()}


@dataclass(frozen=True)
class Need:
    """Requirement for training a transformer: a key in a single file, a setting in a config; and what it is without."""

    key: str
    setting: str
    otherwise: str


@dataclass(frozen=True)
class Transformer:
    """A denoiser of transformer blocks over patches (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748)."""

    blocks: Mapping[str, Blocks]  # by their name in diffusers
    outside: Mapping[str, str]  # original names of other layers, by those of diffusers
    key: str  # of a single file, which only this family has
    entry: str  # key of the layer that the latents enter
    entry_channels: int  # its inputs; more are for inpainting or editing
    config_channels: int  # the same as its config counts them, before latents are packed or after
    widths: tuple[int, ...]  # of its published models
    text_tokens: int  # that its blocks see beside those of an image
    shapes: Callable[[Mapping[str, Any]], dict[str, Shape]]  # weight shapes by path, from its config
    apart: str = "lora_transformer_"  # how names in kohya's format begin of layers that cannot be joined there
    swapped: tuple[str, ...] = ()  # layers whose weights have their two halves in the other order originally
    tensors: tuple[str, ...] = ()  # its weights that belong to no layer, as single files name them
    unused: tuple[str, ...] = ()  # keys of single files that change nothing
    need: Need | None = None

    @cached_property
    def modules(self) -> Modules:
        """Its modules by which memory is saved."""
        layers = {layer: None for blocks in self.blocks.values() for layer in blocks.feed_forwards}
        return Modules(tuple(self.blocks), tuple(layers), tuple(self.blocks))

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Joined layers with their parts, by paths within a block."""
        return {name: tuple(parts) for blocks in self.blocks.values() for name, parts in blocks.joined.items()}


@dataclass(frozen=True)
class Size:
    """A published model of a family that comes in several: its marks in a single file, and its own config."""

    title: str
    marks: tuple[str, ...]  # parts of keys in a single file that sizes listed after it have not all of
    settings: tuple[str, ...]  # the same of its config
    configs: str  # folder with what differs from the family's configs
    step_memory: tuple[float, ...] = ()  # as of a family
    values: tuple[tuple[str, object], ...] = ()  # settings of its config that are exactly these
    large_encoder: LargeEncoder | None = None  # if its own is of another size, too

    def fits(self, config: Mapping[str, object]) -> bool:
        """Return True if a config is one of this size."""
        is_same = all(config.get(name) == value for name, value in self.values)
        return is_same and all(config.get(mark) for mark in self.settings)


@dataclass(frozen=True)
class FamilySpec:
    """A family of base models: how to recognize one, and the names of its parts."""

    name: str
    title: str
    model: str  # module and class in `trainer.families` that load it
    pipeline: str  # class in a folder's index
    pipeline_options: Mapping[str, object]  # arguments that keep diffusers from loading parts that are not used
    vae_scale: float  # factor that brings the VAE's latents to about unit variance; 0 = it has statistics by channel
    text_encoders: tuple[TextEncoder, ...]
    variants: Mapping[PredictionType, int]  # native resolutions, by what is predicted; the first is of its configs
    own_pipeline: str = ""  # module and class in `trainer.families`, if diffusers has only the blocks of a pipeline
    conditioner: Conditioner | None = None
    ambiguous: bool = False  # its single files do not tell which variant they are
    clip_skip: bool = False  # programs let the user skip the last layers of its text encoder
    guided: bool = False  # its denoiser is told the guidance, which it is distilled to follow
    distilled_names: str = ""  # pattern of names that its distilled models have, where no kind of them is named
    few_steps: int = 0  # of previews of its distilled models, unless a name says otherwise; 0 = as usual for their kind
    training_adapter: str = ""  # name on the hub of one for its distilled model
    vae_channels: int = 4  # of its latents
    vae_shift: float = 0.0  # mean of the VAE's latents
    vae_class: str = "AutoencoderKL"  # of diffusers
    vae_file: str = ""  # name, without extension, of the file beside a single one that holds its VAE
    vae_of_videos: bool = False  # which sees an image as a video of one frame, and whose files have Wan's names
    unet: UNet | None = None  # its denoiser is one of the two
    transformer: Transformer | None = None
    large_encoder: LargeEncoder | None = None
    # GiB of a step with one image of the first native resolution, the denoiser alone, in each of `card_memory.WAYS`;
    # () = not computed. `tests.fake_cuda` measures it.
    step_memory: tuple[float, ...] = ()
    sizes: tuple[Size, ...] = ()  # the first whose marks are all there is that of a file

    @property
    def denoiser(self) -> str:
        """Component of its denoiser, as in folders in diffusers form."""
        return "unet" if self.unet else "transformer"

    @property
    def modules(self) -> Modules:
        """Modules of its denoiser by which memory is saved and features are read."""
        for model in (self.unet, self.transformer):
            if model:
                return model.modules
        raise RuntimeError(f"{self.name} has no denoiser")

    @property
    def original_names(self) -> bool:
        """True if adapter files name its UNet's layers as the original code does."""
        return self.unet is not None and self.unet.original_names

    @property
    def first(self) -> PredictionType:
        """Prediction type of its configs."""
        return next(iter(self.variants))

    @property
    def adapted_encoder(self) -> LargeEncoder | None:
        """Its large text encoder if adapter files can have layers of it."""
        return self.large_encoder if self.large_encoder and self.large_encoder.in_adapters else None

    def encoder_of(self, size: Size | None) -> LargeEncoder | None:
        """Return the large text encoder of one of its sizes."""
        return size.large_encoder if size and size.large_encoder else self.large_encoder

    @property
    def conditioner_keys(self) -> tuple[str, ...]:
        """Prefixes of the keys of its conditioner in a single file; () if it has none."""
        if not self.conditioner:
            return ()
        return DENOISER_KEYS + self.conditioner.single_file, self.conditioner.single_file

    @property
    def prefixes(self) -> dict[str, str]:
        """Prefixes of the text encoders' layers in adapter files, by component."""
        return {encoder.component: encoder.prefix for encoder in self.text_encoders}
