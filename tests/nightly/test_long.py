"""What takes long and is run before a release: kills, soaks, ten thousand images, and transformers in real width."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import single_file, tiny
from tests.conftest import python
from tests.integration.families.models import options_of
from tests.integration.families.test_vae import quantize
from tests.integration.training.test_train import losses, settings
from trainer import families, runs
from trainer.base_models import detect
from trainer.base_models.registry import FamilyName
from trainer.config import ModelConfig
from trainer.families.files import loading, text_encoders
from trainer.rng import generator
from trainer.train import train

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(
    "command",
    [
        ("benchmarks.crash", "--kills", "300"),
        ("benchmarks.soak", "--steps", "2000", "--pictures", "200"),
        ("benchmarks.many", "--pictures", "10000"),
    ],
    ids=["three hundred kills", "a soak", "ten thousand images"],
)
def test_a_bench_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    done = python("-m", *command)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("kind", ["flux", "chroma"])
def test_a_single_file_of_their_real_width_is_the_folder_and_trains(
    character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FamilyName
) -> None:
    folder = getattr(tiny, f"make_{kind}")(tmp_path / kind, wide=True)
    configs = single_file.write_configs(tmp_path / "configs", {kind: folder})
    for module in (loading, text_encoders):
        monkeypatch.setattr(module, "CONFIGS", configs)
    file = single_file.write(folder, tmp_path / "base.safetensors")
    assert detect.look(file).family == kind

    def predicted(base: Path) -> Tensor:
        family = families.load(ModelConfig(base=str(base)), torch.device("cpu"), torch.bfloat16)
        noisy = torch.randn(1, family.latent_shape[0], 8, 8, generator=generator(1))
        with torch.no_grad():
            return family.predict(noisy, torch.tensor([500.0]), family.encode_prompts(["rin"]))

    expected = predicted(folder)
    assert torch.equal(predicted(file), expected)
    quantized = quantize(shutil.copy(file, tmp_path / "scaled.safetensors"), "scale_weight")
    assert torch.allclose(predicted(quantized), expected, atol=0.1 * float(expected.abs().max()))
    options = {"training__steps": 3, "training__batch_size": 1, "training__precision": "bf16", **options_of(kind)}
    run = runs.create(settings(file, **options))
    train(run.config(), run)
    assert len(losses(run)) == 3
    assert run.export.is_file()
