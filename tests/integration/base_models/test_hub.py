"""Base models from the Hugging Face Hub: what is downloaded, where it continues, and what is said when it fails."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from tests import fake_hub
from tests.conftest import CHECKOUT, python, unmeasured
from tests.fake_hub import FakeHub
from trainer import config, families
from trainer.base_models import MICRO_FOLDER, detect, hub
from trainer.base_models.hub import RemoteFile
from trainer.config import ModelConfig, PictureConfig
from trainer.sampling.sampler import generate

BASE = "anna/base"
FILE = "anna/files/fox.safetensors"
SIZE = 24 * 2**20


@pytest.fixture
def fake(tiny_sd: Path) -> Iterator[FakeHub]:
    folder = fake_hub.folder_files(tiny_sd)
    weights = {path: data for path, data in folder.items() if path.endswith(".safetensors")}
    halves = {path.replace(".safetensors", ".fp16.safetensors"): data for path, data in weights.items()}
    extras = {"base.safetensors": b"x" * 100, "safety_checker/model.safetensors": b"x" * 100, "README.md": b"base"}
    single = {"fox.safetensors": b"x" * SIZE, "README.md": b"files"}
    with fake_hub.serving({BASE: folder | halves | extras, "anna/files": single, "anna/empty": {}}) as made:
        yield made


def environment(fake: FakeHub, home: Path) -> dict[str, str]:
    return {**unmeasured(), "HF_ENDPOINT": fake.url, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0"}


def download(fake: FakeHub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "trainer", "download", *arguments, environment=environment(fake, home))


@pytest.mark.slow
def test_half_precision_is_taken_and_nothing_unneeded(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = download(fake, home, BASE, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["done"] == lines[-1]["total"] > 1_000_000
    sent = [path for path, _start in fake.sent]
    halves = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    weights = {path for path in sent if path.endswith(".safetensors")}
    assert weights == {f"{half}.fp16.safetensors" for half in halves}
    assert sent[-1] == hub.INDEX  # a download that was interrupted is not taken for a model
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    detected = detect.glance(BASE)
    assert detected
    assert detected.family == "sd15"
    assert families.load(ModelConfig(base=BASE), torch.device("cpu"), torch.float32).base.revision == fake_hub.COMMIT


@pytest.mark.slow
def test_a_download_continues_where_it_was_ended_or_begins_again_if_it_is_damaged(fake: FakeHub, home: Path) -> None:
    fake.seconds_per_piece = 0.2
    command = [sys.executable, "-m", "trainer", "download", FILE, "--json"]
    env = environment(fake, home)
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, env=env) as process:
        while json.loads(process.stdout.readline())["done"] < 10 * 2**20:
            pass
        process.send_signal(signal.SIGTERM)
    fake.seconds_per_piece, fake.corrupts = 0, True
    assert "fox.safetensors arrived damaged. Download it again." in download(fake, home, FILE).stderr
    fake.corrupts = False
    done = download(fake, home, FILE)
    assert done.stdout == f"{FILE} is ready. Use it as model.base.\n", done.stderr
    assert [path for path, _start in fake.sent] == ["fox.safetensors"] * 3
    first, second, third = (start for _path, start in fake.sent)
    assert (first, second >= 10 * 2**20, third) == (0, True, 0)
    blobs = [path for path in (home / "hub").rglob("blobs/*") if path.stat().st_size == SIZE]
    assert len(blobs) == 1


REFUSED = {
    "anna/none": "has no model 'anna/none'. Check the name",
    "anna/files": "anna/files is not in diffusers format. Choose one of its files: anna/files/fox.safetensors.",
    "anna/files/cat.safetensors": "The repository anna/files has no file 'cat.safetensors'.",
    "anna/empty": "has no weights of a base model",
    "anna/gated": "accepted its license. Accept it at huggingface.co/anna/gated",
    "../x": "is not a name on the Hugging Face Hub",
}
ALL = "import sys; from trainer.cli.commands import main; print([main(['download', name]) for name in sys.argv[1:]])"


@pytest.mark.slow
def test_what_cannot_be_downloaded_is_said(fake: FakeHub, home: Path) -> None:
    fake.gated.add("anna/gated")
    fake.repositories["anna/gated"] = dict(fake.repositories[BASE])
    done = python("-c", ALL, *REFUSED, environment=os.environ | environment(fake, home))
    assert done.stdout == f"{[2] * len(REFUSED)}\n", done.stderr
    assert [sentence for sentence in REFUSED.values() if sentence not in done.stderr] == []
    fake.url = "http://127.0.0.1:9"
    unreached = download(fake, home, BASE).stderr
    assert "did not answer. Check the connection" in unreached
    assert "Traceback" not in done.stderr + unreached


def remote(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1) for path in paths]


def test_which_weights_of_a_repository_are_taken() -> None:
    """Full precision where a part has no other, and those in several files with their index."""
    unet, vae = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"
    unneeded = (f"{unet}.bin", f"{unet}.non_ema.safetensors", "unet/model.onnx")
    weights = (f"{unet}.safetensors", f"{unet}.fp16.safetensors", f"{vae}.safetensors")
    selected = hub.select(remote(*weights, *unneeded, "model_index.json", "unet/config.json"))
    taken = [f"{unet}.safetensors", f"{vae}.safetensors", "unet/config.json", "model_index.json"]
    assert [file.path for file in selected] == taken

    halves = [f"{unet}.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    halves += [f"{unet}.safetensors.index.fp16.json"]
    whole = [f"{unet}-00001-of-00001.safetensors", f"{unet}.safetensors.index.json"]
    selected = hub.select(remote(*halves, *whole, "model_index.json"))
    assert {file.path for file in selected} == {*halves, "model_index.json"}

    parts = ["text_conditioner/model.safetensors", "t5_tokenizer/tokenizer.json", "modular_model_index.json"]
    assert [file.path for file in hub.select(remote(*parts, "README.md"))] == parts, "of a pipeline in blocks"


@pytest.mark.slow
def test_the_prompts_of_the_card_give_its_pictures() -> None:
    card = (MICRO_FOLDER / "README.md").read_text()
    prompts = re.findall(r'--prompt "([^"]+)"', card)
    pictures = [name for name in re.findall(r"\((pictures/\S+)\)", card)][: len(prompts)]
    assert len(prompts) == len(pictures) == 2
    page = (MICRO_FOLDER.parents[2] / "docs" / "base-models.md").read_text()
    assert all(f"`{prompt}`" in page and name in page for prompt, name in zip(prompts, pictures, strict=True))
    family = families.load(ModelConfig(), torch.device("cpu"), torch.float32)
    for prompt, name in zip(prompts, pictures, strict=True):
        picture = generate(family, PictureConfig(prompt=prompt, seed=1, steps=20, guidance=3.0, out="x.png"))
        assert picture.size == (config.micro_resolution(), config.micro_resolution())
        difference = np.asarray(picture).astype(int) - np.asarray(Image.open(MICRO_FOLDER / name)).astype(int)
        # Processors add numbers up in different orders; on one and the same there is no difference at all.
        assert np.abs(difference).max() <= 1, f"{name} differs by {np.abs(difference).max()}"
