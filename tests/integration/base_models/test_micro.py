"""The built-in base: its card keeps its word, and it is what the program takes it for."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import config, families
from trainer.base_models import MICRO_FOLDER
from trainer.config import ModelConfig, PictureConfig
from trainer.sampling.sampler import generate


@pytest.mark.slow
def test_the_prompts_of_the_card_give_its_pictures() -> None:
    card = (MICRO_FOLDER / "README.md").read_text()
    prompts = re.findall(r'--prompt "([^"]+)"', card)
    pictures = [name for name in re.findall(r"\((pictures/\S+)\)", card)][: len(prompts)]
    assert len(prompts) == len(pictures) == 2
    readme = (MICRO_FOLDER.parents[2] / "README.md").read_text()
    assert all(f"`{prompt}`" in readme and name in readme for prompt, name in zip(prompts, pictures, strict=True))
    family = families.load(ModelConfig(), torch.device("cpu"), torch.float32)
    for prompt, name in zip(prompts, pictures, strict=True):
        picture = generate(family, PictureConfig(prompt=prompt, seed=1, steps=20, guidance=3.0, out="x.png"))
        assert picture.size == (config.micro_resolution(), config.micro_resolution())
        difference = np.asarray(picture).astype(int) - np.asarray(Image.open(MICRO_FOLDER / name)).astype(int)
        # Processors add numbers up in different orders; on one and the same there is no difference at all.
        assert np.abs(difference).max() <= 1, f"{name} differs by {np.abs(difference).max()}"
