"""The Try out tab without a browser: views, generated images, and the settings stored in an image."""

import dataclasses
import os
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.conftest import little_memory
from tests.hostile.pictures import chunk, png
from tests.unit.base_models.test_detect import SD15, SDXL, write
from tests.unit.ui.answers import FakeSampler, sample_form
from tests.unit.ui.state.test_sampler_client import SERVER
from trainer import paths, runs
from trainer.errors import UserError
from trainer.runs import Run, checkpoints, events
from ui.state import adapter_choices
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import comparison, sample_images, try_out
from ui.tabs.sample_form import SampleForm


def test_every_file_that_is_there_can_be_tried(finished: Run) -> None:
    keys = [key for _, key in adapter_choices.choices(RunWatcher())]
    assert keys == [finished.id, f"{finished.id}@5", ""]
    assert adapter_choices.find(finished.id) == finished.export
    assert adapter_choices.find(f"{finished.id}@5") == checkpoints.adapter_file(finished, 5)
    for key in (f"{finished.id}@2", "../x", "nobody"):
        with pytest.raises(UserError):
            adapter_choices.find(key)
    assert adapter_choices.find(f"{finished.id}@../../x") == finished.export
    assert offer("", prompt="")["prompt"] == "miraxo"


def offer(adapter: str, **values: object) -> dict[str, Any]:
    return try_out.offer(RunWatcher(), project="rin", form=sample_form(adapter, **values))


def test_what_was_changed_in_the_tab_stays(finished: Run) -> None:
    """First there is the newest adapter of the project, with what suits it."""
    preview = finished.config().preview
    suitable = ["miraxo", preview.steps, preview.guidance, 1]
    before = ["of another adapter", 30.0, 7.5, 1]
    first = offer(finished.id, defaults=before, prompt="", steps=30.0, guidance=7.5, clip_skip=1)
    assert first["defaults"] == suitable
    assert [first["prompt"], first["steps"], first["guidance"]] == suitable[:3]
    assert "clip_skip" not in first, "it suits already"
    for prompt in ("my own", ""):
        changed = offer(finished.id, defaults=suitable, prompt=prompt, steps=8, guidance=2.5, clip_skip=1)
        assert not changed.keys() & set(try_out.FILLED)
    late = sample_form(finished.id, defaults=before, prompt="of another adapter", steps=30.0, negative="hat")
    assert try_out.suited(late) == dataclasses.replace(
        late, prompt="miraxo", steps=preview.steps, guidance=preview.guidance, clip_skip=1, defaults=suitable
    ), "generated before the page has it"
    newer = runs.create(finished.config().model_copy(update={"dataset": "other", "name": "newer"}))
    shutil.copy(finished.export, newer.folder / "newer.safetensors")
    newer.report(events.Finished(step=5, export="newer.safetensors"))
    first = offer("")
    assert first["adapter"]["value"] == finished.id
    assert "value" not in offer("", defaults=first["defaults"])["adapter"], "to have none is a choice, too"
    assert "value" not in offer(finished.id)["adapter"], "what is chosen may have changed meanwhile"
    assert offer("gone")["adapter"]["value"] == finished.id


def test_a_run_with_damaged_settings_takes_no_adapter_away(finished: Run) -> None:
    finished.config_file.write_text("not = [toml")
    assert finished.id in [key for _, key in offer("")["adapter"]["choices"]]
    assert try_out.base_of(finished.id, "micro").base == "micro"
    with pytest.raises(UserError, match="not a TOML file"):
        drawn(sample_form(finished.id))


def test_the_newest_previews_are_there_before_an_image(finished: Run) -> None:
    for step in (1, 3):
        finished.report(events.Preview(step=step, file=f"previews/00000{step}_0.png", prompt="rin, calm", seed=1))
    first = offer(finished.id)
    assert "Step 3: rin, calm" in first["previews"]
    assert offer("", defaults=first["defaults"])["previews"] == ""


