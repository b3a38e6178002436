"""Names and weight shapes of the layers of each family's models, from their small configs alone.

Paths are those of the diffusers library. A test holds them against the live models.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainer import foreign_text
from trainer.base_models import CONFIGS, MICRO, MICRO_FOLDER, transformer_names
from trainer.base_models.registry import DEFAULT, FAMILIES, FamilyName
from trainer.base_models.spec import Shape

MODELS: dict[str, tuple[FamilyName, Path]] = {
    **{family: (family, CONFIGS / family) for family in FAMILIES},
    **{size.configs: (family, CONFIGS / size.configs) for family, spec in FAMILIES.items() for size in spec.sizes},
    MICRO: (DEFAULT, MICRO_FOLDER),
}

# Numbers of dimensions of tensors of adapters, where they are not those of a linear layer or a convolution.
_DIMENSIONS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("diff_b", "b_norm", "w_norm"), (1,)),
    "oft_blocks": (3, 4),
    "oft_R.weight": (2,),
    "oft_R.terms": (0,),
    "diff": (1, 2, 4),
    "weight": (1, 4),
    "on_input": (0, 1),
    "rescale": (1, 2, 4),
}


@cache
def known(model: str) -> dict[str, Shape]:
    """Return weight shapes by `component:path` (`unet:mid_block...`) of one of the `MODELS`."""
    family, folder = MODELS[model]
    shapes = of_folder(folder, family)
    if model not in FAMILIES and model != MICRO:  # a size, of which only the denoiser differs
        shapes |= {name: shape for name, shape in known(family).items() if name.startswith(("text_encoder", "t5"))}
    return shapes


def is_published(family: FamilyName, name: str) -> bool:
    """Return True if a published model of a family has a layer: some have more blocks than others."""
    return any(name in known(model) for model, (own, _) in MODELS.items() if own == family)


def of_folder(folder: Path, family: FamilyName = DEFAULT) -> dict[str, Shape]:
    """Return the weight shapes of a model in diffusers form, in the same way."""
    spec = FAMILIES[family]
    layers = (spec.transformer.shapes if spec.transformer else unet)(_config(folder / spec.denoiser))
    shapes = {f"{spec.denoiser}:{path}": shape for path, shape in layers.items()}
    for component in _text_encoders(folder):
        layers = text_encoder(_config(folder / component))
        shapes |= {f"{component}:{path}": shape for path, shape in layers.items()}
    if (large := spec.adapted_encoder) and (folder / large.component).is_dir():
        layers = large.shapes(_config(folder / large.component))
        shapes |= {f"{large.file_name}:{path}": shape for path, shape in layers.items()}
    return with_joined(shapes, family)


def with_joined(shapes: Mapping[str, Shape], family: FamilyName) -> dict[str, Shape]:
    """Add the layers that a transformer's original code joins to weight shapes by `component:path`."""
    denoiser = {name.partition(":")[2]: shape for name, shape in shapes.items() if name.startswith("transformer:")}
    joined: dict[str, Shape] = {}
    for whole in {transformer_names.joined(path, family) for path in denoiser} - {""}:
        rows = [denoiser[part] for part in transformer_names.parts(whole, family)]
        joined[f"transformer:{whole}"] = (sum(shape[0] for shape in rows), *rows[0][1:])
    return {**shapes, **joined}


def vae_factor(model: str) -> int:
    """Return how many pixels a side of the image one of the latents has, in one of the `MODELS`."""
    family, folder = MODELS[model]
    if not (folder / "vae").is_dir():  # a size, of which only the denoiser differs
        folder = CONFIGS / family
    config = _config(folder / "vae")
    return int(2 ** (len(config.get("block_out_channels") or config["dim_mult"]) - 1))


