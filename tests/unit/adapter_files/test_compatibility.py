"""Broken files: each is told apart, in the right words, for the programs that stumble over it and for no other."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from trainer.adapter_files import compatibility, programs, writer
from trainer.adapter_files.modules import Lora, Module
from trainer.adapter_files.writer import Form
from trainer.base_models import layer_names, layer_shapes, registry, transformer_names
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import FamilyName

PROGRAMS = " ".join(program.name for program in compatibility.PROGRAMS)
LAYERS = ("attn1.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj")
LAYERS += tuple(f"layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
LAYERS += ("layers.3.mlp.fc1", "1.resnets.0.conv1", "2.attentions.0.proj_in")
FAMILIES: tuple[FamilyName, ...] = ("sd15", "sd21", "sdxl")
Tensors = dict[str, Tensor]


def good(family: FamilyName = "sd15", model: str = "") -> Tensors:
    """A LoRA of some layers of every kind, of the real sizes."""
    tensors = {}
    for name, shape in layer_shapes.known(model or family).items():
        component, _, path = name.partition(":")
        place = Place(component, path)
        is_first = not re.search(r"transformer_blocks\.[1-9]", path)  # of many that are alike
        if path.endswith(LAYERS) and place.block != "outside" and is_first:
            module = layer_names.kohya(place, family)
            tensors[f"{module}.alpha"] = torch.tensor(1.0)
            tensors[f"{module}.lora_down.weight"] = torch.ones(2, *shape[1:], dtype=torch.float16)
            tensors[f"{module}.lora_up.weight"] = torch.ones(shape[0], 2, *[1] * (len(shape) - 2), dtype=torch.float16)
    return tensors


def metadata(family: FamilyName = "sd15") -> dict[str, str]:
    return writer.of_family(family, "epsilon")


def check(tmp_path: Path, tensors: Tensors, facts: dict[str, str] | None = None) -> compatibility.Report:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, facts or {}))
    return compatibility.check(path)


def failed(report: compatibility.Report) -> dict[str, str]:
    return {verdict.program: verdict.words for verdict in report.verdicts if not verdict.loads}


def outcomes(report: compatibility.Report) -> dict[str, str]:
    """Return the programs that do not apply a file as meant, by what they do."""
    programs: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        if verdict.outcome != "right":
            programs.setdefault(verdict.outcome, []).append(verdict.program)
    return {outcome: " ".join(names) for outcome, names in programs.items()}


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


def one_layer(tensors: Tensors, ending: str = "attn2_to_k") -> str:
    return next(key.partition(".")[0] for key in tensors if f"{ending}." in key)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_file_loads_everywhere(tmp_path: Path, family: FamilyName) -> None:
    tensors = good(family)
    report = check(tmp_path, tensors, metadata(family))
    assert check(tmp_path, tensors).good, "without metadata, too"
    assert report.good, (report.problems, failed(report))
    assert {verdict.words for verdict in report.verdicts} == {f"loads: all {len(tensors)} keys"}
    assert len(report.verdicts) == 7


def without(tensors: Tensors, ending: str) -> Tensors:
    lost = f"{one_layer(tensors)}.{ending}"
    return {key: tensor for key, tensor in tensors.items() if key != lost}


def with_nan(tensors: Tensors) -> Tensors:
    key = f"{one_layer(tensors)}.lora_up.weight"
    return {**tensors, key: tensors[key].index_fill(0, torch.tensor(3), float("nan"))}


def named(tensors: Tensors, path_of: Callable[[Place], str]) -> Tensors:
    changed = {}
    for key, tensor in tensors.items():
        name, _, ending = key.partition(".")
        place = layer_names.read(name).place
        assert place
        path = path_of(place)
        changed[f"lora_unet_{path.replace('.', '_')}.{ending}" if path else key] = tensor
    return changed


def mixed(tensors: Tensors) -> Tensors:
    return named(tensors, lambda place: place.path if place.block == "mid_block" else "")


def original(tensors: Tensors) -> Tensors:
    return named(tensors, lambda place: layer_names.original(place.path) if place.component == "unet" else "")


TWO = torch.tensor(2.0)


def pair(name: str, rows: int, columns: int, *, peft: bool = False, alpha: float = 0.0) -> Tensors:
    """Return a LoRA of a layer; alpha 0 = without."""
    down, up = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
    tensors = {f"{name}.{down}.weight": torch.ones(2, columns), f"{name}.{up}.weight": torch.ones(rows, 2)}
    return tensors | ({f"{name}.alpha": torch.tensor(alpha)} if alpha else {})


def parts_of(kind: str, down: Tensor, up: Tensor) -> Tensors:
    """Return the tensors of a layer of another kind, for the weight that a LoRA of rank 2 changes."""
    rows, columns, kernel, is_convolution = len(up), down.flatten(1).shape[1], down.shape[2:], down.dim() == 4
    narrow = down[:, :, :1, :1] if is_convolution else down
    by_output = {"dora_scale": torch.ones(rows, *[1] * (up.dim() - 1))}
    by_input = {"dora_scale": torch.ones(1, down.shape[1], *[1] * len(kernel))}
    plain = {"lora_down.weight": down, "lora_up.weight": up}
    lora = plain | {"alpha": TWO}
    tucker = lora | {"lora_down.weight": narrow, "lora_mid.weight": torch.ones(2, 2, *kernel)}
    loha = {f"hada_w{n}_a": torch.ones(rows, 2) for n in (1, 2)} | {"alpha": TWO}
    loha |= {f"hada_w{n}_b": torch.ones(2, columns) for n in (1, 2)}
    lokr = {"lokr_w1": torch.ones(4, 4), "alpha": TWO}
    cores = {"lokr_t2": torch.ones(2, 2, *kernel), "lokr_w2_a": torch.ones(2, rows // 4)}
    cores["lokr_w2_b"] = torch.ones(2, down.shape[1] // 4)
    factors = {"lokr_w2_a": torch.ones(rows // 4, 2), "lokr_w2_b": torch.ones(2, columns // 4)}
    glora = {"a1.weight": narrow.transpose(0, 1), "a2.weight": narrow, "b1.weight": up, "b2.weight": down}
    ia3 = {"weight": torch.ones(rows, 1, 1, 1), "on_input": torch.tensor(0.0)}
    blocks = torch.ones(rows // 4, 4, 4)
    kinds: dict[str, Tensors] = {
        "LoHa": loha,
        "LoHa whose alpha is not its rank": loha | {"alpha": TWO / 2},
        "LoHa with DoRA": loha | by_output,
        # The factors of a convolution have the shapes of convolutions.
        "LoHa of OneTrainer": {f"hada_w{n}_{end}": part for n in (1, 2) for end, part in (("a", up), ("b", down))}
        | {"alpha": TWO},
        "LoKr": lokr | factors,
        "Tucker LoKr": lokr | (cores if is_convolution and kernel[0] > 1 else factors),
        "DoRA": lora | by_output,
        "DoRA with a length for each input": lora | by_input,
        "DoRA of ai-toolkit": plain | {"magnitude": torch.ones(rows)},
        "DoRA with cores": (tucker if is_convolution else lora) | by_output,
        "Tucker LoCon": tucker if is_convolution else lora,
        "DyLoRA of LyCORIS": lora | {"lora_up.weight": up.flatten(1)},
        "LoRA and bias": plain | {"alpha": torch.tensor(1.0), "diff_b": torch.ones(rows)},
        "IA3 of a convolution": ia3 if is_convolution else lora,
        "GLoRA": glora | {"alpha": TWO},
        "OFT": {"oft_blocks": blocks, "alpha": torch.tensor(0.0)},
        "constrained OFT": {"oft_blocks": blocks, "alpha": torch.tensor(1e-3)},
        "OFTv2": {"oft_R.weight": torch.ones(columns // 4, 6)},
        "BOFT": {"oft_blocks": torch.stack([blocks, blocks]), "alpha": torch.tensor(0.0)},
        "full, in part": lora if rows > 320 else {"diff": torch.ones(rows, *down.shape[1:], dtype=torch.float16)},
    }
    return kinds[kind]


def made(kind: str) -> Callable[[Tensors], Tensors]:
    def change(plain: Tensors) -> Tensors:
        names = sorted({key.partition(".")[0] for key in plain})
        layers = {
            name: parts_of(kind, *(plain[f"{name}.lora_{end}.weight"] for end in ("down", "up"))) for name in names
        }
        return {f"{name}.{ending}": part for name, parts in layers.items() for ending, part in parts.items()}

    return change


ALL = PROGRAMS
Case = tuple[FamilyName, Callable[[Tensors], Tensors], str, str, str]
# Family, what is done to a good file, the programs that fail, and what one of them says.
BROKEN: dict[str, Case] = {
    "no alpha in one layer": (
        "sd15",
        lambda t: without(t, "alpha"),
        ALL.replace("diffusers ", ""),
        "ComfyUI",
        "has no alpha",
    ),
    "no alpha at all": (
        "sd15",
        lambda t: {k: v for k, v in t.items() if not k.endswith("alpha")},
        ALL,
        "diffusers",
        "no layer has an alpha",
    ),
    "lora_te1_ on SD 1.5": (
        "sd15",
        lambda t: renamed(t, "lora_te_", "lora_te1_"),
        "InvokeAI sd-scripts SD.Next",
        "sd-scripts",
        "silently left out",
    ),
    "lora_te_ on XL": (
        "sdxl",
        lambda t: renamed(t, "lora_te1_", "lora_te_"),
        "A1111 InvokeAI sd-scripts SD.Next",
        "A1111",
        "match nothing (lora_te_text_model",
    ),
    "no text_model": ("sd15", lambda t: renamed(t, "text_model_", ""), ALL, "ComfyUI", "match nothing"),
    "names of both kinds": ("sdxl", mixed, "InvokeAI sd-scripts", "InvokeAI", "both kinds of names"),
    "each layer under both names": (
        "sdxl",
        lambda t: t | mixed(t),
        "InvokeAI sd-scripts diffusers",
        "diffusers",
        "is there twice",
    ),
    "SD 1.5 under original names": (
        "sd15",
        original,
        "InvokeAI sd-scripts diffusers SD.Next",
        "sd-scripts",
        "match nothing",
    ),
    "not a number": ("sd15", with_nan, ALL, "diffusers", "not finite"),
    "half a layer": ("sd15", lambda t: without(t, "lora_up.weight"), ALL, "sd-scripts", "lacks a tensor"),
    "wrong size": (
        "sd15",
        lambda t: t | {f"{one_layer(t, 'ff_net_0_proj')}.lora_up.weight": torch.ones(100, 2)},
        ALL,
        "ComfyUI",
        "has a wrong size: it reshapes what does not fit",
    ),
    "one more key": (
        "sd15",
        lambda t: {**t, "bundle_emb.x.string_to_param.*": torch.ones(1)},
        "diffusers",
        "diffusers",
        "only if all keys have its prefixes",
    ),
    "a text encoder without out_proj": (
        "sd15",
        lambda t: {k: v for k, v in t.items() if "out_proj" not in k},
        "diffusers",
        "diffusers",
        "without an out_proj among them",
    ),
    "a layer that XL lacks": (
        "sdxl",
        lambda t: renamed(t, "input_blocks_4_1", "input_blocks_1_1"),
        ALL,
        "sd-scripts",
        "match nothing (lora_unet_input_blocks_1_1",
    ),
    "OpenCLIP's attention in part": (
        "sd21",
        lambda t: {k: v for k, v in t.items() if "v_proj" not in k},
        "A1111",
        "A1111",
        "layers are without effect",
    ),
    "OneTrainer's text projection": (
        "sdxl",
        lambda t: t | pair("lora_te2_text_projection", 1280, 1280, alpha=2.0),
        "A1111 sd-scripts",
        "A1111",
        "",
    ),
    "LoHa": ("sd15", made("LoHa"), "diffusers", "diffusers", ""),
    "LoHa whose alpha is not its rank": (
        "sd15",
        made("LoHa whose alpha is not its rank"),
        "sd-scripts diffusers",
        "sd-scripts",
        "alpha / rank twice",
    ),
    "LoKr": ("sd15", made("LoKr"), "InvokeAI diffusers", "InvokeAI", "cannot detect the family"),
    "DoRA with a length for each input": (
        "sd15",
        made("DoRA with a length for each input"),
        "sd-scripts diffusers",
        "sd-scripts",
        "wd_on_output=False",
    ),
    "IA3 of a convolution": ("sdxl", made("IA3 of a convolution"), ALL, "InvokeAI", "stops at IA3 of a convolution"),
}


@pytest.mark.parametrize(("family", "damage", "programs", "program", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file(
    tmp_path: Path, family: FamilyName, damage: Callable[[Tensors], Tensors], programs: str, program: str, words: str
) -> None:
    report = check(tmp_path, damage(good(family)), metadata(family))
    assert not report.good
    assert " ".join(failed(report)) == programs
    assert words in failed(report)[program]


def test_each_program_that_ruins_a_dora_says_how(tmp_path: Path) -> None:
    report = check(tmp_path, made("DoRA")(good()), metadata())
    assert outcomes(report) == {"differs": "ComfyUI A1111 Forge InvokeAI diffusers"}
    expected = dict.fromkeys(("A1111", "InvokeAI"), "ruins the images") | {"diffusers": "applies the LoRA alone"}
    words = {verdict.program: verdict.words for verdict in report.verdicts}
    for program, part in (expected | dict.fromkeys(("ComfyUI", "Forge"), "off by about 6 %")).items():
        assert part in words[program]
    assert words["sd-scripts"].endswith("with --network_module lycoris.kohya")
    of_lokr = {verdict.program: verdict for verdict in check(tmp_path, made("LoKr")(good()), metadata()).verdicts}
    assert (of_lokr["A1111"].loads, "fp16" in of_lokr["A1111"].words) == (True, True), "of a LoKr with factors"


def test_the_rules_of_each_program_say_when_its_code_was_read() -> None:
    """Half a year ago at most, as of the last change of the rules."""
    for program in compatibility.PROGRAMS:
        assert "2026-05-30" <= program.read <= "2026-11-30"
        assert f"{program.name} {program.commit} ({program.read})" in programs.sources()


def with_endings(tensors: Tensors, name_of: Callable[[str], str]) -> Tensors:
    """The UNet's layers in PEFT's format, without alpha."""
    changed = {}
    for key, tensor in tensors.items():
        name, _, ending = key.partition(".")
        place = layer_names.read(name).place
        if place and place.component == "unet" and ending != "alpha":
            part = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}[ending]
            changed[f"{name_of(layer_names.peft(place))}.{part}"] = tensor
    return changed


@pytest.mark.parametrize(
    ("name_of", "expected"),
    [
        (str, {"differs": "ComfyUI", "nothing": "A1111 sd-scripts SD.Next", "refuses": "Forge InvokeAI"}),
        # As of attention in diffusers in 2023.
        (
            lambda name: name.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_"),
            {"nothing": "A1111 sd-scripts SD.Next", "refuses": "InvokeAI", "differs": "diffusers"},
        ),
        (
            lambda name: f"base_model.model.{name.removeprefix('unet.')}",
            {"nothing": "ComfyUI A1111 sd-scripts diffusers SD.Next", "refuses": "Forge InvokeAI"},
        ),
        (
            lambda name: f"diffusion_model.{layer_names.original(name.removeprefix('unet.'))}",
            {"nothing": "A1111 sd-scripts diffusers SD.Next", "refuses": "InvokeAI"},
        ),
    ],
)
def test_pefts_format_under_four_kinds_of_names(
    tmp_path: Path, name_of: Callable[[str], str], expected: dict[str, str]
) -> None:
    """Of the UNet alone, with alpha = rank, so that what loads is right."""
    tensors = with_endings(good(), name_of)
    assert outcomes(check(tmp_path, tensors, metadata())) == expected
    if name_of is str:  # of a DoRA of PEFT, it knows the magnitudes
        ups = {key.partition("lora_B")[0]: part for key, part in tensors.items() if key.endswith("lora_B.weight")}
        lengths = {f"{name}lora_magnitude_vector.weight": torch.ones(len(up)) for name, up in ups.items()}
        assert "diffusers" not in str(outcomes(check(tmp_path, tensors | lengths, metadata())))


def test_only_diffusers_applies_biases_of_pefts_lora(tmp_path: Path) -> None:
    for name_of in (str, lambda name: f"diffusion_model.{layer_names.original(name.removeprefix('unet.'))}"):
        tensors = with_endings(good(), name_of)
        ups = {key: part for key, part in tensors.items() if "lora_B" in key}
        biases = {key.replace("B.weight", "B.bias"): part[:, 0].flatten().clone() for key, part in ups.items()}
        report = check(tmp_path, tensors | biases, metadata())
        assert not report.problems
        assert ("diffusers" in failed(report)) == (name_of is not str)
        assert outcomes(report)["refuses"] == "Forge InvokeAI"
    assert "lora_B.bias" in failed(report)["ComfyUI"], "of names that it knows"


OTHERS: dict[str, dict[str, str]] = {
    "GLoRA": {"nothing": "A1111 SD.Next", "refuses": "InvokeAI diffusers"},
    "OFT": {"refuses": "Forge InvokeAI diffusers", "nothing": "SD.Next"},
    "constrained OFT": {"differs": "ComfyUI", "refuses": "Forge InvokeAI diffusers"},
    "BOFT": {"refuses": "Forge InvokeAI diffusers", "nothing": "SD.Next"},
    "OFTv2": {"nothing": "ComfyUI SD.Next", "refuses": "A1111 Forge InvokeAI sd-scripts diffusers"},
    "full, in part": {"refuses": "sd-scripts diffusers"},
    "LoHa with DoRA": {"differs": "ComfyUI A1111 Forge", "refuses": "InvokeAI diffusers"},
    "Tucker LoCon": {"refuses": "diffusers"},
    "DoRA of ai-toolkit": {"differs": "ComfyUI A1111 InvokeAI sd-scripts SD.Next", "refuses": "Forge diffusers"},
    # The next four as `benchmarks.verdicts` found them, with the programs' own code.
    "Tucker LoKr": {"differs": "ComfyUI", "refuses": "Forge InvokeAI sd-scripts diffusers"},
    "DoRA with cores": {"differs": "ComfyUI A1111 Forge", "refuses": "InvokeAI diffusers"},
    "LoHa of OneTrainer": {"refuses": "ComfyUI Forge InvokeAI sd-scripts diffusers"},
    "DyLoRA of LyCORIS": {"refuses": "sd-scripts diffusers"},
    "LoRA and bias": {"differs": "A1111 InvokeAI sd-scripts", "refuses": "diffusers SD.Next"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_kinds_of_other_makers(tmp_path: Path, kind: str) -> None:
    assert outcomes(check(tmp_path, made(kind)(good()), metadata())) == OTHERS[kind]


def test_files_for_another_family_than_they_say_for_micro_and_for_none(tmp_path: Path) -> None:
    report = check(tmp_path, good("sd15"), metadata("sdxl"))
    sentence = "Its metadata name Stable Diffusion XL, but its layers are those of Stable Diffusion 1.x."
    assert report.problems == (sentence,)
    assert failed(report).keys() == {"A1111"}
    assert "hidden for Stable Diffusion 1.x" in failed(report)["A1111"]
    report = check(tmp_path, good("sd15", "micro"), metadata("sd15"))
    assert report.notes == (compatibility.MICRO,)
    assert outcomes(report) == {"refuses": ALL.replace("diffusers ", "")}
    assert all("does not have the base model Micro" in sentence for sentence in failed(report).values())
    report = check(tmp_path, {"lora_unet_levels_0_attention_qkv.lora_down.weight": torch.ones(2, 4)})
    assert "It is not for any of the families that Limner trains." in report.problems
    report = check(tmp_path, {"vae.x": torch.ones(1)})
    assert report.problems == ("It has no adapter layers.",)
    assert outcomes(report) == {"nothing": ALL}


@pytest.mark.parametrize(
    ("family", "facts", "programs", "words"),
    [
        ("sd15", {"ss_tag_frequency": "[1]"}, "A1111 Forge", "ss_tag_frequency in the metadata is not a JSON"),
        ("sd15", {"lora_adapter_metadata": "{}"}, "diffusers", "it refuses lora_adapter_metadata beside alphas"),
        ("sd15", {"format": "tf"}, "InvokeAI", "it refuses this `format`"),
        ("sd15", {"ss_v2": "true", "ss_base_model_version": ""}, "", ""),
        ("sd21", {"ss_v2": "true"}, "A1111", ""),  # it compares with `True`
        ("sdxl", dict.fromkeys(metadata("sdxl"), ""), "A1111", "Diffusion 1.x, so that it is hidden for Stable"),
    ],
)
def test_metadata(tmp_path: Path, family: FamilyName, facts: dict[str, str], programs: str, words: str) -> None:
    report = check(tmp_path, good(family), {**metadata(family), **facts})
    assert " ".join(failed(report)) == programs
    assert all(words in sentence for sentence in failed(report).values())


def of_transformer(family: FamilyName, form: Form) -> Tensors:
    """A LoRA of a whole transformer's attention, in one of the forms that the writer has, or as OneTrainer names it."""
    modules: dict[str, Module] = {}
    for name, shape in layer_shapes.known(family).items():
        place = Place(*name.split(":"))
        is_attention = bool({"attn", "attn1", "attention"} & {*place.path.split(".")})
        if place.component == "transformer" and is_attention and not transformer_names.parts(place.path):
            parts = {"lora_down.weight": torch.ones(1, shape[1]), "lora_up.weight": torch.ones(shape[0], 1)}
            modules[layer_names.kohya(place, family)] = Lora(parts, 1.0)
    return load(writer.write(modules, {}, form=form, precision="fp16", family=family))


