"""Write a diffusers folder as one file under the original names, as base models are passed on."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import qwen3_tokenizer, t5_tokenizer
from trainer.base_models import MICRO_FOLDER, hub, layer_names, registry, transformer_names
from trainer.base_models.registry import FamilyName

VAE = {
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.group_norm.": "mid.attn_1.norm.",
    "mid_block.attentions.0.to_q.": "mid.attn_1.q.",
    "mid_block.attentions.0.to_k.": "mid.attn_1.k.",
    "mid_block.attentions.0.to_v.": "mid.attn_1.v.",
    "mid_block.attentions.0.to_out.0.": "mid.attn_1.proj_out.",
    "conv_norm_out.": "norm_out.",
    ".conv_shortcut.": ".nin_shortcut.",
    ".resnets.": ".block.",
    ".downsamplers.0.": ".downsample.",
    ".upsamplers.0.": ".upsample.",
}
OPENCLIP = {
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    "final_layer_norm.": "ln_final.",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}


# What transformers have beside the layers whose names `transformer_names` knows, and `diffusers` checks as it reads.
MMDIT = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "proj_out.": "final_layer.linear.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "transformer_blocks.": "joint_blocks.",
    ".attn2.norm_": ".x_block.attn2.ln_",
    ".attn.norm_added_": ".context_block.attn.ln_",
    ".attn.norm_": ".x_block.attn.ln_",
}
FLUX = {
    "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
    "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
    "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "time_text_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.",
    "time_text_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
    "proj_out.": "final_layer.linear.",
    "context_embedder.": "txt_in.",
    "x_embedder.": "img_in.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "single_transformer_blocks.": "single_blocks.",
    "transformer_blocks.": "double_blocks.",
    ".attn.norm_added_q.weight": ".txt_attn.norm.query_norm.scale",
    ".attn.norm_added_k.weight": ".txt_attn.norm.key_norm.scale",
    ".attn.norm_q.weight": ".img_attn.norm.query_norm.scale",
    ".attn.norm_k.weight": ".img_attn.norm.key_norm.scale",
}
# Of Wan's VAE, whose blocks are numbered in one sequence.
WAN = {
    "post_quant_conv.": "conv2.",
    "quant_conv.": "conv1.",
    ".conv_in.": ".conv1.",
    "mid_block.resnets.0.": "middle.0.",
    "mid_block.resnets.1.": "middle.2.",
    "mid_block.attentions.0.": "middle.1.",
    ".norm_out.": ".head.0.",
    ".conv_out.": ".head.2.",
    ".conv_shortcut.": ".shortcut.",
    ".down_blocks.": ".downsamples.",
}
RESIDUAL = {"norm1": 0, "conv1": 2, "norm2": 3, "conv2": 6}  # places in Wan's blocks
Z_IMAGE = {".norm_q.": ".q_norm.", ".norm_k.": ".k_norm."}
Z_IMAGE |= {"all_x_embedder.2-1.": "x_embedder.", "all_final_layer.2-1.": "final_layer."}


KREA2 = {
    "final_layer.norm.weight": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
    "txt_in.norm.weight": "txtmlp.0.scale",
    "transformer_blocks.": "blocks.",
    "text_fusion.": "txtfusion.",
    ".norm1.weight": ".prenorm.scale",
    ".norm2.weight": ".postnorm.scale",
    ".scale_shift_table": ".mod.lin",
    ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
    ".attn.norm_k.weight": ".attn.qknorm.knorm.scale",
}
ANIMA = {"transformer_blocks.": "blocks.", "time_embed.norm.": "t_embedding_norm."}
ANIMA |= {
    f".attn{number}.norm_{name}.": f".{kind}_attn.{name}_norm."
    for number, kind in ((1, "self"), (2, "cross"))
    for name in "qk"
}


def write(folder: Path, path: Path, *, marks: tuple[str, ...] = (), metadata: dict[str, str] | None = None) -> Path:
    """The single file of a folder, with some more tensors that only mark what it is."""
    if (folder / "transformer").exists():
        return _write_transformer(folder, path)
    tensors = {f"model.diffusion_model.{key}": value for key, value in _unet(folder / "unet")}
    tensors |= {f"first_stage_model.{key}": value for key, value in _vae(folder / "vae")}
    if (folder / "text_encoder_2").exists():
        first, second = _clip(folder / "text_encoder"), _openclip(folder / "text_encoder_2")
        tensors |= {f"conditioner.embedders.0.transformer.{key}": value for key, value in first}
        tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in second}
    elif json.loads((folder / "unet" / "config.json").read_text())["use_linear_projection"]:
        tensors |= {f"cond_stage_model.model.{key}": value for key, value in _openclip(folder / "text_encoder")}
    else:
        tensors |= {f"cond_stage_model.transformer.{key}": value for key, value in _clip(folder / "text_encoder")}
    more = {"model_ema.decay": torch.tensor(0.0), "alphas_cumprod": torch.zeros(1000)}
    tensors = {key: value.contiguous() for key, value in tensors.items()} | {mark: torch.zeros(1) for mark in marks}
    save_file(tensors | more, path, metadata=metadata)
    return path


def write_apart(folder: Path, path: Path) -> Path:
    """The same, with the text encoders in files of their own beside it, as ComfyUI has them."""
    tensors = load_file(_write_transformer(folder, path))
    for name, file in {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl", **QWEN}.items():
        if own := _taken(tensors, f"text_encoders.{name}.transformer."):
            useless = {"logit_scale": torch.tensor(1.0)} if name.startswith("clip") else {}  # published files have it
            save_file(own | useless, path.parent / f"{file}_fp16.safetensors")
    save_file(tensors, path)
    return path


def write_three(folder: Path, models: Path) -> Path:
    """The diffusion model alone, and its text encoder and VAE, each where ComfyUI has it."""
    for name in ("diffusion_models", "text_encoders", "vae"):
        (models / name).mkdir(parents=True)
    path = write_apart(folder, models / "diffusion_models" / "base.safetensors")
    (encoder,) = path.parent.glob("*_fp16.safetensors")
    shutil.move(encoder, models / "text_encoders")
    tensors = load_file(path)
    vae = registry.FAMILIES[_family(folder)].vae_file
    save_file(_taken(tensors, "vae."), models / "vae" / f"{vae}.safetensors")
    own = _taken(tensors, "model.diffusion_model.")
    start = "net." if (folder / "text_conditioner").exists() else ""  # as Anima is published
    save_file({f"{start}{key}": value for key, value in own.items()}, path)
    return path


def _taken(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): tensors.pop(key) for key in list(tensors) if key.startswith(start)}


QWEN = {
    "qwen3_4b": "qwen_3_4b",
    "qwen3_06b": "qwen_3_06b",
    "qwen25_7b": "qwen_2.5_vl_7b",
    "qwen3vl_4b": "qwen3vl_4b",
}  # names in files, and of files
T5_ALONE, QWEN3 = {"t5xxl": "text_encoder"}, {"qwen3_4b": "text_encoder"}
ENCODERS: dict[FamilyName, dict[str, str]] = {
    "sd3": {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"},
    "flux": {"clip_l": "text_encoder", "t5xxl": "text_encoder_2"},
}
ENCODERS |= {"chroma": T5_ALONE, "z_image": QWEN3, "flux2_klein": QWEN3}
ENCODERS |= {"qwen_image": {"qwen25_7b": "text_encoder"}, "krea2": {"qwen3vl_4b": "text_encoder"}}
ENCODERS["anima"] = {"qwen3_06b": "text_encoder"}
NAMES: dict[FamilyName, dict[str, str]] = {"sd3": MMDIT, "z_image": Z_IMAGE, "qwen_image": {}, "krea2": KREA2}
NAMES |= dict.fromkeys(("flux", "chroma", "flux2_klein"), FLUX) | {"anima": ANIMA}
FIRST_LEVELS = {"t5xxl": "", **dict.fromkeys(QWEN, "model.")}


def _write_transformer(folder: Path, path: Path) -> Path:
    family = _family(folder)
    own = _transformer(folder / "transformer", family, NAMES[family])
    tensors = {f"model.diffusion_model.{key}": value for key, value in own}
    if (conditioner := folder / "text_conditioner").exists():
        tensors |= {f"model.diffusion_model.llm_adapter.{key}": value for key, value in _load(conditioner).items()}
    vae = "first_stage_model" if family == "sd3" else "vae"
    tensors |= {f"{vae}.{key}": value for key, value in _vae(folder / "vae")}
    for name, part in ENCODERS[family].items():
        for key, value in (_load(folder / part) if (folder / part).exists() else {}).items():
            plain = key.removeprefix("text_model.").removeprefix("model.").removeprefix("language_model.")
            projects = plain.startswith("text_projection.")
            if not (projects and name == "clip_l"):  # where it is the identity
                inner = plain if projects else FIRST_LEVELS.get(name, "text_model.") + plain
                tensors[f"text_encoders.{name}.transformer.{inner}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def _transformer(folder: Path, family: FamilyName, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    tensors = _load(folder)
    last = json.loads((folder / "config.json").read_text()).get("num_layers", 0) - 1
    swapped = tuple(
        f"transformer_blocks.{last}.{layer}." if layer.startswith("norm1") else f"{layer}."
        for layer in registry.TRANSFORMERS[family].swapped
    )
    for key, value in tensors.items():
        layer, _, end = key.rpartition(".")
        whole = transformer_names.joined(layer, family)
        parts = list(transformer_names.parts(whole, family))
        if layer in parts[:1]:
            joined = torch.cat([tensors[f"{part}.{end}"] for part in parts])
            yield f"{transformer_names.original(whole, family)}.{end}", joined
        elif not whole:
            original = transformer_names.original(layer, family)
            halves = value.chunk(2)[::-1] if key.startswith(swapped) else (value,)
            name = f"{original}.{end}" if original else _renamed(key, names)
            yield name, torch.cat(halves).flatten() if name.endswith(".mod.lin") else torch.cat(halves)


def _family(folder: Path) -> FamilyName:
    pipeline = json.loads(hub.index(folder).read_text())["_class_name"]
    return next(name for name, spec in registry.FAMILIES.items() if spec.pipeline == pipeline)


def write_configs(folder: Path, bases: dict[str, Path]) -> Path:
    """What `trainer/base_models/configs` holds, for tiny bases by family."""
    shutil.copytree(MICRO_FOLDER / "tokenizer", folder / "clip")
    for family, base in bases.items():
        shutil.copytree(base, folder / family, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    t5_tokenizer().save_pretrained(folder / "t5")
    qwen3_tokenizer().save_pretrained(folder / "qwen3")
    return folder


def _load(folder: Path) -> dict[str, Tensor]:
    (weights,) = folder.glob("*.safetensors")
    return load_file(weights)


def _replaced(key: str, names: dict[str, str]) -> str:
    for name, original in names.items():
        key = key.replace(name, original)
    return key


def _renamed(key: str, names: dict[str, str]) -> str:
    key = _replaced(key, names)
    key = re.sub(r"^(single_blocks\.\d+)\.img_attn", r"\1", key)
    return re.sub(r"^(distilled_guidance_layer\.norms\.\d+)\.weight", r"\1.scale", key)


def _unet(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Under the names that `layer_names` knows, which diffusers checks as it reads."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in _load(folder).items():
        layer, _, end = key.rpartition(".")
        attends = layer.startswith("up_blocks") and "CrossAttn" in config["up_block_types"][int(layer.split(".")[1])]
        yield f"{layer_names.original(layer, config['layers_per_block'] + 1, attends=attends)}.{end}", value


def _vae(folder: Path) -> Iterator[tuple[str, Tensor]]:
    config = json.loads((folder / "config.json").read_text())
    if config["_class_name"] == "AutoencoderKLQwenImage":
        yield from ((_of_wan(key), value) for key, value in _load(folder).items())
        return
    levels = len(config["block_out_channels"])
    for key, value in _load(folder).items():
        name = key
        if config["_class_name"] == "AutoencoderKLFlux2":
            name = name.replace("post_quant_conv", "decoder.post_quant_conv").removeprefix("quant_conv")
            name = f"encoder.quant_conv{name}" if name.startswith(".") else name
        for level in range(levels):
            name = name.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
            name = name.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.")
        projection = ".attentions." in key and "group_norm" not in key and key.endswith("weight")
        yield _renamed(name, VAE), value[:, :, None, None] if projection else value


def _of_wan(key: str) -> str:
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda at: f"upsamples.{4 * int(at[1]) + int(at[2])}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda at: f"upsamples.{4 * int(at[1]) + 3}", key)
    key = re.sub(r"\.(norm1|conv1|norm2|conv2)\.", lambda layer: f".residual.{RESIDUAL[layer[1]]}.", key)
    return _replaced(key, WAN)


def _clip(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for key, value in _load(folder).items():
        yield f"text_model.{key.removeprefix('text_model.')}", value
    yield "text_model.embeddings.position_ids", torch.arange(40)[None]  # of no use, but published files have it


def _openclip(folder: Path) -> Iterator[tuple[str, Tensor]]:
    tensors = {key.removeprefix("text_model."): value for key, value in _load(folder).items()}
    yield "logit_scale", torch.tensor(1.0)  # as above
    if "text_projection.weight" not in tensors:
        yield "text_projection", torch.eye(len(tensors["final_layer_norm.weight"]))
    for key, value in tensors.items():
        if key == "text_projection.weight":
            yield "text_projection", value.T
        elif ".self_attn.q_proj." in key:
            parts = [tensors[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
            name = _renamed(key, OPENCLIP).replace(".self_attn.q_proj.", ".attn.in_proj_")
            yield name, torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key:
            yield _renamed(key, OPENCLIP), value
