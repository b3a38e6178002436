"""The family kit: what each family of base models has to pass, on a tiny real model of each kind in `tests/tiny.py`."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import single_file
from tests.integration.cli.test_commands import facts_of
from tests.integration.families.models import (
    KINDS,
    TRANSFORMERS,
    UNETS,
    Card,
    answer,
    each,
    equal,
    family_of,
    fresh,
    gradients,
    load,
    options_of,
    question,
    taken_from,
)
from tests.integration.training.test_train import assert_resumes, attached, cases, disturb, losses, settings
from trainer import families
from trainer.adapter_files import reader, writer
from trainer.base_models import detect, vae
from trainer.base_models.registry import FAMILIES
from trainer.cli.commands import main
from trainer.config import PictureConfig
from trainer.config.adapter import Lora
from trainer.errors import UserError
from trainer.families import Family
from trainer.families.files import loading
from trainer.families.hardware import gradient_checkpointing, offload
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training import memory

# By kind: its architecture and version, as programs name them.
KNOWN_AS = {
    "sd15": ("stable-diffusion-v1/lora", "sd_v1"),
    "sd21": ("stable-diffusion-v2-512/lora", "sd_v2_512"),
    "sd21-v": ("stable-diffusion-v2-768-v/lora", "sd_v2_768_v"),
    "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
    "sd3": ("stable-diffusion-3-m/lora", "sd3"),
    "flux": ("flux-1-dev/lora", "flux1"),
    "chroma": ("chroma/lora", "chroma"),
    "z_image": ("Z-Image/lora", "zimage"),
    "flux2_klein": ("Flux.2-klein-4b/lora", "flux2_klein_4b"),
    "sd3-5-medium": ("stable-diffusion-3-5-medium/lora", "sd3"),
    "qwen_image": ("Qwen-Image/lora", "qwen_image"),
    "krea2": ("Krea-2/lora", "krea2"),
    "anima": ("Anima/lora", "anima"),
}


def test_each_family_has_a_tiny_model() -> None:
    assert {family_of(kind) for kind in KINDS} == FAMILIES.keys()
    assert KNOWN_AS.keys() == {*KINDS}
    assert {family_of(kind) for kind in CURVES} == FAMILIES.keys()


@pytest.mark.parametrize("kind", each(KINDS))
def test_a_folder_is_known_by_its_settings_or_refused(bases: dict[str, Path], kind: str) -> None:
    base = detect.look(bases[kind])
    usual = "flow" if kind in TRANSFORMERS else "epsilon"
    predicts = "v_prediction" if kind == "sd21-v" else usual
    assert (base.family, base.prediction_type, base.zero_snr) == (family_of(kind), predicts, False)
    family = load(bases[kind], family=family_of(kind))
    assert (family.base.family, family.noise.prediction_type) == (family_of(kind), predicts)
    facts = writer.of_family(family.base.family, predicts, family.base.size)
    assert (facts["modelspec.architecture"], facts["ss_base_model_version"]) == KNOWN_AS[kind]
    if kind in UNETS:
        names = {"epsilon": "epsilon", "v_prediction": "v"}
        assert facts["modelspec.prediction_type"] == names[predicts]
        assert facts["ss_v2"] == str(kind.startswith("sd21"))
    other = "sdxl" if kind != "sdxl" else "sd15"
    words = rf"is {FAMILIES[family_of(kind)].title}.*, but the settings say .*Set the family to 'auto'"
    with pytest.raises(UserError, match=words):
        load(bases[kind], family=other)


@pytest.mark.parametrize("kind", each(KINDS))
def test_half_precision_is_that_of_diffusers(bases: dict[str, Path], kind: str) -> None:
    """Of each weight, and of what is computed beside them; of encoders whose class is another, `test_transformers`."""
    own = loading.load_pipeline(bases[kind], detect.look(bases[kind]), None, torch.bfloat16)
    missing = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if kind == "sd3-5-medium" else {}
    theirs = fresh(bases[kind], torch_dtype=torch.bfloat16, **missing)
    compared = set()
    for name, part in own.components.items():
        other = getattr(theirs, name)
        if isinstance(part, torch.nn.Module) and type(part) is type(other) and name != "vae":  # which stays in fp32
            assert precisions(part) == precisions(other), name
            compared.add(name)
    assert FAMILIES[family_of(kind)].denoiser in compared


def precisions(part: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in (*part.named_parameters(), *part.named_buffers())}


# Diffusers knows the real width of FLUX and Chroma alone.
FILES = [kind for kind in KINDS if kind not in ("flux", "chroma")]


@pytest.mark.parametrize("kind", each(FILES))
def test_a_single_file_is_the_folder(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str) -> None:
    marks = ("v_pred",) if kind == "sd21-v" else ()
    metadata = {"modelspec.prediction_type": "epsilon"} if kind == "sd21" else None
    file = single_file.write(bases[kind], tmp_path / "base.safetensors", marks=marks, metadata=metadata)
    assert detect.look(file).family == family_of(kind)
    folder, single = load(bases[kind]), load(file)
    assert single.noise.prediction_type == folder.noise.prediction_type
    assert_same_model(single, folder)
    pixels = torch.rand(1, 3, 64, 64, generator=generator(2)) * 2 - 1
    encoded = [torch.cat(families.encode_images(family, pixels)) for family in (single, folder)]
    assert torch.equal(*encoded)
    if kind in UNETS:
        assert torch.equal(single.noise.alphas_cumprod, folder.noise.alphas_cumprod)
    assert single.base.size == folder.base.size
    own = {"sd21-v": 96} | dict.fromkeys(("z_image", "flux2_klein", "qwen_image", "krea2", "anima"), 1024)
    assert sampler.native_side(single) == own.get(kind, 64)
    assert single.spec == folder.spec


def assert_same_model(family: Family, other: Family) -> None:
    first, second = ({"denoiser": each.denoiser, **each.prompt_encoders()} for each in (family, other))
    assert first.keys() == second.keys()
    for name, module in first.items():
        ours, theirs = module.state_dict(), second[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    assert torch.equal(answer(family), answer(other))


@pytest.mark.parametrize("kind", each(kind for kind in FILES if FAMILIES[family_of(kind)].vae_file))
def test_the_three_files_of_comfyui_are_the_folder(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str
) -> None:
    """The diffusion model under its names alone, its text encoder and its VAE; what is missing or too much is named."""
    file, folder = single_file.write_three(bases[kind], tmp_path / "models"), load(bases[kind])
    tensors = load_file(file)
    assert not any(key.startswith("model.") for key in tensors)
    save_file(tensors | {"norm_final.weight": torch.zeros(32)} if kind == "z_image" else tensors, file)  # of no use
    assert vae.find(file, detect.look(file), "")
    assert vae.find(bases[kind], folder.base, "") is None
    family = load(file)
    assert_same_model(family, folder)
    assert equal(*(list(each.pipeline().vae.state_dict().values()) for each in (family, folder)))
    save_file(tensors | {"extra.weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=r"has 3 values that this kind of model does not have, such as extra\.weight"):
        load(file)
    (encoder,) = (tmp_path / "models" / "text_encoders").glob("*")
    encoder.unlink()
    large = FAMILIES[family_of(kind)].large_encoder
    assert large
    words = (
        rf", but has no {re.escape(large.title)}\. Put its file, {re.escape(large.file_name)}\.safetensors, into the"
    )
    with pytest.raises(UserError, match=words):
        load(file)


BUILT_OTHERWISE = [kind for kind in KINDS if kind not in ("sd21", "sd21-v", "sd3")]  # than another one


def check_blocks(family: Family) -> None:
    """Check that of each kind of named blocks there are some, and that they are all that diffusers has."""
    modules = list(family.denoiser.modules())
    blocks = gradient_checkpointing._Blocks.of(family.denoiser, family.spec.modules)
    layers = ("FeedForward", "Krea2SwiGLU")
    assert blocks.feed_forwards == [module for module in modules if type(module).__name__.endswith(layers)] != []
    assert blocks.others == [module for module in modules if isinstance(module, ResnetBlock2D)]
    kinds = ("TransformerBlock", "FusionBlock")
    assert blocks.transformers == [module for module in modules if type(module).__name__.endswith(kinds)]
    assert len({*blocks.blocks}) == len(blocks.blocks) > 0
    for number, block in enumerate(blocks.transformers):
        layers = {*blocks.feed_forwards} & {*block.modules()}
        half = {*blocks.chosen("half")} & {block, *layers}
        assert half == ({block} if number % 2 == 0 else layers), "whole blocks, and between them feed-forward layers"
    assert family.spec.modules.quantized


@pytest.mark.parametrize("kind", each(BUILT_OTHERWISE))
def test_memory_is_saved_with_the_same_gradients(
    bases: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to compute blocks twice keeps less than the one before; weights that wait are copied in time."""
    family = load(bases[kind])
    check_blocks(family)
    _noisy, _timesteps, encoded = question(family)
    monkeypatch.setattr(family, "encode_prompts", lambda _prompts: encoded)  # which takes as long as the rest
    adapter = attached(family, bases[kind], text_encoder=False)
    disturb(adapter)

    def computed(way: gradient_checkpointing.Recomputed) -> tuple[int, list[Tensor]]:
        gradient_checkpointing.recompute(family, way)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            family.predict(*question(family)).float().square().mean().backward()
        return sum(sizes), taken_from(adapter)

    kept, expected = computed("off")
    for way in memory.CHECKPOINTING[1 : None if family.spec.modules.other_blocks else -1]:
        less, ours = computed(way)
        assert less < kept
        assert equal(ours, expected), way
        kept = less
    counts = list[int]()
    for share in ("half", "all"):
        gradient_checkpointing.recompute(family, "all", share)
        with Card(family.denoiser) as card:
            assert equal(gradients(family, adapter), expected)
            count = len(offload._OFFLOADED[family.denoiser].weights)
            assert_copied_in_turn(card, count)
            card.copied.clear()
            assert equal(gradients(family, adapter), expected)
            assert len(card.copied) <= 2 * count - 2
            counts.append(count)
    assert abs(2 * counts[0] - counts[1]) <= 2, "every other block of each of two kinds"
    gradient_checkpointing.recompute(family, "off")
    assert equal(gradients(family, adapter), expected), "it can be taken back"


