"""Tiny caption models of the real classes: one that writes words, and one that names tags."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "girl", "with", "pink", "hair", "hat"]
TAGS = {0: "pink_hair", 1: "red_shirt", 2: "glasses"}


def make_blip(folder: Path) -> Path:
    """Save a BLIP of a few thousand random parameters; it writes some of `WORDS`."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    text = BlipTextConfig(
        vocab_size=len(WORDS), hidden_size=16, encoder_hidden_size=16, intermediate_size=16, projection_dim=8,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64, bos_token_id=5, pad_token_id=0,
        eos_token_id=3, sep_token_id=3,
    )  # fmt: skip
    vision = BlipVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        settings = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        model = BlipForConditionalGeneration(settings)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def make_tagger(folder: Path) -> Path:
    """Save a ViT that is sure of `pink_hair` and `glasses` in any picture."""
    settings = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        id2label=TAGS, label2id={tag: number for number, tag in TAGS.items()},
        problem_type="multi_label_classification",
    )  # fmt: skip
    model = ViTForImageClassification(settings)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([3.0, -3.0, 1.0]))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
