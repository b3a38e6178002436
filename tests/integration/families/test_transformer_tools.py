"""Adapter files of the families with a transformer: each kind has its effect, and each tool takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.integration.families.test_families import SMALL, answer, load
from tests.integration.training.test_adapter_kinds import disturb
from tests.integration.training.test_train import OPTIONS, assert_resumes, cases, settings
from trainer import families
from trainer.adapter_files import reader, writer
from trainer.cli.commands import main
from trainer.families import Family

BLOCKS = {"sd3": ("lora_unet_joint_blocks_",), "flux": ("lora_unet_double_blocks_", "lora_unet_single_blocks_")}


def exported(base: Path, file: Path, seed: int = 0, **options: Any) -> tuple[reader.AdapterFile, Tensor, Family]:  # noqa: ANN401 - any settings
    """The file of an adapter that does something, what is predicted with it, and the model without it."""
    family = load(base)
    adapter = families.attach(family, settings(base, **options).adapter, text_encoder=True, seed=seed)
    disturb(adapter)
    predicted = answer(family)
    tensors = adapter.tensors()
    adapter.detach()
    facts = writer.of_family(family.base.family, family.noise.prediction_type)
    modules = reader.of_tensors(tensors, "x", facts).modules
    file.write_bytes(writer.write(modules, facts, form="kohya", precision="fp32", family=family.base.family))
    return reader.read(file), predicted, family


def facts_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:  # noqa: ANN401 - JSON
    assert main([*map(str, arguments), "--precision", "fp32", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", cases(["sd3", "flux"], pytest.mark.slow, ["sd3"]))
def test_the_tools_make_files_that_predict_what_they_should(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    (file, _, family), (other, _, _) = exported(bases[kind], first), exported(bases[kind], second, seed=1)
    assert main(["inspect", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == family.spec.title

    peft, back = tmp_path / "peft.safetensors", tmp_path / "back.safetensors"
    facts_of(capsys, "convert", first, "--to", "peft", "--out", peft)
    assert all(key.startswith(("transformer.", "text_encoder")) for key in load_file(peft))
    facts_of(capsys, "convert", peft, "--out", back)
    original, returned = load_file(first), load_file(back)
    assert original.keys() == returned.keys()
    assert all(torch.equal(returned[key], tensor) for key, tensor in original.items())

    merged, small = tmp_path / "merged.safetensors", tmp_path / "small.safetensors"
    assert facts_of(capsys, "merge", f"{first}:0.7", f"{second}:-0.4", "--out", merged)["error"] == 0
    assert all(key.startswith((*BLOCKS[kind], "lora_te")) for key in load_file(merged))
    with families.patched(family, [(file, 0.7), (other, -0.4)]):
        both = answer(family)
    with families.patched(family, [(reader.read(merged), 1.0)]):
        assert torch.allclose(answer(family), both, atol=1e-4)
    facts = facts_of(capsys, "resize", merged, "--rank", 2, "--out", small)
    assert facts["ranks"] == [2]
    assert 0 < facts["error"] < 1

    baked, extracted = tmp_path / "baked", tmp_path / "extracted.safetensors"
    assert main(["bake", str(bases[kind]), "--adapter", f"{merged}:1", "--out", str(baked)]) == 0
    assert torch.allclose(answer(load(baked)), both, atol=1e-4)
    capsys.readouterr()
    assert facts_of(capsys, "extract", baked, bases[kind], "--rank", 8, "--out", extracted)["error"] < 1e-3
    with families.patched(family, [(reader.read(extracted), 1.0)]):
        assert torch.allclose(answer(family), both, atol=1e-3)


# Other values where those of Stable Diffusion make no sense.
INSTEAD: dict[str, dict[str, Any]] = {
    "ranks of blocks": {"adapter__ranks": ["transformer_blocks.1 = 8", "to_q = 2"]},
    "attention of the up blocks": {"adapter__targets": "attention", "adapter__blocks": ["transformer_blocks.1"]},
    "debiased, Huber": {"objective__loss_type": "huber"},
    "P2, scheduled Huber": {"objective__loss_type": "scheduled-huber"},
    "noise": {"objective__input_perturbation": 0.1},
    "LoCon with dropouts": {"adapter__dropout": 0.2, "adapter__rank_dropout": 0.3},
    "DoRA": {"adapter__dora": True, "preview__every": 2},
    "LoHa": {"adapter__kind": "loha", "adapter__rank_dropout": 0.2},
    "LoKr": {"adapter__kind": "lokr", "adapter__rank": 2, "training__text_encoder": True},
}


PAIRS = [f"{kind}: {name}" for name in OPTIONS if name != "min-SNR" for kind in ("sd3", "flux")]


@pytest.mark.parametrize("case", cases(PAIRS, pytest.mark.nightly, PAIRS[:1]))
@pytest.mark.slow
def test_a_transformer_resumes_with_each_option(character: Path, bases: dict[str, Path], case: str) -> None:
    kind, name = case.split(": ")
    assert_resumes(settings(bases[kind], **SMALL.get(kind, {}) | INSTEAD.get(name, OPTIONS[name])), 3)
