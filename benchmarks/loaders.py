"""Load adapter files with the loading code of other programs, on a narrow base model.

The programs' own code decides which keys match and what is added to the weights. Each function prepares a program in
this process, of which there can be only one, and returns what loads a file.
"""

import contextlib
import logging
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.narrow import TEXT, Base
from benchmarks.narrow_modules import (
    Changes,
    components,
    in_component,
    now,
    of_module,
    of_scripts,
    openclip,
    original,
    tree,
)
from benchmarks.stand_ins import Checkout, StandIns, real, stand_in, stub
from trainer.base_models import layer_names
from trainer.base_models.layer_names import Place


class RefusedError(Exception):
    """The program does not offer the file at all."""


def comfy_names(base: Base) -> dict[str, str]:
    """Names of our layers by the keys of ComfyUI's and Forge's state dicts."""
    prefixes = {"sd15": ("clip_l",), "sd21": ("clip_h",), "sdxl": ("clip_l", "clip_g")}[base.family]
    components = dict(zip(("text_encoder", "text_encoder_2"), prefixes, strict=False))
    names = {f"diffusion_model.{path}": name for path, name in original(base).items()}
    for name in base.shapes:
        place = layer_names.read(name).place
        if place and place.component in components:
            inner = layer_names.peft(place).partition(".")[2]
            names[f"{components[place.component]}.transformer.{inner}"] = name
    return names


