"""Compare seconds per step, memory and time to the first step of Limner and other trainers, in one run.

    python -m benchmarks.full_size make sd15 MODEL
    python -m benchmarks.speed MODEL [--resolution 256] [--batch 1] [--precision bf16] [--steps 6] [--rounds 2]

The other trainers run as they are, each with its own Python, from paths in the environment; those without one are left
out:

    LIMNER_BENCH_SD_SCRIPTS          checkout of kohya-ss/sd-scripts     LIMNER_BENCH_SD_SCRIPTS_PYTHON  its Python
    LIMNER_BENCH_DIFFUSERS           train_text_to_image_lora.py         LIMNER_BENCH_DIFFUSERS_PYTHON   its Python

Each one is compared with Limner training the same layers: diffusers' script adapts those of the attention, sd-scripts
also those of the feed-forward (and two more per block). All train a LoRA of rank 8 on the same base model, images and
captions with AdamW at the same rate, one thread, without what only Limner's presets do, and with the same settings of
the C library's allocator. They take turns, round after round. Compared is the CPU time between two optimizer steps,
which other load on the machine disturbs less than wall-clock time. Memory is the peak of a process; "without files"
leaves out the pages of mapped files, which the system can reclaim at any time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.base_models import CONFIGS
from trainer.data import dataset
from trainer.data.captions import caption_file

CHECKOUT = Path(__file__).resolve().parent.parent
PICTURES = CHECKOUT / "datasets" / "example-character"
COUNT = 10
GB = 2**30
# As `trainer.training.malloc` sets them for Limner itself.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(3 * 2**29), "MALLOC_TOP_PAD_": str(2**26)}
RATE = "1e-4"
OURS, OURS_ATTENTION = "limner", "limner, attention"


@dataclass(frozen=True)
class Task:
    """Task for all programs."""

    model: Path
    home: Path
    resolution: int
    batch: int
    precision: str
    steps: int


@dataclass(frozen=True)
class Program:
    """A trainer: its Python, and its script and arguments for a task."""

    name: str
    python: str
    command: Callable[[Task], list[str]]


def lay_out(task: Task) -> None:
    """Write the images in the three layouts that the programs read."""
    folders = {name: task.home / name for name in ("ours", "kohya/1_x", "diffusers")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    lines = []
    for number, path in enumerate(dataset.image_files(PICTURES)[:COUNT]):
        picture = Image.open(path).convert("RGB").resize((task.resolution, task.resolution))
        caption = caption_file(path).read_text(encoding="utf-8")
        for name, folder in folders.items():
            picture.save(folder / f"{number:02}.png")
            if name != "diffusers":
                (folder / f"{number:02}.txt").write_text(caption, encoding="utf-8")
        lines.append(json.dumps({"file_name": f"{number:02}.png", "text": caption}))
    (folders["diffusers"] / "metadata.jsonl").write_text("\n".join(lines))
    # sd-scripts looks for the tokenizer here when it has no network.
    shutil.copytree(CONFIGS / "clip", task.home / "tokenizers" / "openai_clip-vit-large-patch14")


def _limner(task: Task, targets: str = "attention+ff") -> list[str]:
    config, run = task.home / "config.toml", task.home / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(task.home / "ours" / ".cache", ignore_errors=True)
    config.write_text(
        f'name = "x"\ndataset = "{task.home / "ours"}"\ntrigger = ""\n'
        f'[model]\nbase = "{task.model}"\n[adapter]\nrank = 8\nalpha = 8.0\n'
        f'targets = "{targets}"\n[optimizer]\nlearning_rate = {RATE}\n'
        f"[training]\nsteps = {task.steps}\nbatch_size = {task.batch}\nresolution = {task.resolution}\n"
        f'precision = "{task.precision}"\ntext_encoder = false\n[preservation]\nshare = 0.0\n'
        '[preview]\nevery = 0\nsteps = 1\nprompts = ["x"]\n'
        "[checkpoint]\nevery = 9999\n"
    )
    return ["-m", "trainer", "train", str(config), "--run", str(run)]


def _sd_scripts(task: Task) -> list[str]:
    precision = "no" if task.precision == "fp32" else task.precision
    return [
        str(Path(os.environ["LIMNER_BENCH_SD_SCRIPTS"]) / "train_network.py"),
        f"--pretrained_model_name_or_path={task.model}", f"--train_data_dir={task.home / 'kohya'}",
        f"--output_dir={task.home / 'out'}", "--output_name=x", f"--resolution={task.resolution}",
        f"--train_batch_size={task.batch}", f"--max_train_steps={task.steps}", "--network_module=networks.lora",
        "--network_dim=8", "--network_alpha=8", "--network_train_unet_only", "--cache_latents", "--sdpa",
        f"--mixed_precision={precision}", "--optimizer_type=AdamW", f"--learning_rate={RATE}",
        "--caption_extension=.txt", "--max_data_loader_n_workers=0", "--seed=1",
        f"--tokenizer_cache_dir={task.home / 'tokenizers'}",
    ]  # fmt: skip


def _diffusers(task: Task) -> list[str]:
    precision = "no" if task.precision == "fp32" else task.precision
    return [
        os.environ["LIMNER_BENCH_DIFFUSERS"],
        f"--pretrained_model_name_or_path={task.model}", f"--train_data_dir={task.home / 'diffusers'}",
        f"--output_dir={task.home / 'out'}", f"--resolution={task.resolution}", f"--train_batch_size={task.batch}",
        f"--max_train_steps={task.steps}", "--rank=8", f"--mixed_precision={precision}", f"--learning_rate={RATE}",
        "--caption_column=text", "--dataloader_num_workers=0", "--checkpointing_steps=9999", "--seed=1",
    ]  # fmt: skip


def programs() -> list[Program]:
    """Return Limner and the other trainers that the environment names."""
    trainers = [Program(OURS, sys.executable, _limner)]
    if "LIMNER_BENCH_DIFFUSERS" in os.environ:
        trainers.append(Program(OURS_ATTENTION, sys.executable, partial(_limner, targets="attention")))
    for name, variable, command in (
        ("sd-scripts", "LIMNER_BENCH_SD_SCRIPTS", _sd_scripts),
        ("diffusers", "LIMNER_BENCH_DIFFUSERS", _diffusers),
    ):
        if variable in os.environ:
            trainers.append(Program(name, os.environ.get(f"{variable}_PYTHON", sys.executable), command))
    return trainers


def measure(program: Program, task: Task) -> list[dict[str, float]]:
    """Run a program once; return for each step the wall and CPU seconds since the start, and the peak memory."""
    log = task.home / f"{program.name}.jsonl"
    log.unlink(missing_ok=True)
    environment = {
        **os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "LIMNER_HOME": str(task.home), "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(task.home / "cache"),
    }  # fmt: skip
    hook = Path(__file__).with_name("step_hook.py")
    ours = program.name in (OURS, OURS_ATTENTION)
    folder = CHECKOUT if ours else task.home
    done = subprocess.run(
        [program.python, str(hook), str(log), *program.command(task)],
        cwd=folder, env={**environment, **({"PYTHONPATH": str(CHECKOUT)} if ours else {})},
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    if len(lines) < task.steps:
        raise SystemExit(f"{program.name} failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in lines]


def summarize(runs: list[list[dict[str, float]]]) -> dict[str, float]:
    """Summarize all runs of a program; the first step, which also warms up, is left out."""
    steps = [after["cpu"] - before["cpu"] for run in runs for before, after in pairwise(run)]
    walls = [after["wall"] - before["wall"] for run in runs for before, after in pairwise(run)]
    return {
        "CPU s/step": statistics.median(steps),
        "least": min(steps),
        "s/step": statistics.median(walls),
        "CPU s to the first step": statistics.median(run[0]["cpu"] for run in runs),
        "GB before": statistics.median(run[0]["peak"] for run in runs) / GB,
        "without files": statistics.median(run[0]["own"] for run in runs) / GB,
        "GB training": statistics.median(max(step["peak"] for step in run[1:]) for run in runs) / GB,
        "load": statistics.median(step["load"] for run in runs for step in run),
    }


def table(figures: dict[str, dict[str, float]]) -> str:
    """Format the figures as Markdown, with ours over those of each trainer that adapts the same layers."""
    rows = [["", *figures[OURS]], ["---"] * (1 + len(figures[OURS]))]
    rows += [[name, *(f"{value:.2f}" for value in values.values())] for name, values in figures.items()]
    for ours, peer in ((OURS, "sd-scripts"), (OURS_ATTENTION, "diffusers")):
        if peer in figures:
            ratios = [
                "" if key == "load" else f"{figures[ours][key] / figures[peer][key]:.2f}" for key in figures[peer]
            ]
            rows.append([f"{ours} / {peer}", *ratios])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Let the programs take turns, and print the table."""
    parser = argparse.ArgumentParser(description="Seconds per step and memory against other trainers.")
    parser.add_argument("model", type=Path)
    for name, value in (("resolution", 256), ("batch", 1), ("steps", 6), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parsed: Any = parser.parse_args()
    measured: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as home:
        task = Task(parsed.model.resolve(), Path(home), parsed.resolution, parsed.batch, parsed.precision, parsed.steps)
        lay_out(task)
        for turn in range(parsed.rounds):
            for program in programs():
                measured.setdefault(program.name, []).append(measure(program, task))
                print(f"round {turn + 1}: {program.name}", file=sys.stderr, flush=True)
    print(f"{parsed.model.name}, {parsed.resolution} pixels, batch {parsed.batch}, {parsed.precision}, one thread\n")
    print(table({name: summarize(runs) for name, runs in measured.items()}))


if __name__ == "__main__":
    main()
