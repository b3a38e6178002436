"""What a base model is, from headers and settings alone; what cannot be used is refused in words."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from scripts import make_configs
from trainer import config
from trainer.base_models import CONFIGS, detect
from trainer.data import dataset
from trainer.errors import UserError

UNET = "model.diffusion_model."
ATTENTION = f"{UNET}input_blocks.1.1."
CLIP = "transformer.text_model.embeddings.position_embedding.weight"
COMMON = {
    f"{UNET}input_blocks.0.0.weight": [320, 4, 3, 3],
    f"{UNET}out.2.weight": [4, 320, 3, 3],
    "first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3],
}
SD15 = COMMON | {
    f"{ATTENTION}proj_in.weight": [320, 320, 1, 1],
    f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [320, 768],
    f"cond_stage_model.{CLIP}": [77, 768],
}
SD21 = COMMON | {
    f"{ATTENTION}proj_in.weight": [320, 320],
    f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [320, 1024],
    "cond_stage_model.model.token_embedding.weight": [49408, 1024],
}
SDXL = COMMON | {
    f"{ATTENTION}proj_in.weight": [640, 640],
    f"{ATTENTION}transformer_blocks.0.attn2.to_k.weight": [640, 2048],
    f"{UNET}label_emb.0.0.weight": [1280, 2816],
    f"conditioner.embedders.0.{CLIP}": [77, 768],
    "conditioner.embedders.1.model.token_embedding.weight": [49408, 1280],
}


def write(path: Path, shapes: dict[str, list[int]], **metadata: str) -> Path:
    """A safetensors file of zeros that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key, shape in shapes.items():
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.timeout(120)
def test_a_header_of_very_many_tensors_is_refused(tmp_path: Path) -> None:
    many = write(tmp_path / "base.safetensors", {f"{number}{'x' * 2000}": [0] for number in range(4500)})
    with pytest.raises(UserError, match="the header of its file is larger than 8 MB"):
        detect.look(many)
    dense = write(tmp_path / "dense.safetensors", {str(number): [0] for number in range(20_001)})
    with pytest.raises(UserError, match="its file has more than 20000 tensors"):
        detect.look(dense)


