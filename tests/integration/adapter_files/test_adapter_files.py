"""Files on tiny real models: each kind of each family draws from its file what the trained adapter drew.

So do merged files, baked bases, and adapters made elsewhere.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.families.models import fresh, load
from tests.integration.training import test_adapter_kinds
from tests.integration.training.test_train import cases, disturb, finished, settings
from tests.single_file import write as single_file
from trainer import families, foreign_text, runs
from trainer.adapter_files import base_weights, compatibility, low_rank, reader, summary, transforms, writer
from trainer.adapter_files import safetensors_reader as safetensors
from trainer.adapter_files.modules import Lora
from trainer.adapter_files.reader import AdapterFile
from trainer.errors import UserError
from trainer.families import Family
from trainer.runs import Run
from trainer.training import export

FAMILIES = ("sd15", "sd21", "sdxl")
KINDS = test_adapter_kinds.KINDS | {
    "dora": test_adapter_kinds.KINDS["dora of convolutions"],
    "ranks": {"adapter__ranks": ["up_blocks = 8", "attn2.to_k = 2"]},
}


def draw(pipeline: Any) -> Tensor:  # noqa: ANN401 - diffusers' pipelines are untyped
    pipeline.set_progress_bar_config(disable=True)
    options = {"negative_prompt": "", "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    with torch.no_grad():
        latents: Tensor = pipeline("rin, smiling", generator=torch.Generator().manual_seed(1), **options).images
    return latents


def exported(base: Path, seed: int = 0, **options: Any) -> tuple[Run, Tensor, Family]:  # noqa: ANN401 - any settings
    """A run with the files of an adapter that does a lot, and what was drawn with it."""
    config = settings(base, export__peft=True, training__text_encoder=True, **options)
    run, family = runs.create(config), load(base)
    adapter = families.attach(family, config.adapter, text_encoder=True, seed=seed)
    disturb(adapter)
    adapter.train(False)
    live = draw(family.pipeline())
    export.write(family, adapter, config, run, ["rin"], 1)
    return run, live, family


def far(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


def patched(family: Family, *files: tuple[AdapterFile, float]) -> Tensor:
    with families.patched(family, files):
        return draw(family.pipeline())


DRAWN = "lora-sdxl locon-sd21 dora-sd15 loha-sd21 lokr-sd21 ranks-sd15"
RARE = ("rslora-sdxl", "full_lokr-sd21")


@pytest.mark.parametrize("case", [*cases(DRAWN.split(), pytest.mark.slow, []), *cases(RARE, pytest.mark.nightly, [])])
def test_the_files_draw_what_the_adapter_drew(character: Path, bases: dict[str, Path], case: str) -> None:
    kind, family = case.split("-")
    options = KINDS[kind.replace("_", " ")]
    run, live, model = exported(bases[family], export__precision="fp32", **options)
    file = reader.read(run.export)
    assert any(name.startswith("lora_te") for name in file.modules)
    if file.kinds == {"LoRA"}:
        scales = {0.25, 0.5, 1.0} if "ranks" in str(options) else {1.0 if "rslora" in str(options) else 0.5}
        assert {module.alpha / module.rank for module in file.modules.values()} == scales
        pipeline = fresh(bases[family])
        pipeline.load_lora_weights(run.folder, weight_name=run.export.name)
        assert torch.equal(draw(pipeline), live)
    assert far(patched(model, (file, 1.0)), live) < 1e-4
    pipeline = fresh(bases[family])
    base = draw(pipeline)
    assert far(base, live) > 1e-2
    if file.kinds == {"DoRA"}:
        return  # PEFT's format cannot express it
    pipeline.load_lora_weights(run.folder / "peft", weight_name=writer.PEFT_NAME)
    peft = draw(pipeline)
    assert torch.equal(peft, live) if file.kinds == {"LoRA"} else far(peft, live) < 1e-4


def as_in_2023(key: str) -> str:
    """The name that diffusers gave in 2023 to a tensor of PEFT's."""
    part = "lora_linear_layer" if key.startswith("text_encoder") else "lora"
    return key.replace(".lora_A.", f".{part}.down.").replace(".lora_B.", f".{part}.up.")


def as_of_processors(key: str) -> str:
    return re.sub(r"\.to_(\w+)(\.0)?\.lora\.", r".processor.to_\1_lora.", as_in_2023(key))


def renamed(run: Run, name_of: Callable[[str], str]) -> Path:
    """Save a run's file in PEFT's format under other names, with the same metadata."""
    saved = run.folder / "peft" / writer.PEFT_NAME
    file, metadata = saved.with_name("renamed.safetensors"), safetensors.parse(saved.read_bytes(), "x").metadata
    save_file({name_of(key): tensor for key, tensor in load_file(saved).items()}, file, metadata)
    return file


