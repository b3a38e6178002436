"""Write adapter files for a narrow base model in the forms of Limner and of other makers, which their names tell.

Values are random: what counts is which tensors a file has, under which names, and what they are meant to do.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.loaders import comfy_names
from benchmarks.narrow import Base
from trainer.adapter_files import safetensors_reader, writer
from trainer.adapter_files.modules import Module
from trainer.adapter_files.peft_settings import METADATA
from trainer.base_models import layer_names

RANK = 4
Parts = dict[str, Tensor]


def random(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape)


def down_up(shape: tuple[int, ...], rank: int = RANK) -> Parts:
    ones = (1,) * (len(shape) - 2)
    return {"lora_down.weight": random(rank, *shape[1:]), "lora_up.weight": random(shape[0], rank, *ones)}


def lora(shape: tuple[int, ...], alpha: float = 2.0) -> Parts:
    return {**down_up(shape), "alpha": torch.tensor(alpha)}


def magnitudes(shape: tuple[int, ...], *, by_input: bool) -> Tensor:
    ones = (1,) * (len(shape) - 2)
    return torch.rand((1, shape[1], *ones) if by_input else (shape[0], 1, *ones)) + 0.5


def dora(shape: tuple[int, ...], *, by_input: bool, alpha: float = RANK) -> Parts:
    return {**lora(shape, alpha), "dora_scale": magnitudes(shape, by_input=by_input)}


def tucker(shape: tuple[int, ...]) -> Parts:
    if len(shape) == 2 or shape[2] == 1:
        return lora(shape)
    parts = {"lora_down.weight": random(RANK, shape[1], 1, 1), "lora_up.weight": random(shape[0], RANK, 1, 1)}
    return {**parts, "lora_mid.weight": random(RANK, RANK, *shape[2:]), "alpha": torch.tensor(2.0)}


def loha(shape: tuple[int, ...], *, cores: bool = False, alpha: float = RANK) -> Parts:
    columns = torch.Size(shape[1:]).numel()
    parts = {"alpha": torch.tensor(alpha)}
    for one in (1, 2):
        if cores and len(shape) == 4 and shape[2] > 1:
            parts |= {f"hada_w{one}_a": random(RANK, shape[0]), f"hada_w{one}_b": 10 * random(RANK, shape[1]),
                      f"hada_t{one}": random(RANK, RANK, *shape[2:])}  # fmt: skip
        else:
            parts |= {f"hada_w{one}_a": random(shape[0], RANK), f"hada_w{one}_b": 10 * random(RANK, columns)}
    return parts


def lokr_with_cores(shape: tuple[int, ...]) -> Parts:
    """As LyCORIS with `use_tucker`, which has cores for convolutions of more than 1 x 1."""
    if len(shape) == 2 or shape[2] == 1:
        return lokr(shape)
    sides = {"lokr_w2_a": random(2, shape[0] // 4), "lokr_w2_b": random(2, shape[1] // 4)}
    core = {"lokr_t2": 10 * random(2, 2, *shape[2:])}
    return {"lokr_w1": 10 * random(4, 4), "alpha": torch.tensor(2.0), **sides, **core}


def dylora(shape: tuple[int, ...]) -> Parts:
    """As LyCORIS, which leaves the ups of convolutions flat."""
    parts = lora(shape)
    return {**parts, "lora_up.weight": parts["lora_up.weight"].flatten(1)}


def loha_of_onetrainer(shape: tuple[int, ...]) -> Parts:
    """Factors of convolutions in the shape of convolutions."""
    parts, ones = loha(shape), (1,) * (len(shape) - 2)
    for number in (1, 2):
        parts[f"hada_w{number}_a"] = parts[f"hada_w{number}_a"].reshape(shape[0], RANK, *ones)
        parts[f"hada_w{number}_b"] = parts[f"hada_w{number}_b"].reshape(RANK, *shape[1:])
    return parts


def ai_toolkit_dora(shape: tuple[int, ...]) -> Parts:
    return {**down_up(shape), "magnitude": magnitudes(shape, by_input=False).flatten()}


def lokr(shape: tuple[int, ...], form: str = "low", alpha: float = 2.0) -> Parts:
    """Of rank 2, or 1 if both are factored: LyCORIS has whole matrices where the rank is half a side or more."""
    factor, rank = 4, 2
    out, into = shape[0] // factor, shape[1] // factor
    kernel = torch.Size(shape[2:]).numel()
    parts = {"lokr_w1": 10 * random(factor, factor), "alpha": torch.tensor(alpha)}
    if form == "whole":
        return {**parts, "lokr_w2": random(out, into, *shape[2:])}
    if form == "both":
        rank = 1
        sides = {"lokr_w1_a": 10 * random(factor, rank), "lokr_w1_b": 10 * random(rank, factor)}
        parts = {**sides, "alpha": torch.tensor(1.0)}
    return {**parts, "lokr_w2_a": random(out, rank), "lokr_w2_b": random(rank, into * kernel)}


def glora(shape: tuple[int, ...]) -> Parts:
    ones = (1,) * (len(shape) - 2)
    return {
        "a1.weight": random(shape[1], RANK, *ones), "a2.weight": random(RANK, shape[1], *ones),
        "b1.weight": random(shape[0], RANK, *ones), "b2.weight": random(RANK, *shape[1:]), "alpha": torch.tensor(2.0),
    }  # fmt: skip


def oft(shape: tuple[int, ...], alpha: float = 0.0) -> Parts:
    return {"oft_blocks": random(shape[0] // 4, 4, 4), "alpha": torch.tensor(alpha)}


def oft_of_onetrainer(shape: tuple[int, ...], *, scaled: bool = False) -> Parts:
    """Rotations of inputs, in blocks of four."""
    parts = {"oft_R.weight": random(torch.Size(shape[1:]).numel() // 4, 6)}
    return {**parts, "oft_R.scaled_oft": torch.tensor(1.0)} if scaled else parts


def boft(shape: tuple[int, ...]) -> Parts:
    count = shape[0] // 4
    return {"oft_blocks": random((count - 1).bit_count() + 1, count, 4, 4), "alpha": torch.tensor(0.0)}


def full(shape: tuple[int, ...]) -> Parts:
    return {"diff": random(*shape)}


def ia3(shape: tuple[int, ...]) -> Parts:
    ones = (1,) * (len(shape) - 2)
    return {"weight": random(1, shape[0], *ones) if ones else random(shape[0]), "on_input": torch.tensor(0)}


def usual(base: Base, *, text: bool = True, conv: bool = False) -> Iterator[str]:
    """Layers that adapters usually have: attention and feed-forward, and text encoders; with convolutions, if asked."""
    for name, shape in base.shapes.items():
        place = layer_names.read(name).place
        assert place
        convolution = ".resnets." in place.path or "samplers" in place.path
        if len(shape) == 1 or place.block == "outside" or place.path == layer_names.TEXT_PROJECTION:
            continue
        if (convolution and not conv) or (place.component != "unet" and not text):
            continue
        yield name


def adapter(base: Base, make: Callable[[tuple[int, ...]], Parts], *, text: bool = True, conv: bool = False) -> Parts:
    tensors = {}
    for name in usual(base, text=text, conv=conv):
        tensors |= {f"{name}.{ending}": part for ending, part in make(base.shapes[name]).items()}
    return tensors


def renamed(tensors: Parts, name_of: Callable[[str], str], endings: dict[str, str]) -> Parts:
    new = {}
    for key, tensor in tensors.items():
        name, _, ending = key.partition(".")
        if endings.get(ending, ending):
            new[f"{name_of(name)}{endings.get(ending, '.' + ending)}"] = tensor
    return new


def dotted(name: str) -> str:
    return layer_names.peft(writer.place_of(name))


OFT_SETTINGS = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "coft": False, "eps": 6e-5}
PEFT = {"lora_down.weight": ".lora_A.weight", "lora_up.weight": ".lora_B.weight", "alpha": "",
        "dora_scale": ".lora_magnitude_vector.weight"}  # fmt: skip


def peft(tensors: Parts, name_of: Callable[[str], str] = dotted) -> Parts:
    """Tensors as PEFT names and shapes them."""
    new = renamed(tensors, name_of, PEFT)
    flat = {key: tensor.flatten() for key, tensor in new.items() if "magnitude" in key and tensor.dim() == 2}
    return {**new, **flat, **{key: tensor.transpose(0, 1) for key, tensor in new.items()
                              if "magnitude" in key and tensor.dim() == 4}}  # fmt: skip


def processors(name: str) -> str:
    """As diffusers named attention in 2023."""
    return dotted(name).replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")


def in_2023(name: str, ending: str) -> str:
    """The key of a tensor as diffusers had it in 2023, in its processors of attention and in text encoders."""
    side = "down" if ending == "lora_down.weight" else "up"
    part = "_lora" if ".processor." in name else ".lora_linear_layer" if name.startswith("text_") else ".lora"
    return f"{name}{part}.{side}.weight"


def diffusers_of_2023(tensors: Parts) -> Parts:
    split = ((*key.partition(".")[::2], tensor) for key, tensor in tensors.items())
    return {in_2023(processors(name), ending): tensor for name, ending, tensor in split if ending != "alpha"}


def diffusers_of_peft(tensors: Parts) -> Parts:
    """As diffusers' `convert_state_dict_to_diffusers`: attention as in 2023, all other layers as PEFT has them."""
    from diffusers.utils import convert_state_dict_to_diffusers

    converted: Parts = convert_state_dict_to_diffusers(peft(tensors))
    return converted