def assert_copied_in_turn(card: Card, count: int) -> None:
    """Check that blocks were copied once forward, and then backward but for those that are on the device by then."""
    blocks = list(dict.fromkeys(card.copied))
    there, back = card.copied[:count], card.copied[count:]
    assert there == blocks
    assert len(blocks) == count
    assert back == blocks[-3::-1][: len(back)], "two are on the device, and nothing learns below the first adapter"
    assert len(back) >= count - 4


def test_an_adapter_of_another_family_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = families.attach(load(bases["sd15"]), Lora(rank=4), text_encoder=True, seed=0)
    save_file(adapter.tensors(), tmp_path / "x.safetensors")
    adapters = ((str(tmp_path / "x.safetensors"), 1.0),)
    picture = PictureConfig(base=str(bases["sd21"]), adapters=adapters, prompt="rin", steps=1, out="x.png")
    with pytest.raises(UserError, match="does not fit the base model 'sd21'"):
        sampler.Sampler().generate(picture)


# By kind: the losses of six steps that train both the denoiser and the text encoders, with preservation.
CURVES = {
    "sd15": [1.08276, 1.102173, 1.063543, 1.103795, 1.113519, 1.089006],
    "sd21-v": [0.3818188, 0.3615885, 0.4085712, 0.5839075, 0.5502514, 0.7842969],
    "sdxl": [1.07138, 1.103865, 1.12967, 1.070911, 1.183797, 1.060231],
    "flux": [1.5692818, 1.5525582, 1.5765103, 1.5767324, 1.5601851, 1.5431812],
    "flux2_klein": [3.2810817, 3.3237426, 3.3241956, 3.2650914, 3.2417786, 3.1942339],
    "z_image": [1.4686841, 1.4702888, 1.4577459, 1.4646852, 1.4655858, 1.4692233],
    "chroma": [1.632514, 1.6272266, 1.5953755, 1.6061697, 1.5689824, 1.5397148],
    "qwen_image": [1.6678941, 1.7684604, 1.7449988, 1.7214386, 1.729954, 1.7187471],
    "krea2": [1.8188163, 1.8011022, 1.8288896, 1.8538855, 1.873345, 1.8453413],
    "anima": [1.8086495, 1.7969929, 1.8075638, 1.8107677, 1.8304272, 1.784595],
    "sd3-5-medium": [4.077464, 4.184826, 4.145877, 4.162012, 4.153721, 4.144662],
}


