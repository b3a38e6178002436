"""Schema of a run's settings: the TOML file, the form, the checks, the docs and the record come from here."""

from functools import cache
from typing import Literal

from pydantic import Field, field_validator, model_validator

from trainer import foreign_text, paths
from trainer.base_models import MICRO, MICRO_FOLDER, detect
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.base_models.spec import FamilySpec, PredictionType
from trainer.config import subject_lines
from trainer.config.adapter import ExportConfig, LoHa, LoKr, Lora
from trainer.config.data import CaptionsConfig, HeldOutConfig, ImagesConfig, PreservationConfig, RegularizationConfig
from trainer.config.objective import ObjectiveConfig
from trainer.config.previews import PreviewConfig
from trainer.config.prompt_lines import check_lines
from trainer.config.training import TrainingConfig
from trainer.data.captions import contains_trigger
from trainer.data.dataset import Subject
from trainer.i18n import _
from trainer.optim.optimizers import SECTIONS, AnyOptimizer
from trainer.optim.schedules import Constant, Cosine, Linear, Stable
from trainer.schema import Conflict, FilePath, HubPath, Section

Preset = Literal["character", "style", "plain"]


class ModelConfig(Section):
    """The base model, which stays frozen."""

    family: Literal["auto", FamilyName] = Field(
        "auto",
        title="Family",
        description="Architecture of the base model; auto detects it.",
    )
    base: HubPath = Field(
        MICRO,
        min_length=1,
        max_length=1000,
        title="Base model",
        description="'micro' (built in, portraits, runs anywhere), or a model of one of the families: its folder in "
        "diffusers format, its .safetensors file, or its name on the Hugging Face hub (owner/name).",
    )
    revision: str = Field(
        "",
        max_length=100,
        title="Revision",
        description="Of a base model from the hub: branch, tag or commit; empty = the newest, which is recorded.",
    )
    prediction_type: Literal["auto", PredictionType] = Field(
        "auto",
        title="Objective",
        description="Prediction type of the base model; auto reads it from the model, or tests the model if it is not "
        "given there.",
    )
    clip_skip: int = Field(
        1,
        ge=1,
        le=2,
        title="Clip skip",
        description="Layer of the text encoder, from its end, whose output is used; as in A1111 and sd-scripts. Most "
        "anime models of Stable Diffusion 1.x need 2; other families ignore it.",
    )
    guidance: float = Field(
        1.0,
        ge=0,
        le=30,
        title="Guidance in training",
        description="FLUX.1, distilled to follow a guidance, is told this one; 1 = none, as in other trainers. "
        "Other families ignore it.",
    )
    vae: FilePath = Field(
        "",
        max_length=1000,
        title="VAE",
        description="A .safetensors file, or a folder in diffusers format, that replaces the base model's own VAE; "
        "empty = its own.",
    )
    training_adapter: HubPath = Field(
        "",
        max_length=1000,
        title="Training adapter",
        description="For a distilled model: an adapter file, or its name on the hub (owner/name/file), that is added "
        "to the base while training. Previews and the finished adapter leave it out.",
    )
    weights: Literal["full", "int8", "nf4"] = Field(
        "full",
        title="Weights",
        description="Of the frozen base model in training: int8 and nf4 quantize its attention, and T5, to 8 or 4 bits "
        "for small GPUs; slightly less exact, slower, needs bitsandbytes.",
    )


class CheckpointConfig(Section):
    """Settings of checkpoints, which a run is resumed from."""

    every: int = Field(100, ge=1, le=1_000_000, title="Checkpoint every", description="Steps between checkpoints.")
    minutes: float = Field(
        5.0,
        gt=0,
        le=1440,
        title="Checkpoint minutes",
        description="Also save a checkpoint after this many minutes.",
    )
    keep: int = Field(
        5,
        ge=2,
        le=1000,
        title="Checkpoints kept",
        description="Number of newest checkpoints that are kept.",
    )
    adapters: bool = Field(
        True,
        title="Every adapter",
        description="Keep the adapters of older checkpoints too, in half precision; early ones are often the best.",
    )


class Record(Section):
    """Filled in by the worker before the first step: what else is needed to repeat the run."""

    program: str = Field("", description="Version of Limner.")
    dataset_sha256: str = Field("", description="Over the images' bytes and captions.")
    base_sha256: str = Field("", description="Over the weights of the base model's denoiser.")
    vae_sha256: str = Field("", description="Over the weights of the VAE, if it is given separately.")
    start_sha256: str = Field("", description="Over the adapter that the training started from.")
    training_adapter_sha256: str = Field("", description="Over the training adapter.")
    prediction_type: str = Field("", description="How the prediction type of the base model was determined.")
    packages: dict[str, str] = Field(default_factory=dict, description="Versions of the packages that compute.")
    device: str = Field("", description="Device of the training.")
    devices: int = Field(0, ge=0, description="Number of devices or processes that shared each batch.")
    restarts: int = Field(0, ge=0, description="How often the instability guard halved the learning rate.")