TRANSFORMERS: dict[tuple[FamilyName, Form], dict[str, str]] = {
    ("sd3", "kohya"): {"refuses": "A1111 InvokeAI", "nothing": "diffusers", "differs": "SD.Next"},
    ("sd3", "peft"): {"differs": "A1111", "refuses": "Forge InvokeAI", "nothing": "sd-scripts SD.Next"},
    ("flux", "kohya"): {"refuses": "A1111"},
    ("flux", "peft"): {"refuses": "A1111", "nothing": "sd-scripts SD.Next"},
    ("chroma", "kohya"): {"refuses": "A1111 InvokeAI"},
    ("chroma", "peft"): {"refuses": "A1111 Forge InvokeAI", "nothing": "sd-scripts"},
    ("flux2_klein", "kohya"): {"refuses": "A1111 Forge InvokeAI sd-scripts"},
    ("flux2_klein", "peft"): {"refuses": "A1111 Forge sd-scripts"},
    ("qwen_image", "kohya"): {"refuses": "A1111 Forge sd-scripts"},
    ("qwen_image", "peft"): {"refuses": "A1111 Forge sd-scripts"},
    ("krea2", "kohya"): {"refuses": "A1111 Forge sd-scripts", "nothing": "diffusers"},
    ("krea2", "peft"): {"refuses": "A1111 Forge sd-scripts"},
    ("anima", "kohya"): {"refuses": "A1111 Forge", "nothing": "diffusers"},
    ("anima", "peft"): {"refuses": "A1111 Forge InvokeAI", "nothing": "ComfyUI sd-scripts SD.Next"},
    ("z_image", "kohya"): {"refuses": "A1111 Forge InvokeAI sd-scripts"},
    ("z_image", "peft"): {"refuses": "A1111 Forge sd-scripts"},
}


