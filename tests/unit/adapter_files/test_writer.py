"""Every adapter through every form and back; metadata, hashes and what is left of a stripped file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from tests.unit.adapter_files.test_modules import LINEAR, random, read_back
from trainer.adapter_files import low_rank, peft_settings, reader, safetensors_reader, summary, writer
from trainer.adapter_files.modules import LoHa, LoKr, Lora, Module
from trainer.adapter_files.writer import Precision
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import FamilyName
from trainer.errors import UserError

FAMILIES: tuple[FamilyName, ...] = ("sd15", "sd21", "sdxl")
PLACES: dict[FamilyName, list[tuple[Place, int]]] = {
    family: [
        (Place(*name.split(":")), len(shape)) for name, shape in layer_shapes.known(family).items() if len(shape) > 1
    ]
    for family in FAMILIES
}


@st.composite
def adapters(draw: st.DrawFn, kinds: tuple[str, ...]) -> tuple[FamilyName, dict[str, Module]]:
    """Some layers of a family, of small sizes, each with a rank and an alpha of its own."""
    family = draw(st.sampled_from(FAMILIES))
    kind = draw(st.sampled_from(kinds))
    chosen = draw(st.lists(st.sampled_from(PLACES[family]), min_size=1, max_size=6, unique=True))
    modules: dict[str, Module] = {}
    for seed, (place, dims) in enumerate(chosen):
        rank, out, into = (draw(st.integers(1, 4)) for _ in range(3))
        kernel = (3, 3) if place.path.endswith((".conv1", ".conv2", ".conv", "conv_in", "conv_out")) else (1, 1)
        alpha = draw(st.floats(0.0625, 100, width=32))
        modules[layer_names.kohya(place, family)] = module(kind, rank, (out, into, *kernel[: dims - 2]), alpha, seed)
    return family, dict(sorted(modules.items()))


def module(kind: str, rank: int, shape: tuple[int, ...], alpha: float, seed: int) -> Module:
    out, columns, ones = shape[0], torch.Size(shape[1:]).numel(), (1,) * (len(shape) - 2)
    if kind == "LoHa":
        sizes = {"w1_a": (out, rank), "w1_b": (rank, columns), "w2_a": (out, rank), "w2_b": (rank, columns)}
        return LoHa({f"hada_{part}": random(*size, seed=seed + int(part[1])) for part, size in sizes.items()}, alpha)
    if kind == "LoKr":
        sizes = {"w1": (2, 1), "w2_a": (out, rank), "w2_b": (rank, columns)}
        parts = {f"lokr_{part}": random(*size, seed=seed + n) for n, (part, size) in enumerate(sizes.items())}
        return LoKr(parts, alpha)
    sizes = {"lora_down.weight": (rank, *shape[1:]), "lora_up.weight": (out, rank, *ones)}
    parts = {part: random(*size, seed=seed) for part, size in sizes.items()}
    magnitudes = {"DoRA": (out, 1, *ones), "DoRA by input": (1, shape[1], *ones)}
    if kind in magnitudes:
        parts["dora_scale"] = random(*magnitudes[kind], seed=seed).abs() + 0.1
    return Lora(parts, alpha)


def same(one: dict[str, Module], two: dict[str, Module]) -> bool:
    first, second = reader.tensors_of(one), reader.tensors_of(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@settings(max_examples=40, deadline=None)
@given(adapters(("LoRA", "DoRA", "DoRA by input", "LoHa", "LoKr")))
def test_kohyas_form_and_back(adapter: tuple[FamilyName, dict[str, Module]]) -> None:
    family, modules = adapter
    file = read_back(writer.write(modules, writer.of_family(family, "epsilon"), form="kohya", precision="fp32"))
    assert file.family == family
    assert same(file.modules, modules)


@settings(max_examples=40, deadline=None)
@given(adapters(("LoRA", "DoRA")))
def test_pefts_form_and_back(adapter: tuple[FamilyName, dict[str, Module]]) -> None:
    family, modules = adapter
    data = writer.write(modules, writer.of_family(family, "epsilon"), form="peft", precision="fp32")
    assert all(key.startswith(("unet.", "text_encoder.", "text_encoder_2.")) for key in load(data))
    file = read_back(data)
    assert same(file.modules, modules)
    again = writer.write(file.modules, file.metadata, form="kohya", precision="fp32")
    assert same(read_back(again).modules, modules)


@settings(max_examples=24, deadline=None)
@given(adapters(("LoHa", "LoKr")))
def test_other_kinds_become_the_lora_of_the_same_change(adapter: tuple[FamilyName, dict[str, Module]]) -> None:
    family, modules = adapter
    data = writer.write(modules, writer.of_family(family, "epsilon"), form="peft", precision="fp32")
    loras = read_back(data).modules
    assert {type(lora) for lora in loras.values()} == {Lora}
    assert all(
        torch.allclose(lora.delta(), modules[name].delta(), rtol=1e-4, atol=1e-4) for name, lora in loras.items()
    )


PRECISIONS = {"fp16": (torch.float16, 2**-11), "fp32": (torch.float32, 0.0), "bf16": (torch.bfloat16, 2**-8)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_precision(precision: Precision, form: writer.Form) -> None:
    """Neither an alpha nor the magnitudes of whole weights are rounded."""
    dora = module("DoRA", 3, (5, 6), 1.7, 0)
    tensors = load(writer.write({LINEAR: dora}, {}, form=form, precision=precision))
    for key, tensor in tensors.items():
        ending = layer_names.split(key)[1]
        is_exact = key.endswith("alpha") or "dora_scale" in key or "magnitude" in key
        dtype, rounding = PRECISIONS["fp32" if is_exact else precision]
        assert (tensor.dtype, tensor.is_contiguous()) == (dtype, True), key
        if ending != "alpha":
            expected = dora.parts[ending].reshape(tensor.shape)
            assert torch.allclose(tensor.float(), expected, rtol=rounding, atol=1e-7), key
    assert len(tensors) == (4 if form == "kohya" else 3)


def test_dora_in_part_has_no_form_for_peft_and_a_layer_one_name() -> None:
    modules = {LINEAR: module("LoRA", 2, (3, 4), 1.0, 0), f"{LINEAR[:-1]}k": module("DoRA", 2, (3, 4), 1.0, 0)}
    with pytest.raises(UserError, match="Only some layers"):
        writer.write(modules, {}, form="peft", precision="fp16")
    names = ("lora_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in")
    tensors = {f"{name}.{part}.weight": torch.ones(2, 2) for name in names for part in ("lora_up", "lora_down")}
    with pytest.raises(UserError, match="twice, under two names"):
        reader.of_tensors({**tensors, f"{names[0]}.alpha": torch.tensor(1.0)}, "x")


@pytest.mark.parametrize("count", [2, 300])
def test_the_hashes_are_those_of_their_definition(count: int) -> None:
    """The tensors with the training metadata alone, as kohya's trainer computes them; large enough for the old one."""
    modules = {f"lora_unet_mid_block_resnets_{n}_conv1": module("LoRA", 4, (1, 1000), 4.0, n) for n in range(count)}
    tensors = reader.tensors_of(modules)
    facts = {"ss_output_name": "f\u00fcr R\u00edn", "ss_network_dim": "4", "modelspec.title": "x" * 999}
    data = writer.write(modules, facts, form="kohya", precision="fp32")
    metadata = safetensors_reader.parse(data, "x").metadata
    plain = save(tensors, {key: text for key, text in facts.items() if key.startswith("ss_")})
    body = plain[8 + int.from_bytes(plain[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    assert (metadata["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]) == (count == 2)
    assert {key: metadata[key] for key in facts} == facts
    assert data[8:10] == b'{"'
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in load(data).items())


def test_tucker_cores_are_multiplied_into_a_factor() -> None:
    """What LyCORIS calls tucker: the core between the factors of a 3 x 3 convolution."""

    def delta(parts: dict[str, Tensor], alpha: float) -> Tensor:
        tensors = {f"lora_unet_mid_block_resnets_0_conv1.{key}": tensor for key, tensor in parts.items()}
        tensors["lora_unet_mid_block_resnets_0_conv1.alpha"] = torch.tensor(alpha)
        (file,) = reader.of_tensors(tensors, "x").modules.values()
        return file.delta()

    mid, down, up = random(3, 3, 3, 3), random(3, 5, 1, 1, seed=1), random(4, 3, 1, 1, seed=2)
    whole = torch.einsum("pqhw,qi,op->oihw", mid, down.flatten(1), up.flatten(1))
    lora = {"lora_mid.weight": mid, "lora_down.weight": down, "lora_up.weight": up}
    assert torch.allclose(delta(lora, 6.0), 2 * whole.flatten(1), atol=1e-4)
    cores = {f"hada_t{n}": random(2, 2, 3, 3, seed=2 + n) for n in (1, 2)}
    sides = {f"hada_w{n}_{part}": random(2, size, seed=n) for n in (1, 2) for part, size in (("a", 4), ("b", 5))}
    factors = [(cores[f"hada_t{n}"], sides[f"hada_w{n}_b"], sides[f"hada_w{n}_a"]) for n in (1, 2)]
    first, second = (torch.einsum("pqhw,qi,po->oihw", *each) for each in factors)
    assert torch.allclose(delta(cores | sides, 2.0), (first * second).flatten(1), atol=1e-4)


PEFT_LAYER = {
    f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight": torch.ones(shape)
    for part, shape in {"A": (4, 6), "B": (5, 4)}.items()
}


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({}, 4.0),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {r"mid_block\..*\.(to_k|to_q)": 8}}, 8.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {r"(down|up)_blocks\..*": 8}}, 2.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {".*attn1.*": 16, "attn1.to_q": 8}}, 16.0),
    ],
)
def test_the_alpha_that_peft_means(settings: dict[str, Any], alpha: float) -> None:
    (module,) = read_back(save(PEFT_LAYER, {peft_settings.METADATA: json.dumps(settings)})).modules.values()
    assert module.alpha == alpha


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is damaged"),
        ('{"unet.lora_alpha": "x"}', "not positive"),
        ('{"unet.alpha_pattern": {"(": 1}}', "is damaged"),
        ('{"unet.alpha_pattern": {"(a*)*b": 1}}', "too complex"),
    ],
)
def test_damaged_settings_of_peft(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_back(save(PEFT_LAYER, {peft_settings.METADATA: text}))


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"r": 4, "lora_alpha": 2}, 2.0),
        ({"r": 8, "lora_alpha": 2, "rank_pattern": {"to_q": 4}, "alpha_pattern": {".*attn1.*": 6}}, 6.0),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, 4.0),
    ],
)
def test_the_settings_beside_a_file_that_peft_wrote(tmp_path: Path, config: dict[str, Any], alpha: float) -> None:
    for name, beside, expected in (
        ("base_model.model", None, 4.0),
        ("base_model.model", config, alpha),
        ("unet", config, 4.0),  # the settings are not those of a file with other names
    ):
        file = tmp_path / ("x.safetensors" if name == "unet" else "adapter_model.safetensors")
        file.write_bytes(save({key.replace("unet", name): part for key, part in PEFT_LAYER.items()}))
        if beside:
            (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
        (module,) = reader.read(file).modules.values()
        assert module.alpha == expected


@pytest.mark.parametrize("rank", [0, 2])
def test_the_best_approximation_is_that_of_the_whole_matrix(rank: int) -> None:
    pair = low_rank.Pair(random(9, 5).double(), random(5, 12, seed=1).double(), (12,))
    whole, cut = pair.up @ pair.down, low_rank.cut(pair, rank)
    _, values, _ = torch.linalg.svd(whole)
    lost = float((whole - cut.pair.up @ cut.pair.down).square().sum())
    assert cut.lost == pytest.approx(lost, abs=1e-9)
    assert cut.lost == pytest.approx(float(values[rank or 5 :].square().sum()), abs=1e-9)
    assert cut.whole == pytest.approx(float(whole.square().sum()))
    assert cut.pair.rank == (rank or 5)
    direct = low_rank.cut_matrix(whole, (12,), rank or 5)
    assert torch.allclose(direct.pair.up @ direct.pair.down, cut.pair.up @ cut.pair.down)


def test_an_energy_share_gives_the_rank() -> None:
    diagonal = torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()  # squares 9, 4, 1 of 14
    shares = {0.5: 1, 9 / 14 - 1e-9: 1, 0.7: 2, 13 / 14 - 1e-9: 2, 0.95: 3}
    pair = low_rank.Pair(diagonal, torch.eye(3).double(), (3,))
    assert {share: low_rank.cut(pair, 0, share).pair.rank for share in shares} == shares
    assert low_rank.cut(low_rank.Pair(torch.zeros(3, 2).double(), torch.zeros(2, 3).double(), (3,))).pair.rank == 1


def test_a_summary_has_layers_recipe_and_a_cover_that_is_a_picture() -> None:
    name = layer_names.kohya(Place("unet", "down_blocks.1.attentions.0.proj_in"), "sdxl")
    made = {"ss_training_started_at": "1767225600.0", summary.COVER: json.dumps(["/9j/abc"])}
    data = writer.write({name: module("LoRA", 2, (4, 6), 1.0, 0)}, made, form="kohya", precision="fp16")
    facts = summary.describe(safetensors_reader.parse(data, "x"))
    assert (facts["alphas"], facts["blocks"]) == ([1.0], {"down_blocks.1": 2 * 2 * (4 + 6) + 4})
    assert (facts["begun"], facts["cover"]) == ("2026-01-01T00:00:00+00:00", True)
    assert {summary.cover({summary.COVER: text}) for text in ("[", "{}", '["<script>"]', "[]")} == {""}
