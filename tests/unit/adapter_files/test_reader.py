"""The strict reader: each way a file can be wrong is refused in words, before anything of it is used."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hostile import containers
from tests.hostile.containers import NAME
from tests.unit.adapter_files.test_modules import random
from trainer import foreign_text
from trainer.adapter_files import compatibility, reader, safetensors_reader
from trainer.adapter_files.modules import Module, kind
from trainer.errors import UserError

DOTTED = "transformer.transformer_blocks.0.attn.to_out.0"


def test_missing_replaced_and_endless_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {f"lora_unet_{number}.alpha": entry for number in range(foreign_text.MAX_TENSORS + 1)}
    path.write_bytes(containers.raw(many))
    for file, words in ((tmp_path / "absent", "no file"), (tmp_path, "folder"), (path, "more than 20000 tensors")):
        with pytest.raises(UserError, match=words):
            reader.read(file)
    path.write_bytes(containers.tensors())
    sound = safetensors_reader.read(path)
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="was changed or removed"):
        reader.of_file(sound)


def test_an_adapter_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(containers.tensors(lora_down__weight=np.ones((4, 6), "<i8")))
    with pytest.raises(UserError, match="whole numbers instead of fractions"):
        reader.read(path)
    assert "whole numbers" in compatibility.check(path).problems[0]
    path.write_bytes(containers.tensors(alpha=np.array(4, "<i8")))  # as some old programs write it
    assert reader.read(path).modules[NAME].alpha == 4


@pytest.mark.parametrize(
    ("name", "down", "up"), [(NAME, "lora_down", "lora_up"), (DOTTED, "lora_A", "lora_B")], ids=["kohya", "peft"]
)
def test_a_dora_of_ai_toolkit_has_the_lengths_that_its_magnitudes_say(name: str, down: str, up: str) -> None:
    """Of its 27a03a91: a length for each output, and no alpha, as the rank stands for it (toolkit/models/DoRA.py)."""
    first, second, weight, lengths = random(2, 6), random(4, 2, seed=1), random(4, 6, seed=2), random(4).abs() + 0.5
    module = only(name, {f"{down}.weight": first, f"{up}.weight": second, "magnitude": lengths})
    assert (kind(module), module.alpha) == ("DoRA", 2)
    changed = weight + second @ first
    expected = lengths[:, None] * changed / changed.norm(dim=1, keepdim=True)
    assert torch.allclose(weight + module.delta(weight), expected, atol=1e-6)


def test_a_dora_under_dotted_names_keeps_the_axis_of_its_magnitudes() -> None:
    """OneTrainer writes lengths for each input beside lora_A: of a square layer either axis would fit."""
    lengths = torch.arange(1.0, 5)[None]
    tensors = {"lora_A.weight": torch.zeros(2, 4), "lora_B.weight": torch.zeros(4, 2), "dora_scale": lengths}
    assert torch.allclose(only(DOTTED, tensors).delta(torch.eye(4)) + torch.eye(4), torch.diag(lengths[0]))


def only(name: str, tensors: dict[str, torch.Tensor]) -> Module:
    named = {f"{name}.{ending}": tensor.contiguous() for ending, tensor in tensors.items()}
    (module,) = reader.of_tensors(named, "x").modules.values()
    return module


def test_forms_of_convolutions_that_only_their_makers_have() -> None:
    """LyCORIS' DyLoRA has flat ups, and OneTrainer's LoHa has factors with the shapes of convolutions."""
    name, alpha = "lora_unet_down_blocks_0_resnets_0_conv1", {"alpha": torch.tensor(1.0)}
    down, up, second, other = random(2, 6, 3, 3), random(4, 2), random(2, 6, 3, 3, seed=1), random(4, 2, seed=1)
    dylora = only(name, {"lora_down.weight": down, "lora_up.weight": up} | alpha)
    assert torch.allclose(dylora.delta(), 0.5 * up @ down.flatten(1))
    loha = {"hada_w1_a": up[..., None, None], "hada_w1_b": down}
    loha |= {"hada_w2_a": other[..., None, None], "hada_w2_b": second}
    expected = 0.5 * (up @ down.flatten(1)) * (other @ second.flatten(1))
    assert torch.allclose(only(name, loha | alpha).delta(), expected)