@pytest.mark.parametrize(("family", "form"), TRANSFORMERS)
def test_files_for_transformers(tmp_path: Path, family: FamilyName, form: Form) -> None:
    facts = writer.of_family(family, registry.FAMILIES[family].first)
    report = check(tmp_path, of_transformer(family, form), facts)
    assert not report.problems
    assert outcomes(report) == TRANSFORMERS[family, form], failed(report)


def test_text_encoders_cost_sd_next_all_joined_layers(tmp_path: Path) -> None:
    tensors = of_transformer("sd3", "kohya")
    text = {key: tensor for key, tensor in good("sdxl").items() if key.startswith("lora_te2_")}
    report = check(tmp_path, tensors | text, writer.of_family("sd3", "flow"))
    layers = sum(key.endswith(".alpha") for key in tensors)
    assert f"{layers} of {layers + len(text) // 3} layers are without effect" in failed(report)["SD.Next"]
    assert "ComfyUI" not in failed(report)


KOHYA_FLUX, DOTTED = "lora_unet_double_blocks_0_img_attn_proj", "transformer.transformer_blocks.0.attn.to_out.0"
FLUX, Z_IMAGE = "double_blocks.0.img_attn.proj", "layers.0.attention"
# Single layers as other makers name them: the family in the metadata, if any, and the tensors.
NAMED: list[tuple[FamilyName | None, Tensors, dict[str, str]]] = [
    # ComfyUI's own names
    (None, pair(f"diffusion_model.{FLUX}", 3072, 3072), {"refuses": "A1111 InvokeAI", "nothing": "sd-scripts SD.Next"}),
    (
        None,
        pair(f"diffusion_model.{FLUX}", 3072, 3072, peft=True),
        {"refuses": "A1111", "nothing": "sd-scripts diffusers SD.Next"},
    ),
    # Of Z-Image, musubi-tuner's are read by diffusers, and by ComfyUI once its converter has changed them.
    (
        None,
        pair("lora_unet_layers_0_attention_to_q", 3840, 3840, alpha=2.0),
        {"nothing": "ComfyUI", "refuses": "A1111 Forge InvokeAI sd-scripts"},
    ),
    # OneTrainer's
    (
        None,
        pair(f"{Z_IMAGE}.qkv", 3 * 3840, 3840, peft=True, alpha=2.0),
        {"nothing": "ComfyUI", "refuses": "A1111 Forge InvokeAI sd-scripts diffusers"},
    ),
    (
        None,
        pair(FLUX, 3072, 3072, peft=True, alpha=2.0),
        {"nothing": "ComfyUI Forge sd-scripts diffusers SD.Next", "refuses": "A1111 InvokeAI"},
    ),
    # With alphas, as OneTrainer writes them for ComfyUI; some layers of Z-Image have one name in both codes.
    (
        "sd3",
        pair("diffusion_model.joint_blocks.0.x_block.attn.proj", 1536, 1536, peft=True, alpha=1.0),
        {"nothing": "A1111 sd-scripts SD.Next", "refuses": "InvokeAI diffusers"},
    ),
    (
        "flux",
        pair(f"diffusion_model.{FLUX}", 3072, 3072, peft=True, alpha=1.0),
        {"refuses": "A1111", "nothing": "sd-scripts diffusers SD.Next"},
    ),
    (
        "flux2_klein",
        pair(f"diffusion_model.{FLUX}", 3072, 3072, peft=True, alpha=1.0),
        {"refuses": "A1111 Forge sd-scripts diffusers"},
    ),
    (
        "z_image",
        pair(f"diffusion_model.{Z_IMAGE}.to_q", 3840, 3840, peft=True, alpha=1.0)
        | pair("diffusion_model.layers.0.feed_forward.w1", 10240, 3840, peft=True, alpha=1.0),
        {"refuses": "A1111 Forge sd-scripts", "differs": "InvokeAI"},
    ),
    # diffusers' names without a prefix, of which some programs add it, diffusers beside alphas alone
    (
        "flux",
        pair(DOTTED.removeprefix("transformer."), 3072, 3072, peft=True, alpha=1.0),
        {"nothing": "ComfyUI Forge sd-scripts diffusers SD.Next", "refuses": "A1111 InvokeAI"},
    ),
    (
        "z_image",
        pair(f"{Z_IMAGE}.to_q", 3840, 3840, peft=True, alpha=1.0),
        {"nothing": "ComfyUI", "refuses": "A1111 Forge InvokeAI sd-scripts"},
    ),
    (
        "qwen_image",
        pair("transformer_blocks.0.attn.to_q", 3072, 3072, peft=True),
        {"refuses": "A1111 Forge sd-scripts SD.Next", "nothing": "diffusers"},
    ),
    (
        "qwen_image",
        pair("transformer_blocks.0.attn.to_q", 3072, 3072, peft=True, alpha=1.0),
        {"refuses": "A1111 Forge sd-scripts", "differs": "InvokeAI"},
    ),
    # With it, InvokeAI knows FLUX.1's files by LoRA's matrices alone, and diffusers reads alphas of FLUX.1.
    (
        "flux",
        pair(DOTTED, 3072, 3072, peft=True, alpha=1.0),
        {"nothing": "sd-scripts SD.Next", "refuses": "A1111 InvokeAI"},
    ),
]


