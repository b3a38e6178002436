"""Settings of the training data: captions, image augmentation, regularization images and output preservation."""

from typing import Literal

from pydantic import Field, model_validator

from trainer.i18n import _
from trainer.schema import Conflict, DatasetPath, Section, Share, ShareBelow1


class CaptionsConfig(Section):
    """Settings of captions. All variants that can be drawn are encoded once, before the first step."""

    dropout: Share = Field(
        0.0, title="Caption dropout", description="Share of the captions that are dropped at random."
    )
    trigger_only: Share = Field(
        0.0,
        title="Trigger alone",
        description="Share of the captions reduced to the trigger word, so that it takes up what all images have in "
        "common.",
    )
    multiple: bool = Field(
        False,
        title="Multiple captions per image",
        description="Read each line of a caption file as a caption.",
    )
    shuffle: bool = Field(False, title="Shuffle tags", description="Shuffle the parts between commas.")
    keep_tokens: int = Field(
        1,
        ge=0,
        le=100,
        title="Keep tokens",
        description="Number of tags that stay in front, such as the trigger.",
    )
    tag_dropout: ShareBelow1 = Field(
        0.0,
        title="Tag dropout",
        description="Share of the parts between commas that are dropped at random; tags that are kept in front and the "
        "trigger stay.",
    )
    shuffles: int = Field(
        8,
        ge=2,
        le=64,
        title="Caption variants",
        description="Number of variants of each caption whose tags are shuffled or dropped.",
    )
    max_token_length: Literal[75, 150, 225] = Field(
        75,
        title="Max token length",
        description="Tokens of a caption that are read, in chunks of 75, each encoded by itself. Previews use "
        "the first 75.",
    )

    @property
    def chunks(self) -> int:
        """Number of chunks that a caption is encoded in."""
        return self.max_token_length // 75


class ImagesConfig(Section):
    """Settings of image augmentation. All variants of an image are encoded once, before the first step."""

    flip: bool = Field(
        False,
        title="Mirror",
        description="Also train each image mirrored; not for asymmetric faces or text.",
    )
    crops: int = Field(
        0,
        ge=0,
        le=16,
        title="Crops",
        description="Random crops of each image, besides the whole.",
    )
    min_crop: float = Field(
        0.7,
        gt=0.1,
        le=1,
        title="Smallest crop",
        description="Side of a crop, as a share of the image's.",
    )
    background: Literal["white", "black", "grey", "random"] = Field(
        "white",
        title="Background",
        description="Behind transparent images; random uses several colors.",
    )
    backgrounds: int = Field(
        4,
        ge=2,
        le=32,
        title="Colors",
        description="Number of random backgrounds for each transparent image.",
    )


class RegularizationConfig(Section):
    """Images of the class, without the subject, so that it stays as it is: Ruiz et al. 2023, arXiv 2208.12242 (3.2)."""

    dataset: DatasetPath = Field(
        "",
        max_length=1000,
        title="Regularization images",
        description="Another dataset, with captions that lack the trigger word; images without one get the class word. "
        "Further datasets may have their own.",
    )
    share: float = Field(
        0.25,
        ge=0,
        le=0.9,
        title="Regularization share",
        description="Share of the batches made of them; several datasets of them take turns.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=100,
        title="Regularization weight",
        description="Weight of these batches in the loss.",
    )


class HeldOutConfig(Section):
    """Images that are not trained, but measured: where their loss rises, the others are learned by heart."""

    share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        title="Held-out images",
        description="Share of the images that are not trained but measured; which ones is drawn by the seed.",
    )
    every: int = Field(
        50, ge=1, le=1_000_000, title="Measure every", description="Steps between two measurements of them."
    )
    patience: int = Field(
        0,
        ge=0,
        le=1000,
        title="Patience",
        description="End the run after so many measurements in a row without a new lowest loss; 0 = never.",
    )

    @model_validator(mode="after")
    def _something_is_measured(self) -> "HeldOutConfig":
        if self.patience and not self.share:
            raise Conflict("patience", _("no images are held out; set their share, or set it to 0"), 0)
        return self


class PreservationConfig(Section):
    """Output preservation: keeps the base model as it is where the trigger is absent, so that the trigger is a switch.

    Some images of a batch are seen once more with the trigger removed from their caption, or images that the base model
    generated from other prompts; there the adapter has to predict what the base model alone predicts for the same noisy
    image (in the literature: differential output preservation).
    """

    share: Share = Field(
        0.0,
        title="Preservation",
        description="Share of the images that are seen again without the trigger, to stay as the base model has them.",
    )
    weight: float = Field(
        4.0,
        gt=0,
        le=1000,
        title="Preservation weight",
        description="Weight of such an image in the loss.",
    )
    noise_from: ShareBelow1 = Field(
        0.0,
        title="Preserve from noise",
        description="Least share of noise at which your own images are kept as the base model has them. Below it they "
        "show the subject anyway, and keeping them makes guidance break its details. 0 = at every noise level.",
    )
    generated_share: Share = Field(
        0.25,
        title="Other prompts",
        description="Share of them replaced by images that the base model generates from the prompts below.",
    )
    prompts: tuple[str, ...] = Field(
        (),
        max_length=200,
        title="Prompts to preserve",
        description="One per line; what else the base model should keep. An empty prompt makes guidance overdo what "
        "was learned.",
    )
