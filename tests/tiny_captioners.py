"""Tiny caption models of the real classes: some write words, some name tags."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from tests.tiny import seeded

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "girl", "with", "pink", "hair", "hat"]
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION: dict[str, Any] = SMALL | {"intermediate_size": 16, "image_size": 32, "patch_size": 16}
TEXT: dict[str, Any] = SMALL | {"intermediate_size": 16, "vocab_size": len(WORDS), "max_position_embeddings": 64}
TEXT |= {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3}
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # of `_tokenizer`
TAGS = {0: "pink_hair", 1: "red_shirt", 2: "glasses"}


def make_blip(folder: Path) -> Path:
    """Save a BLIP of a few thousand random parameters; it writes some of `WORDS`."""
    text = transformers.BlipTextConfig(encoder_hidden_size=16, projection_dim=8, sep_token_id=3, **TEXT)
    vision = transformers.BlipVisionConfig(projection_dim=8, **VISION)
    settings = transformers.BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    save_random(transformers.BlipForConditionalGeneration, settings, folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, _bert(folder)).save_pretrained(folder)
    return folder


def _bert(folder: Path) -> transformers.BertTokenizerFast:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"))


def make_tagger(folder: Path) -> Path:
    """Save a ViT that is sure of `pink_hair` and `glasses` in any picture."""
    numbers = {tag: number for number, tag in TAGS.items()}
    kind = "multi_label_classification"
    settings = transformers.ViTConfig(id2label=TAGS, label2id=numbers, problem_type=kind, **VISION)
    model = transformers.ViTForImageClassification(settings)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([3.0, -3.0, 1.0]))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make_git(folder: Path) -> Path:
    """Save a GIT of random weights, which writes some of `WORDS`."""
    settings = transformers.GitConfig(vision_config=transformers.GitVisionConfig(**VISION).to_dict(), **TEXT)
    save_random(transformers.GitForCausalLM, settings, folder)
    transformers.GitProcessor(clip_images(), _bert(folder)).save_pretrained(folder)
    return folder


def make_blip2(folder: Path) -> Path:
    """Save a BLIP-2 of random weights with an OPT, which writes some of `WORDS`."""
    tokenizer = _tokenizer()
    vision = transformers.Blip2VisionConfig(**VISION)
    widths = {"encoder_hidden_size": 16, "intermediate_size": 16, "cross_attention_frequency": 1}
    between = transformers.Blip2QFormerConfig(vocab_size=8, **widths, **SMALL)
    widths = {"vocab_size": len(tokenizer), "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
    text = transformers.OPTConfig(**widths, **SMALL, **MARKS)
    parts = {"vision_config": vision, "qformer_config": between, "text_config": text}
    image = {"num_query_tokens": 3, "image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    settings = transformers.Blip2Config(**{name: part.to_dict() for name, part in parts.items()}, **image)
    save_random(transformers.Blip2ForConditionalGeneration, settings, folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.Blip2Processor(images, tokenizer, num_query_tokens=3).save_pretrained(folder)
    return folder


def make_florence(folder: Path) -> Path:
    """Save a Florence-2 of random weights, in transformers' own form."""
    tokenizer = _tokenizer()
    half = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    halves = {f"{name}_{key}": value for name in ("encoder", "decoder") for key, value in half.items()}
    widths = {"vocab_size": len(tokenizer), "d_model": 16, "max_position_embeddings": 128}
    text = transformers.BartConfig(decoder_start_token_id=2, forced_eos_token_id=2, **widths, **halves, **MARKS)
    heads = {"num_heads": (1, 1, 1, 2), "num_groups": (1, 1, 1, 2), "depths": (1,) * 4, "window_size": 2}
    widths = {"embed_dim": (8, 8, 8, 16), "projection_dim": 16}
    lengths = {"max_temporal_embeddings": 4, "max_position_embeddings": 8}
    vision = Florence2VisionConfig(**widths, **heads, **lengths)
    parts = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    settings = transformers.Florence2Config(**parts, image_token_id=tokenizer.image_token_id)
    save_random(transformers.Florence2ForConditionalGeneration, settings, folder)
    images = clip_images(64)
    images.image_seq_length = 5
    transformers.Florence2Processor(images, tokenizer).save_pretrained(folder)
    return folder


WD14_TAGS = ["general", "sensitive", "1girl", "pink_hair", "^_^", "mirax_(series)", "blue_hat"]
WD14_CATEGORIES = [9, 9, 0, 0, 0, 4, 0]
WD14_LOGITS = [1.0, -3.0, 3.0, 0.5, 0.4, 2.5, -10.0]
SIDE = 32
# The graph sigmoid(mean(image) @ weights + WD14_LOGITS) of an image [batch, 32, 32, 3]; all weights are 0, but that
# from the first channel to `blue_hat` is 20 / 255. Made with onnx.helper, which tests need not have.
ONNX_TAGGER = (
    "CAgSADryAgo5CgVpbnB1dBIEbWVhbiIKUmVkdWNlTWVhbioNCgRheGVzQAFAAqABByoPCghrZWVwZGltcxgAoAECCiAKBG1lYW4K"
    "B3dlaWdodHMSB3Byb2R1Y3QiBk1hdE11bAobCgdwcm9kdWN0CgZsb2dpdHMSA3N1bSIDQWRkChYKA3N1bRIGb3V0cHV0IgdTaWdt"
    "b2lkEgZ0YWdnZXIqZQgDCAcQASJUAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAoaCgPQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQgd3ZWlnaHRzKioIBxABIhwAAIA/AABAwAAAQEAAAAA/zczMPgAAIEAAACDB"
    "QgZsb2dpdHNaJAoFaW5wdXQSGwoZCAESFQoHEgViYXRjaAoCCCAKAgggCgIIA2IdCgZvdXRwdXQSEwoRCAESDQoHEgViYXRjaAoC"
    "CAdCBAoAEA0="
)


def make_wd14(folder: Path, form: str) -> Path:
    """Save a tagger that gives `WD14_LOGITS`: in the form of timm, or of ONNX, which also sees blue hats in blue."""
    folder.mkdir(parents=True)
    numbered = enumerate(zip(WD14_TAGS, WD14_CATEGORIES, strict=True))
    rows = [f"{number},{name},{category},9" for number, (name, category) in numbered]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]), encoding="utf-8")
    if form == "timm":
        _save_timm(folder)
    else:
        (folder / "model.onnx").write_bytes(base64.b64decode(ONNX_TAGGER))
    return folder


def _save_timm(folder: Path) -> None:
    import timm

    sizes = {"img_size": SIDE, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    settings = {"architecture": "vit_tiny_patch16_224", "num_classes": len(WD14_TAGS), "model_args": sizes}
    settings["pretrained_cfg"] = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3}
    model = timm.create_model(settings["architecture"], num_classes=len(WD14_TAGS), **sizes)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor(WD14_LOGITS))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS[7:]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"image_token": "<image>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra, **names)


def clip_images(side: int = 32) -> CLIPImageProcessorPil:
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return CLIPImageProcessorPil(**sizes, do_convert_rgb=True)


def save_random(model_class: Any, settings: Any, folder: Path) -> None:  # noqa: ANN401 - untyped
    """Save a model of random weights."""
    with seeded(3):
        model_class(settings).save_pretrained(folder)
