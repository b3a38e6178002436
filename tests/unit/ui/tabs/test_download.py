"""The Download tab without a browser: dropped files, verdicts, and several adapters at once."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.adapter_files.test_compatibility import good, metadata
from tests.unit.ui.answers import FakeSampler, sample_form
from trainer import config, runs
from trainer.adapter_files import reader, writer
from trainer.adapter_files.programs import PROGRAMS
from trainer.errors import UserError
from trainer.runs import events
from ui.state import adapter_choices
from ui.state.run_watcher import RunWatcher
from ui.tabs import download, try_out


@pytest.fixture
def dropped(home: Path) -> Path:
    modules = reader.of_tensors(good("sd15"), "x").modules
    facts = {**metadata("sd15"), "modelspec.title": "<b>fox</b>", **writer.network(modules)}
    path = home / "my fox.safetensors"
    path.write_bytes(writer.write(modules, facts, form="kohya", precision="fp16"))
    return path


def test_a_dropped_file_is_described_kept_and_offered(dropped: Path) -> None:
    data = dropped.read_bytes()
    description = download.take(str(dropped))
    assert "Checked: loads in ComfyUI, A1111, Forge, InvokeAI, sd-scripts, diffusers, SD.Next" in description
    assert f"ComfyUI {PROGRAMS[0].commit} ({PROGRAMS[0].read})" in description, "whose code was read, and when"
    assert "&lt;b&gt;fox" in description
    assert adapter_choices.choices(RunWatcher()) == [("File: my-fox", "kept:my-fox"), adapter_choices.NONE]
    assert adapter_choices.find("kept:my-fox").read_bytes() == data
    dropped.write_bytes(data)
    download.take(str(dropped))
    assert [path.stem for path in adapter_choices.kept()] == ["my-fox", "my-fox-2"]
    assert "/download/kept/my-fox.safetensors" in download.table(RunWatcher())
    adapter_choices.discard("my-fox")
    dropped.write_bytes(b"\x80\x04" + bytes(100))
    description = download.take(str(dropped))
    assert "can contain programs" in description
    assert str(dropped.parent) not in description
    assert download.take(None) == ""
    assert [path.stem for path in adapter_choices.kept()] == ["my-fox-2"], "a broken file is not kept"
    for key in ("kept:my-fox", "kept:../x", "kept:"):
        with pytest.raises(UserError):
            adapter_choices.find(key)


def test_the_verdict_of_a_run_is_shown_with_its_file(character: Path) -> None:
    run = runs.create(config.build({"name": "rin", "dataset": "rin"}))
    (run.folder / "peft").mkdir()
    verdicts = (("ComfyUI", True, "loads: all 3 keys"), ("InvokeAI", False, "<no>"))
    for file in ("rin.safetensors", "peft/pytorch_lora_weights.safetensors"):
        (run.folder / file).write_bytes(b"x")
        run.report(events.Verified(file=file, verdicts=verdicts, notes=("So it is.",)))
    run.report(events.Finished(step=1, export="rin.safetensors"))
    drawn = download.table(RunWatcher())
    assert drawn.count("Checked: loads in ComfyUI") == 1
    for words in ("loads: all 3 keys", "&lt;no&gt;", "So it is.", f"/download/{run.id}/peft"):
        assert words in drawn


def test_several_adapters_at_once(dropped: Path) -> None:
    data = dropped.read_bytes()
    for _ in range(2):
        dropped.write_bytes(data)
        download.take(str(dropped))
    file, other = map(str, adapter_choices.kept())
    sampler = FakeSampler()
    more = (("kept:my-fox-2", 0.5), ("", 1.0), ("kept:my-fox", 0))
    form = sample_form("kept:my-fox", view="before", strength=0.8, others=more)
    list(try_out.generate(sampler, RunWatcher(), form))
    assert [request.adapters for request in sampler.requests] == [((other, 0.5),), ((file, 0.8), (other, 0.5))]
    assert {request.base for request in sampler.requests} == {"micro"}
    list(try_out.generate(sampler, RunWatcher(), replace(form, view="one", base=" owner/name ")))
    assert sampler.requests[-1].base == "owner/name"
    form = sample_form("kept:my-fox", others=(("kept:my-fox-2", 1.0), ("gone", 1.0), ("", 1.0)))
    offered = try_out.offer(RunWatcher(), project="", form=form)["others"]
    assert ["value" in offered[number] for number in "012"] == [False, True, False], "one of them is gone"
