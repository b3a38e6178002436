"""Hold the verdicts on adapter files against what the programs do with them, by running their own loading code.

    python -m benchmarks.verdicts [--family sd15] [--program SD.Next] [--files FOLDER] [--only TEXT]
                                  [--csv FILE]

Files are written as Limner, LyCORIS, PEFT, diffusers, OneTrainer, ai-toolkit and SimpleTuner name and shape them, for
base models with the blocks and names of the real ones and narrow layers. Each program loads them in a process of its
own, and what it changes in the weights is compared with what a file is meant to change. Programs come from checkouts:

    LIMNER_BENCH_COMFYUI      comfyanonymous/ComfyUI              LIMNER_BENCH_INVOKEAI     invoke-ai/InvokeAI
    LIMNER_BENCH_A1111        AUTOMATIC1111/stable-diffusion-webui LIMNER_BENCH_SD_SCRIPTS  kohya-ss/sd-scripts
    LIMNER_BENCH_FORGE        lllyasviel/stable-diffusion-webui-forge LIMNER_BENCH_LYCORIS  KohakuBlueleaf/LyCORIS
    LIMNER_BENCH_SDNEXT       vladmandic/sdnext

Those without one are left out; diffusers is the installed one. `einops` has to be installed.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import foreign
from benchmarks.loaders import LOADERS
from benchmarks.narrow import Base
from benchmarks.stand_ins import variable
from trainer.adapter_files import compatibility, safetensors_reader, summary
from trainer.base_models import layer_names


def behaviors(program: str, base: Base, files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a program does with files, by their names."""
    command = [sys.executable, "-m", "benchmarks.behavior", program, base.family, *map(str, files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                yield answer["file"], answer


def needs_lycoris(file: Path) -> bool:
    layers, _ = summary.layers(safetensors_reader.read(file))
    return any(
        layer.algorithm != "LoRA"
        or "lora_mid.weight" in layer.parts
        or (layer.kind == "DoRA" and not layer.by_ai_toolkit)
        for layer in layers
    )


def by_own_oft(file: Path) -> bool:
    """True if a file is for sd-scripts' `networks.oft`, which is not run here."""
    return any(key.startswith(layer_names.OFT_PREFIX) for key in safetensors_reader.read(file).entries)


def compare(base: Base, files: list[Path], programs: list[str]) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield file, program, what it does, details of that, the verdict, and its words."""
    known = base.known
    reports = {file.name: compatibility.check(file, known) for file in files}
    for program in programs:
        if program != "diffusers" and variable(program) not in os.environ:
            print(f"{program}: no checkout in {variable(program)}", file=sys.stderr)
            continue
        judged = "sd-scripts" if program == "LyCORIS" else program
        fitting = [file for file in files if judged != "sd-scripts" or needs_lycoris(file) == (program == "LyCORIS")]
        fitting = [file for file in fitting if judged != "sd-scripts" or not by_own_oft(file)]
        for name, answer in behaviors(program, base, fitting):
            verdict = next(one for one in reports[name].verdicts if one.program == judged)
            detail = answer.get("detail", "") or f"{answer.get('error', 0):.3g} of the change"
            yield name.removesuffix(".safetensors"), program, answer["outcome"], detail, verdict.outcome, verdict.words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=("sd15", "sd21", "sdxl"))
    parser.add_argument("--program", action="append", choices=LOADERS)
    parser.add_argument("--files", type=Path, help="folder for the files, kept")
    parser.add_argument("--only", default="", help="only files with this text in their names")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in options.family or ("sd15", "sd21", "sdxl"):
            base = Base.make(family)
            files = foreign.write_all(base, (options.files or Path(folder)) / family, options.only)
            rows += [(family, *row) for row in compare(base, files, options.program or list(LOADERS))]
    counted = [row for row in rows if row[3] != "unknown"]
    wrong = [row for row in counted if row[3] != row[5]]
    for family, file, program, does, detail, verdict, words in wrong:
        print(f"{family} | {file} | {program}: {does} ({detail[:100]}) | verdict {verdict}: {words[:200]}")
    print(f"{len(counted) - len(wrong)} of {len(counted)} verdicts are what the program does")
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("family", "file", "program", "does", "detail", "verdict", "words"), *rows])


if __name__ == "__main__":
    main()
