"""A finished run with everything that can be shared, made without training."""

from pathlib import Path

import pytest
from PIL import Image

from trainer import config, runs
from trainer.runs import Run, events

SECRET = "/home/anna-secret/models"


@pytest.fixture
def run(character: Path) -> Run:
    return make_run("rin")


def make_run(dataset: str) -> Run:
    """Make a finished run with previews of two prompts, a file and a verdict."""
    training = {"batch_size": 3, "resolution": 512, "further_resolutions": [384, 256]}
    model = {"base": f"{SECRET}/fox.safetensors", "vae": f"{SECRET}/vae.safetensors", "family": "sdxl"}
    settings = {"name": "rin", "dataset": dataset, "trigger": "miraxo", "training": training, "model": model}
    run = runs.create(config.build(settings))
    run.report(events.Started(step=0, steps=4, pid=1, device="NVIDIA RTX 4090"))
    (run.folder / "previews").mkdir()
    for step in range(5):
        if step:
            run.report(events.Step(step=step, loss=1 / step, learning_rate=1e-4, grad_norm=1, seconds=30, memory=2**30))
        for number, prompt in enumerate(('miraxo, <script>alert(1)</script> & "quotes"', "a fox, `code` | table")):
            name = f"previews/{step:06d}_{number}.png"
            Image.new("RGB", (64, 48), (50 * step, 80, 120)).save(run.folder / name)
            run.report(events.Preview(step=step, file=name, prompt=prompt, seed=7))
    (run.folder / "rin.safetensors").write_bytes(b"a" * 3000)
    verdicts = (("ComfyUI", True, "loads: all 8 keys"), ("diffusers", False, "refuses <it>"))
    run.report(events.Verified(file="rin.safetensors", verdicts=verdicts, notes=("Exact to 0.01 %.",)))
    run.report(events.Finished(step=4, export="rin.safetensors", sha256={"rin.safetensors": "ab" * 32}))
    return run
