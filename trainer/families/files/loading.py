"""Shared by the families: load a base model as a diffusers pipeline, and generate latents with it.

A base is a folder in diffusers form, a single file with the original names, or the name of one that was downloaded from
the Hugging Face Hub. What a single file leaves out (configs, tokenizer) is in `configs`. Nothing is unpickled.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_type_hints

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, pipelines
from diffusers.loaders.single_file import load_single_file_sub_model
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoTokenizer, CLIPTokenizer

from trainer import foreign_text
from trainer.base_models import CONFIGS, detect, hub
from trainer.base_models.detect import Base
from trainer.base_models.name_hints import FewStep
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.base_models.spec import DENOISER_KEYS, Conditioner, FamilySpec, LargeEncoder, PredictionType
from trainer.devices import Untyped
from trainer.errors import UserError, is_out_of_memory
from trainer.families import frozen_adapter
from trainer.families.files import classes, text_encoders, vaes, weights
from trainer.i18n import _

Pipeline = Any  # of diffusers, which is untyped
VAE = ("first_stage_model.", "vae.")  # prefixes of its weights in single files

# These libraries print progress bars, and warnings about image processors that are not needed here.
for library in (diffusers.utils.logging, transformers.utils.logging):
    library.set_verbosity_error()
    library.disable_progress_bar()
# Newer versions of diffusers call it `dtype`; the oldest supported one only knows the old name.
warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)


def load_pipeline(
    path: Path, base: Base, vae: Path | None, dtype: torch.dtype, *, large_encoder: bool = True
) -> Pipeline:
    """Load a frozen pipeline into main memory, from a folder or a single file; its VAE stays in fp32.

    The VAE at the other path, if there is one, is taken in place of its own. A large text encoder that is not needed
    may be missing; it is left out if it is not asked for.

    Raises:
        UserError: files are missing or damaged.
    """
    family, spec = base.family, FAMILIES[base.family]
    kind = classes.pipeline(spec)
    options: dict[str, Any] = {"local_files_only": True, **spec.pipeline_options}
    if vae:
        options["vae"] = _load_vae(vae, family)
    try:
        large = spec.encoder_of(base.size)
        is_there = large_encoder and large and (large.needed or text_encoders.has_large(path, large))
        if large and not is_there:
            options |= {large.component: None, large.tokenizer: None}
        if path.is_dir():
            weights.check_folder(path)
            # Each component is converted as it is read, so that the model is never in memory twice.
            options["torch_dtype"] = {"default": dtype, "vae": torch.float32}
            options["variant"] = "fp16" if any(_has_fp16_only(path / part) for part in hub.WEIGHTS) else None
            options |= _plain_scheduler(path)
            if large and is_there:
                options |= _part_of_encoder(path, large, _precision(large.component, spec, dtype))
            pipeline = kind.from_pretrained(path, use_safetensors=True, **options)
        else:
            options |= _parts_of_file(path, base, dtype, options)
            pipeline = _in_file(path, family, kind, dtype, options)
            weights.check_all_used(path, denoiser(pipeline), but=spec.conditioner_keys)
        pipeline.set_progress_bar_config(disable=True)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                convert(part, _precision(name, spec, dtype)).requires_grad_(False).eval()
                _check_finite(vae if vae and name == "vae" else path, name, part)
        if base.few_step and spec.first != "flow":
            pipeline.scheduler = few_step_scheduler(pipeline.scheduler, base.few_step)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _refusal("The base model {name!r} cannot be loaded: {reason}", error, path) from error
    return pipeline


def _part_of_encoder(folder: Path, encoder: LargeEncoder, dtype: torch.dtype) -> dict[str, Any]:
    """Return the large text encoder of a folder whose own class has more than is used, such as a last layer."""
    _library, own, *_ = detect.read_json(hub.index(folder))[encoder.component]
    if own == encoder.model:
        return {}
    path = folder / encoder.component
    return {encoder.component: text_encoders.large(path, encoder, path, dtype)}


def _plain_scheduler(folder: Path) -> dict[str, Any]:
    """Return the scheduler of a folder with even steps instead of those of a beta distribution, which need SciPy."""
    config = detect.read_json(folder / "scheduler" / "scheduler_config.json")
    if not config.get("use_beta_sigmas"):
        return {}
    scheduler_class = getattr(diffusers, str(config["_class_name"]))
    return {"scheduler": scheduler_class.from_config(config | {"use_beta_sigmas": False})}


def _load_vae(path: Path, family: FamilyName) -> nn.Module:
    """Load a VAE in fp32 from a folder or a file of its own.

    Raises:
        UserError: files are missing or damaged.
    """
    try:
        if path.is_file():
            return _vae_in_file(path, family)
        options = {"variant": "fp16" if _has_fp16_only(path) else None, "torch_dtype": torch.float32}
        vae_class = getattr(diffusers, FAMILIES[family].vae_class)
        vae: nn.Module = vae_class.from_pretrained(path, use_safetensors=True, local_files_only=True, **options)
        return vae
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _refusal("The VAE {name!r} cannot be loaded: {reason}", error, path) from error


def _refusal(message: str, error: Exception, path: Path) -> UserError:
    """Explain that a model cannot be loaded, by the first line that a library says, without the path or advice."""
    if is_out_of_memory(error):
        return UserError(
            "There is not enough memory to load {name!r}.",
            "Close other programs, enlarge the paging file of Windows, or choose a smaller base model.",
            name=path.name,
        )
    line = (str(error) or type(error).__name__).splitlines()[0].replace(str(path), path.name)
    remedy = _("Check that it is complete and in safetensors format.")
    reason = line.partition(". If you want to")[0][:200].rstrip(".")
    return UserError(message, remedy, name=path.name, reason=f"{reason}.")


def _vae_in_file(path: Path, family: FamilyName) -> nn.Module:
    if FAMILIES[family].vae_class != "AutoencoderKL":
        return vaes.in_file(path, getattr(diffusers, FAMILIES[family].vae_class), CONFIGS / family / "vae", VAE)
    vae: nn.Module = AutoencoderKL.from_single_file(
        _source(path, torch.float32, VAE),
        config=str(CONFIGS / family),
        subfolder="vae",
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    return vae


def _in_file(path: Path, family: FamilyName, kind: Untyped, dtype: torch.dtype, parts: Mapping[str, Any]) -> Pipeline:
    """Make a pipeline of parts that were loaded, and of others that diffusers loads from a single file."""
    if hasattr(kind, "from_single_file"):
        config = str(CONFIGS / family)
        return kind.from_single_file(str(path), config=config, torch_dtype=dtype, **parts)
    scheduler_class = get_type_hints(kind.__init__)["scheduler"]
    scheduler = scheduler_class.from_pretrained(CONFIGS / family / "scheduler", local_files_only=True)
    models = {name: part for name, part in parts.items() if name != "local_files_only"}
    return kind(scheduler=scheduler, **models)


def _parts_of_file(path: Path, base: Base, dtype: torch.dtype, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a pipeline that diffusers would not load, or not rightly, from a single file."""
    spec, parts = FAMILIES[base.family], dict[str, Any]()
    with weights.opened(path) as tensors:
        keys, are_scaled = set(tensors.keys()), tensors.are_scaled
    for encoder in spec.text_encoders:
        file = detect.find_beside(path, encoder.file_name)
        if encoder.old_embedding in keys - {encoder.embedding}:
            parts[encoder.component] = text_encoders.of_2022(path, base.family, encoder)
        elif file and encoder.embedding not in keys:
            parts[encoder.component] = text_encoders.in_file(file, base.family, encoder)
        parts[encoder.tokenizer] = CLIPTokenizer.from_pretrained(
            CONFIGS / "clip", local_files_only=True, pad_token=encoder.pad_token
        )
    large = spec.encoder_of(base.size)
    if large and large.component not in given:
        file = detect.find_beside(path, large.file_name)
        if source := path if large.key in keys else file:
            own = base.size.configs if base.size and base.size.large_encoder else base.family
            config, precision = CONFIGS / own / large.component, _precision(large.component, spec, dtype)
            parts[large.tokenizer] = AutoTokenizer.from_pretrained(CONFIGS / large.texts, local_files_only=True)
            parts[large.component] = text_encoders.large(source, large, config, precision)
    if "vae" not in given:
        parts["vae"] = _vae_in_file(path, base.family)
    if conditioner := spec.conditioner:
        texts = CONFIGS / conditioner.texts
        parts[conditioner.tokenizer] = AutoTokenizer.from_pretrained(texts, local_files_only=True)
        parts[conditioner.component] = _conditioner_in_file(path, spec, conditioner, dtype)
    kind = classes.pipeline(spec)
    if base.size or not hasattr(kind, "from_single_file"):
        parts[spec.denoiser] = _denoiser_in_file(path, base, kind, dtype)
    if are_scaled:
        parts |= _multiplied_out(path, base.family, dtype, parts.keys() | given.keys())
    return parts


