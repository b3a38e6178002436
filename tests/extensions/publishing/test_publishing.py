"""The folder to publish: whole, valid for the hub, checked by its own checksums, with nothing private in it."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner_extensions.publishing import publishing
from tests.extensions.publishing.conftest import SECRET
from trainer import config
from trainer.errors import UserError
from trainer.runs import Run, events

PROMPT = 'miraxo, <script>alert(1)</script> & "quotes"'
FILES = ["README.md", "SHA256SUMS", "rin.safetensors", "samples/1.png", "samples/2.png", "settings.toml"]


def published(run: Run) -> Path:
    folder = run.folder.parent / "published"
    publishing.write_folder(run, folder)
    return folder


def with_base(run: Run, base: str, **changes: object) -> None:
    settings = run.config().model_copy(update=changes)
    run.save_config(settings.model_copy(update={"model": settings.model.model_copy(update={"base": base})}))


def test_a_folder_to_publish_is_whole_and_has_its_checksums(run: Run) -> None:
    (run.folder / "peft").mkdir()
    (run.folder / "peft" / "pytorch_lora_weights.safetensors").write_bytes(b"peft")
    folder = published(run)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == sorted([*FILES, "pytorch_lora_weights.safetensors"])
    assert (folder / "rin.safetensors").read_bytes() == run.export.read_bytes()
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert sorted(name for _sum, name in lines) == sorted({*names} - {"README.md", "SHA256SUMS"})
    for checksum, name in lines:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    with pytest.raises(UserError, match="already a folder 'published'"):
        publishing.write_folder(run, folder)
    run.export.unlink()
    with pytest.raises(UserError, match="no finished adapter file"):
        publishing.write_folder(run, folder.with_name("other"))


def test_the_card_is_valid_for_the_hub(run: Run) -> None:
    with_base(run, "anna/fox-xl/fox.safetensors")
    text = (published(run) / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "base_model": "anna/fox-xl",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": "miraxo",
        "tags": ["text-to-image", "diffusers", "lora", "stable-diffusion", "template:diffusion-lora", "limner"],
        "widget": [
            {"text": PROMPT, "output": {"url": "samples/1.png"}},
            {"text": "a fox, `code` | table", "output": {"url": "samples/2.png"}},
        ],
    }
    assert "# license:" in text, "it is left to whoever publishes"
    for line in (
        "A LoRA that teaches Stable Diffusion XL a character. It was trained on [anna/fox-xl]",
        "It loads in ComfyUI: put `rin.safetensors`",
        f"image = pipeline({json.dumps(PROMPT)}).images[0]",
        "| resolution | 512, 384, 256 |",
        r"| ![Sample](samples/2.png) | `` a fox, `code` \| table `` | 7 |",
    ):
        assert line in text, line
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize("trigger", ["", ": - 'yes", "---", "狐", "#"])
def test_whatever_the_trigger_is_the_metadata_hold_it(run: Run, trigger: str) -> None:
    with_base(run, "anna/fox", trigger=trigger, preset="style")
    card = ModelCard((published(run) / "README.md").read_text(encoding="utf-8"))
    assert card.data.to_dict().get("instance_prompt", "") == trigger
    assert card.data.to_dict()["base_model"] == "anna/fox"
    assert "teaches Stable Diffusion XL a style." in card.text


def test_card_and_samples_are_of_the_step_that_is_published(run: Run) -> None:
    """A run that ends early, as its held-out images say so, writes the adapter of an earlier step."""
    run.report(events.Finished(step=4, exported=2, export=run.export.name))
    folder = published(run)
    assert "| steps | 2 |" in (folder / "README.md").read_text(encoding="utf-8")
    with Image.open(folder / "samples" / "1.png") as sample:
        assert sample.getpixel((0, 0)) == (100, 80, 120), "the preview of step 2"


def test_a_log_from_elsewhere_publishes_no_other_file(run: Run, home: Path) -> None:
    secret = home / "datasets" / "rin" / "01.png"
    assert secret.is_file()
    for name in ("../../datasets/rin/01.png", str(secret), "previews/../../../datasets/rin/01.png"):
        run.report(events.Preview(step=3, file=name, prompt="stolen", seed=1))
    newest = run.folder / "previews" / "000004_1.png"
    newest.unlink()
    newest.symlink_to(secret)
    folder = published(run)
    assert "stolen" not in (folder / "README.md").read_text(encoding="utf-8")
    with Image.open(folder / "samples" / "2.png") as sample:
        assert sample.getpixel((0, 0)) == (150, 80, 120), "the preview of step 3, as that of step 4 is a link"


def test_nothing_private_is_published(run: Run) -> None:
    metadata = PngInfo()
    metadata.add_text("parameters", f"{SECRET}/fox.safetensors")
    Image.new("RGB", (64, 48), "red").save(run.folder / "previews" / "000004_0.png", pnginfo=metadata)
    folder = published(run)
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in (b"anna", str(run.folder.parents[1]).encode()) if word in data], path.name
    assert config.load(folder / "settings.toml").model.base == "fox.safetensors"
    assert Image.open(folder / "samples" / "1.png").getpixel((0, 0)) == (255, 0, 0)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in ModelCard(text).data.to_dict(), "a file is no repository"
    assert "trained on `fox.safetensors`" in text
