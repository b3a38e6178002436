"""The command line: the same queue as on the page, images, and adapter files."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner

from tests import tiny
from tests.conftest import python, unmeasured
from tests.integration.adapter_files.test_adapter_files import exported
from tests.integration.runs.test_processes import limner
from tests.integration.training.test_train import finished
from tests.unit.adapter_files.test_compatibility import good
from tests.unit.runs.test_run import held
from tests.unit.ui.tabs.test_queue import NAMES, waiting
from trainer import runs
from trainer.adapter_files import reader, safetensors_reader, writer
from trainer.adapter_files.modules import Lora
from trainer.cli.adapter_files import parse_adapter
from trainer.cli.commands import app, main
from trainer.machine import pace
from trainer.runs import Run, events

__all__ = ["waiting"]


def test_the_queue_in_the_command_line(waiting: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{place} {name} Waiting" for place, name in enumerate(NAMES, 1)]
    assert limner("queue").stdout.split() == " ".join(lines).split()
    done = limner("queue", "move", NAMES[2], "1")
    assert done.stdout.split()[1::3] == [NAMES[2], NAMES[0], NAMES[1]]
    monkeypatch.chdir(waiting[0].folder.parent)
    assert "On hold" in limner("queue", "hold", waiting[0].folder.name).stdout
    assert waiting[0].on_hold
    assert "On hold" not in limner("queue", "release", str(waiting[0].folder)).stdout
    done = limner("queue", "hold", "none")
    sentence = "There is no run 'none'. Give its folder, or its name under outputs.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    started: list[Run] = []
    monkeypatch.setattr(runs, "start", started.append)
    assert limner("queue", "retry", NAMES[0]).stderr.startswith("This run is still running.")
    (waiting[0].folder / "ask" / "start").unlink()
    with held(waiting[0].lock):
        assert limner("queue").stdout.split()[:3] == ["-", NAMES[0], "starting"], "it has what it waited for"
    assert limner("queue", "retry", NAMES[0]).stdout.split() == [started[0].id]
    assert started[0].config() == waiting[0].config()


def test_a_run_is_queued_for_each_file_and_each_combination(
    character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Run] = []
    monkeypatch.setattr(runs, "start", started.append)
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\ndataset = "rin"\n')
    grid = ["--grid", "optimizer.learning_rate=1e-4, 2e-4", "--grid", "schedule.kind=constant,linear"]
    done = limner("queue", "add", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"), "--set", "seed=7", *grid)
    assert done.returncode == 0, done.stderr
    made = [run.config() for run in started]
    assert [(each.name.partition("-")[0], each.optimizer.learning_rate, each.schedule.kind) for each in made] == [
        (name, rate, kind) for name in ("one", "two") for rate in (1e-4, 2e-4) for kind in ("constant", "linear")
    ]
    assert ({each.seed for each in made}, made[0].name) == ({7}, "one-learning_rate-1e-4-kind-constant")
    assert done.stdout.splitlines()[0] == f"{started[0].id}  optimizer.learning_rate=1e-4  schedule.kind=constant"
    started.clear()
    own = 'dataset = "rin"\n'
    base = f'{own}[model]\nbase = "models/absent.safetensors"\n'
    for missing in ('dataset = "absent"\n', f'{own}[regularization]\ndataset = "absent"\n', base):
        (tmp_path / "two.toml").write_text(f'name = "two"\n{missing}')
        done = limner("queue", "add", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"))
        assert (done.returncode, started) == (2, []), "nothing is queued unless all can be"
        assert "absent" in done.stderr
    assert limner("queue", "add", str(tmp_path / "one.toml"), "--on", "nonsense").returncode == 2
    done = limner("queue", "add", str(tmp_path / "one.toml"), "--grid", f"seed={','.join(map(str, range(201)))}")
    assert (done.returncode, started) == (2, [])
    assert "Add at most 200 at once" in done.stderr


def test_the_time_of_a_run_is_told_before_it(
    waiting: list[Run], character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a run like it, or as computed for a processor that was measured; otherwise only steps would tell."""
    assert "take" not in limner("check", "rin").stdout
    assert "steps" not in limner("queue").stdout
    pace.note({"small": 1e11, "large": 1e11})
    assert re.search(r"To train it takes \w.* to \w.* for \d+ steps, as computed\.", limner("check", "rin").stdout)
    assert limner("queue").stdout.count("steps, as computed") == len(waiting)
    started: list[Run] = []
    monkeypatch.setattr(runs, "start", started.append)
    (tmp_path / "run.toml").write_text('name = "x"\ndataset = "rin"\ntraining.steps = 240\n')
    done = limner("queue", "add", str(tmp_path / "run.toml"))
    assert "for 240 steps, as computed" in done.stdout, done.stderr
    for step in range(1, 41):
        started[0].report(events.Step(step=step, loss=0.1, learning_rate=1e-4, grad_norm=1.0, seconds=0.5, memory=1))
    assert "about 2 min for 240 steps" in limner("queue", "add", str(tmp_path / "run.toml")).stdout