def _multiplied_out(path: Path, family: FamilyName, dtype: torch.dtype, known: Collection[str]) -> dict[str, Any]:
    """Return the models in a scaled single file, but for those known already, as diffusers makes them of plain ones."""
    tensors, parts = weights.read_weights(path, dtype), dict[str, Any]()
    config = CONFIGS / family
    components = foreign_text.read_json(hub.index(config))
    for name in components.keys() & {*hub.WEIGHTS} - {*known}:
        library, kind = components[name]
        if not library:
            continue
        parts[name] = load_single_file_sub_model(
            library_name=library,
            class_name=kind,
            name=name,
            checkpoint=dict(tensors),  # which it changes
            pipelines=pipelines,
            is_pipeline_module=hasattr(pipelines, library),
            cached_model_config_path=str(config),
            torch_dtype=dtype,
            local_files_only=True,
        )
    return parts


def _source(path: Path, dtype: torch.dtype, prefixes: tuple[str, ...]) -> str | dict[str, Tensor]:
    """Return what diffusers loads a part of a single file from: the file or, if it is scaled, its weights."""
    with weights.opened(path) as tensors:
        are_scaled = tensors.are_scaled
    return weights.read_weights(path, dtype, prefixes) if are_scaled else str(path)


def _denoiser_in_file(path: Path, base: Base, kind: Untyped, dtype: torch.dtype) -> nn.Module:
    """Load the denoiser of one of a family's sizes, which has a config of its own, or of a pipeline for folders alone.

    Of the latter, diffusers knows the names without a prefix.
    """
    denoiser_class = get_type_hints(kind.__init__)["transformer"]
    if hasattr(kind, "from_single_file"):
        source = _source(path, dtype, (DENOISER_KEYS,))
    else:
        others = FAMILIES[base.family].conditioner_keys
        tensors = weights.read_weights(path, dtype, (DENOISER_KEYS,), but=others)
        source = {key.removeprefix(DENOISER_KEYS): tensor for key, tensor in tensors.items()}
    denoiser: nn.Module = denoiser_class.from_single_file(
        source,
        config=str(CONFIGS / (base.size.configs if base.size else base.family)),
        subfolder="transformer",
        torch_dtype=dtype,
        local_files_only=True,
    )
    return denoiser


