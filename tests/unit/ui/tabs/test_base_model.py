"""What is said about a base model as soon as it is named, and where models are found."""

import shutil
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from huggingface_hub import constants

from tests import fake_hub
from tests.conftest import wait
from tests.unit.base_models.test_detect import ANIMA, SD15, SDXL, UNET, renamed, without, write
from tests.unit.ui.answers import answers
from trainer import config, paths, runs
from trainer.errors import UserError
from ui.state import base_model_choices, page_memory
from ui.tabs import base_model, train


def described(base: str) -> tuple[str, bool, bool]:
    """The text, whether Start is on, and whether it can be downloaded."""
    values = base_model.describe(base)
    assert not values["cancel"].visible
    assert not values["timer"].active
    return values["text"], base_model.look(base).is_usable, values["download"].visible


def test_what_can_be_trained_or_downloaded_first_is_named(home: Path, tiny_sd: Path, bases: dict[str, Path]) -> None:
    micro = f'<p class="quiet">{base_model_choices.practice("micro")}</p>'
    assert described("micro") == (micro, True, False)
    sdxl = '<p class="quiet">Stable Diffusion XL · predicts noise · 1.6 MB</p>'
    assert described(str(bases["sdxl"])) == (sdxl, True, False)
    assert "Stable Diffusion 2.x · v-prediction" in described(str(bases["sd21-v"]))[0]
    assert described(f'  "{tiny_sd}" ')[1]
    assert [paths.unquoted(text) for text in (" 'a b' ", '"', "it's")] == ["a b", '"', "it's"]
    for base, sentence in (
        (
            "stabilityai/stable-diffusion-xl-base-1.0",
            "6.9 GB from the Hugging Face Hub, license CreativeML Open RAIL++-M.",
        ),
        ("anna/base", "anna/base is not on this machine."),
    ):
        text, *state = described(base)
        assert (state, sentence in text) == ([False, True], True)


def test_what_the_name_tells_is_said_too(home: Path, tmp_path: Path, character: Path) -> None:
    distilled = str(write(tmp_path / "sdxl_lightning_4step.safetensors", SDXL))
    assert "predicts noise · distilled to few steps (Lightning)" in described(distilled)[0]
    anime = str(write(tmp_path / "anything-v3.safetensors", SD15))
    assert "predicts noise · anime model by its name: clip skip 2" in described(anime)[0]
    own = {"form-model-clip-skip": 2}
    planned = train.plan(replace(answers(), base=distilled, own=own))["cautions"]
    assert "This model is distilled to generate in few steps (Lightning)" in planned
    assert "Clip skip is ignored: it is for Stable Diffusion 1.x, and this model is Stable Diffusion XL." in planned
    planned = train.plan(replace(answers(), base=anime, own={}))["cautions"]
    assert "distilled" not in planned
    assert "Clip skip" not in planned


@pytest.mark.slow
def test_a_model_is_downloaded_when_it_is_asked_for(home: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    with fake_hub.serving({"anna/base": fake_hub.folder_files(tiny_sd)}) as fake:
        for name, value in (("ENDPOINT", fake.url), ("HUB_CACHE", str(home / "hub")), ("HUB_OFFLINE", "0")):
            monkeypatch.setenv(f"HF_{name}", value)
        assert (described("anna/base")[1:], fake.sent) == ((False, True), []), "nothing is fetched without the click"
        fake.seconds_per_piece = 60
        begun = base_model.download("anna/base")
        assert (begun["download"].visible, begun["cancel"].visible, begun["timer"].active) == (False, True, True)
        wait(lambda: "Downloading:" in base_model.follow("anna/base")["text"])
        assert base_model.cancel("anna/base")["download"].visible
        fake.seconds_per_piece = 0
        base_model.download("anna/base")
        wait(lambda: base_model.follow("anna/base")["downloaded"] == "anna/base")
    text, usable, download = described("anna/base")
    assert "Stable Diffusion 1.x · predicts noise" in text
    assert (usable, download) == (True, False)


def listed() -> list[str]:
    return [label for label, _ in base_model_choices.choices()]


def test_a_model_that_cannot_be_read_is_listed_with_its_reason(home: Path, tmp_path: Path) -> None:
    models = home / "models"
    (models / "nested").mkdir(parents=True)
    (models / "nested" / "model_index.json").write_text("[" * 100_000)
    write(models / "sound.safetensors", SDXL)
    (models / "broken.safetensors").write_bytes(b"no model")
    (models / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    write(models / "odd.safetensors", SDXL | {f"{UNET}input_blocks.0.0.weight": []})
    runs.create(config.build({"name": "x", "dataset": "rin", "model": {"base": "owner/name"}}))
    assert listed()[0] == "Micro, built in"
    assert {*listed()} >= {
        "sound, Stable Diffusion XL",
        "owner/name, used before",
        "The base model 'nested' cannot be used: its model_index.json is damaged.",
        "The base model 'broken.safetensors' cannot be used: it is not a safetensors file, or is damaged.",
        "The base model 'odd.safetensors' cannot be used: its settings or its header are damaged.",
        "The base model 'gone.safetensors' does not exist.",
    }
    assert "its model_index.json is damaged" in described(str(models / "nested"))[0]


def test_models_without_encoders_are_listed_where_comfyui_has_them(home: Path) -> None:
    """Those of transformers are in a folder of their own, and so are their text encoders."""
    models = home / "ComfyUI" / "models"
    for folder in ("checkpoints", "diffusion_models", "text_encoders"):
        (models / folder).mkdir(parents=True)
    write(models / "checkpoints" / "fox.safetensors", SDXL)
    write(models / "diffusion_models" / "anima.safetensors", without(renamed(ANIMA, UNET, "net."), "text_encoders."))
    base_model.set_folders(str(models.parent), "micro")
    assert "The base model 'anima.safetensors' looks like Anima, but has no Qwen3." in listed()
    write(models / "text_encoders" / "qwen_3_06b_base.safetensors", {"x": [1]})
    assert {"fox, Stable Diffusion XL", "anima, Anima"} <= {*listed()}


@pytest.mark.parametrize("program", ["models/checkpoints", ""])
def test_models_of_other_programs_are_listed(home: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / "programs" / "My UI"
    folder = root / program / "anime" / "new"
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("fox", "a/b/hidden"):
        write(folder / f"{name}.safetensors", SDXL)
    (folder / "notes.safetensors").write_bytes(b"no model")
    assert isinstance(base_model.set_folders(f'"{root}"\n', "micro")["base"], gr.Dropdown)
    assert page_memory.model_folders() == [str(root)]
    assert "fox, Stable Diffusion XL" in listed()
    assert not [label for label in listed() if label.startswith(("notes", "hidden"))]
    shutil.rmtree(root)
    assert "fox, Stable Diffusion XL" not in listed()
    base_model.set_folders("", "micro")
    assert base_model.folders_text() == ""
    with pytest.raises(UserError, match="There is no folder 'none'"):
        base_model.set_folders(str(home / "none"), "micro")
