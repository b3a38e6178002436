"""Names of layers: every layer of every family through every form and back; and the layouts against the live models."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.integration.families import models
from trainer import families
from trainer.adapter_files import safetensors_reader, summary
from trainer.base_models import layer_names, layer_shapes, registry, transformer_names
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import TRANSFORMERS, FamilyName
from trainer.base_models.spec import Blocks
from trainer.config import ModelConfig


@pytest.mark.parametrize("kind", [*models.UNETS, "micro"])
def test_the_layout_is_that_of_the_live_model(bases: dict[str, Path], kind: str) -> None:
    base = "micro" if kind == "micro" else str(bases[kind])
    family = families.load(ModelConfig(base=base), torch.device("cpu"), torch.float32)
    named = ((name, getattr(module, "weight", None)) for name, _, _, module in families.named(family))
    live = {name: tuple(weight.shape) for name, weight in named if weight is not None}
    shapes = layer_shapes.known("micro") if kind == "micro" else layer_shapes.of_folder(bases[kind])
    expected = {layer_names.kohya(place_of(name), family.base.family): shape for name, shape in shapes.items()}
    assert expected == live


def place_of(name: str) -> Place:
    component, _, path = name.partition(":")
    return Place(component, path)  # type: ignore[arg-type] # one of the three


@pytest.mark.parametrize("kind", models.TRANSFORMERS)
def test_the_layout_of_a_transformer_is_that_of_the_live_model(bases: dict[str, Path], kind: str) -> None:
    """Joined layers have the rows of their parts."""
    family = families.load(ModelConfig(base=str(bases[kind])), torch.device("cpu"), torch.float32)
    name = family.base.family
    named = ((name, getattr(module, "weight", None)) for name, _, _, module in families.named(family))
    weights = {name: weight for name, weight in named if weight is not None}
    live = {name: tuple(each.shape) for name, each in weights.items() if name.startswith("lora_transformer_")}
    known = {place_of(key): shape for key, shape in layer_shapes.of_folder(bases[kind], name).items()}
    shapes = {place: shape for place, shape in known.items() if place.component == "transformer"}
    joined = {place: transformer_names.parts(place.path, name) for place in shapes}
    assert {layer_names.kohya(place, name): shape for place, shape in shapes.items() if not joined[place]} == live
    for place, parts in joined.items():
        rows = [shapes[Place(place.component, part)][0] for part in parts]
        assert not parts or shapes[place][0] == sum(rows)
        assert [row / rows[0] for row in rows] == [share / next(iter(parts.values())) for share in parts.values()]


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_name_of_a_transformer_is_read_back(family: FamilyName) -> None:
    for key in layer_shapes.known(family):
        place = place_of(key)
        if place.component != "transformer":
            continue
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


def test_names_of_two_families_are_told_apart_by_proportions(tmp_path: Path) -> None:
    """FLUX.2 klein has the original names of FLUX.1, and other feed-forward layers; some files have no metadata."""
    sizes = {"flux": {"linear1": (21504, 3072), "linear2": (3072, 15360)}}
    sizes["flux2_klein"] = {"linear1": (27648, 3072), "linear2": (3072, 12288)}
    for family, layers in sizes.items():
        tensors = {}
        for name, (rows, columns) in layers.items():
            tensors[f"diffusion_model.single_blocks.3.{name}.lora_A.weight"] = torch.zeros(1, columns)
            tensors[f"diffusion_model.single_blocks.3.{name}.lora_B.weight"] = torch.zeros(rows, 1)
        save_file(tensors, tmp_path / "x.safetensors")
        file = safetensors_reader.read(tmp_path / "x.safetensors")
        own, unknown = summary.layers(file)
        assert not unknown
        assert summary.family(file, own) == family
        known = {transformer_names.from_original(f"single_blocks.3.{name}", family) for name in layers}
        assert {layer.module.place.path for layer in own if layer.module.place} == known


@pytest.mark.parametrize(
    "model", [model for model, (family, _) in layer_shapes.MODELS.items() if family in TRANSFORMERS]
)
def test_layers_outside_blocks_have_widths_of_their_own(model: str, tmp_path: Path) -> None:
    """The text of FLUX.1 and Stable Diffusion 3 is as wide as the blocks of FLUX.2 klein 9B."""
    family, _ = layer_shapes.MODELS[model]
    tensors = {}
    for key, shape in layer_shapes.known(model).items():
        place = place_of(key)
        is_first = place.path.startswith(tuple(f"{blocks}.0." for blocks in TRANSFORMERS[family].blocks))
        if place.component == "transformer" and len(shape) == 2 and (is_first or place.block == "outside"):
            name = layer_names.peft(place)
            tensors |= {f"{name}.lora_A.weight": torch.zeros(1, shape[1])}
            tensors |= {f"{name}.lora_B.weight": torch.zeros(shape[0], 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = safetensors_reader.read(tmp_path / "x.safetensors")
    assert summary.family_by_width(file, layers := summary.layers(file)[0]) == family
    assert summary.family(file, layers) == family


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


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A family whose blocks are called as Z-Image's."""
    blocks = Blocks("layers", {"attention.to_q": "attention.wq"}, {}, feed_forwards=("feed_forward",))
    refiner = replace(blocks, original="refiner")
    spec = replace(TRANSFORMERS["flux"], blocks={"layers": blocks, "noise_refiner": refiner}, outside={})
    monkeypatch.setitem(TRANSFORMERS, "trial", spec)  # type: ignore[misc] # a name that no family has
    names = [value for value in vars(transformer_names).values() if hasattr(value, "cache_clear")]
    for table in names:
        table.cache_clear()
    yield "trial"
    monkeypatch.undo()
    for table in names:
        table.cache_clear()