UNETS = {
    "sd15": ((1, 2, 4, 4), [1, 1, 1, 1, 1, 1, 0, 0], 1, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
    "sd21": ((1, 2, 4, 4), [1, 1, 1, 1, 1, 1, 0, 0], 1, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
    "sdxl": ((1, 2, 4), [0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10]),
}


def unet_config(base: Base) -> dict[str, Any]:
    multiples, depth, middle, out = UNETS[base.family]
    return {
        "num_res_blocks": [2] * len(multiples), "channel_mult": multiples, "transformer_depth": depth,
        "transformer_depth_middle": middle, "transformer_depth_output": out,
    }  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What ComfyUI and Forge ask of a model: its tensors and its config."""

    tensors: dict[str, Tensor]
    model_config: Any = None
    diffusion_model: Any = None
    config: Any = None

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors


def merged(base: Base, names: dict[str, str], patches: dict[str, Any], merge: Callable[..., Tensor]) -> Changes:
    """Merge patches, by key, into the weights and biases."""
    changes: Changes = {}
    for key, patch in patches.items():
        stem, _, part = key.rpartition(".")
        name, before = names[stem], base.tensor(names[stem], part)
        after = merge([(1.0, patch, 1.0, None, None)], before.clone().float(), key)
        changes[f"{name}.{part}"] = after.reshape(before.shape) - before
    return changes


def comfyui(base: Base) -> Callable[[Path], Changes]:
    Checkout.of("ComfyUI").add(".")
    stand_in("av", "kornia", "torchsde", "torchaudio", "torchvision", "aiohttp", "spandrel",
             "sentencepiece", "alembic", "sqlalchemy", "blake3", "scipy")  # fmt: skip
    sys.argv = sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.lora
    import comfy.lora_convert

    names = comfy_names(base)
    tensors = {f"{key}.{part}": base.tensor(name, part) for key, name in names.items() for part in base.parts(name)}
    model = Held(tensors, types.SimpleNamespace(unet_config=unet_config(base)))

    def load(file: Path) -> Changes:
        from safetensors.torch import load_file

        keys = comfy.lora.model_lora_keys_clip(model, comfy.lora.model_lora_keys_unet(model, {}))
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(file)), keys)
        return merged(base, names, {key: patch for key, patch in patches.items() if key in tensors},
                      comfy.lora.calculate_weight)  # fmt: skip

    return load


def forge(base: Base) -> Callable[[Path], Changes]:
    checkout = Checkout.of("Forge")
    checkout.add(".", "packages_3rdparty", "backend")
    stand_in("backend.memory_management", "backend.operations", "backend.utils", "modules", "modules_forge", first=True)
    stub("backend", __path__=[str(checkout.path / "backend")])
    stub("backend.patcher", __path__=[str(checkout.path / "backend" / "patcher")])
    stub("backend.memory_management", cast_to_device=lambda tensor, device, dtype, copy=False: tensor.to(device, dtype))
    import backend.patcher.lora as lora

    names = comfy_names(base)
    tensors = {f"{key}.{part}": base.tensor(name, part) for key, name in names.items() for part in base.parts(name)}
    config = types.SimpleNamespace(huggingface_repo="stable-diffusion")
    in_unet = {key: tensor for key, tensor in tensors.items() if key.startswith("diffusion_model.")}
    unet = Held(in_unet, config=config, diffusion_model=types.SimpleNamespace(config=unet_config(base)))
    clip = Held({key: tensor for key, tensor in tensors.items() if key not in in_unet})

    def load(file: Path) -> Changes:
        from safetensors.torch import load_file

        # As extensions-builtin/sd_forge_lora/networks.py does in load_lora_for_models.
        for_unet, unmatched = lora.load_lora(load_file(file), lora.model_lora_keys_unet(unet, {}))
        for_clip, unmatched = lora.load_lora(unmatched, lora.model_lora_keys_clip(clip, {}))
        if len(unmatched) > 12:
            raise RefusedError(f"{len(unmatched)} keys left over")
        return merged(base, names, {key: patch for key, patch in {**for_unet, **for_clip}.items() if key in tensors},
                      lora.merge_lora_to_weight)  # fmt: skip

    return load


def a1111(base: Base) -> Callable[[Path], Changes]:
    Checkout.of("A1111").add(".", "extensions-builtin/Lora")
    stand_in("modules", "gradio", "ldm", "sgm", first=True)
    options = types.SimpleNamespace(lora_bundled_ti_to_infotext=False, lora_preferred_name="Filename")
    folder = tempfile.mkdtemp()
    folders = types.SimpleNamespace(lora_dir=folder, lyco_dir_backcompat=folder)
    shared = stub("modules.shared", opts=options, cmd_opts=folders, walk_files=lambda *_, **__: [])
    stub("modules.devices", cpu=torch.device("cpu"), device=torch.device("cpu"), dtype=torch.float32)
    stub("modules.models.sd3.mmdit", QkvLinear=type("QkvLinear", (nn.Linear,), {}))
    from safetensors.torch import load_file

    stub("modules.sd_models", read_state_dict=load_file, read_metadata_from_safetensors=lambda _: {})
    stub("modules.cache", cached_data_for_file=lambda *_: {})
    stub("modules.hashes", sha256_from_cache=lambda *_, **__: "x")

    def load(file: Path) -> Changes:
        # A new model for each file, as it keeps what it applied on the modules.
        fresh = Base.make(base.family)
        unet = tree({f"diffusion_model.{path}": fresh.modules[name] for path, name in original(fresh).items()})
        clip = tree({f"transformer.{path}": fresh.modules[name]
                     for path, name in in_component(fresh, "text_encoder").items()})  # fmt: skip
        splits = []
        if fresh.family == "sd21":
            encoder, split = openclip(fresh, "text_encoder")
            clip = tree({})
            clip.add_module("model", encoder)
            splits.append(split)
        model = types.SimpleNamespace(model=unet, is_sdxl=fresh.family == "sdxl", cond_stage_model=clip)
        if fresh.family == "sdxl":
            encoder, split = openclip(fresh, "text_encoder_2")
            second = tree({})
            second.add_module("model", encoder)
            splits.append(split)
            embedders = [types.SimpleNamespace(wrapped=clip), types.SimpleNamespace(wrapped=second)]
            model.conditioner = types.SimpleNamespace(embedders=embedders)
        shared.sd_model = model
        import networks

        networks.extra_network_lora = types.SimpleNamespace(errors={})
        net = networks.load_network("x", types.SimpleNamespace(filename=str(file)))
        networks.loaded_networks[:] = [net]
        applied = [
            unet,
            *(embedder.wrapped for embedder in getattr(getattr(model, "conditioner", None), "embedders", ())),
        ]

        def apply() -> None:
            networks.assign_network_names_to_compvis_modules(model)
            for root in {*applied, clip}:
                for module in root.modules():
                    # Before a layer computes; the output of attention is computed without its own forward.
                    if type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention):
                        networks.network_apply_weights(module)
            for split in splits:
                split()

        return of_module(fresh, fresh.modules, apply)

    return load


def sdnext(base: Base) -> Callable[[Path], Changes]:
    checkout = Checkout.of("SD.Next")
    checkout.add(".")
    stand_in("modules", "gradio", "rich", "installer", first=True)
    options = types.SimpleNamespace(
        extra_networks_default_multiplier=1.0, lora_fuse_native=True, lora_fuse_diffusers=False,
        lora_force_diffusers=False, diffusers_offload_mode="none",
    )  # fmt: skip
    from safetensors.torch import load_file

    stub("modules", __path__=[str(checkout.path / "modules")])
    kind = "sdxl" if base.family == "sdxl" else "sd"
    shared = stub("modules.shared", opts=options, sd_model_type=kind, sd_loaded=True)
    stub("modules.devices", cpu=torch.device("cpu"), device=torch.device("cpu"), dtype=torch.float32)
    stub("modules.sd_models", read_state_dict=lambda file, what="": load_file(file))
    folder = checkout.path / "modules" / "lora"
    stub("modules.lora", __path__=[str(folder)])
    layers = [f"network_{kind}" for kind in ("lora", "hada", "ia3", "oft", "lokr", "full", "norm", "glora")]
    for name in ("lyco_helpers", "lora_timers", "network", "lora_convert", *layers, "lora_common", "lora_overrides",
                 "lora_diffusers", "lora_load", "lora_apply"):  # fmt: skip
        real(f"modules.lora.{name}", folder / f"{name}.py")
    loading, applying, common = (sys.modules[f"modules.lora.lora_{part}"] for part in ("load", "apply", "common"))

    def load(file: Path) -> Changes:
        fresh = Base.make(base.family)
        model = types.SimpleNamespace(**components(fresh))
        shared.sd_model = model
        loading.lora_cache.clear()
        common.extra_network_lora = types.SimpleNamespace(errors={})
        net = loading.load_safetensors("x", types.SimpleNamespace(filename=str(file)))
        if net is None:
            return {}
        common.loaded_networks[:] = [net]

        def apply() -> None:
            for part in ("text_encoder", "text_encoder_2", "unet"):  # as networks.network_activate does
                root = getattr(model, part, None)
                for module in root.modules() if isinstance(root, nn.Module) else ():
                    layer = getattr(module, "network_layer_name", None)
                    if layer is None or getattr(module, "weight", None) is None:
                        continue
                    applying.network_backup_weights(module, layer, (1,))
                    changes = applying.network_calc_weights(module, layer)
                    applying.network_apply_direct(module, *changes, device=torch.device("cpu"))

        return of_module(fresh, fresh.modules, apply)

    return load


def invokeai(base: Base) -> Callable[[Path], Changes]:
    checkout = Checkout.of("InvokeAI")
    checkout.add(".")
    stand_in("invokeai.app", first=True)
    logs = types.SimpleNamespace(get_logger=logging.getLogger)
    stub("invokeai", __path__=[str(checkout.path / "invokeai")])
    stub("invokeai.backend", __path__=[str(checkout.path / "invokeai" / "backend")])
    stub("invokeai.backend.util", __path__=[str(checkout.path / "invokeai" / "backend" / "util")], InvokeAILogger=logs)
    stub("invokeai.backend.util.logging", InvokeAILogger=logs)
    sys.meta_path.append(StandIns(below=checkout.path))
    from invokeai.backend.model_manager.configs import lora as configs
    from invokeai.backend.model_manager.load.model_cache.torch_module_autocast.torch_module_autocast import (
        apply_custom_layers_to_model,
    )
    from invokeai.backend.model_manager.load.model_loaders import lora as loaders
    from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
    from invokeai.backend.model_manager.taxonomy import BaseModelType
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from safetensors.torch import load_file

    families = {"sd15": BaseModelType.StableDiffusion1, "sd21": BaseModelType.StableDiffusion2,
                "sdxl": BaseModelType.StableDiffusionXL}  # fmt: skip
    kinds = (configs.LoRA_LyCORIS_SD1_Config, configs.LoRA_LyCORIS_SD2_Config, configs.LoRA_LyCORIS_SDXL_Config)

    def load(file: Path) -> Changes:
        disk = ModelOnDisk(file)
        widened = {key: _widened(base, key, tensor) for key, tensor in load_file(file).items()}
        disk.load_state_dict = lambda path=None: widened
        matching = []
        for kind in kinds:
            with contextlib.suppress(configs.NotAMatchError):
                kind._validate_looks_like_lora(disk)
                kind._validate_base(disk)
                matching.append(kind.model_fields["base"].default)
        if families[base.family] not in matching:
            raise RefusedError(f"is taken for {matching}")
        state = {key: value for key, value in load_file(file).items() if not key.startswith("bundle_emb")}
        state = loaders.normalize_peft_adapter_names(state)
        if base.family == "sdxl":
            state = loaders.convert_sdxl_keys_to_diffusers_format(state)
        patch = loaders.lora_model_from_sd_state_dict(state_dict=state)
        fresh = Base.make(base.family)
        te = "lora_te1_" if base.family == "sdxl" else "lora_te_"
        prefixes = {"unet": "lora_unet_", "text_encoder": te, "text_encoder_2": "lora_te2_"}
        models = components(fresh)

        def apply() -> None:
            for component, model in models.items():
                apply_custom_layers_to_model(model)
                LayerPatcher.apply_smart_model_patch(
                    model=model, prefix=prefixes[component], patch=patch, patch_weight=1.0, dtype=torch.float32,
                    original_weights=Kept(), original_modules={}, force_direct_patching=True,
                    force_sidecar_patching=False,
                )  # fmt: skip

        return of_module(fresh, {**fresh.modules, **now(fresh, models)}, apply)

    return load


def _widened(base: Base, key: str, tensor: Tensor) -> Tensor:
    """A tensor without values, of a text encoder's real width, by which families are told."""
    widths = {"lora_te_": 1024 if base.family == "sd21" else 768, "lora_te1_": 768, "lora_te2_": 1280}
    width = next((width for prefix, width in widths.items() if key.startswith(prefix)), 0)
    if not width or tensor.dim() < 2 or key.endswith(("lokr_w1", "lokr_w1_b")):
        return tensor.to("meta")
    return torch.empty(
        (tensor.shape[0], tensor.shape[1] * width // TEXT["hidden_size"], *tensor.shape[2:]), device="meta"
    )


class Kept:
    def save(self, *_: object) -> None:
        """Keep nothing: the model is thrown away."""


def sd_scripts(base: Base) -> Callable[[Path], Changes]:
    checkout = Checkout.of("sd-scripts")
    checkout.add(".")
    sys.meta_path.append(StandIns(below=checkout.path))
    from networks import lora

    def load(file: Path) -> Changes:
        fresh = Base.make(base.family)
        encoders, unet = of_scripts(fresh, lora.SdxlUNet2DConditionModel)
        encoder = encoders if base.family == "sdxl" else encoders[0]
        network, weights = lora.create_network_from_weights(1.0, str(file), None, encoder, unet, for_inference=True)
        apply = lambda: network.merge_to(encoder, unet, weights, torch.float32, "cpu")  # noqa: E731
        return of_module(fresh, fresh.modules, apply)

    return load


def lycoris(base: Base) -> Callable[[Path], Changes]:
    """What sd-scripts' `--network_module lycoris.kohya` loads."""
    Checkout.of("LyCORIS").add(".")
    stand_in("toml")
    from lycoris import kohya

    def load(file: Path) -> Changes:
        fresh = Base.make(base.family)
        encoders, unet = of_scripts(fresh)
        encoder = encoders if base.family == "sdxl" else encoders[0]
        network, weights = kohya.create_network_from_weights(1.0, str(file), None, encoder, unet, for_inference=True)
        return of_module(fresh, fresh.modules, lambda: network.merge_to(encoder, unet, weights, torch.float32, "cpu"))

    return load


def diffusers(base: Base) -> Callable[[Path], Changes]:
    """The installed version, on a pipeline of the narrow models."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def load(file: Path) -> Changes:
        pipeline = base.pipeline()
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="default")
        changes = {}
        for component in ("unet", "text_encoder", "text_encoder_2"):
            for path, module in (getattr(pipeline, component, None) or nn.Module()).named_modules():
                if isinstance(module, BaseTunerLayer):
                    name = layer_names.kohya(Place(component, path.removeprefix("text_model.")), base.family)
                    own = dict(module.get_base_layer().named_parameters())
                    for part, parameter in own.items():
                        parameter.data.copy_(base.tensor(name, part))
                    before = {part: parameter.detach().clone() for part, parameter in own.items()}
                    module.merge()
                    changes |= {f"{name}.{part}": own[part].detach() - tensor for part, tensor in before.items()}
        return changes

    return load


LOADERS = {"ComfyUI": comfyui, "Forge": forge, "diffusers": diffusers, "A1111": a1111, "SD.Next": sdnext,
           "InvokeAI": invokeai, "sd-scripts": sd_scripts, "LyCORIS": lycoris}  # fmt: skip
