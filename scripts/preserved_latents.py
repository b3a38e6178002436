"""Generate what micro's presets preserve, for its folder: `python -m scripts.preserved_latents`.

Everybody's first run would take seconds to generate the same.
"""

import os
import tempfile

import torch
from safetensors.torch import load_file, save

from trainer import config, families, paths, storage
from trainer.base_models import MICRO
from trainer.data import dataset
from trainer.training.inputs import encode


def main() -> None:
    """Write the latents by the names of their files in the cache."""
    latents: dict[str, torch.Tensor] = {}
    encode.SHIPPED.unlink(missing_ok=True)  # it would be copied
    with tempfile.TemporaryDirectory() as home:
        os.environ["LIMNER_HOME"] = home
        for kind in ("character", "style"):
            folder = dataset.find_example(f"example-{kind}")
            run = config.build({"name": "x", "dataset": str(folder), "trigger": "miraxo", "preset": kind})
            family = families.load(run.model, torch.device("cpu"), torch.float32)
            encode.build(family, dataset.read(folder, "miraxo"), run, lambda *_: None)
        for file in sorted((paths.outputs() / paths.CACHE).glob("*.safetensors")):
            latents[file.stem] = load_file(file)["latents"]
    storage.write(encode.SHIPPED, save(latents, {"made_by": MICRO}))
    print(f"{len(latents)} images, {encode.SHIPPED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
