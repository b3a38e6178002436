"""Load adapter files for transformers with the own code of other programs, on narrow models, and measure the effect.

    python -m benchmarks.transformer_files PROGRAM FAMILY

PROGRAM is ComfyUI or sd-scripts, from a checkout as in `benchmarks.verdicts`; FAMILY is one with a transformer. For
each kind and format it prints how many keys there are, and how far what the program changes is from what is meant. Only
PEFT's format is off in ComfyUI, where alpha is not the rank: it does not read the alpha in the metadata.
"""

import math
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from benchmarks.stand_ins import Checkout, stand_in
from trainer.adapter_files import joined, writer
from trainer.adapter_files.modules import LoHa, LoKr, Lora, Module
from trainer.base_models import layer_names, transformer_names
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import FAMILIES, TRANSFORMERS

# Blocks are few and 128 wide, which ComfyUI derives from the depth of one family.
CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2, "num_single_layers": 2,
    "dual_attention_layers": (0,), "in_channels": 64, "out_channels": 16, "patch_size": 2, "joint_attention_dim": 96,
    "pooled_projection_dim": 64, "num_key_value_heads": 1, "intermediate_size": 192, "timestep_embed_dim": 48,
    "text_hidden_dim": 96, "num_text_layers": 12, "num_layerwise_text_blocks": 2, "num_refiner_text_blocks": 2,
    "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 160,
    "text_embed_dim": 96, "adaln_lora_dim": 32, "mlp_ratio": 4.0,
}  # fmt: skip
COMFY_CONFIG = {"layers": 2, "depth": 2, "num_blocks": 2, "depth_single_blocks": 2, "hidden_size": 128}
Effects = dict[str, Tensor]  # changes of weights, by the original names of layers