class TrainConfig(Section):
    """One training run."""

    task: Literal["train"] = Field("train", description="Kind of task.")
    name: str = Field(
        min_length=1,
        max_length=64,
        title="Name",
        description="Of the run and of its adapter file.",
    )
    dataset: str = Field(
        min_length=1,
        max_length=1000,
        title="Dataset",
        description="Name of a folder under datasets/, or the path of a folder.",
    )
    preset: Preset = Field(
        "character",
        title="What are you teaching?",
        description="Defaults for all other settings; plain is LoRA as kohya's scripts document it, for comparing.",
    )
    trigger: str = Field(
        "",
        max_length=100,
        title="Trigger word",
        description="Word that calls the subject; it is put in front of each caption that lacks it.",
    )
    class_word: str = Field(
        "",
        max_length=100,
        title="Class word",
        description="What the subject is: girl, man, dog. Preservation and regularization use it for the trigger.",
    )
    subjects: tuple[str, ...] = Field(
        (),
        max_length=16,
        title="Further datasets",
        description="Taught in the same run, one per line, each with a trigger word of its own: kim --trigger kmx2. "
        "With --repeats 2 each of its images is seen twice as often; --class girl is its class word, and "
        "--regularization girls its dataset of regularization images.",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", description="Makes everything random repeatable.")
    model: ModelConfig = Field(default_factory=ModelConfig, title="Base model")
    adapter: Lora | LoHa | LoKr = Field(default_factory=Lora, discriminator="kind", title="Adapter")
    optimizer: AnyOptimizer = Field(default_factory=SECTIONS["adamw"], discriminator="kind", title="Optimizer")
    schedule: Constant | Cosine | Linear | Stable = Field(
        default_factory=Cosine, discriminator="kind", title="Schedule"
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, title="Training")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, title="Objective")
    captions: CaptionsConfig = Field(default_factory=CaptionsConfig, title="Captions")
    images: ImagesConfig = Field(default_factory=ImagesConfig, title="Images")
    regularization: RegularizationConfig = Field(default_factory=RegularizationConfig, title="Regularization images")
    preservation: PreservationConfig = Field(default_factory=PreservationConfig, title="Preservation")
    held_out: HeldOutConfig = Field(default_factory=HeldOutConfig, title="Held-out images")
    preview: PreviewConfig = Field(default_factory=PreviewConfig, title="Previews")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, title="Checkpoints")
    export: ExportConfig = Field(default_factory=ExportConfig, title="File")
    record: Record = Field(default_factory=Record)

    @field_validator("name")
    @classmethod
    def _is_valid_name(cls, name: str) -> str:
        if not paths.is_name(name):
            raise ValueError(
                _("use letters, digits, '-' and '_', at most 64, but not the name of a Windows device such as con")
            )
        return name

    @field_validator("dataset", "trigger", "class_word")
    @classmethod
    def _is_printable(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError(_("has characters that cannot be printed"))
        return text.strip()

    @field_validator("subjects")
    @classmethod
    def _are_subjects(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        check_lines(subject_lines.parse_subject_line, lines)
        return lines

    @property
    def planned_devices(self) -> int:
        """Number of devices that the settings ask for, or that the run had before; 0 if neither says."""
        return self.training.wanted_devices or self.record.devices

    @property
    def taught(self) -> tuple[Subject, ...]:
        """All subjects of the run, the first of which is `dataset` with `trigger`."""
        main = Subject(
            self.dataset, self.trigger, class_word=self.class_word, regularization=self.regularization.dataset
        )
        return (main, *map(subject_lines.parse_subject_line, self.subjects))

    @property
    def triggers(self) -> tuple[str, ...]:
        """The trigger words of all subjects."""
        return tuple(self.class_words)

    @property
    def class_words(self) -> dict[str, str]:
        """The class word of each subject that has a trigger word, by that; "" = none."""
        return {subject.trigger: subject.class_word for subject in self.taught if subject.trigger}

    @model_validator(mode="after")
    def _subjects_differ(self) -> "TrainConfig":
        triggers = [subject.trigger.casefold() for subject in self.taught]
        if self.subjects and not self.trigger:
            raise ValueError(_("several datasets in one run need a trigger word each; the first has none"))
        if len(set(triggers)) < len(triggers):
            raise ValueError(_("several datasets in one run need different trigger words"))
        if len({subject.dataset for subject in self.taught}) < len(triggers):
            raise ValueError(_("a dataset is named twice in one run"))
        words = [subject.class_word for subject in self.taught]
        if any(contains_trigger(word, trigger) for word in words for trigger in self.triggers):
            raise ValueError(_("a class word has a trigger word in it"))
        return self

    @model_validator(mode="after")
    def _micro_is_small(self) -> "TrainConfig":
        side = micro_resolution()
        if self.model.base == MICRO and self.training.resolution != side:
            reason = _("the built-in micro draws {side} x {side} pixels; set it to {side}", side=side)
            raise Conflict("training.resolution", reason, side)
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> "TrainConfig":
        row, title = self.optimizer.row, self.optimizer.row.title
        one_rate = _("Prodigy has one rate for all parts; set it to 1")
        if row.averages and self.schedule.kind != "constant":
            raise Conflict("schedule.kind", _("a schedule-free optimizer needs the constant schedule"), "constant")
        if row.averages and self.training.ema_decay:
            raise Conflict("training.ema_decay", _("a schedule-free optimizer already averages; set it to 0"), 0.0)
        if row.finds_rate and self.training.text_encoder and self.training.text_encoder_lr_factor != 1:
            raise Conflict("training.text_encoder_lr_factor", one_rate, 1.0)
        if row.finds_rate and self.adapter.lora_plus_ratio != 1:
            raise Conflict("adapter.lora_plus_ratio", one_rate, 1.0)
        if row.matrices_only and self.adapter.dora:
            raise Conflict("adapter.dora", _("{title} trains matrices only; set it to false", title=title), False)
        if row.matrices_only and self.adapter.targets == "conv":
            reason = _("{title} trains matrices only; set it to attention+ff", title=title)
            raise Conflict("adapter.targets", reason, "attention+ff")
        return self

    @model_validator(mode="after")
    def _base_fits(self) -> "TrainConfig":
        depends_on_family = (
            self.model.prediction_type != "auto",
            self.training.text_encoder,
            self.adapter.targets == "conv",
            self.objective.weighting != "none",
            self.objective.noise_offset,
        )
        if self.model.base == MICRO or not any(depends_on_family) or self.record.base_sha256:
            return self  # a run that has begun was checked; to look at the base model takes time
        base = detect.glance(self.model.base, self.model.revision)
        family = self.model.family
        if base:
            family = base.family
        if family != "auto":
            _check_family(self, FAMILIES[family])
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> "TrainConfig":
        is_dora = self.adapter.dora
        if self.model.weights != "full" and (is_dora or self.adapter.kind != "lora"):
            raise Conflict("model.weights", _("LoHa, LoKr and DoRA need unquantized weights; set it to full"), "full")
        if is_dora and self.preview.strength != 1:
            raise Conflict("preview.strength", _("DoRA previews need strength 1"), 1.0)
        if is_dora and self.preview.base:
            raise Conflict("preview.base", _("DoRA previews need the base model itself"), "")
        return self


@cache
def micro_resolution() -> int:
    """Return the side in pixels of the images that the built-in base model draws."""
    latent_side = foreign_text.read_json(MICRO_FOLDER / "unet" / "config.json")["sample_size"]
    levels = foreign_text.read_json(MICRO_FOLDER / "vae" / "config.json")["block_out_channels"]
    return int(latent_side * 2 ** (len(levels) - 1))


def _check_family(config: TrainConfig, family: FamilySpec) -> None:
    """Check the settings that not every family has.

    Raises:
        Conflict: one of them does not fit this family; it says why, and what would.
    """
    title = family.title
    if config.model.prediction_type not in ("auto", *family.variants):
        raise Conflict("model.prediction_type", _("{family} does not predict that", family=title), "auto")
    if config.training.text_encoder and not family.text_encoders:
        reason = _("the text encoder of {family} takes no adapter; set it to false", family=title)
        raise Conflict("training.text_encoder", reason, False)
    if family.transformer and config.adapter.targets == "conv":
        reason = _("the transformer of {family} has no convolutions", family=title)
        raise Conflict("adapter.targets", reason, "attention+ff")
    if family.first != "flow":
        return
    if config.objective.weighting != "none":
        reason = _("{family} weights noise levels by how often it draws them (timestep_sampling)", family=title)
        raise Conflict("objective.weighting", reason, "none")
    if config.objective.noise_offset:
        reason = _("{family} is trained from pure noise, which needs no offset", family=title)
        raise Conflict("objective.noise_offset", reason, 0.0)
