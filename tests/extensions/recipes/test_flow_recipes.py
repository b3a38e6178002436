"""Recipes for models of flow matching: the noise levels are those that the other program draws."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from limner_extensions.recipes.families import NAMES
from limner_extensions.recipes.kohya import writing
from limner_extensions.recipes.values import flat
from tests.extensions.recipes.examples import (
    ANIMA,
    FLOW_GUI,
    FLUX,
    FLUX_JOB,
    FLUX_TRAINER,
    GUI,
    SD3,
    SD3_JOB,
    SD3_TRAINER,
    toml,
)
from tests.extensions.recipes.test_recipes import ANY, built, read
from trainer import config
from trainer.base_models.registry import FamilyName
from trainer.errors import UserError
from trainer.families.noise import FlowNoise

CONFIGS = Path(config.__file__).parents[1] / "base_models" / "configs"
SHARES = [0.02, 0.25, 0.5, 0.75, 0.98]
NORMAL = [NormalDist().inv_cdf(share) for share in SHARES]


def levels(settings: config.TrainConfig, family: FamilyName) -> list[float]:
    """Return the noise levels at the shares of a run with these settings, as it draws them."""
    objective, side = settings.objective, settings.training.resolution
    flow = NAMES[family].flow
    assert flow
    shares = torch.tensor(SHARES)
    if objective.timestep_sampling == "logit-normal":
        shares = torch.sigmoid(objective.logit_mean + objective.logit_std * torch.tensor(NORMAL))
    elif objective.timestep_sampling == "mode":
        shares = 1 - shares - objective.mode_scale * (torch.cos(math.pi * shares / 2) ** 2 - 1 + shares)
    noise = FlowNoise(lambda _shape: flow.own_shift(settings.model.base, side))
    shape = (1, 16, side // 8, side // 8)
    return sorted((noise.at(shares, objective.min_timestep, objective.max_timestep, shape) / 1000).tolist())


def shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def mode(share: float, scale: float) -> float:
    return 1 - share - scale * (math.cos(math.pi * share / 2) ** 2 - 1 + share)


# As sd-scripts computes them from random numbers: library/flux_train_utils.py and library/sd3_train_utils.py.
FLUX_1024, QWEN_1024 = math.exp(1.15), math.exp(0.5 + 0.4 * (4096 - 256) / (8192 - 256))
KREA_1024 = math.exp(0.5 + 0.65 * (4096 - 256) / (6400 - 256))
KOHYA: list[tuple[FamilyName, dict[str, Any], list[float]]] = [
    ("flux", {"resolution": "512,512"}, [shifted(sigmoid(z), math.exp(0.63)) for z in NORMAL]),
    ("flux", {"timestep_sampling": "sigmoid", "sigmoid_scale": 1.5}, [sigmoid(1.5 * z) for z in NORMAL]),
    ("flux", {"timestep_sampling": "shift", "discrete_flow_shift": 1.5}, [shifted(sigmoid(z), 1.5) for z in NORMAL]),
    (
        "flux",
        {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_mean": 0.5, "discrete_flow_shift": 2},
        [shifted(1 - sigmoid(0.5 + z), 2) for z in NORMAL],
    ),
    (
        "flux",
        {"timestep_sampling": "sigma", "weighting_scheme": "mode", "mode_scale": 0.8, "discrete_flow_shift": 3.158},
        [shifted(1 - mode(u, 0.8), 3.158) for u in SHARES],
    ),
    ("sd3", {"training_shift": 1.0, "logit_mean": 0.5, "logit_std": 0.7}, [sigmoid(0.5 + 0.7 * z) for z in NORMAL]),
    ("sd3", {"weighting_scheme": "sigma_sqrt"}, [shifted(u, 3.0) for u in SHARES]),
    ("anima", {}, [sigmoid(z) for z in NORMAL]),
    ("anima", {"timestep_sampling": "shift", "discrete_flow_shift": 3.0}, [shifted(sigmoid(z), 3) for z in NORMAL]),
    ("anima", {"timestep_sampling": "flux_shift"}, [shifted(sigmoid(z), FLUX_1024) for z in NORMAL]),
    ("anima", {"timestep_sampling": "sigma", "discrete_flow_shift": 3.0}, [shifted(u, 3) for u in SHARES]),
]
ONE_TRAINER: list[tuple[FamilyName, dict[str, Any], list[float]]] = [
    ("flux", {}, [shifted(sigmoid(z), FLUX_1024) for z in NORMAL]),
    (
        "flux",
        {"dynamic_timestep_shifting": False, "timestep_shift": 2.0, "noising_bias": 0.4, "noising_weight": 0.2},
        [shifted(sigmoid(0.4 + 1.2 * z), 2) for z in NORMAL],
    ),
    ("flux", {"timestep_distribution": "UNIFORM"}, [shifted(u, FLUX_1024) for u in SHARES]),
    (
        "sd3",
        {"timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.0, "min_noising_strength": 0.0},
        [shifted(sigmoid(z), 3) for z in NORMAL],
    ),  # which has no dynamic shift there
    ("sd3", {}, [shifted(0.1 + 0.9 * mode(u, 0.8), 3) for u in SHARES]),
]
KLEIN = {"base_model_name": "black-forest-labs/FLUX.2-klein-base-9B", "model_type": "FLUX_2", "lora_rank": 32}
QWEN = {"base_model_name": "Qwen/Qwen-Image-2512", "model_type": "QWEN"}
KREA = {"base_model_name": "krea/Krea-2-Raw", "model_type": "KREA_2"}
ONE_TRAINER += [
    ("z_image", {"model_type": "Z_IMAGE", "dynamic_timestep_shifting": False}, [sigmoid(z) for z in NORMAL]),
    ("flux2_klein", KLEIN, [shifted(sigmoid(z), FLUX_1024) for z in NORMAL]),
    ("qwen_image", QWEN, [shifted(sigmoid(z), QWEN_1024) for z in NORMAL]),
    ("krea2", KREA, [shifted(sigmoid(z), KREA_1024) for z in NORMAL]),
    (
        "anima",
        {"base_model_name": "circlestone-labs/Anima-Base-v1.0-Diffusers", "model_type": "ANIMA"},
        [shifted(sigmoid(z), 3) for z in NORMAL],
    ),
]
AI_TOOLKIT: list[tuple[FamilyName, str, list[float]]] = [
    ("flux", "sigmoid", [sigmoid(z) for z in NORMAL]),
    ("flux", "flux_shift", [shifted(u, FLUX_1024) for u in SHARES]),
    ("sd3", "shift", [shifted(u, 3) for u in SHARES]),
    ("z_image", "shift", [shifted(u, 3) for u in SHARES]),
    ("flux2_klein", "shift", [shifted(u, FLUX_1024) for u in SHARES]),
    ("qwen_image", "shift", [shifted(u, QWEN_1024) for u in SHARES]),
    ("krea2", "shift", [shifted(u, KREA_1024) for u in SHARES]),
    ("anima", "shift", [shifted(u, 3) for u in SHARES]),
]
JOBS = {
    "flux": FLUX_JOB,
    "sd3": SD3_JOB,
    "z_image": FLUX_JOB.replace("is_flux: true", 'arch: "zimage:turbo"'),
    "flux2_klein": FLUX_JOB.replace("is_flux: true", "arch: flux2_klein_4b").replace(
        "FLUX.1-dev", "FLUX.2-klein-base-4B"
    ),
    "qwen_image": FLUX_JOB.replace("is_flux: true", 'arch: "qwen_image:2512"'),
    "krea2": FLUX_JOB.replace("is_flux: true", 'arch: "krea2:turbo"'),
    "anima": FLUX_JOB.replace("is_flux: true", "arch: anima"),
}


def jobs(family: FamilyName, kind: str) -> str:
    return re.sub("timestep_type: (sigmoid|linear)", f"timestep_type: {kind}", JOBS[family])


@pytest.mark.parametrize(
    ("family", "text", "theirs"),
    [
        *(
            (family, toml({"flux": FLUX, "sd3": SD3, "anima": ANIMA}[family] | more), theirs)
            for family, more, theirs in KOHYA
        ),
        *(
            (family, json.dumps((SD3_TRAINER if family == "sd3" else FLUX_TRAINER) | more), theirs)
            for family, more, theirs in ONE_TRAINER
        ),
        *((family, jobs(family, kind), theirs) for family, kind, theirs in AI_TOOLKIT),
    ],
)
def test_noise_levels_are_drawn_as_by_the_other_program(
    tmp_path: Path, family: FamilyName, text: str, theirs: list[float]
) -> None:
    recipe = read(tmp_path, text)
    settings = built(replace(recipe, settings=config.merge(recipe.settings, {"model": {"family": family}})))
    assert levels(settings, family) == pytest.approx(sorted(theirs), abs=1e-3)
    assert not any("Noise levels are shifted" in note for note in recipe.notes)


def test_a_text_encoder_that_takes_no_adapter_is_not_trained(tmp_path: Path) -> None:
    note = "The text encoder of FLUX.2 klein takes no adapter: it is not trained."
    klein, flux = (read(tmp_path, json.dumps(FLUX_TRAINER | more)) for more in (KLEIN, {}))
    assert (klein.settings["training"]["text_encoder"], note in klein.notes) == (False, True)
    assert (flux.settings["training"]["text_encoder"], note in flux.notes) == (True, False)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (json.dumps(FLUX_TRAINER | {"offset_noise_weight": 0.1}), "offset_noise_weight = 0.1"),
        (json.dumps(FLUX_TRAINER | {"loss_weight_fn": "SIGMA"}), "loss_weight_fn = 'SIGMA'"),
        (json.dumps(FLUX_TRAINER | {"transformer": {"attention_mask": True}}), "transformer.attention_mask = True"),
        (json.dumps(FLUX_TRAINER | {"text_encoder_2": {}}), "T5"),
        (json.dumps(FLUX_TRAINER | {"timestep_distribution": "BETA"}), "timestep_distribution = 'BETA'"),
        (FLUX_JOB.replace("timestep_type: sigmoid", "timestep_type: weighted"), "timestep_type = 'weighted'"),
        (toml({key: value for key, value in FLUX.items() if key != "model_prediction_type"}), "is sigma_scaled there"),
        (toml({**FLUX, "model_prediction_type": "additive"}), "model_prediction_type = 'additive'"),
        (toml({**FLUX, "network_args": []}), "split_qkv"),
        (toml({**FLUX, "network_args": ["train_blocks=double"]}), "network_args.train_blocks = 'double'"),
        (toml(SD3), "square of the noise level"),
        (toml({**FLUX, "timestep_sampling": "uniform"}), "Noise levels are shifted"),
        (toml({**SD3, "max_timestep": 900}), "before they are scaled"),
        (toml({**SD3, "network_args": []}), "modulation"),
        (toml(ANIMA | {"qwen3_max_token_length": 256}), "qwen3_max_token_length = 256"),
        (
            toml(ANIMA | {"timestep_sampling": "sigma", "weighting_scheme": "sigma_sqrt"}),
            "weighting_scheme = 'sigma_sqrt'",
        ),
        (toml(ANIMA | {"network_args": ["train_llm_adapter=True"]}), "train_llm_adapter = 'True'"),
        (toml(ANIMA | {"network_args": ["exclude_patterns=['.*self_attn.*']"]}), "exclude_patterns = "),
        (toml(ANIMA | {"network_module": "lycoris.kohya", "network_args": ["algo=lokr"]}), "does not find the blocks"),
        (SD3_JOB, "Noise levels are shifted by 3 here, as in the base model, and by 1 in the recipe"),
    ],
)
def test_what_other_programs_do_otherwise_is_named(tmp_path: Path, text: str, named: str) -> None:
    assert any(named in note for note in read(tmp_path, text).notes)
    texts = (
        json.dumps(FLUX_TRAINER),
        FLUX_JOB,
        toml(FLUX),
        toml(SD3 | {"weighting_scheme": "sigma_sqrt"}),
        toml(ANIMA),
    )
    plain = [note for text in texts for note in read(tmp_path, text).notes]
    assert named in ("modulation", "split_qkv", "T5") or not any(named in note for note in plain)


def test_a_preset_of_onetrainer_for_flux(tmp_path: Path) -> None:
    settings = built(read(tmp_path, json.dumps(FLUX_TRAINER)))
    assert settings.model.base == "black-forest-labs/FLUX.1-dev"
    assert settings.optimizer.learning_rate == 2e-4  # the transformer's
    assert settings.training.text_encoder_lr_factor == 0.5
    assert settings.adapter.targets == "attention+ff"
    other = read(tmp_path, json.dumps(SD3_TRAINER))
    assert built(other).adapter.targets == "attention"
    assert not any("dynamic_timestep_shifting = " in note for note in other.notes)  # which it has no use for
    arguments = ["x_mod_dim=0", "context_mod_dim=0", "x_mlp_dim=0", "context_mlp_dim=0"]
    without = read(tmp_path, toml(SD3 | {"network_args": arguments}))
    assert built(without).adapter.targets == "attention", "layers with a rank of 0 there are not adapted here"
    assert not any("modulation" in note for note in without.notes)
    guided = read(tmp_path, json.dumps(FLUX_TRAINER | {"transformer": {"guidance_scale": 3.0}}))
    assert built(guided).model.guidance == 3.0


def test_a_job_of_ai_toolkit_for_flux(tmp_path: Path) -> None:
    recipe = read(tmp_path, FLUX_JOB)
    settings = built(recipe)
    assert (settings.adapter.targets, settings.training.resolution) == ("attention+ff", 1024)
    assert settings.model.weights == "full"  # to quantize is a matter of the machine
    guided = read(tmp_path, re.sub("( *)timestep_type: sigmoid", r"\g<0>\n\1cfg_scale: 2.0", FLUX_JOB))
    assert built(guided).model.guidance == 2.0
    assert any("model.quantize" in note and "model.low_vram" in note and "decided by" in note for note in recipe.notes)


def test_the_shifts_of_families_are_those_of_their_schedulers() -> None:
    for name, flow in ((name, row.flow) for name, row in NAMES.items() if row.flow):
        scheduler = json.loads((CONFIGS / name / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        for side in (512, 1024):
            expected = scheduler["shift"]
            if scheduler.get("use_dynamic_shifting"):
                few, many = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
                low, high = scheduler["base_shift"], scheduler["max_shift"]
                expected = math.exp(calculate_shift((side / 16) ** 2, few, many, low, high))
            assert flow.shift(side) == pytest.approx(expected)


def test_a_preset_of_the_gui_for_flux(tmp_path: Path) -> None:
    recipe = read(tmp_path, json.dumps({**GUI, **FLOW_GUI, "LoRA_type": "Flux1"}))
    settings = built(recipe)
    assert (settings.adapter.kind, settings.adapter.targets) == ("lora", "attention+ff")
    assert settings.adapter.blocks == ("single_transformer_blocks",)
    assert settings.objective.timestep_sampling == "logit-normal"
    assert settings.objective.logit_mean == pytest.approx(0, abs=1e-3)  # the shift is that of 1024 pixels
    assert settings.objective.weighting == "none"  # min_snr_gamma is in the file, but not used
    assert settings.objective.noise_offset == 0
    notes = " ".join(recipe.notes)
    assert "FLUX.1: choose such a base model" in notes
    assert "apply_t5_attn_mask = True" in notes
    assert "split_qkv" in notes
    assert "D:/" not in notes
    silent = {key: value for key, value in FLUX.items() if key != "guidance_scale"}
    assert [built(read(tmp_path, toml(each))).model.guidance for each in (FLUX, silent)] == [1.0, 3.5]


def test_settings_of_the_scripts_and_of_the_gui_for_anima(tmp_path: Path) -> None:
    mine = {f"anima_{key}": value for key, value in ANIMA.items() if key in ("qwen3", "vae", "attn_mode")}
    mine |= {"anima_timestep_sampling": "shift", "anima_discrete_flow_shift": 3.0, "anima_t5_max_token_length": 512}
    of_gui = {**GUI, **FLOW_GUI, **mine, "flux1_checkbox": False, "anima_checkbox": True, "LoRA_type": "Anima"}
    without_ff = {"network_args": [r"exclude_patterns=[r'.*\.mlp\..*']"]}
    of_scripts = ANIMA | without_ff | {"timestep_sampling": "shift", "discrete_flow_shift": 3.0}
    recipes = [read(tmp_path, text) for text in (json.dumps(of_gui), toml(of_scripts))]
    for recipe, targets in zip(recipes, ("attention+ff", "attention"), strict=True):
        settings = built(recipe)
        assert (settings.adapter.kind, settings.adapter.targets) == ("lora", targets)
        assert not settings.training.text_encoder, "also where the recipe trains it"
        assert (settings.objective.timestep_sampling, settings.objective.logit_mean) == ("logit-normal", 0)
        notes = " ".join(recipe.notes)
        assert "Anima: choose such a base model" in notes
        assert not re.search(
            "as one layer|outside|anima_(?!checkbox)|no counterpart[^.]*(qwen3|timestep|flow|vae)", notes
        )


def test_settings_of_the_gui_for_flux_mean_nothing_for_sd3_and_a_unet(tmp_path: Path) -> None:
    recipe = read(tmp_path, json.dumps({**GUI, **FLOW_GUI, "flux1_checkbox": False, "sd3_checkbox": True}))
    assert built(recipe).objective.logit_mean == pytest.approx(-math.log(3), abs=1e-3)  # it shifts nothing there
    assert not any("guidance_scale = " in note or "apply_t5_attn_mask = " in note for note in recipe.notes)
    unet = read(tmp_path, json.dumps({**GUI, **FLOW_GUI, "flux1_checkbox": False, "max_train_steps": 9}))
    assert built(unet).objective.timestep_sampling == "uniform"
    assert not any("no counterpart" in note for note in unet.notes)
    assert [built(each).adapter.blocks for each in (recipe, unet)] == [(), ()]


TURBO = "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"


@pytest.mark.parametrize(
    ("named", "taken", "note"),
    [
        (TURBO, TURBO, f"limner download {TURBO}"),
        ("C:/loras/turbo.safetensors", "", "adapter turbo.safetensors (model.assistant_lora_path)"),
        ("ostris/turbo", "", "adapter turbo (model.assistant_lora_path)"),
    ],
)
def test_the_adapters_of_a_job_are_taken_from_the_hub(tmp_path: Path, named: str, taken: str, note: str) -> None:
    arch = f'arch: "zimage:turbo", assistant_lora_path: "{named}"'
    recipe = read(tmp_path, FLUX_JOB.replace("is_flux: true", arch))
    assert built(recipe).model.training_adapter == taken
    assert [text for text in recipe.notes if note in text]
    few_step = read(tmp_path, FLUX_JOB.replace("is_flux: true", arch.replace("assistant", "inference")))
    assert (built(few_step).preview.adapter, built(few_step).model.training_adapter) == (taken, "")


def test_base_and_rank_of_flux2_klein_are_those_of_the_recipe(tmp_path: Path) -> None:
    texts = {"9B": json.dumps(FLUX_TRAINER | KLEIN), "4B": JOBS["flux2_klein"]}
    built_of = {size: built(read(tmp_path, text)) for size, text in texts.items()}
    for size, settings in built_of.items():
        assert settings.model.base == f"black-forest-labs/FLUX.2-klein-base-{size}"
    assert built_of["9B"].adapter.rank == 32
    assert built_of["4B"].adapter.rank == built(read(tmp_path, FLUX_JOB)).adapter.rank


@pytest.mark.parametrize(
    ("family", "title"),
    [
        ("z_image", "Z-Image"),
        ("flux2_klein", "FLUX.2 klein"),
        ("qwen_image", "Qwen-Image"),
        ("krea2", "Krea 2"),
    ],
)
def test_no_settings_are_written_for_what_sd_scripts_do_not_train(family: str, title: str) -> None:
    with pytest.raises(UserError, match=f"cannot write settings of sd-scripts for {title}"):
        writing.export(config.build(config.merge(ANY, {"model": {"family": family}})))


def test_other_models_under_names_of_families_are_refused(tmp_path: Path) -> None:
    """OneTrainer has one name for FLUX.2 dev and klein, and ai-toolkit's for Krea 2 begins that of one for edits."""
    dev = json.dumps(FLUX_TRAINER | KLEIN | {"base_model_name": "black-forest-labs/FLUX.2-dev"})
    for text in (dev, JOBS["krea2"].replace("krea2:turbo", "krea2:o_edit_turbo")):
        with pytest.raises(UserError, match="not for a model that Limner trains"):
            read(tmp_path, text)