@pytest.mark.parametrize("kind", cases(CURVES, pytest.mark.slow, ["sd15"]))
def test_a_run_has_the_recorded_losses_and_resumes(character: Path, bases: dict[str, Path], kind: str) -> None:
    """A run of one UNet and of one transformer is stopped on its way."""
    options = {"preservation__share": 0.25, "preservation__noise_from": 0.0, "preservation__prompts": [""]}
    stops = (3,) if kind in ("sd15", "z_image") else ()
    run = assert_resumes(settings(bases[kind], **options, **options_of(kind)), *stops)
    assert kind not in UNETS or run.config().record.prediction_type == "read from its scheduler's config"
    assert [loss for _, loss in sorted(losses(run).items())] == pytest.approx(CURVES[kind], rel=1e-5)


def exported(base: Path, file: Path, seed: int = 0) -> tuple[reader.AdapterFile, Family]:
    family = load(base)
    adapter = families.attach(family, settings(base).adapter, text_encoder=bool(family.text_encoders), seed=seed)
    disturb(adapter)
    tensors = adapter.tensors()
    adapter.detach()
    facts = writer.of_family(family.base.family, family.noise.prediction_type)
    modules = reader.of_tensors(tensors, "x", facts).modules
    file.write_bytes(writer.write(modules, facts, form="kohya", precision="fp32", family=family.base.family))
    return reader.read(file), family


