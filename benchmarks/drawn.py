"""Draw a DoRA of the example character on micro with the arithmetic of each program, and lay the images side by side.

    python -m benchmarks.drawn SHEET.png [--file ADAPTER] [--set adapter.rank=8]

Trains the DoRA, unless a file is given. Each program gets the weight of every layer and applies the file's layer to it
by its own code, from a checkout (benchmarks/verdicts.py names the environment variables), in a process of its own. The
rows of the sheet are Limner, the programs, and the base model alone. Printed is by how much the weights of a program
differ from Limner's at most: the norm of the difference in a layer, relative to that of the layer's change.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.loaders import LOADERS
from benchmarks.micro import load_base
from benchmarks.narrow import Base
from benchmarks.stand_ins import variable
from trainer import families
from trainer.adapter_files import reader
from trainer.config import PictureConfig
from trainer.families import Family
from trainer.runs import Run
from trainer.sampling import sampler

CONFIG = 'name = "mira"\ndataset = "example-character"\npreset = "character"\ntrigger = "miraxo"\n'
PROMPTS = (
    "miraxo, smiling, blue background", "miraxo, sad, hat, orange background", "miraxo, laughing, sunglasses",
    "miraxo, serious, green background",
)  # fmt: skip
SEEDS = (1, 2)
MARGIN = 90  # pixels, for the names of the rows
Changes = dict[str, Tensor]  # of weights, by the names of layers
Apply = Callable[[str, dict[str, Tensor], nn.Module], Tensor]  # a layer's name, its part of the file, and its module


def comfyui(name: str, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
    import comfy.lora

    patches = comfy.lora.load_lora({f"{name}.{part}": tensor for part, tensor in parts.items()}, {name: name})
    return comfy.lora.calculate_weight([(1.0, patches[name], 1.0, None, None)], module.weight.clone(), name)


def forge(name: str, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
    from backend.patcher import lora

    patches, _ = lora.load_lora({f"{name}.{part}": tensor for part, tensor in parts.items()}, {name: name})
    return lora.merge_lora_to_weight([(1.0, patches[name], 1.0, None, None)], module.weight.clone(), name)


def webui(network: types.ModuleType, network_lora: types.ModuleType) -> Apply:
    """A1111's classes, and SD.Next's, which were made from them."""

    def apply(name: str, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
        net = network.Network("x", types.SimpleNamespace())
        net.te_multiplier = net.unet_multiplier = 1.0
        weights = network.NetworkWeights(network_key=name, sd_key=name, w=dict(parts), sd_module=module)
        change, _ = network_lora.ModuleTypeLora().create_module(net, weights).calc_updown(module.weight)
        return module.weight + change

    return apply


def a1111() -> Apply:
    import network
    import network_lora

    return webui(network, network_lora)


def sdnext() -> Apply:
    return webui(sys.modules["modules.lora.network"], sys.modules["modules.lora.network_lora"])


def invokeai(name: str, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
    from invokeai.backend.patches.layers.utils import any_lora_layer_from_state_dict

    layer = any_lora_layer_from_state_dict(parts)
    return module.weight + layer.get_parameters({"weight": module.weight}, 1.0)["weight"]


APPLY: dict[str, Callable[[], Apply]] = {
    "ComfyUI": lambda: comfyui, "Forge": lambda: forge, "A1111": a1111, "SD.Next": sdnext, "InvokeAI": lambda: invokeai,
}  # fmt: skip


def ours(family: Family, file: Path) -> Changes:
    """What Limner's *Try out* adds to the weights."""
    layers = {name: module for name, _, _, module in families.named(family)}
    adapter = reader.read(file)
    before = {name: layers[name].weight.detach().clone() for name in adapter.modules}
    with families.patched(family, [(adapter, 1.0)]):
        return {name: layers[name].weight.detach() - before[name] for name in before}


def theirs(program: str, family: Family, file: Path) -> Changes:
    """What a program adds to the weights."""
    layers = {name: module for name, _, _, module in families.named(family)}
    LOADERS[program](Base.make("sd15"))  # makes its code importable
    apply, tensors = APPLY[program](), load_file(file)
    split = {tuple(key.partition(".")[::2]): tensor for key, tensor in tensors.items()}
    changes = {}
    for name in sorted({name for name, _ in split}):
        parts = {part: tensor for (layer, part), tensor in split.items() if layer == name}
        changes[name] = apply(name, parts, layers[name]).reshape(layers[name].weight.shape) - layers[name].weight
    return changes


@contextmanager
def changed(family: Family, changes: Changes) -> Iterator[None]:
    """Add changes to the weights inside the `with`."""
    weights = {name: module.weight for name, _, _, module in families.named(family) if name in changes}
    assert weights.keys() == changes.keys()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(changes[name])
        yield
        for name, weight in weights.items():
            weight.copy_(before[name])


def draw(family: Family, changes: Changes) -> list[Image.Image]:
    """Draw each prompt with each seed."""
    with changed(family, changes):
        return [
            sampler.generate(family, PictureConfig(prompt=prompt, seed=seed, steps=20, guidance=3.0, out="x"))
            for prompt in PROMPTS for seed in SEEDS
        ]  # fmt: skip


def difference(changes: Changes, meant: Changes) -> float:
    """The largest difference of a layer, relative to its change."""
    assert changes.keys() == meant.keys()
    return max(float((changes[name] - meant[name]).norm() / meant[name].norm()) for name in meant)


def train(folder: Path, settings: list[str]) -> Path:
    """Train the DoRA; return its file."""
    (folder / "mira.toml").write_text(CONFIG, encoding="utf-8")
    changed = ["adapter.dora=true", "preview.every=0", *settings]
    command = [sys.executable, "-m", "trainer", "train", str(folder / "mira.toml"), "--run", str(folder / "run")]
    subprocess.run([*command, *(word for setting in changed for word in ("--set", setting))], check=True)
    return Run(folder / "run").export


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Lay out the images of each row behind its name."""
    side = max(image.width for images in rows.values() for image in images)
    across = max(len(images) for images in rows.values())
    page = Image.new("RGB", (MARGIN + across * side, len(rows) * side), "white")
    pen = ImageDraw.Draw(page)
    for row, (name, images) in enumerate(rows.items()):
        pen.text((8, row * side + side // 2), name, fill="black")
        for column, image in enumerate(images):
            page.paste(image, (MARGIN + column * side, row * side))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--file", type=Path, help="a DoRA of micro, instead of training one")
    parser.add_argument("--set", action="append", default=[], help="as for `limner train`")
    parser.add_argument("--program", choices=APPLY, help="write a program's changes instead of a sheet")
    options = parser.parse_args()
    family = load_base("micro")
    if options.program:
        with torch.no_grad():
            save_file(theirs(options.program, family, options.file), options.sheet)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = options.file or train(folder, options.set)
        meant = ours(family, file)
        rows = {"Limner": draw(family, meant)}
        for program in APPLY:
            if variable(program) not in os.environ:
                print(f"{program}: no checkout in {variable(program)}", file=sys.stderr)
                continue
            out = folder / f"{program}.safetensors"
            command = [sys.executable, "-m", "benchmarks.drawn", str(out), "--file", str(file), "--program", program]
            subprocess.run(command, check=True)
            changes = load_file(out)
            print(f"{program}: at most {difference(changes, meant):.2g} of a layer's change off", flush=True)
            rows[program] = draw(family, changes)
        rows["base model"] = draw(family, {})
    sheet(rows).save(options.sheet)


if __name__ == "__main__":
    main()
