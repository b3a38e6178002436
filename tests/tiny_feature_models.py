"""Tiny models that compare images, of the real classes and with random weights: CLIP, DINO and DINOv2."""

from pathlib import Path
from typing import Any

import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny import seeded
from trainer.base_models import MICRO_FOLDER

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
}  # fmt: skip


def make_clip(folder: Path) -> Path:
    """Save a CLIP of a few thousand parameters."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MICRO_FOLDER / "tokenizer", local_files_only=True)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(intermediate_size=16, **SMALL)
    settings = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    _save(transformers.CLIPModel, settings, folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dinov2(folder: Path) -> Path:
    """Save a DINOv2 of a few thousand parameters."""
    _save(transformers.Dinov2Model, transformers.Dinov2Config(**SMALL), folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.BitImageProcessor(**size).save_pretrained(folder)
    return folder


def make_dino(folder: Path) -> Path:
    """Save a DINO of a few thousand parameters, without the pooling layer, as those that are published."""
    _save(transformers.ViTModel, transformers.ViTConfig(intermediate_size=16, **SMALL), folder, add_pooling_layer=False)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _save(model_class: Any, settings: Any, folder: Path, **options: bool) -> None:  # noqa: ANN401 - untyped
    with seeded(2):
        model_class(settings, **options).save_pretrained(folder)
