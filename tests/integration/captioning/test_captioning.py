"""Captions by a model, as a run of their own: written, kept, stopped, refused; what a person wrote stays."""

import importlib.metadata
import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import fake_caption_server, tiny_captioners
from tests.conftest import wait
from tests.integration.training.test_train import cases
from tests.tiny_captioners import WORDS, make_tagger
from trainer import captioning, runs
from trainer.base_models.hub import RemoteFile
from trainer.captioning import CaptionConfig, kinds, models, wd14
from trainer.cli.commands import main
from trainer.data import dataset, undo
from trainer.errors import UserError
from trainer.runs import Run, cards, events
from trainer.worker import work
from ui.tabs import caption_models


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("captioners") / "tagger")


@pytest.fixture
def half(character: Path) -> Path:
    """The example character of which only the first two pictures have a caption."""
    for path in sorted(character.glob("*.txt"))[2:]:
        path.unlink()
    return character


def captions(folder: Path) -> list[str]:
    return [example.caption for example in dataset.read(folder)]


def run(model: Path | str, **settings: object) -> Run:
    made = captioning.create(CaptionConfig(dataset="rin", model=str(model), **settings))
    work(made)
    return made


@pytest.mark.slow
def test_a_model_writes_what_is_missing(half: Path, tagger: Path) -> None:
    """What the user wrote stays, also what was typed while the model was at work."""
    before = captions(half)
    made = captioning.create(CaptionConfig(dataset="rin", model=str(tagger)))
    work(made)
    assert (runs.look(made).status, captions(half)) == ("finished", before[:2] + ["pink hair, glasses"] * 12)
    assert captioning.read_captions(made) == {example.name: example.caption for example in dataset.read(half)[2:]}
    assert captioning.newest("rin") == made
    assert captioning.newest("other") is None
    assert made not in runs.all_runs(), "a run that trains nothing is not among the adapters"
    assert undo.undo(half) == undo.Undone("automatic captions", 12, 0)
    assert captions(half) == before
    dataset.write_caption(half / "03.png", "typed meanwhile")
    settings = CaptionConfig(dataset="rin", model="x")
    assert captioning.apply(settings, {"03.png": "a girl", "04.png": "a girl", "gone.png": "a girl"}) == 1
    assert captions(half)[2:4] == ["typed meanwhile", "a girl"]


@pytest.mark.slow
def test_captions_that_wait_for_a_training_say_so(half: Path, tagger: Path) -> None:
    """Those of a server need no device, and do not wait."""
    made = captioning.create(CaptionConfig(dataset="rin", model=str(tagger)))
    with FileLock(cards.known()[0].lock):
        runs.start(made)
        wait(lambda: "Another run has the device" in caption_models.draw("rin")["writing"])
        runs.request(made, "stop")
        wait(lambda: runs.look(made).status == "stopped")
        with fake_caption_server.serving() as server:
            other = captioning.create(CaptionConfig(dataset="rin", model="some-vlm", server=server.url))
            runs.start(other)
            wait(lambda: runs.look(other).status == "finished")
    assert all(captions(half))
    assert "Another run" not in caption_models.draw("rin")["writing"]


