"""Files that PEFT wrote, and in OneTrainer's form: each layer changes as its maker's own code changes it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tests.unit.adapter_files.test_modules import random, read_back
from trainer.adapter_files import modules, reader, writer
from trainer.adapter_files.peft_settings import METADATA
from trainer.adapter_files.reader import AdapterFile
from trainer.errors import UserError

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
LINEAR, CONVOLUTION = f"{BLOCK}.attn1.to_q", "mid_block.resnets.0.conv_shortcut"
WIDE = "mid_block.resnets.0.conv1"


def tree(layers: dict[str, nn.Module]) -> nn.Module:
    """A model with these layers at their paths."""
    root = nn.Module()
    for path, layer in layers.items():
        *parents, last = path.split(".")
        owner = root
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(last, layer)
    return root


def by_peft(folder: Path, config: peft.PeftConfig, **more: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """Let PEFT adapt a linear layer and a convolution and save it; also return the weights as they were."""
    torch.manual_seed(0)
    layers = {LINEAR: nn.Linear(12, 8), CONVOLUTION: nn.Conv2d(12, 8, 1), **more}
    weights = {path: layer.weight.detach().clone() for path, layer in layers.items()}  # type: ignore[operator,union-attr]
    model = peft.get_peft_model(tree(layers), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(folder))
    return model, weights


def read(folder: Path) -> AdapterFile:
    return reader.read(folder / "adapter_model.safetensors")


def name_of(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block_share": True},
        {"use_cayley_neumann": False},
        {"coft": True, "eps": 0.2},
        *({"num_cayley_neumann_terms": terms} for terms in (1, 2, 3, 4, 7)),
    ],
    ids=str,
)
def test_oft_of_peft_is_what_peft_computes(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = peft.OFTConfig(oft_block_size=4, target_modules=[LINEAR, CONVOLUTION], **settings)
    model, weights = by_peft(tmp_path, config)
    file = read(tmp_path)
    assert file.kinds == {"OFTv2"}
    layers = {path: model.get_submodule(f"base_model.model.{path}") for path in weights}
    expected = {LINEAR: layers[LINEAR](torch.eye(12)), CONVOLUTION: layers[CONVOLUTION](torch.eye(12)[..., None, None])}
    again = reader.of_tensors(file.tensors, "x")
    for path, output in expected.items():
        weight, changed = weights[path].flatten(1), (output.flatten(1) - layers[path].get_base_layer().bias).T.detach()
        assert settings.get("num_cayley_neumann_terms") == 1 or float((changed - weight).norm()) > 0.1
        for module in (file.modules[name_of(path)], again.modules[name_of(path)]):
            assert torch.allclose(weight + module.delta(weight), changed, atol=1e-6)


def test_oft_of_diffusers_has_its_settings_in_the_metadata(tmp_path: Path) -> None:
    model, weights = by_peft(
        tmp_path, peft.OFTConfig(oft_block_size=4, target_modules=[LINEAR], use_cayley_neumann=False)
    )
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    named = {key.replace("base_model.model.", "unet."): tensor for key, tensor in tensors.items()}
    metadata = {METADATA: json.dumps({f"unet.{key}": value for key, value in settings.items()})}
    file = reader.of_tensors(named, "x", metadata)
    expected = model.get_submodule(f"base_model.model.{LINEAR}").oft_R["default"].get_weight()
    changed = weights[LINEAR] + file.modules[name_of(LINEAR)].delta(weights[LINEAR])
    assert torch.allclose(changed, weights[LINEAR] @ expected.T, atol=1e-6)
    with pytest.raises(UserError, match="OFT of PEFT without its settings"):
        reader.of_tensors(named, "x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_cayley_neumann": None}, "OFT of PEFT without its settings"),
        ({"num_cayley_neumann_terms": 10**9}, "is damaged"),
        ({"coft": True, "eps": "all"}, "is damaged"),
    ],
)
def test_oft_with_strange_settings_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    by_peft(tmp_path, peft.OFTConfig(oft_block_size=4, target_modules=[LINEAR]))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=words):
        read(tmp_path)


def test_oft_of_wide_kernels_is_no_change_of_weights_in_peft(tmp_path: Path) -> None:
    """Its forward adds up the patches that overlap, so that not even a rotation by nothing leaves the layer alone."""
    by_peft(tmp_path, peft.OFTConfig(oft_block_size=4, target_modules=[WIDE]), **{WIDE: nn.Conv2d(4, 8, 3)})
    with pytest.raises(UserError, match="OFT of PEFT on convolutions wider than 1 x 1"):
        read(tmp_path)


def of_onetrainer(names: dict[str, int], *, blocks: int = 3, scaled: bool = False) -> dict[str, Tensor]:
    """Its tensors of layers, each with the number of its inputs; by `modules/module/LoRAModule.py` of 23df3832."""
    tensors = {}
    for seed, (name, columns) in enumerate(names.items()):
        size = columns // blocks
        rows = 1 if blocks == 4 else blocks  # one that all share
        tensors[f"{name}.oft_R.weight"] = 0.1 * random(rows, size * (size - 1) // 2, seed=seed)
        tensors |= {f"{name}.oft_R.scaled_oft": torch.tensor(True)} if scaled else {}
    return tensors


def neumann(upper: Tensor, size: int) -> Tensor:
    """I + 2Q + 2Q^2 + 2Q^3 + Q^4 of each block, as a matrix with the blocks along its diagonal."""
    blocks = []
    for row in upper:
        q = torch.zeros(size, size)
        q[tuple(torch.triu_indices(size, size, 1))] = row
        q = q - q.T
        blocks.append(torch.eye(size) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
    return torch.block_diag(*blocks)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("blocks", [3, 4])
def test_oft_of_onetrainer_turns_inputs_and_kernels(blocks: int, scaled: bool) -> None:
    """It rotates what enters a linear layer, but the weights of a convolution, which is the other way round."""
    sizes = {name_of(LINEAR): 12, name_of(CONVOLUTION): 12, name_of(WIDE): 36}
    tensors = of_onetrainer(sizes, blocks=blocks, scaled=scaled)
    file = reader.of_tensors(tensors, "x")
    again = read_back(writer.write(file.modules, file.metadata, form="kohya", precision="fp32"))
    for name, columns in sizes.items():
        upper, size = tensors[f"{name}.oft_R.weight"], columns // blocks
        if blocks == 4:
            upper = upper.repeat(blocks, 1)
        rotation = neumann(upper / (2 * math.sqrt(size - 1)) if scaled else upper, size)
        weight = random(8, columns, seed=9)
        expected = weight @ (rotation.T if name == name_of(LINEAR) else rotation)
        for module in (file.modules[name], again.modules[name]):
            assert torch.allclose(weight + module.delta(weight), expected, atol=1e-6)
    assert ("oft_R.terms" in file.modules[name_of(LINEAR)].parts) is False, "it stays as OneTrainer reads it"
    assert modules.fits(module, (8, 36))
    assert not modules.fits(module, (8, 35))


def test_oft_of_onetrainer_is_known_by_its_names_or_metadata() -> None:
    """With dots it could be of PEFT, whose settings stand elsewhere."""
    tensors = of_onetrainer({"transformer.transformer_blocks.0.attn.to_q": 12})
    assert reader.of_tensors(tensors, "x", {"ot_branch": "master"}).kinds == {"OFTv2"}
    with pytest.raises(UserError, match="OFT of PEFT without its settings"):
        reader.of_tensors(tensors, "x")


@pytest.mark.parametrize("shape", [(2, 5), (2, 0), (2, 3, 3), ()])
def test_oft_of_strange_shapes_is_refused(shape: tuple[int, ...]) -> None:
    tensors = {"oft_R.weight": torch.zeros(shape), "oft_R.scaled_oft": torch.tensor(True)}
    with pytest.raises(UserError, match=r"do not fit together|unknown kind"):
        reader.of_tensors({f"{name_of(LINEAR)}.{ending}": tensor for ending, tensor in tensors.items()}, "x")


@pytest.mark.filterwarnings("ignore:.*invalid shape")  # PEFT takes biases for parts of matrices
@pytest.mark.parametrize("alpha", [4, 1])
def test_biases_of_a_lora_of_peft_enter_at_its_scale(tmp_path: Path, alpha: int) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=[LINEAR, CONVOLUTION], lora_bias=True)
    model, _ = by_peft(tmp_path, config)
    file = read(tmp_path)
    assert not reader.readable_by_diffusers(file), "it would leave them out"
    assert not reader.readable_by_diffusers(replace(file, modules={})), "it has nothing to load"
    for path, inputs in {LINEAR: torch.zeros(1, 12), CONVOLUTION: torch.zeros(1, 12, 1, 1)}.items():
        layer, module = model.get_submodule(f"base_model.model.{path}"), file.modules[name_of(path)]
        change = (layer(inputs) - layer.get_base_layer()(inputs)).flatten()
        assert torch.allclose(modules.bias_change(module), change, atol=1e-6)
        assert torch.allclose(module.delta(), layer.get_delta_weight("default").flatten(1), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*invalid shape")
def test_biases_of_a_lora_are_read_in_any_form_of_names(tmp_path: Path) -> None:
    """ComfyUI's names, of which alpha is the rank if it is not there."""
    by_peft(tmp_path, peft.LoraConfig(r=2, target_modules=[LINEAR], lora_bias=True))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    bias = next(tensor for key, tensor in tensors.items() if key.endswith(".bias"))
    own = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    generic = {key.replace(f"base_model.model.{LINEAR}", own): tensor for key, tensor in tensors.items()}
    (module,) = read_back(save(generic)).modules.values()
    assert torch.equal(modules.bias_change(module), bias)