def _conditioner_in_file(path: Path, spec: FamilySpec, conditioner: Conditioner, dtype: torch.dtype) -> nn.Module:
    """Load the model between a text encoder and a transformer from the file of the latter.

    Raises:
        RuntimeError: weights are missing, or there are others.
    """
    kind = getattr(diffusers, conditioner.model)
    with init_empty_weights():
        model: nn.Module = kind.from_config(kind.load_config(CONFIGS / spec.name / conditioner.component))
    tensors = weights.read_weights(path, dtype, spec.conditioner_keys)
    names = {key: key.removeprefix(DENOISER_KEYS).removeprefix(conditioner.single_file) for key in tensors}
    model.load_state_dict({names[key]: tensor for key, tensor in tensors.items()}, assign=True)
    return model


def _precision(name: str, spec: FamilySpec, dtype: torch.dtype) -> torch.dtype:
    """Return the precision for a part of a pipeline: in fp16 the VAE's decoder and large text encoders overflow."""
    if name == "vae":
        return torch.float32
    wide = {part.component for part in (spec.large_encoder, spec.conditioner) if part}
    return torch.bfloat16 if dtype == torch.float16 and name in wide else dtype


def convert(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a part of a pipeline to a precision, but for the modules that diffusers keeps in fp32.

    What is computed instead of loaded keeps its own precision, too: the frequencies of positions would be others.
    """
    computed = list(weights.computed_buffers(part))
    part.to(dtype)
    for module, name, buffer in computed:
        setattr(module, name, buffer)
    names = getattr(part, "_keep_in_fp32_modules", None) if isinstance(part, diffusers.ModelMixin) else None
    for path, module in part.named_modules():
        if path.rpartition(".")[2] in (names or ()):
            module.float()
    return part


def _has_fp16_only(folder: Path) -> bool:
    names = [file.name for file in folder.glob("*.safetensors")]
    return bool(names) and all(".fp16." in name for name in names)


def _check_finite(path: Path, name: str, part: nn.Module) -> None:
    """Refuse a model with weights that are not finite, of which broken merges have some.

    Raises:
        UserError: a weight is not finite.
    """
    for key, parameter in part.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                "The weights of {name!r} are damaged: {key} has values that are not finite.",
                "Get the model again, or another version of it.",
                name=path.name,
                key=f"{name}.{key}",
            )


def scheduler_for(scheduler: Untyped, predicts: PredictionType, *, zero_snr: bool) -> Untyped:
    """Return a scheduler of diffusers like another one that reads predictions in this way.

    Zero terminal SNR: Lin et al. 2023, https://arxiv.org/abs/2305.08891 (section 3.1; 3.3 for the spacing). It takes
    v-prediction (section 3.2): from pure noise, a prediction of the noise says nothing about the image. Where a base
    that is marked with it predicts noise, the usual schedule stays, as in ComfyUI; A1111 would change it.
    """
    config = scheduler.config
    changes: dict[str, Any] = {}
    if config.prediction_type != predicts:
        changes["prediction_type"] = predicts
    rescaled, rescale = bool(config.get("rescale_betas_zero_snr")), zero_snr and predicts == "v_prediction"
    if rescaled != rescale:
        changes["rescale_betas_zero_snr"] = rescale
    if rescale and not rescaled:
        changes["timestep_spacing"] = "trailing"
    return type(scheduler).from_config(config, **changes) if changes else scheduler


def few_step_scheduler(scheduler: Untyped, kind: FewStep) -> Untyped:
    """Return the scheduler that models of a few-step kind are sampled with, with the noise schedule of another one."""
    return getattr(diffusers, kind.scheduler).from_config(scheduler.config, **kind.scheduler_options)


def skip_layers(text_encoder: Untyped, after: int) -> list[RemovableHandle]:
    """Let the layers of a text encoder after the first ones change nothing; undone by removing the hooks returned.

    Its output is then that of the last used layer, under the final layer norm, as in A1111 and sd-scripts, whose clip
    skip counts from the end: 1 is the last layer, 2 the penultimate one. In ComfyUI these are -1 and -2; the argument
    `clip_skip` of diffusers' pipelines is one less, and leaves out negative prompts, which the others treat alike. The
    layers stay in the model, so that an adapter of another program still fits.
    """
    inner: Untyped = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 has no `text_model`
    return [layer.register_forward_hook(_return_input) for layer in inner.encoder.layers[after:]]


def _return_input(_layer: nn.Module, inputs: tuple[Any, ...], output: Untyped) -> Untyped:
    return (inputs[0],) if isinstance(output, tuple) else inputs[0]  # transformers 4 has tuples


def autocast(denoiser: Untyped) -> AbstractContextManager[Any]:
    """Return mixed precision for sampling with a denoiser that is not in fp32."""
    if denoiser.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(denoiser.device.type, dtype=denoiser.dtype)


def generate_latents(pipeline: Pipeline, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
    """Generate the scaled latents [c, h, w] of a square image, the same for the same request on the same device."""
    with torch.no_grad(), autocast(denoiser(pipeline)), frozen_adapter.off(denoiser(pipeline)):
        latents: Tensor = pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=side,
            height=side,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images[0]
    return latents


def denoiser(pipeline: Pipeline) -> Untyped:
    """Return the UNet or the transformer of a pipeline."""
    return getattr(pipeline, "unet", None) or pipeline.transformer


def sample(pipeline: Pipeline, prompts: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
    """Generate scaled latents [1, c, h, w] from encoded prompts and options, both as the pipeline has them."""
    model = denoiser(pipeline)
    with torch.no_grad(), autocast(model), frozen_adapter.off(model), without_text_encoders(pipeline):
        latents: Tensor = pipeline(**prompts, **options, output_type="latent").images
    return latents


def prompt_arguments(prompt: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return two encoded prompts, of one row each, as arguments of a pipeline."""
    names = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds", "mask": "prompt_attention_mask"}
    positive = {names[key]: row for key, row in prompt.items()}
    return positive | {f"negative_{names[key]}": row for key, row in negative.items()}


@contextmanager
def without_text_encoders(pipeline: Pipeline) -> Iterator[None]:
    """Take the text encoders out of a pipeline inside the `with`: it would look for its device in them."""
    names = [name for name in pipeline.components if name.startswith("text_encoder")]
    encoders = {name: getattr(pipeline, name) for name in names}
    try:
        for name in names:
            setattr(pipeline, name, None)
        yield
    finally:
        for name, encoder in encoders.items():
            setattr(pipeline, name, encoder)
