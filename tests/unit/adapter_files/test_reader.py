"""The strict reader: each way a file can be wrong is refused in words, before anything of it is used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tests.hostile import containers
from tests.hostile.containers import NAME
from trainer import foreign_text
from trainer.adapter_files import compatibility, reader, safetensors_reader
from trainer.adapter_files.modules import kind
from trainer.errors import UserError


def test_missing_replaced_and_endless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        reader.read(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="folder"):
        reader.read(tmp_path)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {f"lora_unet_{number}.alpha": entry for number in range(foreign_text.MAX_TENSORS + 1)}
    (tmp_path / "x.safetensors").write_bytes(containers.raw(header))
    with pytest.raises(UserError, match="more than 20000 tensors"):
        reader.read(tmp_path / "x.safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(containers.tensors())
    file = safetensors_reader.read(path)
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="was changed or removed"):
        reader.of_file(file)


def test_an_adapter_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(containers.tensors(lora_down__weight=np.ones((4, 6), "<i8")))
    with pytest.raises(UserError, match="whole numbers instead of fractions"):
        reader.read(path)
    assert "whole numbers" in compatibility.check(path).problems[0]
    path.write_bytes(containers.tensors(alpha=np.array(4, "<i8")))  # as some old programs write it
    assert reader.read(path).modules[NAME].alpha == 4


@pytest.mark.parametrize("peft", [True, False])
def test_a_dora_of_ai_toolkit_has_the_lengths_that_its_magnitudes_say(peft: bool) -> None:
    """Of its 27a03a91: a length for each output, and no alpha, as the rank stands for it (toolkit/models/DoRA.py)."""
    rng = torch.Generator().manual_seed(0)
    down, up, weight = (torch.randn(size, generator=rng) for size in ((2, 6), (4, 2), (4, 6)))
    lengths = torch.rand(4, generator=rng) + 0.5
    name, tensors = NAME, {"lora_down.weight": down, "lora_up.weight": up, "magnitude": lengths}
    if peft:
        name = "transformer.transformer_blocks.0.attn.to_out.0"
        tensors = {"lora_A.weight": down, "lora_B.weight": up, "magnitude": lengths}
    data = save({f"{name}.{ending}": tensor for ending, tensor in tensors.items()})
    (module,) = reader.of_file(safetensors_reader.parse(data, "x")).modules.values()
    assert (kind(module), module.alpha) == ("DoRA", 2)
    changed = weight + up @ down
    expected = lengths[:, None] * changed / changed.norm(dim=1, keepdim=True)
    assert torch.allclose(weight + module.delta(weight), expected, atol=1e-6)


def test_a_dora_under_dotted_names_keeps_the_axis_of_its_magnitudes() -> None:
    """OneTrainer writes lengths for each input beside lora_A: of a square layer either axis would fit."""
    name, lengths = "transformer.transformer_blocks.0.attn.to_out.0", torch.arange(1.0, 5)[None]
    tensors = {"lora_A.weight": torch.zeros(2, 4), "lora_B.weight": torch.zeros(4, 2), "dora_scale": lengths}
    data = save({f"{name}.{ending}": tensor for ending, tensor in tensors.items()})
    (module,) = reader.of_file(safetensors_reader.parse(data, "x")).modules.values()
    assert torch.allclose(module.delta(torch.eye(4)) + torch.eye(4), torch.diag(lengths[0]))


CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"


def change(name: str, tensors: dict[str, torch.Tensor], weight: torch.Tensor | None = None) -> torch.Tensor:
    """The change that the one layer of a file makes."""
    data = save({f"{name}.{ending}": tensor.contiguous() for ending, tensor in tensors.items()})
    (module,) = reader.of_file(safetensors_reader.parse(data, "x")).modules.values()
    return module.delta(weight)


def test_forms_of_convolutions_that_only_their_makers_have() -> None:
    """LyCORIS' DyLoRA has flat ups, and OneTrainer's LoHa has factors with the shapes of convolutions."""
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 6, 3, 3, generator=rng), torch.randn(4, 2, generator=rng)
    alpha = torch.tensor(1.0)
    dylora = change(CONVOLUTION, {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha})
    assert torch.allclose(dylora, 0.5 * up @ down.flatten(1))
    second, other = torch.randn(2, 6, 3, 3, generator=rng), torch.randn(4, 2, generator=rng)
    factors = {"hada_w1_a": up, "hada_w2_a": other}
    loha = {key: part[..., None, None] for key, part in factors.items()} | {"hada_w1_b": down, "hada_w2_b": second}
    expected = 0.5 * (up @ down.flatten(1)) * (other @ second.flatten(1))
    assert torch.allclose(change(CONVOLUTION, {**loha, "alpha": alpha}), expected)
