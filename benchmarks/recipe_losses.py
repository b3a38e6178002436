"""Compare the first losses of sd-scripts with those of Limner on the recipe that it imports from sd-scripts' config.

    python -m benchmarks.recipe_losses

sd-scripts trains as it is, in its own Python, both named as for `benchmarks.speed`:

    LIMNER_BENCH_SD_SCRIPTS   checkout of kohya-ss/sd-scripts   LIMNER_BENCH_SD_SCRIPTS_PYTHON   its Python

Both train the tiny Stable Diffusion of the tests in fp32 on the same images in the same order, with the same noise, the
same timesteps and the same initial weights (`recipe_hook.py`). What is left are the settings: a loss that differs by
more than 1e-4 is a setting that does not mean the same.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from PIL import Image
from safetensors.torch import load_file, save_file

from limner_extensions.recipes import reading
from limner_extensions.recipes.kohya import writing
from tests.tiny import make_sd
from trainer import config, families, runs
from trainer import train as training
from trainer.base_models import MICRO_FOLDER
from trainer.data import dataset
from trainer.data.captions import caption_file
from trainer.runs import events
from trainer.training.inputs.batches import Batch, Batches

CHECKOUT = Path(__file__).resolve().parent.parent
PICTURES = CHECKOUT / "datasets" / "example-character"
COUNT, STEPS, SIDE = 4, 5, 64
TOLERANCE = 1e-4
COMMON: dict[str, Any] = {
    "network_module": "networks.lora", "network_dim": 8, "network_alpha": 4, "train_batch_size": COUNT,
    "resolution": str(SIDE), "max_train_steps": STEPS, "mixed_precision": "no", "optimizer_type": "AdamW",
    "learning_rate": 1e-2, "lr_scheduler": "constant", "seed": 7, "caption_extension": ".txt",
    "network_train_unet_only": True,
}  # fmt: skip
OURS: dict[str, Any] = {
    "name": "x", "dataset": "x", "seed": 3, "model": {"base": "owner/name"},
    "adapter": {"kind": "lora", "rank": 8, "alpha": 4.0, "targets": "conv", "rslora": True},
    "optimizer": {"kind": "adamw", "learning_rate": 1e-2, "weight_decay": 0.05},
    "schedule": {"kind": "cosine", "min_lr_ratio": 0.1, "warmup": 0.0},
    "training": {"steps": STEPS, "batch_size": COUNT, "resolution": SIDE, "precision": "fp32", "text_encoder": False},
    "objective": {"weighting": "min-snr", "loss_type": "huber"},
}  # fmt: skip
WITH_CONV = {"network_args": ["conv_dim=8", "conv_alpha=4"]}
# Recipes, and what is known to differ in them.
RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "the same layers": (WITH_CONV, ""),
    "min-SNR, noise offset, cosine": (
        {**WITH_CONV, "min_snr_gamma": 5.0, "noise_offset": 0.1, "lr_scheduler": "cosine",
         "optimizer_args": ["weight_decay=0.1", "betas=(0.8,0.9)"]}, "",
    ),
    "debiased, perturbed, restarts": (
        {**WITH_CONV, "debiased_estimation_loss": True, "ip_noise_gamma": 0.1, "max_timestep": 900,
         "lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2, "max_grad_norm": 0.01}, "",
    ),
    "Huber": ({**WITH_CONV, "loss_type": "huber", "huber_schedule": "constant", "huber_c": 0.1}, ""),
    "scheduled Huber": (
        {**WITH_CONV, "loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.1},
        "c reaches its end at timestep 1000 there, at 999 here",
    ),
    "LoRA+, clip skip": (
        {"network_args": [*WITH_CONV["network_args"], "loraplus_lr_ratio=4"], "clip_skip": 2, "lr_scheduler": "linear"},
        "",
    ),
    "written by Limner": (tomllib.loads(writing.export(config.build(OURS), COUNT).text), ""),
    "without convolutions": ({}, "sd-scripts also adapts proj_in and proj_out"),
    "the text encoder, too": (
        {**WITH_CONV, "network_train_unet_only": False, "text_encoder_lr": 5e-3},
        "sd-scripts also adapts the text encoder's feed-forward layers",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A recipe, the model, and a folder for the images and results of both programs."""

    values: dict[str, Any]
    model: Path
    home: Path


def make_model(folder: Path) -> Path:
    """Save the tiny model with the published names of its text encoder's weights, which transformers 4 reads too."""
    make_sd(folder)
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    return folder


