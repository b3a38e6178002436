"""Make base models of real size with random weights, and measure training on them on this machine.

    python -m benchmarks.full_size make sd15|sd21|sdxl FOLDER [--shallow]
    python -m benchmarks.full_size measure FOLDER [--steps 5] [--set training.resolution=256]

`make` writes a folder in diffusers format with the widths of the real model, in half precision as they are published;
`--shallow` uses few of the many transformer layers, for machines with little memory. `measure` trains on the example
character with `limner train` and prints seconds per step, the time to the first step, and memory.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
import transformers
from transformers import CLIPTokenizer

from trainer.base_models import CONFIGS
from trainer.runs import Run

GB = 2**30
SHALLOW: dict[str, Any] = {"transformer_layers_per_block": [1, 1, 2]}
CHECKOUT = Path(__file__).resolve().parent.parent


def make(family: str, folder: Path, *, shallow: bool) -> None:
    """Save a model of a family's real widths with random weights from one seed."""
    torch.manual_seed(0)
    settings = CONFIGS / family
    index = json.loads((settings / "model_index.json").read_text(encoding="utf-8"))
    for name, (library, kind) in ((name, pair) for name, pair in index.items() if isinstance(pair, list) and pair[0]):
        if "Tokenizer" in kind:
            pad = "!" if name == "tokenizer_2" or family == "sd21" else "<|endoftext|>"
            tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip", local_files_only=True, pad_token=pad)
            tokenizer.save_pretrained(folder / name)
        elif name == "scheduler":
            shutil.copytree(settings / name, folder / name, dirs_exist_ok=True)
        else:
            config = json.loads((settings / name / "config.json").read_text(encoding="utf-8"))
            if shallow and name == "unet" and family == "sdxl":
                config |= SHALLOW
            if shallow and library == "transformers":
                config |= {"num_hidden_layers": 4}
            if library == "diffusers":
                part = getattr(diffusers, kind).from_config(config)
            else:
                part = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            print(f"{name}: {sum(tensor.numel() for tensor in part.parameters()) / 1e6:.0f} M parameters", flush=True)
            part.half().save_pretrained(folder / name, safe_serialization=True)
    (folder / "model_index.json").write_text((settings / "model_index.json").read_text(encoding="utf-8"))


def measure(folder: Path, steps: int, assignments: list[str]) -> dict[str, float]:
    """Train, and return how long steps take and how much memory."""
    with tempfile.TemporaryDirectory() as home:
        config, run = Path(home) / "config.toml", Run(Path(home) / "run")
        config.write_text(
            f'name = "x"\ndataset = "{CHECKOUT / "datasets" / "example-character"}"\ntrigger = "miraxo"\n'
            f'[model]\nbase = "{folder}"\n[training]\nsteps = {steps}\nbatch_size = 1\nresolution = 256\n'
            '[preview]\nevery = 0\nsteps = 1\nprompts = ["miraxo"]\n[checkpoint]\nevery = 1000\n'
        )
        command = [sys.executable, "-m", "trainer", "train", str(config), "--run", str(run.folder)]
        for assignment in assignments:
            command += ["--set", assignment]
        started = time.time()
        process = subprocess.Popen(
            command, env={**os.environ, "LIMNER_HOME": home}, cwd=CHECKOUT, stderr=subprocess.DEVNULL
        )
        peaks = _watch(process, run)
        if process.returncode:
            raise SystemExit((run.folder / "events.jsonl").read_text(encoding="utf-8")[-2000:])
        log = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    steps_done = [event for event in log if event["kind"] == "step"]
    first = datetime.fromisoformat(steps_done[0]["time"]).timestamp() - started
    return {
        "seconds per step (median, without the first)": statistics.median(event["seconds"] for event in steps_done[1:]),
        "seconds from the start to the first step's end": first,
        "peak GB before the first step": peaks["before"] / GB,
        "peak GB in training": peaks["training"] / GB,
    }


def _watch(process: subprocess.Popen[bytes], run: Run) -> dict[str, int]:
    """Measure the peak resident memory before and after the start of training, every 20 ms."""
    peaks = {"before": 0, "training": 0}
    worker = psutil.Process(process.pid)
    while process.poll() is None:
        is_training = run.log.exists() and '"started"' in run.log.read_text(encoding="utf-8")
        phase = "training" if is_training else "before"
        try:
            peaks[phase] = max(peaks[phase], worker.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    process.wait()
    return peaks


def main() -> None:
    """Make a model or measure training, as the arguments say."""
    parser = argparse.ArgumentParser(description="Base models of real size: make one, or measure training on it.")
    kinds = parser.add_subparsers(required=True, dest="action")
    made, measured = kinds.add_parser("make"), kinds.add_parser("measure")
    made.add_argument("family", choices=["sd15", "sd21", "sdxl"])
    made.add_argument("folder", type=Path)
    made.add_argument("--shallow", action="store_true")
    measured.add_argument("folder", type=Path)
    measured.add_argument("--steps", type=int, default=5)
    measured.add_argument("--set", dest="assignments", action="append", default=[], metavar="key.path=value")
    parsed = parser.parse_args()
    if parsed.action == "make":
        make(parsed.family, parsed.folder, shallow=parsed.shallow)
        return
    for name, value in measure(parsed.folder.resolve(), parsed.steps, parsed.assignments).items():
        print(f"{value:8.2f}  {name}")


if __name__ == "__main__":
    main()
