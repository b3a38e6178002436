"""The built-in base: its card keeps its word, and it is what the program takes it for."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from scripts.pretrain_micro.base import build_base
from scripts.pretrain_micro.config import FULL
from scripts.pretrain_micro.widening import load_micro, widen
from trainer import config, families
from trainer.base_models import MICRO_FOLDER
from trainer.config import ModelConfig, PictureConfig
from trainer.sampling.sampler import generate


@pytest.mark.slow
def test_the_prompts_of_the_card_give_its_pictures() -> None:
    card = (MICRO_FOLDER / "README.md").read_text()
    prompts = re.findall(r'--prompt "([^"]+)"', card)
    shown = [name for name in re.findall(r"\((pictures/\S+)\)", card)][: len(prompts)]
    assert len(prompts) == len(shown) == 2
    readme = (MICRO_FOLDER.parents[2] / "README.md").read_text()
    assert all(f"`{prompt}`" in readme and name in readme for prompt, name in zip(prompts, shown, strict=True))
    family = families.load(ModelConfig(), torch.device("cpu"), torch.float32)
    for prompt, name in zip(prompts, shown, strict=True):
        picture = generate(family, PictureConfig(prompt=prompt, seed=1, steps=20, guidance=3.0, out="x.png"))
        assert picture.size == (config.micro_resolution(), config.micro_resolution())
        difference = np.asarray(picture).astype(int) - np.asarray(Image.open(MICRO_FOLDER / name)).astype(int)
        # Processors add numbers up in different orders; on one and the same there is no difference at all.
        assert np.abs(difference).max() <= 1, f"{name} differs by {np.abs(difference).max()}"


def test_the_folder_is_small_and_names_its_authors() -> None:
    assert sum(path.stat().st_size for path in MICRO_FOLDER.rglob("*") if path.is_file()) < 30_000_000
    notice = (MICRO_FOLDER / "NOTICE.md").read_text()
    assert "CC BY 4.0" in notice
    assert "Micah Lanier" in notice


def test_a_base_of_twice_its_width_begins_with_its_predictions() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(MICRO_FOLDER / "tokenizer")
    micro = load_micro()
    wide = build_base(FULL.scaled(2), tokenizer)
    words = tokenizer(
        ["a person with pink hair", ""], padding="max_length", max_length=40, return_tensors="pt"
    ).input_ids
    noisy = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(0))

    def predict(base: nn.ModuleDict) -> torch.Tensor:
        with torch.no_grad():
            states = base["text_encoder"](words).last_hidden_state
            prediction: torch.Tensor = base["unet"](noisy, torch.tensor([10, 700]), states).sample
        return prediction

    expected = predict(micro)
    widen(micro, wide, noise=0.0, seed=0)
    assert torch.allclose(predict(wide), expected, atol=1e-4)
    widen(micro, wide, noise=0.1, seed=0)
    difference = (predict(wide) - expected).square().mean() / expected.square().mean()
    assert 1e-4 < difference < 0.1