def lay_out(home: Path) -> None:
    """Write the images and captions for both programs, and the tokenizer where sd-scripts looks for it."""
    for name in ("ours", "kohya/1_x"):
        (home / name).mkdir(parents=True)
    for number, path in enumerate(dataset.image_files(PICTURES)[:COUNT]):
        picture = Image.open(path).convert("RGB").resize((SIDE, SIDE))
        caption = f"{number} {caption_file(path).read_text(encoding='utf-8')}"
        for name in ("ours", "kohya/1_x"):
            picture.save(home / name / f"{number}.png")
            (home / name / f"{number}.txt").write_text(caption, encoding="utf-8")
    shutil.copytree(MICRO_FOLDER / "tokenizer", home / "tokenizers" / "openai_clip-vit-large-patch14")


@contextlib.contextmanager
def watched(order: list[list[str]], initial: Path) -> Iterator[None]:
    """Log the order of the images in each batch, and save the adapter as it is attached."""
    attach, batch_at = families.attach, Batches.at

    def attach_and_save(*given: Any, **named: Any) -> families.Adapter:  # noqa: ANN401 - handed on
        adapter = attach(*given, **named)
        save_file(adapter.tensors(), initial)
        return adapter

    def at(self: Batches, step: int, micro: int) -> Batch:
        batch = batch_at(self, step, micro)
        if len(order) == step:
            order.append([caption.partition(" ")[0] for caption in batch.captions])
        return batch

    families.attach, Batches.at = attach_and_save, at  # type: ignore[method-assign]
    try:
        yield
    finally:
        families.attach, Batches.at = attach, batch_at  # type: ignore[method-assign]


def train_ours(task: Task, order: list[list[str]]) -> list[float]:
    """Import the recipe and train with it; return the losses."""
    file = task.home / "recipe.toml"
    file.write_text(tomlkit.dumps(task.values), encoding="utf-8")
    own = {"name": "x", "dataset": str(task.home / "ours"), "model": {"base": str(task.model)},
           "preview": {"every": 0, "at_start": False}, "export": {"cover": False}}  # fmt: skip
    run = runs.create(config.build(config.merge(reading.read(file).settings, own)), task.home / "run")
    with watched(order, task.home / "initial.safetensors"):
        training.train(run.config(), run)
    return [event.loss for event in events.read(run.log)[0] if isinstance(event, events.Step)]


def train_theirs(task: Task, order: list[list[str]]) -> list[float]:
    """Train with sd-scripts on the same draws; return the losses.

    Raises:
        SystemExit: it failed; the end of what it said.
    """
    losses, job = task.home / "losses.json", task.home / "task.json"
    facts = {"checkout": str(CHECKOUT), "model": str(task.model), "seed": task.values["seed"], "order": order,
             "losses": str(losses)}  # fmt: skip
    job.write_text(json.dumps(facts), encoding="utf-8")
    file = task.home / "kohya.toml"
    own = {"pretrained_model_name_or_path": str(task.model), "train_data_dir": str(task.home / "kohya"),
           "output_dir": str(task.home / "out"), "output_name": "x", "max_data_loader_n_workers": 0,
           "cache_latents": False, "network_weights": str(task.home / "initial.safetensors"),
           "tokenizer_cache_dir": str(task.home / "tokenizers")}  # fmt: skip
    file.write_text(tomlkit.dumps(task.values | own), encoding="utf-8")
    checkout = Path(os.environ["LIMNER_BENCH_SD_SCRIPTS"])
    python = os.environ.get("LIMNER_BENCH_SD_SCRIPTS_PYTHON", sys.executable)
    command = [python, str(Path(__file__).with_name("recipe_hook.py")), str(job), str(checkout / "train_network.py"),
               f"--config_file={file}"]  # fmt: skip
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""},
    )  # fmt: skip
    if done.returncode or not losses.exists():
        raise SystemExit(f"sd-scripts failed:\n{done.stderr[-3000:]}")
    found: list[float] = json.loads(losses.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Print a table of the largest difference of each recipe; exit with 1 if one is not known."""
    print("| recipe | sd-scripts | Limner | largest difference | |\n| --- | --- | --- | --- | --- |", flush=True)
    failed = False
    for name, (changes, known) in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            os.environ["LIMNER_HOME"] = str(home)
            lay_out(home)
            task, order = Task({**COMMON, **changes}, make_model(home / "model"), home), []
            ours = train_ours(task, order)
            theirs = train_theirs(task, order)
        difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        failed |= difference > TOLERANCE and not known
        cells = [" ".join(f"{loss:.5f}" for loss in losses) for losses in (theirs, ours)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {difference:.1e} | {known} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