def test_the_clip_skip_is_the_adapters_or_the_bases(finished: Run, tmp_path: Path) -> None:
    model = finished.config().model.model_copy(update={"clip_skip": 2})
    finished.save_config(finished.config().model_copy(update={"model": model}))
    kept = paths.adapters()
    kept.mkdir(parents=True)
    for name, metadata in (("two", {"ss_clip_skip": "2"}), ("none", {"ss_clip_skip": "None"}), ("plain", {})):
        save_file({"x": np.zeros(1, np.float32)}, kept / f"{name}.safetensors", metadata=metadata)
    (kept / "broken.safetensors").write_bytes(b"x")
    anime = str(write(tmp_path / "anything-v3.safetensors", SD15))
    both = {(finished.id, ""): 2, (finished.id, "micro"): 2, ("kept:two", ""): 2, ("", anime): 2}
    both |= {("kept:none", ""): 1, ("kept:broken", ""): 1, ("kept:plain", anime): 2, ("kept:plain", "micro"): 1}
    for (adapter, base), clip_skip in both.items():
        assert try_out.usual_settings(adapter, base).model.clip_skip == clip_skip, (adapter, base)
    assert offer(finished.id, clip_skip=1)["clip_skip"] == 2
    form = sample_form(finished.id, clip_skip=2.0)
    cell = comparison.cells("one", finished.id, 1.7, RunWatcher())[0]
    request = try_out.request_of(form, cell, try_out.base_of(finished.id), 7)
    assert (request.clip_skip, request.adapters[0][1]) == (2, 1.7), "a strength above 1 as it was chosen"


def test_another_base_brings_its_steps_and_guidance(finished: Run, tmp_path: Path) -> None:
    distilled = str(write(tmp_path / "sdxl_lightning_4step.safetensors", SDXL))
    preview = finished.config().preview
    values = {"base": f'"{distilled}"', "steps": preview.steps, "guidance": preview.guidance}
    form = sample_form(finished.id, **values)
    offered = offer(finished.id, defaults=["miraxo", preview.steps, preview.guidance, 1], **values)
    assert (offered["steps"], offered["guidance"]) == (4, 1.0)
    assert try_out.base_of(form.adapter, form.base).base == distilled
    named = try_out.base_of(form.adapter, form.base, "'vae.safetensors' ")
    assert (named.base, named.vae) == (distilled, "vae.safetensors")
    assert try_out.base_of(finished.id, "", "vae.safetensors").base == finished.config().model.base
    assert try_out.usual_settings(finished.id).preview == preview


def drawn(form: SampleForm, sampler: FakeSampler | None = None) -> tuple[str, list[str], float]:
    return list(try_out.generate(sampler or FakeSampler(), RunWatcher(), form))[-1]