def verdict_of_diffusers(file: Path, model: Family) -> str:
    parts = {"unet": model.denoiser, "text_encoder": model.pipeline().text_encoder}
    known = {
        f"{component}:{name.removeprefix('text_model.').removesuffix('.weight')}": tuple(weight.shape)
        for component, module in parts.items()
        for name, weight in module.named_parameters()
    }
    return {verdict.program: verdict.outcome for verdict in compatibility.check(file, known).verdicts}["diffusers"]


def in_part(older: str) -> Callable[[str], str]:
    return lambda key: as_in_2023(key) if older in key and key.startswith("unet") else key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_settings_of_peft_scale_older_names_too(character: Path, tiny_sd: Path) -> None:
    """As diffusers does, which saves no alpha; of two generations of names it loads that of the first key, of attn1."""
    run, live, model = exported(tiny_sd, export__precision="fp32", adapter__targets="attention")
    right = dict.fromkeys((as_in_2023, as_of_processors, in_part("attn1")), "right")
    for name_of, verdict in {**right, in_part("attn2"): "differs"}.items():
        file = renamed(run, name_of)
        pipeline = fresh(tiny_sd)
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
        assert torch.equal(draw(pipeline), live) == (verdict == "right")
        assert far(patched(model, (reader.read(file), 1.0)), live) < 1e-4
        assert verdict_of_diffusers(file, model) == verdict