@pytest.mark.parametrize(("family", "tensors", "expected"), NAMED)
def test_names_that_other_makers_have(
    tmp_path: Path, family: FamilyName | None, tensors: Tensors, expected: dict[str, str]
) -> None:
    report = check(tmp_path, tensors, writer.of_family(family, "flow") if family else None)
    assert not report.problems
    assert outcomes(report) == expected


# Family, name of a layer outside T5, and how the names of its layers begin.
T5_FILES: dict[tuple[FamilyName, str, str], dict[str, str]] = {
    ("flux", KOHYA_FLUX, "lora_te3_"): {"refuses": "A1111 InvokeAI", "differs": "diffusers", "nothing": "SD.Next"},
    ("flux", "lora_transformer_transformer_blocks_0_attn_to_out_0", "lora_te2_"): {
        "refuses": "A1111 diffusers",
        "nothing": "sd-scripts",
    },
    ("flux", DOTTED, "text_encoder_2."): {
        "differs": "ComfyUI Forge diffusers",
        "refuses": "A1111 InvokeAI",
        "nothing": "sd-scripts SD.Next",
    },
    ("flux", f"diffusion_model.{FLUX}", "text_encoders.t5xxl.transformer."): {
        "refuses": "A1111 InvokeAI",
        "differs": "Forge",
        "nothing": "sd-scripts diffusers SD.Next",
    },
    ("sd3", "lora_unet_joint_blocks_0_x_block_attn_proj", "lora_te3_"): {
        "refuses": "A1111 InvokeAI",
        "nothing": "diffusers SD.Next",
    },
    ("sd3", DOTTED, "text_encoder_3."): {
        "differs": "ComfyUI A1111 diffusers",
        "nothing": "Forge sd-scripts SD.Next",
        "refuses": "InvokeAI",
    },
    ("chroma", KOHYA_FLUX, "lora_te1_"): {"refuses": "A1111 InvokeAI diffusers", "differs": "sd-scripts SD.Next"},
    ("chroma", KOHYA_FLUX, "lora_te3_"): {"differs": "ComfyUI SD.Next", "refuses": "A1111 InvokeAI diffusers"},
}