def test_what_was_replaced_gives_new_images(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    base, vae = (write(tmp_path / name, SD15) for name in ("base.safetensors", "vae/vae.safetensors"))
    form, names = sample_form(finished.id, base=str(base), vae=str(vae)), list[list[str]]()
    names.append(drawn(form)[1])
    for file in (base, vae, finished.export):
        os.utime(file, ns=(0, 1))
        names.append(drawn(form)[1])
    names.append(drawn(form)[1])
    assert [names.index(name) for name in names] == [0, 1, 2, 3, 3]


def test_images_are_generated_once_and_strength_zero_is_plain(finished: Run) -> None:
    sampler = FakeSampler()
    form = sample_form(finished.id, view="before")
    *grown, (html, files, seed) = try_out.generate(sampler, RunWatcher(), form)
    assert [request.adapters for request in sampler.requests] == [(), ((str(finished.export), 1.0),)]
    assert len({request.seed for request in sampler.requests}) == 1
    assert "step 1 of 2" in grown[1][0]
    assert (seed, len(set(files))) == (1.0, 2)
    assert all((paths.sample_images() / file).is_file() for file in files)
    assert "count-2 done" in html
    assert "Seed 1" in html
    drawn(form, sampler)
    slid, *_ = drawn(dataclasses.replace(form, view="slide"), sampler)
    assert (slid.count("<img"), 'type="range"' in slid) == (2, True)
    assert len(sampler.requests) == 2
    sampler.notes[sampler.requests[1].out] = ["x changes 7 layers of T5: they are left out."]
    assert "they are left out." in drawn(form, sampler)[0]
    os.utime(finished.export, (1, 1))
    assert drawn(form, sampler)[1][1] != files[1], "it was written again"
    fresh = dataclasses.replace(form, new_seed=True)
    assert len({drawn(fresh, sampler)[2] for _ in range(2)}) == 2


def test_cancel_ends_the_images_of_its_own_page(finished: Run) -> None:
    sampler = SamplerClient([sys.executable, "-c", SERVER])
    first, second = (sample_form(finished.id, view="strengths", seed=seed) for seed in (1.0, 2.0))
    images, waiting = (try_out.generate(sampler, RunWatcher(), form) for form in (first, second))
    assert "Getting ready" in next(images)[0]
    assert "Getting ready" in next(waiting)[0], "while the other page has its turn"
    for form in (first, second):
        form.progress.sheet = 2
    for sheet in (1, 3):
        try_out.cancel(sampler, progress=first.progress, sheet=sheet)  # one that was shown before, and the next one
    try_out.cancel(sampler, progress=second.progress, sheet=2)
    *_, (html, files, _) = waiting
    assert ("Canceled" in html, any(files)) == (True, False)
    *_, (html, files, _) = images
    assert ("Canceled" in html, all(files)) == (False, True)
    second.progress.sheet = 3
    *_, (html, files, _) = try_out.generate(sampler, RunWatcher(), second)
    assert ("Canceled" in html, all(files)) == (False, True), "asked for again"
    first.progress.sheet = 3
    *_, (html, files, _) = try_out.generate(sampler, RunWatcher(), dataclasses.replace(first, seed=3.0))
    assert ("Canceled" in html, any(files)) == (True, False), "canceled before the request for it had come"
    sampler.close()


@pytest.mark.parametrize("view", ["slide", "grid"])
def test_images_that_will_not_come_are_no_longer_waited_for(finished: Run, view: str) -> None:
    """Neither with words on their progress, nor as broken images under the slider."""
    sampler = SamplerClient([sys.executable, "-c", SERVER])
    form = sample_form(finished.id, view=view, prompt="die")
    drawn: list[Any] = []
    with pytest.raises(UserError, match="interrupted"):
        drawn.extend(try_out.generate(sampler, RunWatcher(), form))
    html, files, _ = drawn[-1]
    assert ("interrupted" in html, any(files)) == (True, False)
    assert not any(words in html for words in ("Getting ready", "waiting", "/media/picture/'", "uncover"))
    sampler.close()


def test_the_finished_file_stands_for_the_checkpoint_that_it_is_of(finished: Run) -> None:
    """The last one, unless the held-out loss was lower before."""
    checkpoint = checkpoints.adapter_file(finished, 9)
    checkpoint.parent.mkdir()
    checkpoint.touch()
    finished.report(events.Checkpoint(step=9, folder="checkpoints/000009"))
    for exported, left in ((9, 5), (5, 9)):
        finished.report(events.Finished(step=9, export="rin.safetensors", exported=exported))
        names = {left: f"step {left}", exported: "finished"}
        assert [name for _, name in comparison.checkpoints(finished.id, RunWatcher())] == list(names.values())
        assert [name for _, name in comparison.checkpoints(finished.id, RunWatcher(), [5, 9])] == [names[5], names[9]]


def test_a_table_has_the_axes_that_were_asked_for(finished: Run) -> None:
    def table(**axes: str) -> list[comparison.Cell]:
        return comparison.cells("grid", finished.id, 1.0, RunWatcher(), comparison.Axes(**axes))

    usual = [float(strength) for strength in comparison.GRID_STRENGTHS.split()]
    assert [cell.caption for cell in table()] == [
        f"{name}, {strength:g}" for name in ("step 5", "finished") for strength in usual
    ]
    assert [cell.row for cell in table(chosen="5", strengths="1, 0.5 1")] == ["step 5"] * 2
    seeds = table(rows="seeds", chosen="7 9", strengths="1")
    assert [(cell.seed, cell.row, cell.column) for cell in seeds] == [(7, "seed 7", "1"), (9, "seed 9", "1")]
    prompts = table(rows="prompts", chosen="a <fox>\n\na house\n", strengths="0 1")
    assert [cell.prompt for cell in prompts] == ["a <fox>"] * 2 + ["a house"] * 2
    for wrong, words in (
        ({"strengths": "much"}, "strengths of the table are not numbers from 0 to 2"),
        ({"strengths": "3"}, "from 0 to 2"),
        ({"chosen": "77"}, "no checkpoint of step 77"),
        ({"rows": "prompts"}, "no prompts"),
        ({"rows": "seeds", "chosen": "1.5"}, "seeds of the table are not whole numbers"),
        ({"rows": "seeds", "chosen": " ".join(map(str, range(99)))}, "more than 100 images"),
    ):
        with pytest.raises(UserError, match=words):
            table(**wrong)
    files = ["a.png"] * 4
    html = sample_images.Sheet("grid", prompts, "facts", small=True, files=files).html()
    assert html.count("<tr>") == 3
    assert "a &lt;fox&gt;" in html
    assert "save-sheet" in html
    assert "save-sheet" not in sample_images.Sheet("grid", prompts, "facts", small=True, files=[*files[:3], ""]).html()


def test_a_picture_tells_what_made_it(finished: Run, tmp_path: Path) -> None:
    import torch  # noqa: F401 - the writer needs it, the page does not

    from trainer.sampling import png_info

    form = sample_form(finished.id, seed=7, clip_skip=2, size="64 x 32", negative="hat", strength=0.5)
    cell = comparison.cells("one", finished.id, 0.5, RunWatcher())[0]
    picture = try_out.request_of(form, cell, try_out.base_of(finished.id, "", str(tmp_path / "vae")), 7)
    assert picture.vae == str(tmp_path / "vae")
    file = tmp_path / "a.png"

    def write_png(**changes: object) -> None:
        png_info.write(file, Image.new("RGB", (64, 32)), picture.model_copy(update=changes))

    write_png()
    assert str(tmp_path).encode() not in file.read_bytes()
    assert b"Clip skip: 2, Seed: 7" in file.read_bytes()
    paths.sample_images().mkdir(exist_ok=True)
    shutil.copy(file, paths.sample_images() / f"{'a' * 32}.png")
    assert "seed 7" in sample_images.recent()
    restored = try_out.settings_from(str(file), RunWatcher())
    preview = finished.config().preview
    offered = ["miraxo", preview.steps, preview.guidance, 1]
    assert restored == dataclasses.replace(form, steps=20, others=(("", 1.0),) * 3, defaults=offered)
    assert try_out.suited(restored) == restored, "nothing of the image is replaced"
    assert not file.exists()
    paths.models().mkdir()
    base = write(paths.models() / "mine.safetensors", SD15)
    for changes in ({"base": "owner/other"}, {"base": str(base), "adapters": ()}, {"base": str(base)}):
        write_png(**changes)
        assert try_out.settings_from(str(file), RunWatcher()).base == changes["base"], "drawn on it again"
    base.unlink()
    write_png(base=str(base), adapters=())
    with pytest.raises(UserError, match="The base model 'mine"):
        try_out.settings_from(str(file), RunWatcher())
    Image.new("RGB", (2, 2)).save(file)
    with pytest.raises(UserError, match="has no settings in it"):
        try_out.settings_from(str(file), RunWatcher())
    write_png()
    shutil.rmtree(finished.folder)
    with pytest.raises(UserError, match="no longer here"):
        try_out.settings_from(str(file), RunWatcher())


def test_a_hostile_picture_with_settings_takes_no_memory(finished: Run, tmp_path: Path) -> None:
    """A PNG of 178 megapixels took the page 800 MB, as its pixels were decoded for its settings."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    head, pixels = (part for part in png(13_000, 13_000, 8, 2, b"").split(chunk(b"IDAT", zlib.compress(b"", 9))))
    pixels = chunk(b"IDAT", rows) + pixels
    files = {
        "pixels": head + pixels,
        "text that unpacks": head + chunk(b"zTXt", b"limner\0\0" + zlib.compress(bytes(60 * 2**20))) + pixels,
        "lists in lists": head + chunk(b"tEXt", b"limner\0" + b"[" * 200_000) + pixels,
        "many chunks": head + chunk(b"tEXt", b"a\0") * 200_000 + pixels,
        "cut off": head[:28],
    }
    for name, data in files.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        with little_memory(2**21), pytest.raises(UserError, match="has no settings in it"):
            try_out.settings_from(str(path), RunWatcher())


def test_a_training_is_held_for_a_picture(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not try_out._notes(RunWatcher(), small=True)["hold"].visible
    monkeypatch.setattr(runs.view, "is_locked", lambda _: True)
    finished.report(events.Started(step=0, steps=9, pid=1, device="CPU"))
    assert try_out._notes(RunWatcher(), small=True)["hold"].value == "Pause training for now"
    sampler = SamplerClient([sys.executable, "-c", "input()"])
    sampler.warm()
    process = sampler._process

    def click(label: str, **form: str) -> dict[str, Any]:
        return try_out.hold_training(RunWatcher(), sampler, form=sample_form("", **form), label=label)

    for _page in range(2):  # the other one still says so
        held = click("Pause training for now", base="xl.safetensors")
    assert (held["hold"].value, "miniature" in held["note"].lower()) == ("Continue training", False)
    assert runs.look(finished).paused
    assert process.poll() is None
    assert "miniature" in click("Continue training")["note"].lower()
    assert not runs.look(finished).paused
    assert process.poll() is not None, "the training needs the memory"


def test_a_picture_with_wrong_settings_is_refused(finished: Run) -> None:
    assert [sample_images.size(text) for text in ("", "512 x 768", "64X64")] == [(0, 0), (512, 768), (64, 64)]
    for wrong, words in (({"size": "large"}, "not a size"), ({"prompt": " "}, "no prompt"), ({"steps": 0.0}, "steps")):
        with pytest.raises(UserError, match=words):
            drawn(sample_form("", **wrong))


def test_old_pictures_are_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_images, "KEPT", 3)
    paths.sample_images().mkdir()
    for number in range(5):
        (paths.sample_images() / f"{number}.png").write_bytes(b"x")
    sample_images.prune()
    assert len(list(paths.sample_images().iterdir())) == 3