def test_oft_of_onetrainer_turns_the_kernels_of_patches() -> None:
    """SD 3 begins with a convolution of 2 x 2, which its name alone does not tell."""
    name = "lora_transformer_pos_embed_proj"
    tensors = of_onetrainer({name: 64, "lora_transformer_transformer_blocks_0_attn2_to_q": 12}, blocks=4)
    module, weight = reader.of_tensors(tensors, "x", {"modelspec.architecture": "sd3"}).modules[name], random(8, 64)
    rotation = neumann(tensors[f"{name}.oft_R.weight"].repeat(4, 1), 16)
    assert torch.allclose(weight + module.delta(weight), weight @ rotation, atol=1e-5)


def test_magnitudes_of_a_lokr_under_the_name_of_peft() -> None:
    """As OneTrainer writes it in diffusers' form: a vector for linear layers, of four dimensions for convolutions."""
    for path, shape in ((LINEAR, (8,)), (CONVOLUTION, (1, 8, 1, 1))):
        parts = {"lokr_w1": random(2, 3), "lokr_w2": random(4, 4, seed=1)}
        magnitude, weight = random(*shape, seed=2).abs() + 0.5, random(8, 12, seed=3)
        own = {f"unet.{path}.{ending}": tensor for ending, tensor in parts.items()}
        tensors = {**own, f"unet.{path}.lora_magnitude_vector.weight": magnitude}
        (module,) = reader.of_tensors(tensors, "x").modules.values()
        updated = weight + torch.kron(parts["lokr_w1"], parts["lokr_w2"])
        expected = magnitude.reshape(-1, 1) * updated / updated.norm(dim=1, keepdim=True)
        assert torch.allclose(weight + module.delta(weight), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [("Chroma1/lora", "chroma"), ("Flux.1-dev/lora", "flux"), ("Flux.2/lora", "flux2_klein")],
)
def test_onetrainer_names_the_family_in_its_own_way(architecture: str, family: str) -> None:
    """The names of layers are those of all three; by the files in `resources/sd_model_spec` of 23df3832."""
    parts = {"lora_A.weight": random(2, 8), "lora_B.weight": random(8, 2), "alpha": torch.tensor(1.0)}
    tensors = {f"double_blocks.0.img_attn.proj.{ending}": tensor for ending, tensor in parts.items()}
    tensors |= {f"final_layer.linear.{ending}": tensor.clone() for ending, tensor in parts.items()}
    file = reader.of_tensors(tensors, "x", {"modelspec.architecture": architecture, "ot_branch": "master"})
    assert file.family == family
    assert file.modules.keys() == {"lora_transformer_transformer_blocks_0_attn_to_out_0", "lora_transformer_proj_out"}