def test_a_server_may_fail_midway_and_add_to_other_captions(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_caption_server.serving() as server:
        made = captioning.create(CaptionConfig(dataset="rin", model="some-vlm", server=server.url))

        def fail_at_five(event: events.Event) -> None:
            if isinstance(event, events.Phase) and event.name == "Writing captions" and event.done == 5:
                server.status = 500

        work(Run(made.folder, fail_at_five))
        assert runs.look(made).state.message == "The caption server refused (500)."
        assert captions(half)[2:8] == ["caption 1", "caption 2", "caption 3", "caption 4", "caption 5", ""]
        server.status = 200
        work(made)
        assert runs.look(made).status == "finished"
        assert len(server.requests) == 13, "what was written is not asked for again"
        written = captions(half)
        assert all(written)
        settings = CaptionConfig(dataset="rin", model="some-vlm", server=server.url, existing="add")
        adding = captioning.create(settings)
        work(adding)
        work(adding)
    added = [f"{caption}, caption {number}" for number, caption in enumerate(written, 14)]
    assert captions(half) == added, "also to what others wrote, and once"


@pytest.mark.slow
def test_nothing_to_write_or_no_model_is_refused(character: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already has a caption"):
        captioning.create(CaptionConfig(dataset="rin", model="x"))
    dataset.create("void")
    with pytest.raises(UserError, match="no images"):
        captioning.create(CaptionConfig(dataset="void", model="x"))
    (character / "01.txt").unlink()
    for model in ("/nowhere/at-all", "nobody/no-such-model", str(tmp_path)):
        state = runs.look(run(model)).state
        assert state.end == "failed"
        assert re.search("has no model that writes captions|not on this machine", state.message)
        assert "limner download" in state.remedy
        assert "nowhere/at" not in state.message


@pytest.mark.slow
def test_the_options_of_the_command_line(half: Path, tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = captions(half)
    options = ["--model", str(tagger), "--dry-run", "--blacklist", "glasses", "--threshold", "0.5"]
    assert main(["caption", "rin", *options]) == 0
    assert (capsys.readouterr().out.splitlines()[0], captions(half)) == ("03.png: pink hair", before)
    options = ["--server", "not an address", "--task", "caption", "--prompt", "What?", "--tokens", "9"]
    assert main(["caption", "rin", *options, "--category", "rating", "--character-threshold", "0.5"]) == 2
    assert "is not the address of a server" in capsys.readouterr().err
    settings = captioning.load(captioning.newest("rin"))
    assert (settings.task_token, settings.prompt, settings.tokens) == ("<CAPTION>", "What?", 9)
    assert (settings.categories, settings.character_threshold, settings.result) == (("rating",), 0.5, "save")
    assert main(["caption", "rin", "--task", "<OD>"]) == 2


def load(folder: Path, **settings: object) -> models.Captioner:
    return models.load(CaptionConfig(dataset="rin", model=str(folder), **settings), torch.device("cpu"))


def caption(captioner: models.Captioner, color: str = "black") -> str:
    with torch.inference_mode():
        return captioner(Image.new("RGB", (60, 40), color))


@pytest.mark.parametrize("name", cases(("blip", "git", "blip2", "florence"), pytest.mark.slow, ("blip", "florence")))
def test_each_class_writes_captions(name: str, tmp_path: Path) -> None:
    folder = getattr(tiny_captioners, f"make_{name}")(tmp_path / "model")
    assert kinds.look(folder) == {"florence": kinds.FLORENCE}.get(name, kinds.DESCRIBER)
    written = caption(load(folder, tokens=6)).split()
    assert 0 < len(written) <= 7
    assert set(written) <= set(WORDS)
    assert "<" not in "".join(written)


@pytest.mark.parametrize("form", ["timm", "onnx"])
def test_a_tagger_has_thresholds_categories_and_a_blacklist(form: str, tmp_path: Path) -> None:
    pytest.importorskip({"timm": "timm", "onnx": "onnxruntime"}[form], reason='pip install "limner[taggers]" or timm')
    folder = tiny_captioners.make_wd14(tmp_path / "model", form)
    assert kinds.look(folder) == kinds.WD14
    # Probabilities: 1girl 0.95, mirax 0.92, pink_hair 0.62, ^_^ 0.60; the rating general 0.73.
    assert caption(load(folder)) == "1girl, mirax (series), pink hair, ^_^"
    assert caption(load(folder, threshold=0.61)) == "1girl, mirax (series), pink hair"
    assert caption(load(folder, threshold=0.94)) == "1girl, mirax (series)"
    for without_series in ({"character_threshold": 0.95}, {"categories": ["general"]}):
        assert caption(load(folder, **without_series)) == "1girl, pink hair, ^_^"
    assert caption(load(folder, categories=["rating"])) == "general"
    assert caption(load(folder, blacklist="Pink Hair, mirax_(series),, ^_^")) == "1girl"


def test_a_tagger_sees_the_whole_image_on_white_blue_green_red() -> None:
    pixels = wd14.square(Image.new("RGB", (64, 32), (255, 128, 0)), 32)
    assert (pixels.shape, pixels[16, 16].tolist()) == ((32, 32, 3), [0, 128, 255])
    assert pixels[0, 0].tolist() == pixels[31, 31].tolist() == [255, 255, 255]


def test_a_tagger_without_its_library_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr(importlib.metadata, "version", Mock(side_effect=importlib.metadata.PackageNotFoundError))
    folder = tiny_captioners.make_wd14(tmp_path / "model", "onnx")
    with pytest.raises(UserError, match=r"needs timm or ONNX Runtime.*limner\[taggers\]"):
        load(folder)
    (folder / kinds.TAGS).write_text("tag_id,nothing\n1,x\n", encoding="utf-8")
    with pytest.raises(UserError, match="not a list of tags"):
        load(folder)


def test_a_classifier_has_a_blacklist_and_may_name_one_class(tmp_path: Path) -> None:
    folder = tiny_captioners.make_tagger(tmp_path / "model")
    assert (kinds.look(folder), caption(load(folder))) == (kinds.CLASSIFIER, "pink hair, glasses")
    assert caption(load(folder, blacklist="glasses", threshold=0.9)) == "pink hair"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "single_label_classification"}))
    assert caption(load(folder)) == "pink hair"


def test_other_models_are_refused_by_their_architecture(tmp_path: Path) -> None:
    llava = '{"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}'
    for config, words in (
        ('{"architectures": ["LlamaForCausalLM"]}', "architecture LlamaForCausalLM"),
        ('{"model_type": "moondream1"}', "architecture moondream1"),
        (llava, r"LlavaForConditionalGeneration.*give the address of the server"),
        *((broken, "has no model that writes captions") for broken in ("[]", "{", "{}")),
    ):
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            load(tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    folder = tiny_captioners.make_blip(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    some = {name: tensor for name, tensor in weights.items() if "crossattention" not in name}
    save_file(some, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its files lack weights of BlipForConditionalGeneration"):
        load(folder)


def test_code_and_pickles_of_a_model_are_left_alone(tmp_path: Path) -> None:
    folder = tiny_captioners.make_tagger(tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert caption(load(folder)) == "pink hair, glasses"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be used for captions"):
        load(folder)
    assert not ran.exists()


def test_what_is_downloaded_of_a_caption_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*paths: str) -> list[str]:
        return [file.path for file in kinds.select([RemoteFile(path, 1) for path in paths])]

    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    extras = ["pytorch_model.bin", "modeling.py", "README.md", "onnx/model.onnx", "tf_model.h5"]
    settings = ["model.safetensors.index.json", "merges.txt"]
    assert chosen("config.json", *shards, *extras, *settings) == [*shards, *settings, "config.json"]
    assert chosen("config.json", "pytorch_model.bin") == []
    assert chosen("config.json", "model_index.json", "model.safetensors") == []
    tagger = ("selected_tags.csv", "config.json", "model.safetensors", "model.onnx")
    for installed, weights in (("1.0.25", "model.onnx"), ("1.0.26", "model.safetensors")):
        monkeypatch.setattr(importlib.metadata, "version", lambda _name, installed=installed: installed)
        assert chosen(*tagger) == [weights, "selected_tags.csv", "config.json"]