@pytest.mark.parametrize(
    ("named", "base"),
    [
        ("https://huggingface.co/owner/De/blob/main/de_turbo.safetensors", "owner/De/de_turbo.safetensors"),
        ("C:\\models\\de_turbo.safetensors", "micro"),
        ("", "Tongyi-MAI/Z-Image-Turbo"),
    ],
)
def test_a_denoiser_in_the_place_of_the_base_models_own_is_trained(tmp_path: Path, named: str, base: str) -> None:
    recipe = FLUX_TRAINER | {"model_type": "Z_IMAGE", "base_model_name": "Tongyi-MAI/Z-Image-Turbo"}
    recipe["transformer"] = recipe["transformer"] | {"model_name": named}
    taken = read(tmp_path, json.dumps(recipe))
    assert flat(taken.settings).get("model.base", "micro") == base
    notes = " ".join(taken.notes)
    assert ("in the place of Z-Image-Turbo" in notes) == bool(named)
    assert ("de_turbo.safetensors; choose yours" in notes) == named.startswith("C:")


@pytest.mark.parametrize("base", ["Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"])
@pytest.mark.parametrize("shift", [1.0, FLUX_1024])
def test_each_z_image_model_has_its_own_shift(tmp_path: Path, base: str, shift: float) -> None:
    """The scheduler in the folder of Z-Image shifts by 6, that of Turbo by 3, and OneTrainer as for FLUX.1 or not."""
    changes = {"model_type": "Z_IMAGE", "base_model_name": base, "dynamic_timestep_shifting": shift > 1}
    settings = built(read(tmp_path, json.dumps(FLUX_TRAINER | changes)))
    ours = 3.0 if "Turbo" in base else 6.0
    assert settings.objective.logit_mean == pytest.approx(math.log(shift / ours), abs=1e-3)
    shared = FLUX_JOB.replace("is_flux: true", "arch: zimage").replace("black-forest-labs/FLUX.1-dev", base)
    notes = read(tmp_path, shared.replace("type: sigmoid", "type: shift")).notes
    assert bool([note for note in notes if "shifted by 6 here" in note and "by 3 in the recipe" in note]) == (ours > 3)


def test_the_blocks_of_z_image_that_refine_are_left_as_they_are_there(tmp_path: Path) -> None:
    trainer = FLUX_TRAINER | {"model_type": "Z_IMAGE", "layer_filter": "x", "layer_filter_regex": True}
    job = FLUX_JOB.replace("is_flux: true", "arch: zimage")
    texts = [json.dumps(trainer | {"layer_filter_preset": preset}) for preset in ("attn-mlp", "blocks", "full")]
    texts += [job, job.replace("type: lora", "type: lora, transformer_only: false"), FLUX_JOB]
    recipes = [read(tmp_path, text) for text in texts]
    main = ("layers.",)
    assert [built(recipe).adapter.blocks for recipe in recipes] == [main, main, (), main, (), ()]
    assert not [note for recipe in recipes for note in recipe.notes if "layer_filter_regex = " in note]
