"""Broken files: each is told apart, in the right words, for the programs that stumble over it and for no other."""

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

PROGRAMS = {program.name for program in compatibility.PROGRAMS}
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
        place = Place(component, path)  # type: ignore[arg-type] # one of the three
        if path.endswith(LAYERS) and place.block != "outside":
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


def exchanged(tensors: Tensors) -> Tensors:
    """Up and down exchanged and transposed."""
    pairs = {"lora_down.weight": "lora_up.weight", "lora_up.weight": "lora_down.weight"}
    return {
        f"{key.partition('.')[0]}.{pairs.get(key.partition('.')[2], key.partition('.')[2])}": tensor.T
        if tensor.dim() == 2
        else tensor
        for key, tensor in tensors.items()
        if tensor.dim() != 4 and "conv" not in key and "proj_in" not in key
    }


def with_nan(tensors: Tensors) -> Tensors:
    key = f"{one_layer(tensors)}.lora_up.weight"
    return {**tensors, key: tensors[key].index_fill(0, torch.tensor(3), float("nan"))}


def named(tensors: Tensors, path_of: Callable[[Place], str]) -> Tensors:
    """Rename the layers that get a path."""
    changed = {}
    for key, tensor in tensors.items():
        name, _, ending = key.partition(".")
        place = layer_names.read(name).place
        assert place
        path = path_of(place)
        changed[f"lora_unet_{path.replace('.', '_')}.{ending}" if path else key] = tensor
    return changed


def mixed(tensors: Tensors) -> Tensors:
    """Some layers of XL under the names of diffusers."""
    return named(tensors, lambda place: place.path if place.block == "mid_block" else "")


def both_names(tensors: Tensors) -> Tensors:
    return tensors | {key: tensor.clone() for key, tensor in mixed(tensors).items()}


def original(tensors: Tensors) -> Tensors:
    """SD 1.5 under the original names."""
    return named(tensors, lambda place: layer_names.original(place.path) if place.component == "unet" else "")


def other_size(tensors: Tensors) -> Tensors:
    name = one_layer(tensors, "ff_net_0_proj")
    return {**tensors, f"{name}.lora_up.weight": torch.ones(100, 2)}


TWO = torch.tensor(2.0)
Make = Callable[[Tensor, Tensor], Tensors]  # the tensors of a layer of another kind, from its down and up


def made(make: Make) -> Callable[[Tensors], Tensors]:
    """Return what makes another kind of adapter of the same layers."""

    def change(plain: Tensors) -> Tensors:
        names = sorted({key.partition(".")[0] for key in plain})
        layers = {name: make(plain[f"{name}.lora_down.weight"], plain[f"{name}.lora_up.weight"]) for name in names}
        return {f"{name}.{ending}": part for name, parts in layers.items() for ending, part in parts.items()}

    return change


def of_lora(down: Tensor, up: Tensor) -> Tensors:
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": TWO}


def scale(up: Tensor) -> Tensor:
    return torch.ones(len(up), *[1] * (up.dim() - 1))


def of_loha(down: Tensor, up: Tensor) -> Tensors:
    sizes = {"a": (len(up), 2), "b": (2, down.flatten(1).shape[1])}
    factors = {f"hada_w{n}_{part}": torch.ones(size) for n in (1, 2) for part, size in sizes.items()}
    return {**factors, "alpha": TWO}


