"""The engine on tiny real models: it learns, resumes bit for bit, and its file does what the adapter did."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hostile import MARK, pictures
from tests.integration.families.models import load
from trainer import config, families, paths, runs
from trainer.adapter_files import reader, transforms
from trainer.config import TrainConfig, adjustments
from trainer.config.adapter import AdapterConfig, Lora
from trainer.data import dataset
from trainer.data.captions import contains_trigger
from trainer.errors import UserError
from trainer.families import Family
from trainer.rng import generator
from trainer.runs import Run, archive, checkpoints, events
from trainer.train import train
from trainer.training import checkpoint, preparation
from trainer.training.inputs import batches, encode
from trainer.training.loss import error, training_loss, weight

Tensors = dict[str, Tensor]


def settings(base: Path, **changes: Any) -> TrainConfig:  # noqa: ANN401 - any settings
    data: dict[str, Any] = {"name": "rin", "dataset": "rin", "trigger": "rin", "model": {"base": str(base)}}
    data |= {"adapter": {"rank": 4, "alpha": 2.0}, "optimizer": {"learning_rate": 0.01}, "checkpoint": {"every": 100}}
    data["training"] = {"steps": 6, "batch_size": 4, "resolution": 64, "text_encoder": False}
    data["training"]["text_encoder_lr_factor"] = 0.5
    data["preview"] = {"every": 1000, "at_start": False, "steps": 2, "prompts": ["rin"]}
    # Off, unless it is what a test is about, as is to measure what fits into memory.
    data["training"] |= {"micro_batches": 1, "gradient_checkpointing": "off"}
    data["captions"] = {"dropout": 0.0, "trigger_only": 0.0}
    data["preservation"] = {"share": 0.0, "weight": 4.0, "generated_share": 0.25, "prompts": []}
    for path, value in changes.items():
        data = config.override(data, [f"{path.replace('__', '.')}={json.dumps(value)}"])
    if data["optimizer"].get("kind") == "muon":
        pytest.importorskip("torch", minversion="2.9")  # the lowest that is allowed is without
    return config.build(data)


def mute(name: str, done: int, total: int) -> None:
    """Take progress and say nothing."""


def finish(run: Run) -> dict[str, Tensor]:
    AcceleratorState._reset_state(True)  # a worker trains once, in one precision
    train(run.config(), run)
    return load_file(run.export)


def finished(base: Path, **changes: Any) -> Run:  # noqa: ANN401 - any settings
    run = runs.create(settings(base, **changes))
    finish(run)
    return run


def attached(family: Family, base: Path, *, text_encoder: bool = True, **changes: Any) -> families.Adapter:  # noqa: ANN401 - any settings
    return families.attach(family, settings(base, **changes).adapter, text_encoder=text_encoder, seed=0)


def disturb(adapter: families.Adapter) -> None:
    """Let an adapter do something: a fresh one changes nothing."""
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(number, "disturb")))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def losses(run: Run) -> dict[int, float]:
    return runs.look(run).state.losses


def stopped_at(step: int, run: Run) -> Run:
    """Return the run, which is asked to stop after a step."""

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == step:
            runs.request(run, "stop")

    return Run(run.folder, listen)


def assert_resumes(config: TrainConfig, *stops: int) -> Run:
    """Check that a run which is stopped after these steps ends as one that is not, in each bit; return that one."""
    whole = runs.create(config)
    expected = finish(whole)
    if not stops:
        return whole
    parts = runs.create(config)
    for step in stops:
        train(parts.config(), stopped_at(step, parts))
        assert (runs.look(parts).status, runs.look(parts).state.step) == ("stopped", step)
        assert int(checkpoints.folders(parts)[-1].name) == step, "a stop saves first"
    assert same(finish(parts), expected)
    assert losses(parts) == losses(whole)
    assert same(optimizer(parts), optimizer(whole))
    assert not [warning for warning in runs.look(parts).state.warnings if "Changed since" in warning]
    return whole


def optimizer(run: Run) -> dict[str, Tensor]:
    return load_file(checkpoints.folders(run)[-1] / checkpoints.OPTIMIZER)


TEXT = {"training__text_encoder": True}
SCHEDULE_FREE = {"schedule__kind": "constant", "preview__every": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text encoder": {"training__text_encoder": True},
    "accumulation": {"training__gradient_accumulation": 2},
    "flip": {"images__flip": True},
    "dropout": {"captions__dropout": 0.5},
    "min-SNR": {"objective__weighting": "min-snr"},
    "preservation": {"preservation__share": 0.3},
    "preservation of the text encoder": {"preservation__share": 0.3, "training__text_encoder": True},
    "trigger alone": {"captions__trigger_only": 0.5},
    "constant": {"schedule__kind": "constant"},
    "cosine with restarts": {"schedule__cycles": 2},
    "linear": {"schedule__kind": "linear"},
    "warm-up, stable, cool-down": {"schedule__kind": "warmup-stable-decay"},
    "AdamW 8-bit": {"optimizer__kind": "adamw8bit", "optimizer__learning_rate": 0.01, "adapter__rank": 128},
    "Adafactor": {"optimizer__kind": "adafactor", "optimizer__learning_rate": 0.01, "optimizer__weight_decay": 0.1},
    "Lion": {"optimizer__kind": "lion", "optimizer__learning_rate": 0.001},
    "Prodigy": {"optimizer__kind": "prodigy"},
    "Prodigy, schedule-free": SCHEDULE_FREE
    | {"optimizer__kind": "prodigy-schedule-free", "optimizer__learning_rate": 10.0},
    "schedule-free": SCHEDULE_FREE | {"optimizer__kind": "schedule-free", "optimizer__learning_rate": 0.01},
    "CAME": {"optimizer__kind": "came", "optimizer__weight_decay": 0.1},
    "AdEMAMix": {"optimizer__kind": "ademamix"},
    "Muon": {"optimizer__kind": "muon", "optimizer__weight_decay": 0.1},
    "any class": {"optimizer__kind": "custom", "optimizer__class_name": "pytorch_optimizer.StableAdamW"},
    "debiased, Huber": {"objective__weighting": "debiased", "objective__loss_type": "huber"},
    "P2, scheduled Huber": {"objective__weighting": "p2", "objective__loss_type": "scheduled-huber"},
    "logit-normal in a range": {"objective__timestep_sampling": "logit-normal", "objective__max_timestep": 700},
    "noise": {"objective__noise_offset": 0.1, "objective__input_perturbation": 0.1},
    "masks": {"objective__masked_loss": True},
    "shuffled tags": {"captions__shuffle": True, "captions__dropout": 0.2, "preservation__share": 0.3},
    "shuffled tags, text encoder": TEXT | {"captions__shuffle": True, "captions__max_token_length": 150},
    "a caption a line, long": {"captions__multiple": True, "captions__max_token_length": 225},
    "crops": {"images__crops": 2, "images__flip": True},
    "random backgrounds": {"images__background": "random", "objective__masked_loss": True},
    "prior pictures": {"regularization__dataset": "rin", "regularization__share": 0.4, "regularization__weight": 0.5}
    | {"training__gradient_accumulation": 2},
    "averaging": {"training__ema_decay": 0.9, "preview__every": 2},
    "gradient checkpointing": TEXT | {"training__gradient_checkpointing": "all", "adapter__rank_dropout": 0.3},
    "LoRA+": {"adapter__lora_plus_ratio": 4.0, "training__text_encoder": True},
    "LoCon with dropouts": {"adapter__targets": "conv", "adapter__dropout": 0.2, "adapter__rank_dropout": 0.3},
    "attention of the up blocks": {"adapter__targets": "attention", "adapter__blocks": ["up_blocks"]},
    "rsLoRA": {"adapter__rslora": True},
    "ranks of blocks": {"adapter__ranks": ["up_blocks = 8", "attn2 = 2"]},
    "DoRA": {"adapter__dora": True, "adapter__targets": "conv", "preview__every": 2},
    "LoHa": {"adapter__kind": "loha", "adapter__rank": 4, "adapter__targets": "conv", "adapter__rank_dropout": 0.2},
    "LoKr": {"adapter__kind": "lokr", "adapter__rank": 2, "adapter__targets": "conv", "training__text_encoder": True},
    "LoKr of full rank": {"adapter__kind": "lokr", "adapter__rank": 64, "preservation__share": 0.3},
    "DoRA in bf16": {"adapter__dora": True, "training__precision": "bf16", "training__text_encoder": True},
    "LoHa in bf16": {"adapter__kind": "loha", "training__precision": "bf16", "training__text_encoder": True},
    "bf16": {"training__precision": "bf16", "training__text_encoder": True, "preview__every": 3},
}


def cases(names: Iterable[str], mark: pytest.MarkDecorator, fast: Collection[str]) -> list[Any]:
    """Return parameters by name, all but the fast ones with a marker."""
    return [pytest.param(name, marks=() if name in fast else mark) for name in names]


# Settings that can be on together, so that a few runs have them all on.
TOGETHER = [
    "text encoder|accumulation|flip|dropout|min-SNR|preservation|cosine with restarts|LoRA+|noise|averaging",
    "trigger alone|linear|Lion|P2, scheduled Huber|shuffled tags|crops|LoCon with dropouts",
    "AdamW 8-bit|warm-up, stable, cool-down|debiased, Huber|logit-normal in a range|masks|attention of the up blocks"
    "|rsLoRA",
    "Adafactor|constant|a caption a line, long|random backgrounds|DoRA|ranks of blocks",
    "Prodigy|prior pictures|LoHa",
    "schedule-free|shuffled tags, text encoder|LoKr",
    "gradient checkpointing|preservation of the text encoder|bf16",
]
ALONE = {"plain", "LoKr of full rank", "DoRA in bf16", "LoHa in bf16"}
ALONE |= {"AdEMAMix", "CAME", "Muon", "Prodigy, schedule-free", "any class"}


def test_every_option_is_on_in_some_run() -> None:
    assert {name for names in TOGETHER for name in names.split("|")} | ALONE == OPTIONS.keys()


RESUMED = cases(TOGETHER, pytest.mark.slow, TOGETHER[:1]) + cases(sorted(ALONE), pytest.mark.nightly, [])


@pytest.mark.parametrize("names", RESUMED)
def test_a_run_with_many_settings_resumes(character: Path, tiny_sd: Path, names: str) -> None:
    options = {key: value for name in names.split("|") for key, value in OPTIONS[name].items()}
    assert_resumes(settings(tiny_sd, **{"training__steps": 4} | options), 2)


@pytest.mark.slow
def test_checkpoints_can_be_tried_and_are_pruned(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, checkpoint__every=1, checkpoint__keep=2))
    final = finish(run)
    kept = checkpoint.folders(run)
    assert [folder.name for folder in kept] == ["000005", "000006"]
    newest = reader.read(kept[-1] / checkpoint.ADAPTER)
    assert same({key: newest.tensors[key].half() for key in final}, {key: value.half() for key, value in final.items()})
    assert newest.metadata["ss_base_model_version"] == "sd_v1"
    # The adapters of those before are left, in half precision.
    assert [file.stem for file in checkpoints.kept_adapters(run)] == ["000001", "000002", "000003", "000004"]
    early = reader.read(checkpoints.adapter_file(run, 2))
    assert early.metadata["ss_base_model_version"] == "sd_v1"
    assert {tensor.dtype for name, tensor in early.tensors.items() if "alpha" not in name} == {torch.float16}
    assert archive.display_name(checkpoints.adapter_file(run, 2)) == f"{run.id}@000002"
    checkpoint.remove_all(run)
    assert checkpoints.kept_adapters(run) == []

    # One is made after some minutes, too.
    run = finished(tiny_sd, checkpoint__minutes=1e-6, checkpoint__keep=2, checkpoint__adapters=False)
    assert [folder.name for folder in checkpoint.folders(run)] == ["000005", "000006"]
    assert checkpoints.kept_adapters(run) == []


def test_damaged_checkpoints_are_passed_over(character: Path, tiny_sd: Path) -> None:
    """One without a manifest, one whose manifest says another rate, and one with another bit in its weights."""
    run = runs.create(settings(tiny_sd, checkpoint__every=1, training__steps=4))
    expected = finish(run)
    run.export.unlink()
    _whole, second, third, fourth = checkpoint.folders(run)
    (second / checkpoint.MANIFEST).unlink()
    manifest, weights = third / checkpoint.MANIFEST, fourth / checkpoint.ADAPTER
    text = manifest.read_text()
    manifest.write_text(text.replace('"optimizer.learning_rate": 0.01', '"optimizer.learning_rate": 0.05'))
    assert manifest.read_text() != text
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert same(finish(run), expected)
    warnings = " ".join(runs.look(run).state.warnings)
    assert [step for step in (1, 2, 3, 4) if f"step {step} is damaged" in warnings] == [2, 3, 4]


@pytest.mark.slow
def test_what_changed_since_a_checkpoint_is_refused_or_said(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    """Another rank, other captions and another base model are refused; other settings are a warning."""
    from tests.tiny import make_sd

    base = shutil.copytree(tiny_sd, tmp_path / "base")
    run = finished(base, checkpoint__every=1, training__steps=2)
    before = run.config()
    with pytest.raises(UserError, match="does not match these settings"):
        train(before.model_copy(update={"adapter": Lora(rank=8)}), run)
    caption = (character / "01.txt").read_text()
    dataset.write_caption(character / "01.png", "something else")
    with pytest.raises(UserError, match="captions of the dataset changed"):
        train(run.config(), run)
    (character / "01.txt").write_text(caption)
    (run.folder / "checkpoints" / "000002").rename(run.folder / "gone")
    slower = before.optimizer.model_copy(update={"learning_rate": 0.002})
    run.save_config(before.model_copy(update={"optimizer": slower, "adapter": Lora(rank=4, alpha=1.0)}))
    finish(run)
    warnings = runs.look(run).state.warnings
    assert "Changed since the checkpoint of step 1: adapter.alpha, optimizer.learning_rate." in warnings
    shutil.rmtree(base)
    make_sd(base, seed=5)
    with pytest.raises(UserError, match="base model changed"):
        train(run.config(), run)


def test_the_cache_equals_live_encoding_and_is_safe_to_damage(family: Family, character: Path, tiny_sd: Path) -> None:
    examples = dataset.read(character, "rin")
    first = encode.build(family, examples, settings(tiny_sd), mute).at(0, 0)
    files = list((character / paths.CACHE).glob("*.safetensors"))
    assert len(files) == 14 + 15  # each picture, each caption and the empty one
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-8])
    for file in files[2:]:
        file.write_bytes(pictures.pickled())
    again = encode.build(family, examples, settings(tiny_sd), mute).at(0, 0)
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.conditioning["text"], again.conditioning["text"])
    assert not Path("/tmp", MARK).exists(), "a foreign cache was run"
    with torch.no_grad():
        live = family.encode_prompts(first.captions)
    assert torch.allclose(first.conditioning["text"], live["text"], atol=1e-6)


def test_loss_against_a_hand_computed_value(family: Family, tiny_sd: Path) -> None:
    mean = torch.randn(2, 4, 8, 8, generator=generator(1))
    adapter = families.attach(family, Lora(rank=2), text_encoder=False, seed=0)
    with torch.no_grad():
        text = family.encode_prompts(["a", "b"])
        batch = batches.Batch(mean, torch.zeros_like(mean), text, ("a", "b"), 2)
        loss = training_loss(family, adapter, batch, settings(tiny_sd), generator(0, "x"))
        rng = generator(0, "x")
        torch.randn(mean.shape, generator=rng)
        noise = torch.randn(mean.shape, generator=rng)
        timesteps = torch.randint(1000, (2,), generator=rng)
        noisy = family.pipeline().scheduler.add_noise(mean, noise, timesteps)
        expected = (family.predict(noisy, timesteps, text) - noise).pow(2).mean()
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_preservation_is_weighted_as_training_is(family: Family, tiny_sd: Path) -> None:
    """At its own noise levels: with half of the noise at least, whatever those of the images are."""
    config = settings(tiny_sd, preservation__weight=3.0, objective__weighting="debiased", objective__loss_type="huber")
    mean, rng = torch.randn((2, 4, 8, 8), generator=generator(1)), generator(0, "x")
    conditioning = family.encode_prompts(["other"])
    adapter = families.attach(family, Lora(rank=2), text_encoder=False, seed=0)
    disturb(adapter)
    both = {key: value.repeat(2, 1, 1) for key, value in conditioning.items()}
    plain = batches.Batch(mean, torch.zeros_like(mean), both, ("a", "b"), 2)
    preserved = {"preserved": ("other",), "preserved_conditioning": conditioning}
    kept = dataclasses.replace(plain, **preserved, preserved_from=torch.tensor([0.5]))
    less, more = (training_loss(family, adapter, batch, config, generator(0, "x")) for batch in (plain, kept))
    torch.randn((2, 4, 8, 8), generator=rng)  # for the standard deviation of latents
    noise, drawn = torch.randn((2, 4, 8, 8), generator=rng)[:1], torch.randint(1000, (2,), generator=rng)[:1]
    level = (499.5 + 0.5 * drawn).long()
    noisy = family.noise.add_noise(mean[:1], noise, level)
    own = family.predict(noisy, level, conditioning)
    with adapter.off():
        base = family.predict(noisy, level, conditioning)
    change = error(own, base, level / 999, config.objective).mean()
    assert torch.allclose(more - less, 3 * weight(family.noise, level, config.objective) * change / 2, rtol=1e-3)


def test_which_prompts_are_preserved_and_from_which_noise(family: Family, character: Path, tiny_sd: Path) -> None:
    changes = {"preservation__share": 0.25, "preservation__generated_share": 0.5, "preservation__prompts": ["a dog"]}
    config = settings(tiny_sd, preservation__noise_from=0.6, **changes)
    built = encode.build(family, dataset.read(character, "rin"), config, mute)
    in_turn = [built.at(step, 0) for step in range(64)]
    assert sum(len(batch.preserved) for batch in in_turn) == 64 * config.training.batch_size // 4
    levels = {}
    for batch in in_turn:
        if batch.preserved:
            levels |= dict(zip(batch.preserved, batch.preserved_from.tolist(), strict=True))
    assert levels.pop("a dog") == 0, "what was generated at all levels"
    assert not any(contains_trigger(text, config.trigger) for text in levels)
    assert len(levels) > 2
    assert list(levels.values()) == pytest.approx([0.6] * len(levels))
    assert [built.at(step, 0).preserved for step in range(64)] == [batch.preserved for batch in in_turn]


def test_without_a_trigger_no_trained_image_is_preserved(family: Family, character: Path, tiny_sd: Path) -> None:
    examples = dataset.read(character)
    changes = {"preservation__share": 0.5, "preservation__generated_share": 0.5, "preservation__prompts": ["a dog"]}
    built = encode.build(family, examples, settings(tiny_sd, trigger="", **changes), mute)
    preserved = {text for step in range(32) for text in built.at(step, 0).preserved}
    assert preserved == {"a dog"}
    run = runs.create(settings(tiny_sd, trigger="", preservation__share=0.5))
    preparation.load(run.config(), run)
    assert any("no trigger word" in warning for warning in runs.look(run).state.warnings)


def test_a_base_that_cannot_be_used(tmp_path: Path, tiny_sd: Path) -> None:
    shutil.copytree(tiny_sd, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for base, words in (("absent/model", "does not exist"), (".", "is not a diffusers model"), ("cut", "be loaded")):
        with pytest.raises(UserError) as refusal:
            load(tmp_path / base)
        assert words in refusal.value.message
        assert str(tmp_path) not in str(refusal.value)


def test_what_was_left_open_is_written_down_once(family: Family, character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd, training__steps=0, preview__prompts=[]))
    made = preparation.load(run.config(), run).config
    assert (made.training.steps, len(made.preview.prompts)) == (adjustments.planned_steps(run.config().training, 14), 3)
    assert run.config() == made
    assert preparation.load(made, run).config == made


@pytest.mark.slow
def test_a_cool_down_on_request_shortens_the_run(character: Path, tiny_sd: Path) -> None:
    options = {"schedule__kind": "warmup-stable-decay", "schedule__warmup": 0.0, "preview__every": 0}
    run = runs.create(settings(tiny_sd, training__steps=40, **options))

    def asker(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 8:
            runs.request(run, "cooldown")

    train(run.config(), Run(run.folder, asker))
    state = runs.look(run).state
    assert (state.step, state.steps, run.config().training.steps) == (10, 10, 10)
    assert not state.previews
    rates = [event.learning_rate for event in events.read(run.log)[0] if isinstance(event, events.Step)]
    assert rates[7] == pytest.approx(0.01)
    assert rates[-1] < rates[7]


def save(base: Path, path: Path, config: AdapterConfig | None = None, *, text_encoder: bool = False) -> Path:
    """Save an adapter for a base model that changes a lot."""
    adapter = families.attach(load(base), config or Lora(rank=4), text_encoder=text_encoder, seed=3)
    disturb(adapter)
    save_file(adapter.tensors(), path)
    return path


@pytest.fixture
def first(tiny_sd: Path, tmp_path: Path) -> Path:
    return save(tiny_sd, tmp_path / "first.safetensors", Lora(rank=4, alpha=2.0))


def started(tiny_sd: Path, config: Lora, *, text_encoder: bool = False) -> dict[str, torch.Tensor]:
    """Return the changes of a fresh adapter of these settings, by module."""
    adapter = families.attach(load(tiny_sd), config, text_encoder=text_encoder, seed=0)
    return {name: layer.delta() for name, layer in adapter.layers.items()}


@pytest.mark.parametrize(
    "config",
    [Lora(rank=8, rslora=True), Lora(rank=6, targets="conv"), Lora(rank=2)],
    ids=["rsLoRA", "more layers", "lower rank"],
)
def test_it_starts_with_what_the_file_does_or_the_nearest(tiny_sd: Path, first: Path, config: Lora) -> None:
    changes = started(tiny_sd, config.model_copy(update={"start": str(first)}))
    file = reader.read(first)
    modules = file.modules if config.rank >= 4 else transforms.resize(file, config.rank).modules
    for name, change in changes.items():
        expected = modules[name].delta() if name in modules else torch.zeros_like(change)
        assert torch.allclose(change, expected, rtol=1e-3, atol=1e-5), name
    assert modules.keys() <= changes.keys()


def as_of_scripts(base: Path, path: Path, tensors_of: Callable[[int, int], Tensors]) -> dict[str, Tensor]:
    """Save an adapter of all linear layers in the blocks of UNet and text encoder; return its changes."""
    tensors: Tensors = {}
    for name, _owner, _attribute, module in families.named(load(base)):
        if isinstance(module, torch.nn.Linear) and ("blocks" in name or "layers" in name):
            parts = tensors_of(module.out_features, module.in_features)
            tensors |= {f"{name}.{ending}": part for ending, part in parts.items()}
    save_file(tensors, path)
    return {name: module.delta() for name, module in reader.read(path).modules.items()}


def of_lora(rows: int, columns: int) -> Tensors:
    down, up = torch.randn(4, columns), torch.randn(rows, 4)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.ones(())}


def of_loha(rows: int, columns: int) -> Tensors:
    sizes = {"w1_a": (rows, 2), "w1_b": (2, columns), "w2_a": (rows, 2), "w2_b": (2, columns)}
    return {f"hada_{part}": torch.randn(size) for part, size in sizes.items()} | {"alpha": torch.tensor(2.0)}


@pytest.mark.slow
def test_layers_of_the_file_are_adapted_too(bases: dict[str, Path], tmp_path: Path) -> None:
    """As sd-scripts trains them: the feed-forward layers of text encoders, also where they cannot learn."""
    for kind in ("sd15", "sdxl"):
        file = tmp_path / f"{kind}.safetensors"
        expected = as_of_scripts(bases[kind], file, of_lora)
        changes = started(bases[kind], Lora(rank=4, targets="attention", start=str(file)), text_encoder=True)
        idle = {name for name in expected if name not in changes}
        assert all(name.startswith("lora_te1_text_model_encoder_layers_") for name in idle)
        assert len(changes) == len(expected) - len(idle)
        for name, change in changes.items():
            assert torch.allclose(change, expected[name], rtol=1e-3, atol=1e-4), name
        with pytest.raises(UserError, match="does not train") as caught:
            started(bases[kind], Lora(rank=4, start=str(file)))
        assert caught.value.remedy == "Turn on Text encoder."


@pytest.mark.slow
def test_of_another_kind_what_the_rank_holds_is_taken(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    """A LoHa of rank 2 is a change of rank 4."""
    file = tmp_path / "x.safetensors"
    expected = as_of_scripts(tiny_sd, file, of_loha)

    def lost(rank: int) -> float:
        changes = started(tiny_sd, Lora(rank=rank, start=str(file)), text_encoder=True)
        error = sum(float((changes[name] - change).square().sum()) for name, change in expected.items())
        return (error / sum(float(change.square().sum()) for change in expected.values())) ** 0.5

    assert lost(4) < 1e-3
    options = {"adapter__start": str(file), "adapter__rank": 2, "training__text_encoder": True}
    run = finished(tiny_sd, training__steps=1, **options)
    [note] = [warning for warning in runs.look(run).state.warnings if "best approximation" in warning]
    assert f"by {lost(2):.0%} of the effect" in note


@pytest.mark.slow
def test_a_run_goes_on_from_a_file_and_is_resumed(character: Path, tiny_sd: Path, first: Path) -> None:
    options: dict[str, Any] = {"training__ema_decay": 0.5, "training__steps": 3}
    run = assert_resumes(settings(tiny_sd, adapter__start=str(first), **options), 1)
    assert not same(finish(runs.create(settings(tiny_sd, **options))), load_file(run.export))
    assert str(first.parent) not in str(reader.read(run.export).metadata)
    assert not [warning for warning in runs.look(run).state.warnings if "best approximation" in warning]


@pytest.mark.parametrize(
    ("setting", "words"),
    [("adapter__start", "started from has changed"), ("model__training_adapter", "training adapter changed since")],
)
@pytest.mark.slow
def test_a_file_that_changed_or_is_gone_is_not_resumed_with(
    character: Path, tiny_sd: Path, first: Path, setting: str, words: str
) -> None:
    run = runs.create(settings(tiny_sd, adapter__rank=2, training__steps=2, **{setting: str(first)}))
    train(run.config(), stopped_at(1, run))
    is_cut = any("that rank 2 can hold" in warning for warning in runs.look(run).state.warnings)
    assert is_cut == (setting == "adapter__start")
    save_file({name: tensor * 0.5 for name, tensor in load_file(first).items()}, first)
    with pytest.raises(UserError, match=words):
        finish(run)
    first.unlink()
    with pytest.raises(UserError, match="is not there"):
        finish(run)


def test_what_cannot_be_started_from_is_refused(tiny_sd: Path, first: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({name: (torch.cat([t, t]) if "lora_up" in name else t) for name, t in load_file(first).items()}, wrong)
    with pytest.raises(UserError, match="different size in the base model"):
        started(tiny_sd, Lora(rank=4, start=str(wrong)))
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="noise"):
        started(tiny_sd, Lora(rank=4, start=str(noise)))
    with pytest.raises(UserError, match="cannot start from another adapter"):
        settings(tiny_sd, adapter__start=str(first), adapter__dora=True)