def test_check_names_what_a_distilled_model_loses(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    turbo = tmp_path / "sd-turbo"
    turbo.symlink_to(tiny_sd)
    notes = [limner("check", "rin", "--base", str(base)).stdout for base in (tiny_sd, turbo)]
    assert ["training on it costs some of that ability" in note for note in notes] == [False, True]


def sample(folder: Path, *arguments: object) -> dict[str, Any]:
    """Generate an image; returns the settings in its file."""
    out = folder / "x.png"
    done = CliRunner().invoke(app, ["sample", "--prompt", "rin", "--out", str(out), *map(str, arguments)])
    assert done.exit_code == 0, done.exception
    with Image.open(out) as image:
        facts: dict[str, Any] = json.loads(image.text["limner"])
        return facts | {"pixels": image.tobytes()}


@pytest.mark.slow
def test_settings_follow_from_the_base_and_the_adapter(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_sd, tmp_path / "anything-v3_lcm")
    suited = sample(tmp_path, "--base", base)
    assert (suited["steps"], suited["guidance"], suited["clip_skip"]) == (8, 1.5, 2)
    typed = sample(tmp_path, "--base", base, "--steps", 2, "--guidance", 3, "--clip-skip", 1)
    assert (typed["steps"], typed["guidance"], typed["clip_skip"]) == (2, 3, 1)
    run = finished(tiny_sd, training__steps=1)
    assert sample(tmp_path, "--base", base, "--steps", 2, "--adapter", run.export)["clip_skip"] == 1
    own = sample(tmp_path, "--base", tiny_sd, "--steps", 2)
    options = ("--base", tiny_sd, "--steps", 2, "--adapter")
    zero, adapted = (sample(tmp_path, *options, f"{run.export}:{strength}")["pixels"] for strength in (0, 1))
    assert own["pixels"] == zero != adapted
    tiny._vae().save_pretrained(tmp_path / "vae")
    other = sample(tmp_path, "--base", tiny_sd, "--steps", 2, "--vae", tmp_path / "vae")
    assert other["pixels"] != own["pixels"]
    assert other | {"pixels": b""} == own | {"pixels": b""}, "paths stay private"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported") / "run"


@pytest.fixture
def run(character: Path, tiny_sd: Path, folder: Path) -> Run:
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
    assert facts_of(capsys, "resize", small, "--rank", 1, "--out", small)["ranks"] == [1], "over the file it reads"
    assert max(module.rank for module in reader.read(small).modules.values()) == 1
    assert main(["resize", str(out), "--energy", "0.99", "--out", str(small)]) == 0
    assert "of the effect" in capsys.readouterr().out
    assert "--rank or --energy" in refused(capsys, "resize", out, "--out", small)
    assert "below 0" in refused(capsys, "merge", out, "--rank", "-1", "--out", small)
    assert "no folder" in refused(capsys, "convert", out, "--out", tmp_path / "absent" / "x.safetensors")


def large(path: Path, layers: int, rank: int) -> Path:
    """Write a LoRA of a wide layer, many times: of the size of the largest layers of the largest UNet."""
    parts = {"lora_down.weight": torch.randn(rank, 1280), "lora_up.weight": torch.randn(10240, rank)}
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_{}_ff_net_0_proj"
    modules = {name.format(number): Lora(parts, 4.0) for number in range(layers)}
    path.write_bytes(writer.write(modules, {}, form="kohya", precision="fp16"))
    return path


# Prints the KB that each command takes at most, in a process that begins with what the first one imports.
PEAKS = """
import json, os, sys
from pathlib import Path
from trainer.cli.commands import main
commands = json.loads(sys.argv[1])
assert main(commands[0]) == 0
for command in commands:
    if os.fork() == 0:
        assert main(command) == 0
        print("peak", Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0], flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the peak of a program alone")
def test_a_large_file_takes_the_memory_of_a_few_layers(tmp_path: Path) -> None:
    small, file = (str(large(tmp_path / f"{count}.safetensors", count, 64)) for count in (1, 60))
    commands = [["resize", small, "--rank", "2"], ["resize", file, "--rank", "2"], ["merge", file, f"{file}:0.5"]]
    commands = [[*command, "--out", str(tmp_path / "out")] for command in (*commands, ["convert", file])]
    environment = unmeasured() | {"OMP_NUM_THREADS": "1"}  # threads would not live on in a fork
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    done = python("-c", PEAKS, json.dumps(commands), environment=environment)
    assert done.returncode == 0, done.stderr
    base, *peaks = (1024 * int(size) for size in re.findall(r"peak (\d+)", done.stdout))
    assert len(peaks) == 3
    for (name, *_), peak in zip(commands[1:], peaks, strict=True):
        assert peak - base < Path(file).stat().st_size / 4, f"{name} has all layers in memory at once"


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