def of_lokr(down: Tensor, up: Tensor) -> Tensors:
    first, second = torch.ones(len(up) // 4, 2), torch.ones(2, down.flatten(1).shape[1] // 4)
    return {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": first, "lokr_w2_b": second, "alpha": TWO}


def of_dora(down: Tensor, up: Tensor) -> Tensors:
    return of_lora(down, up) | {"dora_scale": scale(up)}


def of_dora_by_input(down: Tensor, up: Tensor) -> Tensors:
    return of_dora(down, up) | {"dora_scale": torch.ones(1, down.shape[1], *[1] * (down.dim() - 2))}


def of_ia3_convolutions(down: Tensor, up: Tensor) -> Tensors:
    if down.dim() == 2:
        return of_lora(down, up)
    return {"weight": torch.ones(len(up), 1, 1, 1), "on_input": torch.tensor(0.0)}


def of_glora(down: Tensor, up: Tensor) -> Tensors:
    narrow = down[:, :, :1, :1] if down.dim() == 4 else down
    return {"a1.weight": narrow.transpose(0, 1), "a2.weight": narrow, "b1.weight": up, "b2.weight": down, "alpha": TWO}


def of_oft(up: Tensor, alpha: float = 0.0, levels: tuple[int, ...] = ()) -> Tensors:
    return {"oft_blocks": torch.ones(*levels, len(up) // 4, 4, 4), "alpha": torch.tensor(alpha)}


def of_tucker(down: Tensor, up: Tensor) -> Tensors:
    if down.dim() == 2:
        return of_lora(down, up)
    return of_lora(down, up) | {
        "lora_down.weight": down[:, :, :1, :1],
        "lora_mid.weight": torch.ones(2, 2, *down.shape[2:]),
    }


def of_full(down: Tensor, up: Tensor) -> Tensors:
    if len(up) > 320:
        return of_lora(down, up)
    return {"diff": torch.ones(len(up), *down.shape[1:], dtype=torch.float16)}


def of_tucker_lokr(down: Tensor, up: Tensor) -> Tensors:
    if down.dim() == 2 or down.shape[2] == 1:
        return of_lokr(down, up)
    sides = {"lokr_w2_a": torch.ones(2, len(up) // 4), "lokr_w2_b": torch.ones(2, down.shape[1] // 4)}
    return {"lokr_w1": torch.ones(4, 4), "lokr_t2": torch.ones(2, 2, *down.shape[2:]), **sides, "alpha": TWO}


def of_onetrainer_loha(down: Tensor, up: Tensor) -> Tensors:
    """The factors of a convolution have the shapes of convolutions."""
    return {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down, "alpha": TWO}


def of_sd_scripts_oft(tensors: Tensors) -> Tensors:
    """Of the denoiser alone, under the names of its own network."""
    made_of = made(lambda _, up: of_oft(up, 1e-3))(tensors)
    return {key.replace("lora_unet_", "oft_unet_"): part for key, part in made_of.items() if "unet" in key}


def with_text_projection(tensors: Tensors) -> Tensors:
    """As OneTrainer trains it."""
    parts = {"lora_down.weight": torch.ones(2, 1280), "lora_up.weight": torch.ones(1280, 2), "alpha": TWO}
    return tensors | {f"lora_te2_text_projection.{ending}": part for ending, part in parts.items()}


ALL = PROGRAMS
Case = tuple[FamilyName, Callable[[Tensors], Tensors], set[str], str, str]
BROKEN: dict[str, Case] = {
    "no alpha in one layer": ("sd15", lambda t: without(t, "alpha"), ALL - {"diffusers"}, "ComfyUI", "has no alpha"),
    "no alpha at all": ("sd15", lambda t: {k: v for k, v in t.items() if not k.endswith("alpha")}, ALL, "diffusers",
                        "no layer has an alpha"),
    "lora_te1_ on SD 1.5": ("sd15", lambda t: renamed(t, "lora_te_", "lora_te1_"),
                            {"sd-scripts", "InvokeAI", "SD.Next"}, "sd-scripts", "silently left out"),
    "lora_te_ on XL": ("sdxl", lambda t: renamed(t, "lora_te1_", "lora_te_"),
                       {"sd-scripts", "InvokeAI", "SD.Next", "A1111"}, "A1111", "match nothing (lora_te_text_model"),
    "no text_model": ("sd15", lambda t: renamed(t, "text_model_", ""), ALL, "ComfyUI", "match nothing"),
    "transposed": ("sd15", exchanged, ALL, "ComfyUI", "it reshapes what does not fit"),
    "names of both kinds": ("sdxl", mixed, {"InvokeAI", "sd-scripts"}, "InvokeAI", "both kinds of names"),
    "each layer under both names": ("sdxl", both_names, {"InvokeAI", "sd-scripts", "diffusers"}, "diffusers",
                                    "is there twice"),
    "SD 1.5 under original names": ("sd15", original, {"InvokeAI", "sd-scripts", "diffusers", "SD.Next"}, "sd-scripts",
                                    "match nothing"),
    "not a number": ("sd15", with_nan, ALL, "diffusers", "not finite"),
    "half a layer": ("sd15", lambda t: without(t, "lora_up.weight"), ALL, "sd-scripts", "lacks a tensor"),
    "other rank in up": ("sd21", lambda t: {**t, f"{one_layer(t)}.lora_up.weight": torch.ones(320, 3)}, ALL,
                         "InvokeAI", "tensors do not fit together"),
    "wrong size": ("sd15", other_size, ALL, "sd-scripts", "has a wrong size: it stops"),
    "one more key": ("sd15", lambda t: {**t, "bundle_emb.x.string_to_param.*": torch.ones(1)},
                     {"diffusers"}, "diffusers", "only if all keys have its prefixes"),
    "a text encoder without out_proj": ("sd15", lambda t: {k: v for k, v in t.items() if "out_proj" not in k},
                                        {"diffusers"}, "diffusers", "without an out_proj among them"),
    "a layer that XL lacks": ("sdxl", lambda t: renamed(t, "input_blocks_4_1", "input_blocks_1_1"), ALL, "sd-scripts",
                              "match nothing (lora_unet_input_blocks_1_1"),
    "OpenCLIP's attention in part": ("sd21", lambda t: {k: v for k, v in t.items() if "v_proj" not in k}, {"A1111"},
                                     "A1111", "layers are without effect"),
    "OneTrainer's text projection": ("sdxl", with_text_projection, {"A1111", "sd-scripts"}, "A1111", ""),
    "LoHa": ("sd15", made(of_loha), {"diffusers"}, "diffusers", ""),
    "LoHa whose alpha is not its rank": ("sd15", made(lambda *parts: of_loha(*parts) | {"alpha": TWO / 2}),
                                         {"sd-scripts", "diffusers"}, "sd-scripts", "alpha / rank twice"),
    "LoKr": ("sd15", made(of_lokr), {"InvokeAI", "diffusers"}, "InvokeAI", "cannot detect the family"),
    "DoRA with a length for each input": ("sd15", made(of_dora_by_input), {"diffusers", "sd-scripts"}, "sd-scripts",
                                          "wd_on_output=False"),
    "IA3 of a convolution": ("sdxl", made(of_ia3_convolutions), ALL, "InvokeAI",
                             "stops at IA3 of a convolution"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "damage", "programs", "program", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file(
    tmp_path: Path, family: FamilyName, damage: Callable[[Tensors], Tensors], programs: set[str], program: str,
    words: str,
) -> None:  # fmt: skip
    report = check(tmp_path, damage(good(family)), metadata(family))
    assert not report.good
    assert set(failed(report)) == programs
    assert words in failed(report)[program]


def test_each_program_that_ruins_a_dora_says_how(tmp_path: Path) -> None:
    report = check(tmp_path, made(of_dora)(good()), metadata())
    expected = dict.fromkeys(("A1111", "InvokeAI"), "ruins the images")
    expected |= dict.fromkeys(("ComfyUI", "Forge"), "off by about 6 %") | {"diffusers": "applies the LoRA alone"}
    verdicts = {verdict.program: verdict for verdict in report.verdicts}
    assert {program for program, verdict in verdicts.items() if verdict.outcome == "differs"} == set(expected)
    assert {program for program, words in expected.items() if words not in verdicts[program].words} == set()
    assert verdicts["sd-scripts"].words.endswith("with --network_module lycoris.kohya")
    (rounded,) = (
        each for each in check(tmp_path, made(of_lokr)(good()), metadata()).verdicts if each.program == "A1111"
    )
    assert (rounded.loads, "fp16" in rounded.words) == (True, True), "of a LoKr with factors"


def test_the_rules_of_each_program_say_when_its_code_was_read() -> None:
    """Half a year ago at most, as of the last change of the rules."""
    for program in compatibility.PROGRAMS:
        assert "2026-05-30" <= program.read <= "2026-11-30"
        assert f"{program.name} {program.commit} ({program.read})" in programs.sources()


def wrong(report: compatibility.Report) -> dict[str, str]:
    return {verdict.program: verdict.outcome for verdict in report.verdicts if verdict.outcome != "right"}


def with_endings(tensors: Tensors, name_of: Callable[[str], str]) -> Tensors:
    """The UNet's layers in PEFT's format, without alpha."""
    endings = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    layers = {key.partition(".")[0]: layer_names.read(key.partition(".")[0]).place for key in tensors}
    named = {name: name_of(layer_names.peft(place)) for name, place in layers.items()
             if place and place.component == "unet"}  # fmt: skip
    return {f"{named[name]}.{endings[ending]}": tensor for key, tensor in tensors.items()
            for name, _, ending in (key.partition("."),) if name in named and ending in endings}  # fmt: skip


def of_processor(name: str) -> str:
    """The name of a layer of attention in diffusers in 2023."""
    return name.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")


def of_comfyui(name: str) -> str:
    return f"diffusion_model.{layer_names.original(name.removeprefix('unet.'))}"


def of_peft(name: str) -> str:
    return f"base_model.model.{name.removeprefix('unet.')}"


@pytest.mark.parametrize(
    ("name_of", "expected"),
    [
        (str, {"ComfyUI": "differs", "Forge": "refuses", "SD.Next": "nothing"}),
        (of_processor, {"diffusers": "differs", "SD.Next": "nothing"}),
        (of_peft, dict.fromkeys(PROGRAMS, "nothing") | {"Forge": "refuses"}),
        (of_comfyui, {"diffusers": "nothing", "SD.Next": "nothing"}),
    ],
)
def test_pefts_format_under_four_kinds_of_names(
    tmp_path: Path, name_of: Callable[[str], str], expected: dict[str, str]
) -> None:
    """Of the UNet alone, with alpha = rank, so that what loads is right."""
    tensors = with_endings(good(), name_of)
    everywhere = {"A1111": "nothing", "sd-scripts": "nothing", "InvokeAI": "refuses"}
    assert wrong(check(tmp_path, tensors, metadata())) == expected | everywhere
    if name_of is str:  # of a DoRA of PEFT, it knows the magnitudes
        ups = {key.partition("lora_B")[0]: part for key, part in tensors.items() if key.endswith("lora_B.weight")}
        lengths = {f"{name}lora_magnitude_vector.weight": torch.ones(len(up)) for name, up in ups.items()}
        assert "diffusers" not in wrong(check(tmp_path, tensors | lengths, metadata()))


REFUSED = {"InvokeAI": "refuses", "diffusers": "refuses"}
OTHERS: dict[str, tuple[Make, dict[str, str]]] = {
    "GLoRA": (of_glora, {**REFUSED, "A1111": "nothing", "SD.Next": "nothing"}),
    "OFT": (lambda _, up: of_oft(up), {**REFUSED, "Forge": "refuses", "SD.Next": "nothing"}),
    "constrained OFT": (lambda _, up: of_oft(up, 1e-3), {**REFUSED, "ComfyUI": "differs", "Forge": "refuses"}),
    "BOFT": (lambda _, up: of_oft(up, levels=(2,)), {**REFUSED, "Forge": "refuses", "SD.Next": "nothing"}),
    "full, in part": (of_full, {"diffusers": "refuses", "sd-scripts": "refuses"}),
    "LoHa with DoRA": (lambda down, up: {**of_loha(down, up), "dora_scale": scale(up)},
                       {**REFUSED, "ComfyUI": "differs", "A1111": "differs", "Forge": "differs"}),
    "Tucker LoCon": (of_tucker, {"diffusers": "refuses"}),
    "DoRA of ai-toolkit": (lambda down, up: {"lora_down.weight": down, "lora_up.weight": up,
                                             "magnitude": torch.ones(len(up))},
                           dict.fromkeys(PROGRAMS, "differs") | {"Forge": "refuses", "diffusers": "refuses"}),
    # The next four as `benchmarks.verdicts` found them, with the programs' own code.
    "Tucker LoKr": (of_tucker_lokr, {**REFUSED, "ComfyUI": "differs", "Forge": "refuses", "sd-scripts": "refuses"}),
    "DoRA with cores": (lambda down, up: {**of_tucker(down, up), "dora_scale": scale(up)},
                        {**REFUSED, "ComfyUI": "differs", "A1111": "differs", "Forge": "differs"}),
    "LoHa of OneTrainer": (of_onetrainer_loha, dict.fromkeys(PROGRAMS - {"A1111", "SD.Next"}, "refuses")),
    "DyLoRA of LyCORIS": (lambda down, up: {"lora_down.weight": down, "lora_up.weight": up.flatten(1), "alpha": TWO},
                          {"sd-scripts": "refuses", "diffusers": "refuses"}),
    "LoRA and bias": (lambda down, up: {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0),
                                        "diff_b": torch.ones(len(up))},
                      {**dict.fromkeys(("A1111", "sd-scripts", "InvokeAI"), "differs"), "diffusers": "refuses",
                       "SD.Next": "refuses"}),
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), OTHERS.values(), ids=OTHERS.keys())
def test_kinds_of_other_makers(tmp_path: Path, make: Make, expected: dict[str, str]) -> None:
    assert wrong(check(tmp_path, made(make)(good()), metadata())) == expected


def test_files_for_another_family_than_they_say_for_micro_and_for_none(tmp_path: Path) -> None:
    report = check(tmp_path, good("sd15"), metadata("sdxl"))
    (problem,) = report.problems
    assert problem == "Its metadata name Stable Diffusion XL, but its layers are those of Stable Diffusion 1.x."
    assert set(failed(report)) == {"A1111"}
    assert "hidden for Stable Diffusion 1.x" in failed(report)["A1111"]
    report = check(tmp_path, good("sd15", "micro"), metadata("sd15"))
    assert report.notes == (compatibility.MICRO,)
    assert set(failed(report)) == PROGRAMS - {"diffusers"}
    assert all("does not have the base model Micro" in sentence for sentence in failed(report).values())
    report = check(tmp_path, {"lora_unet_levels_0_attention_qkv.lora_down.weight": torch.ones(2, 4)})
    assert "It is not for any of the families that Limner trains." in report.problems
    report = check(tmp_path, {"vae.x": torch.ones(1)})
    assert report.problems == ("It has no adapter layers.",)
    assert set(failed(report)) == PROGRAMS


@pytest.mark.parametrize(
    ("family", "facts", "programs", "words"),
    [
        ("sd15", {"ss_tag_frequency": "[1]"}, {"A1111", "Forge"}, "ss_tag_frequency in the metadata is not a JSON"),
        ("sd15", {"lora_adapter_metadata": "{}"}, {"diffusers"}, "it refuses lora_adapter_metadata beside alphas"),
        ("sd15", {"format": "tf"}, {"InvokeAI"}, "it refuses this `format`"),
        ("sd15", {"ss_v2": "true", "ss_base_model_version": ""}, set(), ""),
        ("sd21", {"ss_v2": "true"}, {"A1111"}, ""),  # it compares with `True`
        ("sdxl", dict.fromkeys(metadata("sdxl"), ""), {"A1111"}, "Diffusion 1.x, so that it is hidden for Stable"),
    ],
)
def test_metadata(tmp_path: Path, family: FamilyName, facts: dict[str, str], programs: set[str], words: str) -> None:
    report = check(tmp_path, good(family), {**metadata(family), **facts})
    assert set(failed(report)) == programs
    assert all(words in sentence for sentence in failed(report).values())


def of_transformer(family: FamilyName, form: Form) -> Tensors:
    """A LoRA of a whole transformer's attention, in one of the forms that the writer has, or as OneTrainer names it."""
    modules: dict[str, Module] = {}
    for name, shape in layer_shapes.known(family).items():
        place = Place(*name.split(":"))
        if place.component != "transformer" or transformer_names.parts(place.path):
            continue
        if not {"attn", "attention"} & {*place.path.split(".")}:
            continue
        parts = {"lora_down.weight": torch.ones(1, shape[1]), "lora_up.weight": torch.ones(shape[0], 1)}
        modules[layer_names.kohya(place, family)] = Lora(parts, 1.0)
    return load(writer.write(modules, {}, form=form, precision="fp16", family=family))


TRANSFORMERS: list[tuple[FamilyName, Form, dict[str, str]]] = [
    ("sd3", "kohya", {"A1111": "refuses", "InvokeAI": "refuses", "diffusers": "nothing", "SD.Next": "differs"}),
    (
        "sd3",
        "peft",
        {"A1111": "differs", "Forge": "refuses", "InvokeAI": "refuses", "sd-scripts": "nothing", "SD.Next": "nothing"},
    ),
    ("flux", "kohya", {"A1111": "refuses"}),
    ("flux", "peft", {"A1111": "refuses", "sd-scripts": "nothing", "SD.Next": "nothing"}),
    ("chroma", "kohya", {"A1111": "refuses", "InvokeAI": "refuses"}),
    ("chroma", "peft", {"A1111": "refuses", "InvokeAI": "refuses", "Forge": "refuses", "sd-scripts": "nothing"}),
    ("flux2_klein", "kohya", dict.fromkeys(("A1111", "Forge", "InvokeAI", "sd-scripts"), "refuses")),
    ("flux2_klein", "peft", dict.fromkeys(("A1111", "Forge", "sd-scripts"), "refuses")),
    ("z_image", "kohya", dict.fromkeys(("A1111", "Forge", "InvokeAI", "sd-scripts"), "refuses")),
    ("z_image", "peft", dict.fromkeys(("A1111", "Forge", "sd-scripts"), "refuses")),
]


@pytest.mark.parametrize(("family", "form", "expected"), TRANSFORMERS)
def test_files_for_transformers(tmp_path: Path, family: FamilyName, form: Form, expected: dict[str, str]) -> None:
    facts = writer.of_family(family, registry.FAMILIES[family].first)
    report = check(tmp_path, of_transformer(family, form), facts)
    assert not report.problems
    assert wrong(report) == expected, failed(report)


@pytest.mark.parametrize("ending", ["lora_down.weight", "lora_A.weight"])
def test_a_transformer_under_the_names_of_comfyui(tmp_path: Path, ending: str) -> None:
    name, is_peft = "diffusion_model.double_blocks.0.img_attn.proj", ending == "lora_A.weight"
    tensors = {f"{name}.{ending}": torch.ones(2, 3072)}
    tensors[f"{name}.{'lora_B' if is_peft else 'lora_up'}.weight"] = torch.ones(3072, 2)
    nothing = dict.fromkeys(("sd-scripts", "SD.Next", *(("diffusers",) if is_peft else ())), "nothing")
    refused = dict.fromkeys(("A1111", *(() if is_peft else ("InvokeAI",))), "refuses")
    assert wrong(check(tmp_path, tensors)) == nothing | refused


def test_text_encoders_cost_sd_next_all_joined_layers(tmp_path: Path) -> None:
    tensors = of_transformer("sd3", "kohya")
    text = {key: tensor for key, tensor in good("sdxl").items() if key.startswith("lora_te2_")}
    report = check(tmp_path, tensors | text, writer.of_family("sd3", "flow"))
    verdicts = {verdict.program: verdict for verdict in report.verdicts}
    layers = sum(key.endswith(".alpha") for key in tensors)
    assert f"{layers} of {layers + len(text) // 3} layers are without effect" in verdicts["SD.Next"].words
    assert verdicts["ComfyUI"].loads


@pytest.mark.parametrize(
    "name", ["lora_unet_layers_0_attention_to_q", "layers.0.attention.qkv", "double_blocks.0.img_attn.proj"]
)
def test_names_that_musubi_tuner_and_onetrainer_have(tmp_path: Path, name: str) -> None:
    """Of Z-Image, musubi-tuner's names are read by diffusers, and by ComfyUI once its converter has changed them."""
    width = 3072 if name.startswith("double") else 3840
    is_flat, rows = name.startswith("lora_"), 3 * width if name.endswith("qkv") else width
    down, up = ("lora_down", "lora_up") if is_flat else ("lora_A", "lora_B")
    tensors = {f"{name}.{down}.weight": torch.ones(2, width), f"{name}.{up}.weight": torch.ones(rows, 2)}
    report = check(tmp_path, {**tensors, f"{name}.alpha": torch.tensor(2.0)})
    assert not report.problems
    readers = {verdict.program for verdict in report.verdicts if verdict.loads}
    assert readers == ({"diffusers", "SD.Next"} if is_flat else {"SD.Next"} if width == 3840 else set())


ALPHAS: list[tuple[FamilyName, dict[str, int], str]] = [
    ("sd3", {"joint_blocks.0.x_block.attn.proj": 1536}, "refuses"),
    ("flux", {"double_blocks.0.img_attn.proj": 3072}, "nothing"),
    ("flux2_klein", {"double_blocks.0.img_attn.proj": 3072}, "refuses"),
    ("z_image", {"layers.0.attention.to_q": 3840, "layers.0.feed_forward.w1": 10240}, "right"),
]


@pytest.mark.parametrize(("family", "layers", "outcome"), ALPHAS, ids=[row[0] for row in ALPHAS])
def test_diffusers_takes_alphas_of_z_image_alone(
    tmp_path: Path, family: FamilyName, layers: dict[str, int], outcome: str
) -> None:
    """As OneTrainer writes them for ComfyUI; some layers of Z-Image have one name in diffusers and originally."""
    tensors: Tensors = {}
    for layer, rows in layers.items():
        name, width = f"diffusion_model.{layer}", min(rows, 3840)
        tensors |= {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(rows, 2)}
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    report = check(tmp_path, tensors, writer.of_family(family, "flow"))
    assert not report.problems
    outcomes = {verdict.program: verdict.outcome for verdict in report.verdicts}
    assert (outcomes["ComfyUI"], outcomes["diffusers"]) == ("right", outcome)


def with_t5(family: FamilyName, name: str, prefix: str) -> Tensors:
    """A LoRA of a layer outside T5, and of one of it, both in kohya's format or with dots."""
    path = "encoder.block.3.layer.1.DenseReluDense.wi_0"
    t5 = prefix + (path if prefix.endswith(".") else path.replace(".", "_"))
    width = 1536 if family == "sd3" else 3072
    tensors = {}
    for layer, (rows, columns) in {name: (width, width), t5: (10240, 4096)}.items():
        down, up = ("lora_A", "lora_B") if prefix.endswith(".") else ("lora_down", "lora_up")
        tensors |= {f"{layer}.{down}.weight": torch.ones(2, columns), f"{layer}.{up}.weight": torch.ones(rows, 2)}
        if not prefix.endswith("."):
            tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    return tensors


NO_CHROMA = {"A1111": "refuses", "InvokeAI": "refuses"}
NO_T5 = "1 of 2 layers are without effect"
T5_FILES: dict[tuple[FamilyName, str, str], tuple[dict[str, str], set[str]]] = {
    ("flux", "lora_unet_double_blocks_0_img_attn_proj", "lora_te3_"): (
        {"A1111": "refuses", "InvokeAI": "refuses", "SD.Next": "nothing", "diffusers": "differs"}, {"diffusers"}),
    ("flux", "lora_transformer_transformer_blocks_0_attn_to_out_0", "lora_te2_"): (
        {"A1111": "refuses", "sd-scripts": "nothing", "diffusers": "refuses"}, set()),
    ("flux", "transformer.transformer_blocks.0.attn.to_out.0", "text_encoder_2."): (
        {"ComfyUI": "differs", "A1111": "refuses", "InvokeAI": "refuses", "sd-scripts": "nothing",
         "Forge": "differs", "SD.Next": "nothing", "diffusers": "differs"}, {"ComfyUI", "Forge", "diffusers"}),
    ("flux", "diffusion_model.double_blocks.0.img_attn.proj", "text_encoders.t5xxl.transformer."): (
        {"A1111": "refuses", "InvokeAI": "refuses", "sd-scripts": "nothing", "Forge": "differs", "SD.Next": "nothing",
         "diffusers": "nothing"}, {"Forge"}),
    ("sd3", "lora_unet_joint_blocks_0_x_block_attn_proj", "lora_te3_"): (
        {"A1111": "refuses", "InvokeAI": "refuses", "SD.Next": "nothing", "diffusers": "nothing"}, set()),
    ("sd3", "transformer.transformer_blocks.0.attn.to_out.0", "text_encoder_3."): (
        {"ComfyUI": "differs", "A1111": "differs", "Forge": "nothing", "InvokeAI": "refuses", "sd-scripts": "nothing",
         "SD.Next": "nothing", "diffusers": "differs"}, {"ComfyUI", "diffusers"}),
    ("chroma", "lora_unet_double_blocks_0_img_attn_proj", "lora_te1_"): (
        {**NO_CHROMA, "sd-scripts": "differs", "SD.Next": "differs", "diffusers": "refuses"},
        {"sd-scripts", "SD.Next"}),
    ("chroma", "lora_unet_double_blocks_0_img_attn_proj", "lora_te3_"): (
        {**NO_CHROMA, "ComfyUI": "differs", "SD.Next": "differs", "diffusers": "refuses"}, {"ComfyUI", "SD.Next"}),
}  # fmt: skip


@pytest.mark.parametrize("case", T5_FILES)
def test_each_program_reads_layers_of_t5_under_the_names_it_knows(
    tmp_path: Path, case: tuple[FamilyName, str, str]
) -> None:
    family = case[0]
    expected, partly = T5_FILES[case]
    report = check(tmp_path, with_t5(*case), writer.of_family(family, "flow"))
    assert not report.problems
    assert wrong(report) == expected, failed(report)
    assert all(NO_T5 in failed(report)[program] for program in partly)


@pytest.mark.parametrize(
    ("family", "readers"), [("sd15", {"sd-scripts"}), ("sdxl", {"sd-scripts", "A1111", "SD.Next"})]
)
def test_oft_of_sd_scripts(tmp_path: Path, family: FamilyName, readers: set[str]) -> None:
    """Others look for the names of the original code, which sd-scripts has for XL alone."""
    report = check(tmp_path, of_sd_scripts_oft(good(family)), metadata(family))
    assert not report.problems
    assert {verdict.program for verdict in report.verdicts if verdict.loads} == readers
    assert failed(report).keys() == PROGRAMS - readers
    (own,) = (verdict for verdict in report.verdicts if verdict.program == "sd-scripts")
    assert own.words.endswith("with --network_module networks.oft")