@pytest.mark.parametrize(("blocks", "original"), [("layers", "layers"), ("noise_refiner", "refiner")])
def test_blocks_may_have_any_name(trial: FamilyName, tmp_path: Path, blocks: str, original: str) -> None:
    place = Place("transformer", f"{blocks}.12.attention.to_q")
    assert transformer_names.original(place.path, trial) == f"{original}.12.attention.wq"
    theirs = (f"lora_unet_{original}_12_attention_wq", f"diffusion_model.{original}.12.attention.wq")
    for name in (layer_names.kohya(place, trial), layer_names.peft(place), *theirs):
        assert layer_names.read(name).place == place
    assert place.block == f"{blocks}.12"
    names = [f"{name}.{end}" for name in theirs[:1] for end in ("lora_up.weight", "lora_down.weight")]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    facts = summary.describe(safetensors_reader.read(tmp_path / "x.safetensors"))
    assert place.block in facts["blocks"]


def flat(path: str) -> str:
    return path.replace(".", "_")


@pytest.mark.parametrize("family", registry.UNETS)
def test_every_name_is_read_back(family: FamilyName) -> None:
    for name in layer_shapes.known(family):
        place = place_of(name)
        module = layer_names.read(layer_names.kohya(place, family))
        assert module.place == place
        assert module.text_model
        assert layer_names.read(layer_names.peft(place)).place == place
        if place.component == "unet":
            original = layer_names.original(place.path, attends="up_blocks.0.up" not in place.path)
            for name in (f"lora_unet_{flat(original)}", f"lora_unet_{flat(place.path)}", f"diffusion_model.{original}"):
                assert layer_names.read(name).place == place


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lora_te_encoder_layers_0_self_attn_q_proj", "encoder.layers.0.self_attn.q_proj"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
         "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"),
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
)  # fmt: skip
def test_names_of_other_programs(name: str, path: str | None) -> None:
    module = layer_names.read(name)
    assert (module.place.path if module.place else None) == path


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ({"lora_down.weight": (4, 6), "lora_up.weight": (5, 4)}, (5, 6)),
        ({"lora_down.weight": (4, 6, 3, 3), "lora_up.weight": (5, 4, 1, 1)}, (5, 54)),
        ({"lora_down.weight": (4, 6, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (5, 4, 1, 1)}, (5, 54)),
        ({"lora_down.weight": (6, 4), "lora_up.weight": (4, 5)}, None),
        ({"lora_down.weight": (4, 6)}, None),
        ({"hada_w1_a": (5, 2), "hada_w1_b": (2, 6), "hada_w2_a": (5, 2), "hada_w2_b": (2, 6)}, (5, 6)),
        ({"lokr_w1": (2, 3), "lokr_w2_a": (5, 1), "lokr_w2_b": (1, 7)}, (10, 21)),
        ({"lokr_w1": (2, 3), "lokr_w2": (5, 7, 3, 3)}, (10, 189)),
        ({"a1.weight": (6, 2), "a2.weight": (2, 6), "b1.weight": (5, 2), "b2.weight": (2, 6, 3, 3)}, (5, 54)),
        ({"oft_blocks": (4, 3, 3)}, (12, 0)),
        ({"oft_blocks": (3, 4, 2, 2)}, (8, 0)),
        ({"oft_blocks": (4, 3, 2, 2)}, None),
        ({"weight": (5,), "on_input": ()}, (0, 0)),
        ({"diff": (5, 6, 3, 3), "diff_b": (5,)}, (5, 54)),
        ({"w_norm": (5,), "b_norm": (5,)}, (5, 1)),
        ({}, None),
    ],
)
def test_the_size_of_the_weight_that_a_module_changes(
    shapes: dict[str, tuple[int, ...]], size: tuple[int, int] | None
) -> None:
    assert layer_shapes.weight_size(shapes) == size
