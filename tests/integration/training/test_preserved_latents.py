"""The images that micro's presets preserve are shipped, as the base model generates them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer import config, families, paths
from trainer.data import dataset, examples
from trainer.training import encode


@pytest.mark.parametrize("kind", ["character", "style"])
def test_a_first_run_generates_none_of_it(home: Path, kind: str) -> None:
    assert not (paths.outputs() / paths.CACHE).exists()
    folder = examples.find(f"example-{kind}")
    settings = config.build({"name": "x", "dataset": str(folder), "trigger": "miraxo", "preset": kind})
    family = families.load(settings.model, torch.device("cpu"), torch.float32)
    reported: list[str] = []
    built = dataset.read(folder, "miraxo")[:1]
    encode.build(family, built, settings, lambda name, _done, _total: reported.append(name))
    assert "Encoding images" in reported
    assert "Generating images to preserve" not in reported
    files = sorted((paths.outputs() / paths.CACHE).glob("*.safetensors"))
    assert len(files) == len(settings.preservation.prompts) > 0
    shipped = load_file(encode.SHIPPED)
    assert {file.stem for file in files} == shipped.keys()
    if kind == "style":
        return
    prompts, guidance = settings.preservation.prompts, settings.preview.guidance
    latents = family.generate_latents(
        prompts[-1], seed=len(prompts) - 1, steps=encode.SAMPLING_STEPS, guidance=guidance, side=128
    )
    # Another processor adds in another order.
    assert min(float((latents.float() - other).abs().max()) for other in shipped.values()) < 0.01