def kohya_of_diffusers(tensors: Parts) -> Parts:
    from diffusers.utils import convert_state_dict_to_kohya

    converted: Parts = convert_state_dict_to_kohya(peft(tensors))
    return converted


def modules_of(tensors: Parts) -> dict[str, Module]:
    from trainer.adapter_files import reader

    return dict(reader.of_tensors(tensors, "x").modules)


def settings(tensors: Parts) -> dict[str, str]:
    """What diffusers writes beside its tensors."""
    data = writer.write(modules_of(tensors), {}, form="peft", precision="fp32", strip=True)
    return safetensors_reader.parse(data, "x").metadata


def with_biases(metadata: dict[str, str]) -> dict[str, str]:
    """The settings of adapters as PEFT has them for `lora_bias=True`; it takes layers that have a bias."""
    parts = json.loads(metadata[METADATA])
    parts |= {f"{key.partition('.')[0]}.lora_bias": True for key in parts}
    return metadata | {METADATA: json.dumps(parts)}


def own(base: Base) -> Iterator[tuple[str, Parts]]:
    """Kinds that Limner trains, as its writer names and scales them."""
    for text in (True, False):
        where = "" if text else ", UNet only"
        for conv in (False, True):
            kinds: dict[str, Callable[[tuple[int, ...]], Parts]] = {
                "LoRA": lora, "rsLoRA": lambda shape: lora(shape, 8.0),
                "DoRA": lambda shape: dora(shape, by_input=True), "LoHa": loha, "LoKr": lokr,
                "whole LoKr": lambda shape: lokr(shape, "whole", 1.0),
            }  # fmt: skip
            for kind, make in kinds.items():
                yield (
                    f"Limner {kind}{' of convolutions' if conv else ''}{where}",
                    adapter(base, make, text=text, conv=conv),
                )