def text_encoder_size(model: str) -> int:
    """Count the parameters of the text encoders of one of the `MODELS`, but for biases and norms."""
    folder, layers = MODELS[model][1], known(model)
    weights = [shape for name, shape in layers.items() if name.startswith("text_encoder") and len(shape) > 1]
    size = sum(math.prod(shape) for shape in weights)
    for component in _text_encoders(folder):
        config = _config(folder / component)
        size += (int(config["vocab_size"]) + int(config["max_position_embeddings"])) * int(config["hidden_size"])
    large = FAMILIES[MODELS[model][0]].large_encoder
    if not large:
        return size
    config = _config(folder / large.component)
    config = config.get("text_config", config)
    weights = [*large.shapes(config).values()]
    embedding: Shape = (int(config["vocab_size"]), weights[0][1])
    return size + sum(math.prod(shape) for shape in (*weights, embedding))


def _text_encoders(folder: Path) -> list[str]:
    """List the text encoders that an adapter can be for: those that are CLIP's."""
    encoders = sorted(encoder for encoder in folder.glob("text_encoder*") if encoder.is_dir())
    return [encoder.name for encoder in encoders if _config(encoder)["model_type"] == "clip_text_model"]


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = foreign_text.read_json(folder / "config.json")
    return config


def text_encoder(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the layers of a CLIP text encoder and the shapes of their weights."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    layers: dict[str, Shape] = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    layers |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner), "layer_norm1": (width,), "layer_norm2": (width,)}
    shapes: dict[str, Shape] = {
        f"encoder.layers.{number}.{name}": shape
        for number in range(int(config["num_hidden_layers"]))
        for name, shape in layers.items()
    }
    shapes["final_layer_norm"] = (width,)
    if config["architectures"] == ["CLIPTextModelWithProjection"]:
        shapes["text_projection"] = (int(config["projection_dim"]), width)
    return shapes


def unet(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear, convolution and norm layers of a UNet and the shapes of their weights.

    Rombach et al. 2022, section 3; Podell et al. 2023, section 2.1.
    """
    shapes: dict[str, Shape] = {}
    widths = [int(width) for width in config["block_out_channels"]]
    time_width, resnets = 4 * widths[0], int(config["layers_per_block"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    shapes["conv_in"] = (widths[0], int(config["in_channels"]), 3, 3)
    shapes["conv_norm_out"] = (widths[0],)
    shapes["conv_out"] = (int(config["out_channels"]), widths[0], 3, 3)
    shapes["time_embedding.linear_1"] = (time_width, widths[0])
    shapes["time_embedding.linear_2"] = (time_width, time_width)
    if sizes_width := config.get("projection_class_embeddings_input_dim"):
        shapes["add_embedding.linear_1"] = (time_width, int(sizes_width))
        shapes["add_embedding.linear_2"] = (time_width, time_width)

    def add_layers(block: str, layer: int, inputs: int, outputs: int, depth: int) -> None:
        shapes.update(_residual(f"{block}.resnets.{layer}", inputs, outputs, time_width))
        if depth:
            shapes.update(_attention(f"{block}.attentions.{layer}", outputs, depth, config))

    before = widths[0]
    for number, (kind, width) in enumerate(zip(config["down_block_types"], widths, strict=True)):
        block, depth = f"down_blocks.{number}", depths[number] if "CrossAttn" in kind else 0
        for layer in range(resnets):
            add_layers(block, layer, before, width, depth)
            before = width
        if number < len(widths) - 1:
            shapes[f"{block}.downsamplers.0.conv"] = (width, width, 3, 3)
    add_layers("mid_block", 0, before, before, depths[-1])
    shapes.update(_residual("mid_block.resnets.1", before, before, time_width))
    upwards = widths[::-1]
    for number, (kind, width) in enumerate(zip(config["up_block_types"], upwards, strict=True)):
        block, depth = f"up_blocks.{number}", depths[-1 - number] if "CrossAttn" in kind else 0
        below = upwards[min(number + 1, len(upwards) - 1)]
        for layer in range(resnets + 1):
            skip_width = below if layer == resnets else width  # of the skip connection from the way down
            add_layers(block, layer, before + skip_width, width, depth)
            before = width
        if number < len(upwards) - 1:
            shapes[f"{block}.upsamplers.0.conv"] = (width, width, 3, 3)
    return shapes


def _residual(path: str, inputs: int, outputs: int, time_width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.norm1", (inputs,)
    yield f"{path}.norm2", (outputs,)
    yield f"{path}.conv1", (outputs, inputs, 3, 3)
    yield f"{path}.time_emb_proj", (outputs, time_width)
    yield f"{path}.conv2", (outputs, outputs, 3, 3)
    if inputs != outputs:
        yield f"{path}.conv_shortcut", (outputs, inputs, 1, 1)


def _attention(path: str, width: int, depth: int, config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    projection: Shape = (width, width) if config.get("use_linear_projection") else (width, width, 1, 1)
    yield f"{path}.norm", (width,)
    yield f"{path}.proj_in", projection
    yield f"{path}.proj_out", projection
    context_width = int(config["cross_attention_dim"])
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        for attention, key_width in (("attn1", width), ("attn2", context_width)):
            yield f"{block}.{attention}.to_q", (width, width)
            yield f"{block}.{attention}.to_k", (width, key_width)
            yield f"{block}.{attention}.to_v", (width, key_width)
            yield f"{block}.{attention}.to_out.0", (width, width)
        yield from ((f"{block}.norm{part}", (width,)) for part in (1, 2, 3))
        yield f"{block}.ff.net.0.proj", (8 * width, width)
        yield f"{block}.ff.net.2", (width, 4 * width)


def weight_size(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    """Return rows and columns [out, in * kh * kw] of the weight that a module changes, by the shapes of its tensors.

    Each is 0 where they do not tell it, as with OFT. None if they do not fit together, or one is missing or empty.
    """
    if any(0 in shape for shape in shapes.values()):
        return None
    try:
        return _size(shapes)
    except (KeyError, ValueError, IndexError):
        return None


def fit(shapes: Mapping[str, Shape]) -> bool:
    """Return True if factors, magnitudes and biases have the shapes that their weight asks for."""
    size = weight_size(shapes)
    if size is None or any(len(shape) not in _DIMENSIONS.get(ending, (2, 4)) for ending, shape in shapes.items()):
        return False
    down, magnitude = shapes.get("lora_down.weight"), shapes.get("dora_scale")
    if down and len(down) != len(shapes["lora_up.weight"]):
        return False
    for ending in ("diff_b", "b_norm", "rescale"):
        if ending in shapes and math.prod(shapes[ending]) != size[0]:
            return False
    return magnitude is None or _fits_magnitude(magnitude, size, down)


def _fits_magnitude(magnitude: Shape, size: tuple[int, int], down: Shape | None) -> bool:
    """Return True if there is one magnitude for each output or for each input."""
    outputs, inputs = magnitude[:2]
    if math.prod(magnitude) not in (outputs, inputs):
        return False
    if outputs == math.prod(magnitude) == size[0]:
        return True
    return outputs == 1 and (inputs == down[1] if down else size[1] % inputs == 0)


def _size(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    if "lora_down.weight" in shapes:
        return _lora_size(shapes["lora_down.weight"], shapes["lora_up.weight"], shapes.get("lora_mid.weight"))
    if "hada_w1_a" in shapes:
        first, second = _hada_size(shapes, "1"), _hada_size(shapes, "2")
        return first if first == second else None
    if "a1.weight" in shapes:
        return _glora_size(shapes)
    if "oft_blocks" in shapes:
        return _oft_size(shapes["oft_blocks"])
    if "oft_R.weight" in shapes:
        blocks, elements = shapes["oft_R.weight"]
        side = side_of_triangle(elements)
        return (0, side * blocks if blocks > 1 else 0) if side else None  # one block may be shared by all inputs
    if "on_input" in shapes:
        return 0, 0
    for ending in ("diff", "w_norm"):
        if ending in shapes:
            return shapes[ending][0], math.prod(shapes[ending][1:])
    if shapes and shapes.keys() <= {"diff_b", "b_norm"}:
        return next(iter(shapes.values()))[0], 0
    first, second = _lokr_size(shapes, "1"), _lokr_size(shapes, "2")
    return (first[0] * second[0], first[1] * second[1]) if first and second else None


def rank(shapes: Mapping[str, Shape]) -> int:
    """Return the rank of a module by the shapes of its tensors; 0 if it has none."""
    endings = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "a2.weight")
    return next((shapes[ending][0] for ending in endings if shapes.get(ending)), 0)


def side_of_triangle(elements: int) -> int:
    """Return the side of a square matrix by the number of elements above its diagonal; 0 if it has no such number."""
    side = (1 + math.isqrt(1 + 8 * elements)) // 2
    return side if side * (side - 1) == 2 * elements else 0


def kernel(path: str, family: FamilyName | None) -> int:
    """Return the width of the kernel of a layer that is a convolution; 0 if it is linear.

    Around attention, 1.x has convolutions of 1 x 1 where the other families have linear layers.
    """
    shape = known(family or DEFAULT).get(f"transformer:{path}", ())
    if len(shape) == 4:  # of patches
        return shape[2]
    if path.endswith((".conv1", ".conv2", ".conv", "conv_in", "conv_out")):
        return 3
    described = FAMILIES[family or DEFAULT].unet
    projection = described is not None and not described.linear_projections and path.endswith((".proj_in", ".proj_out"))
    return 1 if projection or path.endswith(".conv_shortcut") else 0


def same_size(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return True if two sizes can be those of the same weight; 0 is unknown."""
    return all(left == right or 0 in (left, right) for left, right in zip(first, second, strict=True))


def _lora_size(down: Shape, up: Shape, mid: Shape | None) -> tuple[int, int] | None:
    rank = (mid or down)[0]
    if math.prod(up[2:]) != 1 or up[1] != rank:
        return None
    if mid is None:
        return up[0], math.prod(down[1:])
    if mid[1] != down[0] or math.prod(down[2:]) != 1:
        return None
    return up[0], math.prod(down[1:]) * math.prod(mid[2:])


def _hada_size(shapes: Mapping[str, Shape], number: str) -> tuple[int, int] | None:
    # OneTrainer's factors of a convolution have the shapes of convolutions.
    (rows, inner), (rank, columns) = (
        (shape[0], math.prod(shape[1:])) for shape in (shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"])
    )
    core = shapes.get(f"hada_t{number}")
    if core:  # the first factor is transposed then
        return (inner, columns * math.prod(core[2:])) if core[:2] == (rows, rank) else None
    return (rows, columns) if inner == rank else None


def _lokr_size(shapes: Mapping[str, Shape], number: str) -> tuple[int, int] | None:
    if whole := shapes.get(f"lokr_w{number}"):
        return whole[0], math.prod(whole[1:])
    first, second = shapes[f"lokr_w{number}_a"], shapes[f"lokr_w{number}_b"]
    core = shapes.get(f"lokr_t{number}")
    if core:
        return (first[1], second[1] * math.prod(core[2:])) if core[:2] == (first[0], second[0]) else None
    return (first[0], math.prod(second[1:])) if first[1] == second[0] else None


def _glora_size(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    a1, a2 = shapes["a1.weight"], shapes["a2.weight"]
    size = _lora_size(shapes["b2.weight"], shapes["b1.weight"], shapes.get("bm.weight"))
    inputs = shapes["b2.weight"][1]
    fits = a1[:2] == a2[1::-1] == (inputs, a2[0]) and math.prod(a1[2:]) == math.prod(a2[2:]) == 1
    return size if fits else None


def _oft_size(blocks: Shape) -> tuple[int, int] | None:
    *levels, count, size, width = blocks
    rows = count * size
    if size != width or len(levels) > 1:
        return None
    # Each level of a butterfly pairs halves of blocks that are twice as far apart.
    largest = 2 ** (levels[0] - 1) * size if levels else size
    return (rows, 0) if rows % largest == 0 and (not levels or size % 2 == 0) else None
