"""The commands on adapter files, as they are typed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from tests.integration.adapter_files.test_adapter_files import exported
from tests.unit.adapter_files.test_compatibility import good
from trainer.adapter_files import reader, safetensors_reader, writer
from trainer.cli.adapter_files import parse_adapter
from trainer.cli.commands import main
from trainer.runs import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported") / "run"


@pytest.fixture
def run(character: Path, tiny_sd: Path, folder: Path) -> Run:
    """A run with the file of an adapter, which is made once."""
    if not folder.exists():
        shutil.copytree(exported(tiny_sd, export__precision="fp32")[0].folder, folder)
    return Run(folder)


def facts_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:  # noqa: ANN401 - JSON
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_strength_after_a_colon() -> None:
    assert parse_adapter("a.safetensors") == ("a.safetensors", 1.0)
    assert parse_adapter("a.safetensors:0.5") == ("a.safetensors", 0.5)
    assert (parse_adapter("C:/a.safetensors"), parse_adapter("a:nan")) == (("C:/a.safetensors", 1.0), ("a:nan", 1.0))


def test_inspect_and_verify(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(capsys, "inspect", run.export)
    assert (facts["family"], facts["kind"], facts["ranks"]) == ("Stable Diffusion 1.x", "LoRA", [4])
    assert "[adapter]" in facts["config"]
    assert "different size" in facts["problems"][0]
    assert main(["inspect", str(run.export)]) == 0
    printed = capsys.readouterr().out
    assert "down_blocks.0" in printed
    assert "optimizer adamw" in printed
    assert main(["verify", str(run.export)]) == 2, "it is for a base that no program has"
    printed = capsys.readouterr().out
    assert re.search(r"NO +InvokeAI", printed)
    assert main(["verify", str(run.export), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert {verdict["program"] for verdict in report["verdicts"]} >= {"ComfyUI", "diffusers"}
    assert "no file" in refused(capsys, "verify", run.folder / "absent.safetensors")


def test_merge_and_resize(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    facts = facts_of(capsys, "merge", run.export, f"{run.export}:-0.5", "--precision", "fp32", "--out", out)
    assert (facts["ranks"], facts["error"]) == ([8], 0)
    both = reader.read(out)
    assert (both.metadata["ss_network_dim"], both.metadata["modelspec.trigger_phrase"]) == ("8", "rin")
    assert both.metadata["modelspec.title"] == "both"
    assert "limner.config" not in both.metadata
    facts = facts_of(capsys, "resize", out, "--rank", 2, "--out", small)
    assert facts["ranks"] == [2]
    assert 0 < facts["error"] <= facts["worst_layer_error"] < 1
    assert main(["resize", str(out), "--energy", "0.99", "--out", str(small)]) == 0
    assert "of the effect" in capsys.readouterr().out
    assert "--rank or --energy" in refused(capsys, "resize", out, "--out", small)
    assert "below 0" in refused(capsys, "merge", out, "--rank", "-1", "--out", small)
    assert "no folder" in refused(capsys, "convert", out, "--out", tmp_path / "absent" / "x.safetensors")


def test_a_converted_file_says_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the form of diffusers without any metadata but its own, in which no program could tell."""
    modules = reader.of_tensors(good("sdxl"), "x").modules
    foreign, out = tmp_path / "foreign.safetensors", tmp_path / "out.safetensors"
    foreign.write_bytes(writer.write(modules, {}, form="peft", precision="fp32", strip=True))
    report = facts_of(capsys, "convert", foreign, "--out", out)["report"]
    assert report["good"], report
    metadata = safetensors_reader.read(out).metadata
    assert (metadata["ss_base_model_version"], metadata["ss_network_dim"]) == ("sdxl_base_v1-0", "2")
    assert main(["verify", str(out)]) == 0


def test_a_file_that_is_not_finite_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = good("sd15")
    next(iter(tensors.values())).fill_(float("nan"))
    (tmp_path / "x.safetensors").write_bytes(save(tensors))
    assert main(["inspect", str(tmp_path / "x.safetensors"), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert not facts["finite"]
    assert "not finite" in facts["problems"][0]
    assert "not finite" in refused(capsys, "convert", tmp_path / "x.safetensors", "--out", tmp_path / "y.safetensors")
