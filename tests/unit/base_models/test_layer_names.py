"""Names of layers: every layer of every family through every form and back; and the layouts against the live models."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.integration.families import models
from trainer import families
from trainer.adapter_files import safetensors_reader, summary
from trainer.adapter_files.safetensors_reader import SafetensorsFile
from trainer.base_models import layer_names, layer_shapes, registry, transformer_names
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import TRANSFORMERS, FamilyName
from trainer.config import ModelConfig


@pytest.mark.parametrize("kind", [*models.UNETS, "micro", *models.TRANSFORMERS])
def test_the_layout_is_that_of_the_live_model(bases: dict[str, Path], kind: str) -> None:
    """Joined layers of a transformer have the rows of their parts."""
    base = "micro" if kind == "micro" else str(bases[kind])
    model = families.load(ModelConfig(base=base), torch.device("cpu"), torch.float32)
    family = model.base.family
    named = ((name, getattr(module, "weight", None)) for name, _, _, module in families.named(model))
    prefix = "lora_transformer_" if kind in models.TRANSFORMERS else ""
    live = {name: tuple(weight.shape) for name, weight in named if weight is not None and name.startswith(prefix)}
    known = layer_shapes.known("micro") if kind == "micro" else layer_shapes.of_folder(bases[kind], family)
    shapes = {place_of(name): shape for name, shape in known.items() if not prefix or name.startswith("transformer:")}
    joined = {place: parts for place in shapes if (parts := transformer_names.parts(place.path, family))}
    assert {layer_names.kohya(place, family): shape for place, shape in shapes.items() if place not in joined} == live
    for place, parts in joined.items():
        rows = [shapes[Place(place.component, part)][0] for part in parts]
        assert shapes[place][0] == sum(rows)
        assert [row / rows[0] for row in rows] == [share / next(iter(parts.values())) for share in parts.values()]


def place_of(name: str) -> Place:
    component, _, path = name.partition(":")
    return Place(component, path)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_name_of_a_transformer_is_read_back(family: FamilyName) -> None:
    for key in layer_shapes.known(family):
        place = place_of(key)
        if place.component != "transformer":
            continue
        block = re.match(rf"({'|'.join(TRANSFORMERS[family].blocks)})\.\d+", place.path)
        assert place.block == (block[0] if block else "outside")
        for name in (layer_names.kohya(place, family), layer_names.peft(place), f"lycoris_{flat(place.path)}"):
            assert layer_names.read(name).place == place
        # As musubi-tuner and OneTrainer name the layers of Z-Image.
        assert layer_names.read(f"lora_unet_{flat(place.path)}", family).place == place
        original = transformer_names.original(place.path, family)
        whole = transformer_names.joined(place.path, family)
        assert bool(original) != bool(whole), "each layer has a name in the original code, or is a part of one that has"
        if original:
            # The last name is that of OneTrainer's original form.
            for name in (f"lora_unet_{flat(original)}", f"diffusion_model.{original}", original):
                assert layer_names.read(name, family).place == place
        else:
            assert place.path in transformer_names.parts(whole, family)


def test_names_of_two_families_are_told_apart_by_proportions() -> None:
    """FLUX.2 klein has the original names of FLUX.1, and other feed-forward layers; some files have no metadata."""
    sizes = {"flux": {"linear1": (21504, 3072), "linear2": (3072, 15360)}}
    sizes["flux2_klein"] = {"linear1": (27648, 3072), "linear2": (3072, 12288)}
    for family, layers in sizes.items():
        file = file_of({f"diffusion_model.single_blocks.3.{name}": shape for name, shape in layers.items()})
        own, unknown = summary.layers(file)
        assert not unknown
        assert summary.family(file, own) == family
        known = {transformer_names.from_original(f"single_blocks.3.{name}", family) for name in layers}
        assert {layer.module.place.path for layer in own if layer.module.place} == known


@pytest.mark.parametrize(("family", "count"), [("flux", 19), ("qwen_image", 60)])
def test_attention_alone_is_told_by_the_number_of_blocks(family: FamilyName, count: int) -> None:
    """Of Qwen-Image it has names and widths of FLUX.1. The scripts of diffusers train it alone, without metadata."""
    names = [f"transformer.transformer_blocks.{number}.attn.to_q" for number in range(count)]
    file = file_of(dict.fromkeys(names, (3072, 3072)))
    assert summary.family(file, summary.layers(file)[0]) == family


def file_of(shapes: dict[str, tuple[int, ...]]) -> SafetensorsFile:
    tensors = {f"{name}.lora_A.weight": torch.zeros(1, columns) for name, (_, columns) in shapes.items()}
    tensors |= {f"{name}.lora_B.weight": torch.zeros(rows, 1) for name, (rows, _) in shapes.items()}
    return safetensors_reader.parse(save(tensors), "x")


@pytest.mark.parametrize(
    "model", [model for model, (family, _) in layer_shapes.MODELS.items() if family in TRANSFORMERS]
)
def test_layers_outside_blocks_have_widths_of_their_own(model: str) -> None:
    """The text of FLUX.1 and Stable Diffusion 3 is as wide as the blocks of FLUX.2 klein 9B."""
    family, _ = layer_shapes.MODELS[model]
    shapes = {}
    for key, shape in layer_shapes.known(model).items():
        place = place_of(key)
        is_first = place.path.startswith(tuple(f"{blocks}.0." for blocks in TRANSFORMERS[family].blocks))
        if place.component == "transformer" and len(shape) == 2 and (is_first or place.block == "outside"):
            shapes[layer_names.peft(place)] = shape
    file = file_of(shapes)
    layers, _ = summary.layers(file)
    assert summary.family_by_width(file, layers) == summary.family(file, layers) == family


T5_LAYERS = ("0.SelfAttention.q", "0.SelfAttention.o", "1.DenseReluDense.wi_0", "1.DenseReluDense.wo")
T5_SHAPES = ((4096, 4096), (4096, 4096), (10240, 4096), (4096, 10240))


@pytest.mark.parametrize(
    ("family", "folder", "own"),
    [
        ("sd3", "text_encoder_3", "3"),
        ("flux", "text_encoder_2", "2"),
        ("chroma", "text_encoder", ""),
        ("chroma", "text_encoder", "1"),
    ],
)
def test_layers_of_t5_are_read_under_each_makers_names(family: FamilyName, folder: str, own: str) -> None:
    """sd-scripts has T5 as the third encoder of all families, OneTrainer as the second of FLUX, the only of Chroma.

    In kohya's format OneTrainer numbers the only one, too.
    """
    for layer, shape in zip(T5_LAYERS, T5_SHAPES, strict=True):
        path = f"encoder.block.23.layer.{layer}"
        place = Place(layer_names.T5, path)
        assert layer_shapes.known(family)[f"{place.component}:{path}"] == shape
        assert layer_names.kohya(place, family) == f"lora_te3_{flat(path)}"
        assert layer_names.peft(place, family) == f"{folder}.{path}"
        for prefix in ("lora_te3_", f"lora_te{own}_"):
            assert layer_names.read(prefix + flat(path)).place == place
        for prefix in (f"{folder}.", f"base_model.model.{folder}.", "text_encoders.t5xxl.transformer."):
            assert layer_names.read(prefix + path).place == place
    assert layer_names.read("lora_te3_text_model_encoder_layers_0_mlp_fc1").place is None
    assert layer_names.read(f"lora_te4_{flat(path)}").place is None


def flat(path: str) -> str:
    return path.replace(".", "_")


@pytest.mark.parametrize("family", registry.UNETS)
def test_every_name_is_read_back(family: FamilyName) -> None:
    """Those of kohya and PEFT are read back in `test_writer.py`, too."""
    for name in layer_shapes.known(family):
        place = place_of(name)
        assert layer_names.read(layer_names.kohya(place, family)).text_model
        names = [layer_names.kohya(place, family), layer_names.peft(place)]
        if place.component == "unet":
            original = layer_names.original(place.path, attends="up_blocks.0.up" not in place.path)
            names += [f"lora_unet_{flat(original)}", f"lora_unet_{flat(place.path)}", f"diffusion_model.{original}"]
        assert {layer_names.read(name).place for name in names} == {place}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lora_te_encoder_layers_0_self_attn_q_proj", "encoder.layers.0.self_attn.q_proj"),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        ("base_model.model.mid_block.resnets.1.conv2", "mid_block.resnets.1.conv2"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc1"),
        ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn3.to_q", None),
        ("lycoris_mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in"),
        ("lora_unet_single_blocks_0_linear1", "single_transformer_blocks.0.to_qkv_mlp"),
        ("lora_unet_single_blocks_0_linear3", None),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn3_to_q", None),
        ("lora_unet_" + "a" * 10**6 + "!", None),
        ("", None),
    ],
)
def test_names_of_other_programs(name: str, path: str | None) -> None:
    module = layer_names.read(name)
    assert (module.place.path if module.place else None) == path
