"""Each kind of caption model writes captions, by a tiny model of its real class; other models are refused by name."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import tiny_captioners
from tests.integration.training.test_train import cases
from tests.tiny_captioners import WORDS
from trainer.base_models.hub import RemoteFile
from trainer.captioning import CaptionConfig, kinds, models, wd14
from trainer.errors import UserError

NAMES = "blip git blip2 florence llava qwen2 qwen"
SPOKEN = {*WORDS, "USER", "ASSISTANT", "describe"}


def load(folder: Path, **settings: object) -> models.Captioner:
    return models.load(CaptionConfig(dataset="rin", model=str(folder), **settings), torch.device("cpu"))


def caption(captioner: models.Captioner, color: str = "black") -> str:
    with torch.inference_mode():
        return captioner(Image.new("RGB", (60, 40), color))


def make_qwen2(folder: Path) -> Path:
    return tiny_captioners.make_qwen(folder, "2")


@pytest.mark.parametrize("name", cases(NAMES.split(), pytest.mark.slow, ["blip", "qwen"]))
def test_each_class_writes_captions(name: str, tmp_path: Path) -> None:
    make = make_qwen2 if name == "qwen2" else getattr(tiny_captioners, f"make_{name}")
    kind = {"blip": kinds.DESCRIBER, "git": kinds.DESCRIBER, "blip2": kinds.DESCRIBER, "florence": kinds.FLORENCE}
    folder = make(tmp_path / "model")
    assert kinds.look(folder) == kind.get(name, kinds.CHAT)
    written = caption(load(folder, tokens=6)).split()
    assert 0 < len(written) <= 7
    assert set(written) <= SPOKEN
    assert "<" not in "".join(written)


def test_a_prompt_and_the_image_change_what_a_chat_model_reads(tmp_path: Path) -> None:
    folder = tiny_captioners.make_qwen(tmp_path / "model")
    short, long = load(folder, prompt="describe"), load(folder, prompt="describe a girl <|image_pad|> with a hat")
    image = Image.new("RGB", (60, 40))
    assert short._inputs(image)["input_ids"].shape[1] + 5 == long._inputs(image)["input_ids"].shape[1]
    # 56 x 28 pixels are 2 x 1 merged patches.
    assert int(short._inputs(image)["mm_token_type_ids"].sum()) == 2
    assert int(long._inputs(image)["mm_token_type_ids"].sum()) == 2, "an image token in a prompt stands for no image"


def test_templates_that_take_plain_text_are_filled_too(tmp_path: Path) -> None:
    """As JoyCaption's; one without a place for an image is refused."""
    folder = tiny_captioners.make_llava(
        tmp_path / "model", "{% for m in messages %}[{{ m.role }}]<image>{{ m.content | trim }}{% endfor %}"
    )
    captioner = load(folder, prompt="describe the hat", tokens=4)
    assert captioner.text.count("<image>") == 1
    assert captioner.text.endswith("describe the hat")
    assert "type" not in captioner.text
    assert caption(captioner)
    with pytest.raises(UserError, match="no place for an image"):
        load(tiny_captioners.make_llava(tmp_path / "other", "nothing"))


@pytest.mark.parametrize("form", ["timm", "onnx"])
def test_a_tagger_has_thresholds_categories_and_a_blacklist(form: str, tmp_path: Path) -> None:
    pytest.importorskip({"timm": "timm", "onnx": "onnxruntime"}[form], reason='pip install "limner[taggers]" or timm')
    folder = tiny_captioners.make_wd14(tmp_path / "model", form)
    assert kinds.look(folder) == kinds.WD14
    # Probabilities: 1girl 0.95, mirax 0.92, pink_hair 0.62, ^_^ 0.60; the rating general 0.73.
    assert caption(load(folder)) == "1girl, mirax (series), pink hair, ^_^"
    assert caption(load(folder, threshold=0.61)) == "1girl, mirax (series), pink hair"
    assert caption(load(folder, character_threshold=0.95)) == "1girl, pink hair, ^_^"
    assert caption(load(folder, categories=["general"])) == "1girl, pink hair, ^_^"
    assert caption(load(folder, categories=["rating"])) == "general"
    assert caption(load(folder, blacklist="Pink Hair, mirax_(series),, ^_^")) == "1girl"


def test_a_tagger_sees_the_whole_image_on_white_blue_green_red() -> None:
    pixels = wd14.square(Image.new("RGB", (64, 32), (255, 128, 0)), 32)
    assert (pixels.shape, pixels[16, 16].tolist()) == ((32, 32, 3), [0, 128, 255])
    assert pixels[0, 0].tolist() == pixels[31, 31].tolist() == [255, 255, 255]


def _no_package(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_a_tagger_without_its_library_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr(importlib.metadata, "version", _no_package)
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
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    with pytest.raises(UserError, match="architecture LlamaForCausalLM"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moondream1"}), encoding="utf-8")
    with pytest.raises(UserError, match="architecture moondream1"):
        load(tmp_path)
    for broken in ("[]", "{", "{}"):
        (tmp_path / "config.json").write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match="has no model that writes captions"):
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
    settings = ["model.safetensors.index.json", "merges.txt", "chat_template.jinja"]
    assert chosen("config.json", *shards, *extras, *settings) == [*shards, *settings, "config.json"]
    assert chosen("config.json", "pytorch_model.bin") == []
    assert chosen("config.json", "model_index.json", "model.safetensors") == []
    tagger = ("selected_tags.csv", "config.json", "model.safetensors", "model.onnx")
    for installed, weights in (("1.0.25", "model.onnx"), ("1.0.26", "model.safetensors")):
        monkeypatch.setattr(importlib.metadata, "version", lambda _name, installed=installed: installed)
        assert chosen(*tagger) == [weights, "selected_tags.csv", "config.json"]