FULL = ("--precision", "fp32")


# By layers: of two kinds of blocks, of text encoders too, joined in the original code alone; the others at night.
TOOLS = ("sd3-5-medium", "flux", "z_image")
OTHERS = [kind for kind in TRANSFORMERS if kind in BUILT_OTHERWISE and kind not in TOOLS]


@pytest.mark.parametrize("kind", cases(TOOLS, pytest.mark.slow, []) + cases(OTHERS, pytest.mark.nightly, []))
def test_the_tools_make_files_that_predict_what_they_should(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """For transformers, whose names and joined layers are furthest from those that `test_adapter_files.py` has."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    (file, family), (other, _) = exported(bases[kind], first), exported(bases[kind], second, seed=1)
    assert main(["inspect", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == family.spec.title

    peft, back = tmp_path / "peft.safetensors", tmp_path / "back.safetensors"
    facts_of(capsys, "convert", first, *FULL, "--to", "peft", "--out", peft)
    assert all(key.startswith(("transformer.", "text_encoder")) for key in load_file(peft))
    facts_of(capsys, "convert", peft, *FULL, "--out", back)
    original, returned = load_file(first), load_file(back)
    assert original.keys() == returned.keys()
    assert all(torch.equal(returned[key], tensor) for key, tensor in original.items())

    merged, small = tmp_path / "merged.safetensors", tmp_path / "small.safetensors"
    assert facts_of(capsys, "merge", f"{first}:0.7", f"{second}:-0.4", *FULL, "--out", merged)["error"] == 0
    assert all(key.startswith(("lora_unet_", "lora_te")) for key in load_file(merged)), "as the original code has them"
    with families.patched(family, [(file, 0.7), (other, -0.4)]):
        both = answer(family)
    with families.patched(family, [(reader.read(merged), 1.0)]):
        assert torch.allclose(answer(family), both, atol=1e-4)
    facts = facts_of(capsys, "resize", merged, *FULL, "--rank", 2, "--out", small)
    assert facts["ranks"] == [2]
    assert 0 < facts["error"] < 1

    baked, extracted = tmp_path / "baked", tmp_path / "extracted.safetensors"
    assert main(["bake", str(bases[kind]), "--adapter", f"{merged}:1", "--out", str(baked)]) == 0
    assert torch.allclose(answer(load(baked)), both, atol=1e-4)
    capsys.readouterr()
    assert facts_of(capsys, "extract", baked, bases[kind], *FULL, "--rank", 8, "--out", extracted)["error"] < 1e-3
    with families.patched(family, [(reader.read(extracted), 1.0)]):
        assert torch.allclose(answer(family), both, atol=1e-3)
