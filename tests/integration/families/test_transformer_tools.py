"""Adapter files of the families with a transformer: each kind has its effect, and each tool takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import single_file
from tests.integration.families.test_families import answer, load
from tests.integration.training.test_adapter_kinds import disturb
from tests.integration.training.test_train import settings
from trainer import families
from trainer.adapter_files import compatibility, reader, transforms, writer
from trainer.adapter_files.base_weights import open_checkpoint
from trainer.base_models import layer_shapes
from trainer.cli.commands import main
from trainer.families import Family

BLOCKS = {"sd3": ("lora_unet_joint_blocks_",), "flux": ("lora_unet_double_blocks_", "lora_unet_single_blocks_")}
OTHER_KINDS: dict[str, dict[str, Any]] = {
    "dora": {"adapter__dora": True},
    "loha": {"adapter__kind": "loha"},
    "lokr": {"adapter__kind": "lokr", "adapter__rank": 2},
    "full lokr": {"adapter__kind": "lokr", "adapter__rank": 64},
}


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


@pytest.mark.parametrize(("kind", "form"), [("sd3", "folder"), ("sd3", "file"), ("flux", "folder")])
def test_a_baked_base_predicts_it_and_an_extracted_adapter_has_its_effect(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str, form: str
) -> None:
    file, predicted, _ = exported(bases[kind], tmp_path / "adapter.safetensors")
    base = bases[kind] if form == "folder" else single_file.write(bases["sd3"], tmp_path / "base.safetensors")
    out = tmp_path / ("out" if form == "folder" else "out.safetensors")
    assert transforms.bake(open_checkpoint(base), [("it", file, 1.0)], out) == len(file.modules)
    assert torch.allclose(answer(load(out)), predicted, atol=1e-4)
    made = transforms.difference(open_checkpoint(out), open_checkpoint(base), rank=4)
    assert made.modules.keys() == file.modules.keys()
    for name, module in file.modules.items():
        assert torch.allclose(made.modules[name].delta(), module.delta(), atol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("options", OTHER_KINDS.values(), ids=OTHER_KINDS.keys())
def test_other_kinds_keep_their_names_and_their_effect(
    bases: dict[str, Path], tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    """Only LoRA can be joined; DoRA, LoHa and LoKr have the names that ComfyUI reads as well."""
    path, out = tmp_path / "x.safetensors", tmp_path / "out"
    file, predicted, family = exported(bases[kind], path, **options)
    assert all(key.startswith(("lora_transformer_", "lora_te")) for key in load_file(path))
    plain = answer(family)
    assert not torch.allclose(plain, predicted, atol=1e-2)
    with families.patched(family, [(file, 1.0)]):
        assert torch.allclose(answer(family), predicted, atol=1e-4)
    assert torch.equal(answer(family), plain)
    assert transforms.bake(open_checkpoint(bases[kind]), [("it", file, 1.0)], out) == len(file.modules)
    assert torch.allclose(answer(load(out)), predicted, atol=1e-4)
    verdicts = {
        one.program: one for one in compatibility.check(path, layer_shapes.of_folder(bases[kind], kind)).verdicts
    }
    assert verdicts["ComfyUI"].loads
    assert verdicts["sd-scripts"].outcome == "nothing"


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:  # noqa: ANN401 - JSON
    assert main([*map(str, arguments), "--precision", "fp32", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_tools_make_files_that_predict_what_they_should(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    (one, _, family), (two, _, _) = exported(bases[kind], first), exported(bases[kind], second, seed=1)
    assert main(["inspect", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == family.spec.title

    peft, back = tmp_path / "peft.safetensors", tmp_path / "back.safetensors"
    told(capsys, "convert", first, "--to", "peft", "--out", peft)
    assert all(key.startswith(("transformer.", "text_encoder")) for key in load_file(peft))
    told(capsys, "convert", peft, "--out", back)
    original, returned = load_file(first), load_file(back)
    assert original.keys() == returned.keys()
    assert all(torch.equal(returned[key], tensor) for key, tensor in original.items())

    merged, small = tmp_path / "merged.safetensors", tmp_path / "small.safetensors"
    assert told(capsys, "merge", f"{first}:0.7", f"{second}:-0.4", "--out", merged)["error"] == 0
    assert all(key.startswith((*BLOCKS[kind], "lora_te")) for key in load_file(merged))
    with families.patched(family, [(one, 0.7), (two, -0.4)]):
        both = answer(family)
    with families.patched(family, [(reader.read(merged), 1.0)]):
        assert torch.allclose(answer(family), both, atol=1e-4)
    facts = told(capsys, "resize", merged, "--rank", 2, "--out", small)
    assert facts["ranks"] == [2]
    assert 0 < facts["error"] < 1

    baked, extracted = tmp_path / "baked", tmp_path / "extracted.safetensors"
    assert main(["bake", str(bases[kind]), "--adapter", f"{merged}:1", "--out", str(baked)]) == 0
    assert torch.allclose(answer(load(baked)), both, atol=1e-4)
    capsys.readouterr()
    assert told(capsys, "extract", baked, bases[kind], "--rank", 8, "--out", extracted)["error"] < 1e-3
    with families.patched(family, [(reader.read(extracted), 1.0)]):
        assert torch.allclose(answer(family), both, atol=1e-3)