@pytest.mark.parametrize("case", T5_FILES)
def test_each_program_reads_layers_of_t5_under_the_names_it_knows(
    tmp_path: Path, case: tuple[FamilyName, str, str]
) -> None:
    (family, name, prefix), path = case, "encoder.block.3.layer.1.DenseReluDense.wi_0"
    width, peft = {"sd3": 1536}.get(family, 3072), prefix.endswith(".")
    tensors = pair(name, width, width, peft=peft, alpha=0.0 if peft else 2.0)
    t5 = prefix + (path if peft else path.replace(".", "_"))
    report = check(
        tmp_path,
        tensors | pair(t5, 10240, 4096, peft=peft, alpha=0.0 if peft else 2.0),
        writer.of_family(family, "flow"),
    )
    assert not report.problems
    assert outcomes(report) == T5_FILES[case], failed(report)
    for program in {*T5_FILES[case].get("differs", "").split()} - {"A1111"}:  # of attention it reads q, k and v, too
        assert "1 of 2 layers are without effect" in failed(report)[program]


@pytest.mark.parametrize(("family", "readers"), [("sd15", "sd-scripts"), ("sdxl", "A1111 sd-scripts SD.Next")])
def test_oft_of_sd_scripts(tmp_path: Path, family: FamilyName, readers: str) -> None:
    """Of the denoiser alone, under names of its own; others look for the original ones, which it has for XL alone."""
    tensors = made("constrained OFT")(good(family))
    own = {key.replace("lora_unet_", "oft_unet_"): part for key, part in tensors.items() if "unet" in key}
    report = check(tmp_path, own, metadata(family))
    assert not report.problems
    loading = {verdict.program: verdict.words for verdict in report.verdicts if verdict.loads}
    assert " ".join(loading) == readers
    assert loading["sd-scripts"].endswith("with --network_module networks.oft")