@pytest.mark.parametrize("data", [b"", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a":{}}}'])
def test_files_that_are_no_safetensors(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "base.safetensors"
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        detect.look(file)
    file.rename(tmp_path / "base.ckpt")
    with pytest.raises(UserError, match=r"not a \.safetensors file"):
        detect.look(tmp_path / "base.ckpt")
    whole = write(file, SD15)
    with file.open("rb+") as opened:
        opened.truncate(whole.stat().st_size - 1)
    with pytest.raises(UserError, match="cut off"):
        detect.look(file)


@pytest.mark.parametrize("base", ["x" * 300, "~nobody-of-that-name/base", "a\0b", "mi../cro", "a--b/c", "a/b.git"])
def test_names_that_no_base_can_have(base: str) -> None:
    assert detect.glance(base) is None
    with pytest.raises(UserError, match="does not exist"):
        detect.look(Path(base))
    assert config.build({"name": "x", "dataset": "x", "model": {"base": base}}).training.resolution == 512


def test_a_base_in_the_cache_of_the_hub(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(detect, "_PUBLIC", (tmp_path,))
    cached = tmp_path / "models--anna--base"
    shutil.copytree(tiny_sd, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    (cached / "refs" / "cover.png").write_bytes(b"\xff\xfe")
    for revision in ("", "main", "a" * 40):
        detected = detect.glance("anna/base", revision)
        assert detected is not None
        assert detected.family == "sd15"
    for revision in ("other", "x" * 300, "a\0b", "cover.png"):
        assert detect.glance("anna/base", revision) is None


def folder(path: Path, kind: str, denoiser: dict[str, Any], scheduler: dict[str, Any]) -> Path:
    part = "transformer" if kind.startswith(("StableDiffusion3", "Flux")) else "unet"
    for name, data in (("model_index.json", {"_class_name": kind}), (f"{part}/config.json", denoiser),
                       ("scheduler/scheduler_config.json", scheduler)):  # fmt: skip
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(data))
    return path


def test_the_preset_follows_the_base(tmp_path: Path) -> None:
    def made(base: Path | str, **model: str) -> tuple[int, float]:
        built = config.build({"name": "x", "dataset": "x", "model": {"base": str(base), **model}})
        return built.training.resolution, built.optimizer.learning_rate

    v = folder(
        tmp_path / "v", "StableDiffusionPipeline", {"use_linear_projection": True}, {"prediction_type": "v_prediction"}
    )
    assert made(write(tmp_path / "sd15.safetensors", SD15)) == (512, 3e-4)
    assert made(write(tmp_path / "sd21.safetensors", SD21)) == (768, 2e-4)
    assert made(v) == (768, 2e-4)
    assert made(tmp_path / "sd21.safetensors", objective="epsilon") == (512, 2e-4)
    assert made(write(tmp_path / "sdxl.safetensors", SDXL)) == (1024, 3e-4)
    assert made("not/here") == (512, 3e-4)
    assert made("not/here", family="sdxl") == (1024, 3e-4)


# Numbers of parameters as published, and of the modules that take an adapter.
COUNTS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    },
    "sd3": {
        "transformer": 2_028_328_000, "vae": 83_819_683, "text_encoder": 123_650_304, "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
    "flux": {
        "transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656,
    },
    "sd3-5-medium": {"transformer": 2_243_171_520},
    "sd3-5-large": {"transformer": 8_056_627_520},
}  # fmt: skip


@pytest.mark.parametrize(("family", "counts"), COUNTS.items(), ids=COUNTS.keys())
def test_the_settings_for_single_files_give_the_published_models(family: str, counts: dict[str, int]) -> None:
    import diffusers
    import torch
    import transformers

    index = json.loads((CONFIGS / family.partition("-")[0] / "model_index.json").read_text())
    for part, count in counts.items():
        library, name = index[part]
        kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
        with torch.device("meta"):
            if library == "diffusers":
                model = kind.from_config(CONFIGS / family / part)
            else:
                model = kind(kind.config_class.from_pretrained(CONFIGS / family / part))
        assert sum(parameter.numel() for parameter in model.parameters()) == count, part


def test_the_settings_are_those_that_the_script_makes() -> None:
    merges = (CONFIGS / "clip" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert len(merges) == make_configs.MERGES
    texts = make_configs.texts(merges)
    assert {name: (CONFIGS / name).read_text(encoding="utf-8") for name in texts} == texts
    files = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.*")}
    assert files == {*texts, "t5/tokenizer.json", "t5/tokenizer_config.json"}


def test_the_tokenizers_are_those_of_clip_and_t5() -> None:
    from transformers import AutoTokenizer, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip", local_files_only=True, pad_token="!")
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of a cat", padding="max_length", max_length=9).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]
    t5 = AutoTokenizer.from_pretrained(CONFIGS / "t5", local_files_only=True)
    ids = t5("a photo of a cat", padding="max_length", max_length=8).input_ids
    assert ids == [3, 9, 1202, 13, 3, 9, 1712, 1]


def test_what_another_person_has_is_not_there(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = tmp_path / "people" / "anna", tmp_path / "people" / "ben"
    for folder in (own / "outputs" / "model", other / "outputs" / "model", tmp_path / "models" / "model"):
        shutil.copytree(tiny_sd, folder)
    for folder in (own, other):
        (folder / "datasets" / "mira").mkdir(parents=True)
    monkeypatch.setenv("LIMNER_HOME", str(own))
    monkeypatch.setenv("LIMNER_SHARED", str(tmp_path))
    for here in (own / "outputs" / "model", tmp_path / "models" / "model", detect.locate("micro")[0]):
        assert detect.look(here).family == "sd15"
    for foreign in (str(other / "outputs" / "model"), f"{own}/../ben/outputs/model"):
        assert detect.glance(foreign) is None
        with pytest.raises(UserError, match="'model' does not exist"):
            detect.look(detect.locate(foreign)[0])
    assert dataset.find_folder("mira") == dataset.find_folder(str(own / "datasets" / "mira"))
    for foreign in (str(other / "datasets" / "mira"), "../ben/datasets/mira", f"{own}/../ben/datasets/mira"):
        with pytest.raises(UserError, match="There is no dataset 'mira'"):
            dataset.find_folder(foreign)