@pytest.mark.parametrize("decompose", [False, True])
def test_peft_scales_lokr_without_a_rank_as_any_other(tiny_sd: Path, tmp_path: Path, decompose: bool) -> None:
    ranks = {"mid_block.*to_q": 2, "up_blocks.*to_q": 128}  # of which the second does not show in the tensors
    config = peft.LoKrConfig(r=64, alpha=16, target_modules=["to_q"], rank_pattern=ranks, decompose_both=decompose)
    adapted = peft.get_peft_model(fresh(tiny_sd).unet, config)
    torch.manual_seed(0)
    for parameter in (value for value in adapted.parameters() if value.requires_grad):
        torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(tmp_path))
    modules = reader.read(tmp_path / "adapter_model.safetensors").modules
    layers = {name: layer for name, layer in adapted.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(layers) == len(modules) > 4
    for name, layer in layers.items():
        module = modules["lora_unet_" + name.removeprefix("base_model.model.").replace(".", "_")]
        assert far(module.delta(), layer.get_delta_weight("default").detach()) < 1e-5


def test_what_programs_make_of_a_file_is_reported_with_it(character: Path, tiny_sd: Path) -> None:
    options = {"export__peft": True, "export__precision": "bf16", "training__text_encoder": True}
    run = finished(tiny_sd, preview__every=2, training__steps=2, **options)
    file = reader.read(run.export)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj" in file.modules
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj" in file.modules
    assert {(module.rank, module.alpha) for module in file.modules.values()} == {(4, 2.0)}
    assert all(float(module.up.abs().max()) > 0 for module in file.modules.values())
    assert (file.metadata["ss_network_dim"], file.metadata["ss_network_alpha"]) == ("4", "2.0")
    assert foreign_text.parse_json(file.metadata["ss_tag_frequency"])["1_rin"]["rin"] == 14
    kohya, peft = runs.look(run).state.verified
    assert (kohya.file, peft.file) == ("rin.safetensors", "peft/pytorch_lora_weights.safetensors")
    refusing = [program for program, loads, _ in kohya.verdicts if not loads]
    assert refusing == ["InvokeAI"], "the tiny model has the width of none"
    assert [program for program, loads, _ in peft.verdicts if loads] == ["diffusers"]
    assert not kohya.problems
    facts = summary.describe(safetensors.read(run.export))
    assert facts["cover"]
    assert facts["precision"] == ["bfloat16"]
    picture = summary.cover(safetensors.read(run.export).metadata)
    assert picture == export.cover(run, 10**6)
    assert export.cover(run, -1) == "", "no preview shows what the file holds"
    assert "bfloat16" in summary.describe(safetensors.read(run.folder / peft.file))["precision"]
    assert str(run.folder.parent) not in str(safetensors.read(run.export).metadata)


def test_a_file_is_written_whole_or_not_and_compared_with_the_adapter(character: Path, tiny_sd: Path) -> None:
    """With the metadata that loading needs alone, if it is to be stripped."""
    config, family = settings(tiny_sd, export__peft=True, export__strip=True), load(tiny_sd)
    run, adapter = runs.create(config), families.attach(family, config.adapter, text_encoder=False, seed=0)
    weight = next(iter(adapter.layers.values())).trained()["down"].data.fill_(1e6)
    with pytest.raises(UserError, match="not finite in fp16"):
        export.write(family, adapter, config, run, ["rin"], 1)
    assert not list(run.folder.rglob("*.safetensors"))
    weight.fill_(1.0)
    disturb(adapter)
    export.write(family, adapter, config, run, ["rin"], 1)
    assert set(safetensors.read(run.export).metadata) == set(writer.NEEDED)
    assert [report.problems for report in runs.look(run).state.verified] == [(), ()]
    file = reader.read(run.export)
    name = next(iter(file.modules))
    wrong = dataclasses.replace(file.modules[name], alpha=4.0)  # alpha = rank, as if folded
    with pytest.raises(RuntimeError, match="differs"):
        export.compare(AdapterFile({**file.modules, name: wrong}, {}, 0), adapter)


def again(modules: dict[str, Any]) -> AdapterFile:
    return reader.of_file(safetensors.parse(writer.write(modules, {}, form="kohya", precision="fp32"), "x"))


def measured(file: AdapterFile, made: dict[str, Any]) -> float:
    deltas = {name: module.delta().double() for name, module in file.modules.items()}
    lost = sum(float((made[name].delta().double() - delta).square().sum()) for name, delta in deltas.items())
    return (lost / sum(float(delta.square().sum()) for delta in deltas.values())) ** 0.5


def test_the_error_of_a_resized_file_is_the_one_it_says(character: Path, tiny_sd: Path) -> None:
    file = reader.read(exported(tiny_sd, export__precision="fp32", **KINDS["locon"])[0].export)
    assert transforms.resize(file, 4).error == 0, "at the rank that it has"
    for rank, energy in ((2, 1.0), (0, 0.9)):
        made = transforms.resize(file, rank, energy)
        resized = again(made.modules)
        assert made.worst >= made.error > 1e-3
        assert measured(file, resized.modules) == pytest.approx(made.error, rel=1e-4)
        assert max(module.rank for module in resized.modules.values()) <= (rank or 4)
    for name, module in resized.modules.items():
        kept = module.delta().square().sum() / file.modules[name].delta().square().sum()
        assert kept > energy - 1e-4


def of_other_makers(family: Family) -> AdapterFile:
    """An adapter with a layer of each kind that Limner does not train, for a model that is loaded."""
    shapes = {name: tuple(module.weight.shape) for name, _, _, module in families.named(family)}
    attention = next(name for name in shapes if name.endswith("attn1_to_q"))
    convolution = next(name for name in shapes if name.endswith(("resnets_0_conv1", "in_layers_2")))
    rows, columns = shapes[attention]
    parts: dict[str, dict[str, Tensor]] = {
        attention: {"oft_blocks": torch.empty(rows // 2, 2, 2)},
        attention.replace("to_q", "to_k"): {"oft_blocks": torch.empty(2, rows // 4, 4, 4)},
        attention.replace("to_q", "to_v"): {"weight": torch.empty(rows), "on_input": torch.tensor(0.0)},
        attention.replace("attn1_to_q", "attn2_to_q"): {"oft_R.weight": torch.empty(columns // 4, 6)},
        attention.replace("to_q", "to_out_0"): {f"{letter}1.weight": torch.empty(rows, 2) for letter in "ab"}
        | {f"{letter}2.weight": torch.empty(2, columns) for letter in "ab"}
        | {"alpha": torch.tensor(2.0)},
        convolution: {"diff": torch.empty(shapes[convolution]), "diff_b": torch.empty(shapes[convolution][0])},
    }
    for name in shapes:
        if name.endswith(("_norm1", "_layer_norm1")):
            parts[name] = {"w_norm": torch.empty(shapes[name]), "b_norm": torch.empty(shapes[name])}
        if name.endswith("text_projection"):
            rows, columns = shapes[name]
            pair = {"lora_up.weight": torch.empty(rows, 2), "lora_down.weight": torch.empty(2, columns)}
            parts[name] = pair | {"alpha": torch.tensor(1.0)}
    tensors = {f"{name}.{ending}": tensor for name, layer in parts.items() for ending, tensor in layer.items()}
    for number, (key, tensor) in enumerate(tensors.items()):
        if not key.endswith(("alpha", "on_input")):
            tensor.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    return reader.of_tensors(tensors, "x")


@pytest.mark.parametrize(("family", "is_folder"), [pytest.param("sdxl", False, marks=pytest.mark.slow), ("sd15", True)])
def test_kinds_of_other_makers_are_drawn_with_and_baked(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, family: str, is_folder: bool
) -> None:
    model = load(bases[family])
    file = of_other_makers(model)
    assert file.kinds >= {"OFT", "OFTv2", "BOFT", "IA3", "GLoRA", "full", "norm"}
    before, live = draw(model.pipeline()), patched(model, (file, 0.5))
    assert far(before, live) > 1e-2
    assert torch.equal(draw(model.pipeline()), before), "nothing is left behind"
    base, out = bases[family], tmp_path / "out"
    if not is_folder:
        base, out = single_file(base, tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    assert transforms.bake(base_weights.open_checkpoint(base), [("it", file, 0.5)], out) == (len(file.modules), ())
    assert far(draw(load(out).pipeline()), live) < 1e-4


def test_biases_are_added_to_layers_without_any(bases: dict[str, Path], tmp_path: Path) -> None:
    """As PEFT's LoRA with biases does; a file of a base model has no room for them."""
    model = load(bases["sd15"])
    layers = {name: module for name, _, _, module in families.named(model) if name.endswith("attn1_to_q")}
    tensors: dict[str, Tensor] = {}
    for name, module in layers.items():
        pair = {"up.weight": torch.zeros(len(module.weight), 1), "down.weight": torch.zeros(1, module.weight.shape[1])}
        tensors |= {f"{name}.lora_{end}": part for end, part in pair.items()} | {f"{name}.alpha": torch.tensor(1.0)}
        tensors[f"{name}.diff_b"] = torch.full((len(module.weight),), 0.1)
    file, layer = reader.of_tensors(tensors, "x"), next(iter(layers.values()))
    before, inputs = draw(model.pipeline()), torch.ones(1, layer.weight.shape[1])
    with families.patched(model, [(file, 0.5), (file, 0.25)]):
        assert torch.allclose(layer(inputs), inputs @ layer.weight.T + 0.075, atol=1e-6)
    assert layer.bias is None
    assert torch.equal(draw(model.pipeline()), before)
    with pytest.raises(UserError, match="has no bias in sd15"):
        transforms.bake(base_weights.open_checkpoint(bases["sd15"]), [("it", file, 0.5)], tmp_path / "out")


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(character: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    files = {family: reader.read(exported(bases[family], training__steps=1)[0].export) for family in FAMILIES}
    dora = reader.read(exported(bases["sd15"], **KINDS["dora"])[0].export)
    sd15, sdxl = (base_weights.open_checkpoint(bases[name]) for name in ("sd15", "sdxl"))
    (tmp_path / "there").mkdir()
    larger = {name: low_rank.Pair(torch.ones(7, 1), torch.ones(1, 9), (9,)).module() for name in files["sd15"].modules}
    other = AdapterFile(dict(larger), {}, 0, "sd15")
    unknown = {"lora_unet_down_blocks_7_attentions_0_proj_in": Lora(next(iter(larger.values())).parts, 1.0)}
    strange = AdapterFile(dict(unknown), {}, 0, None)
    own, of_sd21, out = ("a", files["sd15"], 1.0), ("b", files["sd21"], 1.0), tmp_path / "out"
    merge, bake = transforms.merge, transforms.bake
    for words, attempt in {
        "a is for Stable Diffusion 1.x, b for Stable Diffusion XL": lambda: merge([own, ("b", files["sdxl"], 1.0)]),
        "is for Stable Diffusion 2.x, sdxl is Stable Diffusion XL": lambda: bake(sdxl, [of_sd21], out),
        "sd15 is Stable Diffusion 1.x, sdxl is Stable Diffusion XL": lambda: transforms.difference(sd15, sdxl, 4),
        "do not differ": lambda: transforms.difference(sd15, base_weights.open_checkpoint(bases["sd15"]), 4),
        "Bake it into its base": lambda: merge([own, ("b", dora, 1.0)]),
        "all strengths are 0": lambda: merge([("a", files["sd15"], 0.0)]),
        "energy share": lambda: transforms.resize(files["sd15"], 0, 1.5),
        "there already exists": lambda: bake(sd15, [own], tmp_path / "there"),
        "a and b are for base models of different sizes": lambda: merge([own, ("b", other, 1.0)]),
        "has a different size in sd15 than in b": lambda: bake(sd15, [("b", other, 1.0)], out),
        "has no layer lora_unet_down_blocks_7": lambda: bake(sd15, [("c", strange, 1.0)], out),
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            attempt()


def test_a_magnitude_for_each_input_is_not_for_peft(character: Path, tiny_sd: Path) -> None:
    run, _, _ = exported(tiny_sd, adapter__dora=True)
    assert any("for each input" in message for message in runs.look(run).state.warnings)
    assert not (run.folder / "peft").exists()
    file = reader.read(run.export)
    assert all(len(module.parts["dora_scale"]) == 1 for module in file.modules.values())
    assert '"wd_on_output": false' in file.metadata["ss_network_args"]
    assert writer.network(file.modules)["ss_network_args"] == file.metadata["ss_network_args"]
    with pytest.raises(UserError, match="for each output"):
        writer.write(file.modules, {}, form="peft", precision="fp16")