class Narrow:
    """A transformer's weights by path, and by the original names of its layers."""

    def __init__(self, family: str) -> None:
        self.family: Any = family
        self.random = torch.Generator().manual_seed(0)
        shapes = TRANSFORMERS[self.family].shapes(CONFIG)
        self.weights = {path: self.draw(*shape) for path, shape in shapes.items()}
        self.layers: dict[str, list[str]] = {}  # paths by the original name
        for path in shapes:
            whole = transformer_names.joined(path, self.family)
            parts = list(transformer_names.parts(whole, self.family)) if whole else [path]
            self.layers[transformer_names.original(whole or path, self.family)] = parts

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def original(self, name: str) -> Tensor:
        return self.ordered(name, torch.cat([self.weights[path] for path in self.layers[name]]))

    def ordered(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a layer in the order of the original code, which has the halves of some the other way round."""
        swapped = joined.is_swapped(self.layers[name][0], len(rows), rows.shape[-1], self.family)
        return rows.roll(len(rows) // 2, 0) if swapped else rows

    def name(self, path: str) -> str:
        return layer_names.kohya(Place("transformer", path), self.family)

    def modules(self, kind: str) -> dict[str, Module]:
        """An adapter of a kind on all linear layers but modulations."""
        adapted = [path for path, weight in self.weights.items() if ".norm" not in path and weight.dim() == 2]
        return dict(sorted((self.name(path), self.module(kind, path)) for path in adapted))

    def module(self, kind: str, path: str) -> Module:
        rows, columns = self.weights[path].shape
        if kind == "LoHa":
            sides = {f"hada_w{number}_{side}" for number in (1, 2) for side in "ab"}
            return LoHa(
                {key: self.draw(*((rows, 3) if key[-1] == "a" else (3, columns))) for key in sorted(sides)}, 1.5
            )
        if kind == "LoKr":
            side = math.gcd(4, rows, columns)
            parts = {"lokr_w1": self.draw(side, side), "lokr_w2_a": self.draw(rows // side, 2)}
            return LoKr({**parts, "lokr_w2_b": self.draw(2, columns // side)}, 1.0)
        parts = {"lora_down.weight": self.draw(3, columns), "lora_up.weight": self.draw(rows, 3)}
        if kind == "DoRA":
            parts["dora_scale"] = 1.1 * self.weights[path].norm(dim=0, keepdim=True)
        return Lora(parts, 3.0 if kind == "DoRA" else 1.5)

    def meant(self, name: str, modules: dict[str, Module]) -> Tensor:
        """The change of a layer that an adapter is meant to make."""
        changes = []
        for path in self.layers[name]:
            module = modules.get(self.name(path))
            weight = self.weights[path]
            changes.append(module.delta(weight) if module else torch.zeros_like(weight))
        return self.ordered(name, torch.cat(changes))


def comfyui(narrow: Narrow) -> Callable[[dict[str, Tensor]], Effects]:
    Checkout.of("ComfyUI").add(".")
    stand_in("av", "kornia", "torchsde", "torchaudio", "torchvision", "aiohttp", "spandrel",
             "sentencepiece", "alembic", "sqlalchemy", "blake3", "scipy")  # fmt: skip
    sys.argv = sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_base

    held = {f"diffusion_model.{name}.weight": narrow.original(name) for name in narrow.layers}
    usual = "Flux" if "single_transformer_blocks" in TRANSFORMERS[narrow.family].blocks else "SD3"
    own = {"qwen_image": "QwenImage", "krea2": "Krea2", "anima": "BaseModel"}  # the last has no names but the usual
    kind: Any = getattr(comfy.model_base, own.get(narrow.family, usual))

    class Model(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.model_config = types.SimpleNamespace(unet_config=COMFY_CONFIG)

        def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # noqa: ANN401 - as torch has it
            return held

    def apply(tensors: dict[str, Tensor]) -> Effects:
        keys = comfy.lora.model_lora_keys_unet(Model(), {})
        patches: dict[str, list[Any]] = {}
        for key, patch in comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys).items():
            target, offset, function = (key, None, None) if isinstance(key, str) else (*key, None)[:3]
            patches.setdefault(target, []).append((1.0, patch, 1.0, offset, function))
        return {
            key.removeprefix("diffusion_model.").removesuffix(".weight"):
                comfy.lora.calculate_weight(of_layer, held[key].clone(), key) - held[key]
            for key, of_layer in patches.items()
        }  # fmt: skip

    return apply


def sd_scripts(narrow: Narrow) -> Callable[[dict[str, Tensor]], Effects]:
    # What the stand-ins would be looked up in is imported first.
    from diffusers import AutoencoderKL  # noqa: F401
    from transformers import CLIPTextModel, T5EncoderModel  # noqa: F401

    Checkout.of("sd-scripts").add(".")
    stand_in("torchvision", "cv2", "imagesize", "voluptuous", "toml")
    single = "single_transformer_blocks" in TRANSFORMERS[narrow.family].blocks
    blocks = {"x_block": "SingleDiTBlock", "context_block": "SingleDiTBlock"}
    groups = {"double_blocks": "DoubleStreamBlock", "single_blocks": "SingleStreamBlock"}
    if narrow.family == "anima":
        from networks import lora_anima as network

        blocks = {"x_embedder": "PatchEmbed", "final_layer": "FinalLayer"}
        groups = {"blocks": "Block", "t_embedder": "TimestepEmbedding"}
    elif single:
        from networks import lora_flux as network
    else:
        from networks import lora_sd3 as network
    root = nn.Module()
    for name in narrow.layers:
        owner, above = root, ""
        *parents, last = name.split(".")
        for part in parents:  # it looks for the classes of blocks by name
            kind = type(blocks.get(part) or groups.get(above) or "Other", (nn.Module,), {})
            if part not in owner._modules:
                owner.add_module(part, kind())
            owner, above = owner.get_submodule(part), part
        weight = narrow.original(name)
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data = weight.clone()
        owner.add_module(last, layer)

    def apply(tensors: dict[str, Tensor]) -> Effects:
        encoders = [nn.Module() for _ in range(2 if single else 3)]
        made = network.create_network_from_weights(
            1.0, None, None, encoders, root, weights_sd=dict(tensors), for_inference=True
        )
        (made[0] if isinstance(made, tuple) else made).merge_to(None, root, dict(tensors), torch.float32, "cpu")
        return {name: root.get_parameter(f"{name}.weight").detach() - narrow.original(name) for name in narrow.layers}

    return apply


LOADERS = {"ComfyUI": comfyui, "sd-scripts": sd_scripts}


def main() -> None:
    """Print a line for each kind and format."""
    program, family = sys.argv[1:3]
    narrow = Narrow(family)
    apply = LOADERS[program](narrow)
    facts = writer.of_family(narrow.family, FAMILIES[narrow.family].first)
    for kind in ("LoRA", "DoRA", "LoHa", "LoKr") if program == "ComfyUI" else ("LoRA",):
        for form in ("kohya", "peft") if kind == "LoRA" and program != "sd-scripts" else ("kohya",):
            modules = narrow.modules(kind)
            data = writer.write(modules, facts, form=form, precision="fp32", family=narrow.family)  # type: ignore[arg-type]
            tensors = load(data)
            effects = apply(dict(tensors))
            errors = {}
            for name in narrow.layers:
                meant = narrow.meant(name, modules)
                got = effects.get(name, torch.zeros_like(meant))
                if float(meant.norm()):
                    errors[name] = float((got.reshape(meant.shape) - meant).norm() / meant.norm())
            wrong = sorted((error, name) for name, error in errors.items() if error > 1e-4)
            print(f"{program} {family} {kind} {form}: {len(tensors)} keys, {len(errors)} layers, worst "
                  f"{max(errors.values()):.1e}, {len(wrong)} wrong, such as {wrong[-1:]}")  # fmt: skip


if __name__ == "__main__":
    main()