def others(base: Base) -> Iterator[tuple[str, Parts, dict[str, str]]]:
    """Files as other makers write them."""
    for text in (True, False):
        where = "" if text else ", UNet only"
        equal, half = adapter(base, lambda s: lora(s, RANK), text=text), adapter(base, lora, text=text)
        yield f"diffusers, alpha = rank{where}", peft(equal), settings(equal)
        yield f"diffusers, alpha = rank, no settings{where}", peft(equal), {}
        yield f"diffusers, alpha = rank / 2{where}", peft(half), settings(half)
        yield (
            f"diffusers of 2023, processors{where}",
            renamed(
                equal,
                processors,
                {"lora_down.weight": ".lora_A.weight", "lora_up.weight": ".lora_B.weight", "alpha": ""},
            ),
            {},
        )
        yield f"diffusers, DoRA{where}", peft(adapter(base, lambda s: dora(s, by_input=False), text=text)), {}
        yield (
            f"PEFT{where}",
            peft(equal, lambda name: "base_model.model." + dotted(name).partition(".")[2]) if not text else {},
            {},
        )
        yield f"kohya, no alpha{where}", {k: v for k, v in equal.items() if not k.endswith("alpha")}, {}
        lycoris: dict[str, Callable[[tuple[int, ...]], Parts]] = {
            "LoCon": lora, "LoCon, Tucker": tucker, "DoRA": lambda s: dora(s, by_input=False, alpha=2.0),
            "DoRA, Tucker": lambda s: {**tucker(s), "dora_scale": magnitudes(s, by_input=False)},
            "DoRA, wd_on_output=False": lambda s: dora(s, by_input=True, alpha=2.0), "LoHa": loha,
            "LoHa, alpha = rank / 2": lambda s: loha(s, alpha=2.0), "LoHa, Tucker": lambda s: loha(s, cores=True),
            "LoHa with DoRA": lambda s: {**loha(s), "dora_scale": magnitudes(s, by_input=False)},
            "LoHa with DoRA by input": lambda s: {**loha(s), "dora_scale": magnitudes(s, by_input=True)},
            "DyLoRA": dylora, "LoKr": lokr, "LoKr, Tucker": lokr_with_cores,
            "LoKr, alpha = rank / 2": lambda s: lokr(s, alpha=1.0),
            "LoKr, both factored": lambda s: lokr(s, "both"),
            "LoKr with DoRA": lambda s: {**lokr(s), "dora_scale": magnitudes(s, by_input=False)},
            "GLoRA": glora, "OFT": oft, "OFT, constrained": lambda s: oft(s, 1e-3), "BOFT": boft, "full": full,
            "IA3": ia3,
        }  # fmt: skip
        for kind, make in lycoris.items():
            for conv in (False, True):
                tensors = adapter(base, make, text=text, conv=conv)
                yield f"LyCORIS {kind}{' of convolutions' if conv else ''}{where}", tensors, {}
        for conv in (False, True):
            of_what = " of convolutions" if conv else ""
            equal_too = adapter(base, lambda s: lora(s, RANK), text=text, conv=conv)
            yield f"diffusers, convert_state_dict_to_diffusers{of_what}{where}", diffusers_of_peft(equal_too), {}
            yield f"diffusers, convert_state_dict_to_kohya{of_what}{where}", kohya_of_diffusers(equal_too), {}
            yield f"OneTrainer LoHa{of_what}{where}", adapter(base, loha_of_onetrainer, text=text, conv=conv), {}
            yield f"OneTrainer OFT{of_what}{where}", adapter(base, oft_of_onetrainer, text=text, conv=conv), {}
            scaled_oft = adapter(base, lambda s: oft_of_onetrainer(s, scaled=True), text=text, conv=conv)
            yield f"OneTrainer OFT, scaled{of_what}{where}", scaled_oft, {}
        yield f"diffusers of 2023{where}", diffusers_of_2023(equal), {}
        yield f"ai-toolkit DoRA{where}", adapter(base, ai_toolkit_dora, text=text), {}
        constrained = adapter(base, lambda s: oft(s, 1e-3), text=text)
        renamed_oft = {key.replace("lora_unet_", "oft_unet_"): tensor for key, tensor in constrained.items()}
        yield f"sd-scripts OFT{where}", renamed_oft if not text else {}, {}
        norms = {name: shape for name, shape in base.shapes.items() if len(shape) == 1 and "final" not in name
                 and writer.place_of(name).block != "outside" and (text or name.startswith("lora_unet_"))}  # fmt: skip
        changes = {f"{name}.{one}_norm": random(*shape) for name, shape in norms.items() for one in "wb"}
        yield f"LyCORIS LoRA and norms{where}", half | changes, {}
        yield f"ai-toolkit LoKr{where}", adapter(base, lambda s: lokr(s, "whole", 1e10), text=text), {}
        biases = {
            f"{name}.diff_b": random(base.shapes[name][0])
            for name in usual(base, text=text)
            if len(base.parts(name)) == 2
        }
        yield f"LoRA and biases{where}", half | biases, {}
        of_peft = {f"{dotted(key.partition('.')[0])}.lora_B.bias": bias for key, bias in biases.items()}
        biased = {key: tensor for key, tensor in half.items() if f"{key.partition('.')[0]}.diff_b" in biases}
        yield f"PEFT LoRA with biases{where}", peft(biased) | of_peft, with_biases(settings(biased))
        no_conv = {key: tensor for key, tensor in adapter(base, oft_of_onetrainer, text=text).items()}
        of_unet = {f"unet.{key}": value for key, value in OFT_SETTINGS.items()}
        by_peft = {METADATA: json.dumps(of_unet)}
        yield f"PEFT OFT{where}", renamed(no_conv, dotted, {}) if not text else {}, by_peft
    equal = adapter(base, lambda s: lora(s, RANK))
    yield "OneTrainer DoRA", adapter(base, lambda s: dora(s, by_input=True, alpha=1.0)), {}
    yield "OneTrainer LoRA and embedding", equal | {"bundle_emb.rin.string_to_param.*": random(1, 8)}, {}
    if base.family == "sdxl":
        projection = {
            f"lora_te2_text_projection.{k}": v for k, v in lora(base.shapes["lora_te2_text_projection"]).items()
        }
        yield "OneTrainer LoRA, text projection", equal | projection, {}
    else:
        yield "kohya, lora_te1_ in 1.x or 2.x", {k.replace("lora_te_", "lora_te1_"): v for k, v in equal.items()}, {}
    generic = {name: key if key.startswith("diffusion_model.") else f"text_encoders.{key}"
               for key, name in comfy_names(base).items()}  # fmt: skip
    for where, names in (("", {*usual(base)}), (", UNet only", {*usual(base, text=False)})):
        parts = {key: tensor for key, tensor in equal.items() if key.partition(".")[0] in names}
        yield f"ComfyUI, extracted{where}", renamed(parts, generic.__getitem__, {"alpha": ""}), {}
    flat = {name: f"lora_unet_{writer.place_of(name).path.replace('.', '_')}" for name in base.shapes if "unet" in name}
    yield "LoRA, blocks of diffusers", renamed(equal, lambda name: flat.get(name, name), {}), {}
    yield (
        "SimpleTuner LyCORIS",
        renamed(adapter(base, lokr, text=False), lambda name: flat[name].replace("lora_unet_", "lycoris_"), {}),
        {},
    )


def write_all(base: Base, folder: Path, only: str = "") -> list[Path]:
    """Write all files whose name has a text in it; their values are the same in each run."""
    folder.mkdir(parents=True, exist_ok=True)
    of_family = writer.of_family(base.family, "epsilon")
    paths = []

    def add(name: str, data: bytes) -> None:
        paths.append(folder / f"{name.replace('/', 'over')}.safetensors")
        paths[-1].write_bytes(data)

    torch.manual_seed(0)
    for name, tensors in own(base):
        if only in name:
            modules = modules_of(tensors)
            add(name, writer.write(modules, of_family, form="kohya", precision="fp16"))
            if "DoRA" not in name and "conv" not in name:
                data = writer.write(modules, of_family, form="peft", precision="fp16", family=base.family)
                add(f"{name}, PEFT", data)
    for name, tensors, metadata in others(base):
        if tensors and only in name:
            add(name, save({key: tensor.half().contiguous() for key, tensor in tensors.items()}, of_family | metadata))
    return paths
