"""Model card of a published run: `README.md` with the metadata that the Hugging Face Hub reads. Always in English.

The license is left to whoever publishes: a comment in the metadata says where it goes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trainer.base_models import MICRO, detect, hub
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig

NAME = "README.md"
KINDS = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}
LICENSE = (
    "# license: ...  The choice is yours, within the license of the base model; for its name see "
    "https://huggingface.co/docs/hub/repositories-licenses\n"
)


@dataclass(frozen=True)
class Sample:
    """An image beside the card, by its path there, with its prompt and seed."""

    file: str
    prompt: str
    seed: int


def card(
    public: TrainConfig, steps: int, samples: list[Sample], programs: Sequence[str], checksums: Mapping[str, str]
) -> str:
    """Return the card of an adapter.

    Args:
        public: its config, without paths.
        steps: that it was trained for.
        samples: images beside the card.
        programs: those that load its file as it is meant.
        checksums: SHA-256 of the adapter files by name.
    """
    metadata = yaml.safe_dump(_metadata(public, samples), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{metadata}{LICENSE}---\n",
        f"# {public.name}\n\n<Gallery />\n",
        _introduction(public),
        _use(public, samples, programs),
        _samples(samples),
        _training(public, steps),
        _files(checksums),
    ]
    return "\n".join(part for part in parts if part)


def _metadata(public: TrainConfig, samples: list[Sample]) -> dict[str, Any]:
    base = _repository(public)
    metadata: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    metadata |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if public.trigger:
        metadata["instance_prompt"] = public.trigger
    metadata["tags"] = ["text-to-image", "diffusers", "lora", "stable-diffusion", "template:diffusion-lora", "limner"]
    metadata["widget"] = [{"text": sample.prompt, "output": {"url": sample.file}} for sample in samples]
    return metadata


def _repository(public: TrainConfig) -> str:
    """Return the repository of the base model on the hub; "" if it is a file or a folder."""
    return hub.split(public.model.base)[0] if detect.is_hub_name(public.model.base) else ""


def _introduction(public: TrainConfig) -> str:
    adapter = public.adapter
    kind = "DoRA" if adapter.dora else KINDS[adapter.kind]
    family = next((spec.title for name, spec in FAMILIES.items() if name == public.model.family), "Stable Diffusion")
    if repository := _repository(public):
        base = f"[{repository}](https://huggingface.co/{repository})"
    elif public.model.base == MICRO:
        base = "micro, the base model that is built into Limner for practice; other programs do not have it"
    else:
        base = code(public.model.base)
    taught = {"character": "a character", "style": "a style", "plain": "a subject"}[public.preset]
    lines = [f"A {kind} that teaches {family} {taught}. It was trained on {base}."]
    if public.trigger:
        lines.append(f"Use the trigger word {code(public.trigger)} in the prompt.")
    return "\n".join(lines) + "\n"


def _use(public: TrainConfig, samples: list[Sample], programs: Sequence[str]) -> str:
    prompt = json.dumps(samples[0].prompt if samples else public.trigger, ensure_ascii=False).replace("```", "")
    file = f"{public.name}.safetensors"
    if public.model.base == MICRO:
        return f"## Use\n\n```\nlimner sample --adapter {file} --out image.png --prompt {prompt}\n```\n"
    base = json.dumps(_repository(public) or "PATH OF THE BASE MODEL")
    loads = (
        f"It loads in {', '.join(programs)}: put {code(file)} into the folder for LoRAs there.\n" if programs else ""
    )
    return (
        f"## Use\n\n{loads}\nIn diffusers:\n\n"
        "```python\nimport torch\nfrom diffusers import AutoPipelineForText2Image\n\n"
        f"pipeline = AutoPipelineForText2Image.from_pretrained({base}, torch_dtype=torch.float16)\n"
        "pipeline.enable_model_cpu_offload()  # any GPU, with little memory\n"
        f'pipeline.load_lora_weights(".", weight_name="{file}")\n'
        f"image = pipeline({prompt}).images[0]\n```\n"
    )


def _samples(samples: list[Sample]) -> str:
    if not samples:
        return ""
    rows = "".join(f"| ![Sample]({sample.file}) | {_cell(sample.prompt)} | {sample.seed} |\n" for sample in samples)
    return f"## Samples\n\n| image | prompt | seed |\n| --- | --- | --- |\n{rows}"


def _training(public: TrainConfig, steps: int) -> str:
    training = public.training
    rows = {
        "steps": steps,
        "batch size": training.batch_size * training.gradient_accumulation,
        "resolution": ", ".join(map(str, training.resolutions)),
        "rank, alpha": f"{public.adapter.rank}, {public.adapter.alpha:g}",
        "optimizer, learning rate": f"{public.optimizer.kind}, {public.optimizer.learning_rate:g}",
        "clip skip": public.model.clip_skip,
        "seed": public.seed,
        "trained with": f"Limner {public.record.program}".strip(),
    }
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"## Training\n\n| setting | value |\n| --- | --- |\n{lines}\nAll settings are in `settings.toml`.\n"


def _files(checksums: Mapping[str, str]) -> str:
    rows = "".join(f"| {code(name)} | `{checksum}` |\n" for name, checksum in checksums.items())
    return f"## Files\n\n| file | SHA-256 |\n| --- | --- |\n{rows}"


def code(text: str) -> str:
    """Return text as Markdown code, whatever backticks are in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(text: str) -> str:
    """Return text as code in a cell of a table, which a bar would end even there."""
    return code(text.replace("|", "\\|"))
