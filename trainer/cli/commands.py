"""The `limner` command line: all that the page does, on the same folders.

Progress goes to stderr, results to stdout. Exit code 0 = done, 1 = failed, 2 = wrong usage or refused input.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# A command must not look things up on a network behind a person's back.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

from trainer import __version__, captioning, config, paths, runs, storage
from trainer.base_models import MICRO
from trainer.cli import adapter_files
from trainer.cli.console import Progress
from trainer.config import PictureConfig
from trainer.data import checks, dataset, image_stats
from trainer.errors import UserError
from trainer.i18n import say
from trainer.runs import Run
from trainer.worker import work


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except UserError as error:
        print(f"{error.message} {error.remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        what = Path(error.filename).name if error.filename else "a file"
        print(f"{what} cannot be read or written: {error.strerror or 'no reason is known'}.", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="limner", description="Teach Stable Diffusion a character or a style.")
    parser.add_argument("--version", action="version", version=f"limner {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.set_defaults(run=run)
        return made

    one = command("train", _train, "Train an adapter from a config file.")
    one.add_argument("config", type=Path, metavar="CONFIG.toml", help="full or partial settings")
    one.add_argument(
        "--run", dest="folder", type=Path, metavar="FOLDER", help="new run folder (default: outputs/<time>_<name>)"
    )
    one.add_argument("--set", dest="assignments", action="append", default=[], metavar="key.path=value")
    one = command("resume", _resume, "Go on with a run from its newest whole checkpoint.")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    one = command("sample", _sample, "Make pictures with a base model and adapters.")
    one.add_argument("--base", default=MICRO, metavar="micro|FOLDER|FILE|HUB-NAME")
    one.add_argument("--adapter", action="append", default=[], metavar="FILE[:STRENGTH]")
    one.add_argument("--prompt", required=True)
    one.add_argument("--negative", default="")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--steps", type=int, default=0, help="denoising steps (default: what suits the base)")
    one.add_argument("--guidance", type=float, default=0, help="default: what suits the base")
    one.add_argument("--size", default="", metavar="WxH")
    one.add_argument("--count", type=int, default=1, help="pictures, with seeds from --seed on")
    one.add_argument("--out", type=Path, required=True, metavar="PICTURE.png")
    adapter_files.add(command)
    one = command("caption", _caption, "Write captions for the pictures of a data set that have none.")
    one.add_argument("dataset", metavar="DATASET", help="a name under datasets/, or the path of a folder")
    one.add_argument("--model", default=captioning.SUGGESTED, metavar="FOLDER|HUB-NAME")
    one.add_argument(
        "--existing", default="keep", choices=["keep", "add", "replace"], help="what becomes of captions that are there"
    )
    one.add_argument("--threshold", type=float, default=0.35, help="how sure a tagger has to be of a tag")
    one = command("check", _check, "Tell what is wrong with a data set, and the remedy.")
    one.add_argument("dataset", metavar="DATASET", help="a name under datasets/, or the path of a folder")
    one.add_argument("--trigger", default="")
    one.add_argument("--preset", default="character", choices=["character", "style"], help="what you are teaching")
    one.add_argument("--base", default=MICRO, help="tells the size of pictures and how much of a caption is read")
    one.add_argument("--json", action="store_true")
    command("doctor", _doctor, "Tell what this machine can do.").add_argument("--json", action="store_true")
    one = command("work", _work, "The worker of one run (what the page starts).")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    command("gauge", _gauge, "Measure whether micro can draw such pictures (what the page starts).").add_argument(
        "dataset", metavar="DATASET", help="a name under datasets/, or the path of a folder"
    )
    command("paint", _paint, "The painter (what the page starts): requests on stdin, answers on stdout.")
    return parser


# Training -------------------------------------------------------------------------------------------------------


def _train(parsed: argparse.Namespace) -> int:
    data = config.override(config.load_partial(parsed.config), parsed.assignments)
    settings = config.build(data)
    dataset.folder_of(settings.dataset)
    run = runs.create(settings, parsed.folder)
    print(f"Run folder: {run.folder}", file=sys.stderr)
    return work(Run(run.folder, Progress()))


def _resume(parsed: argparse.Namespace) -> int:
    if not (parsed.folder / "config.toml").is_file():
        raise UserError(
            "{name!r} is no run folder: it has no config.toml.", "Give the folder of a run.", name=parsed.folder.name
        )
    run = Run(parsed.folder, Progress())
    if not runs.is_locked(run.lock):  # asked for before it ended
        (run.folder / "ask" / "stop").unlink(missing_ok=True)
    runs.pause(run, go_on=True)
    return work(run)


def _caption(parsed: argparse.Namespace) -> int:
    asked = {name: getattr(parsed, name) for name in ("dataset", "model", "existing", "threshold")}
    if not paths.NAME.fullmatch(parsed.dataset):
        asked["dataset"] = str(dataset.folder_of(parsed.dataset).resolve())
    run = captioning.create(config.check(captioning.CaptionConfig, asked))
    code = work(Run(run.folder, Progress()))
    for name, text in captioning.words(run).items():
        print(f"{name}: {text}")
    return code


def _work(parsed: argparse.Namespace) -> int:
    return work(Run(parsed.folder))


# Pictures ------------------------------------------------------------------------------------------------------


def _sample(parsed: argparse.Namespace) -> int:
    width, height = _size(parsed.size)
    defaults = config.preset("character", parsed.base).get("preview", {})
    data: dict[str, Any] = {
        "base": parsed.base,
        "adapters": [adapter_files.adapter(text) for text in parsed.adapter],
        "prompt": parsed.prompt,
        "negative": parsed.negative,
        "steps": parsed.steps or defaults.get("steps", config.PreviewConfig().steps),
        "guidance": parsed.guidance or defaults.get("guidance", config.PreviewConfig().guidance),
        "width": width,
        "height": height,
    }
    count = max(1, parsed.count)
    outs = [parsed.out.with_stem(f"{parsed.out.stem}-{number}") if count > 1 else parsed.out for number in range(count)]
    pictures = [
        config.check(PictureConfig, {**data, "seed": parsed.seed + number, "out": str(out)})
        for number, out in enumerate(outs)
    ]
    adapter_files.check_out(parsed.out)
    from trainer.sampling import png_info
    from trainer.sampling.sampler import Sampler

    sampler = Sampler()
    for picture in pictures:
        png_info.write(Path(picture.out), sampler.generate(picture), picture)
        print(picture.out)
    return 0


def _size(text: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise UserError("{text!r} is no size.", "Write it as 512x512.", text=text)
    return int(width), int(height)


def _check(parsed: argparse.Namespace) -> int:
    folder = dataset.folder_of(parsed.dataset)
    resolution = config.preset(parsed.preset, parsed.base).get("training", {}).get("resolution", 0)
    found = checks.find(
        folder, parsed.trigger, preset=parsed.preset, base=parsed.base, resolution=resolution,
        measured=image_stats.complete(folder),
    )  # fmt: skip
    count = len(dataset.read(folder))
    if parsed.json:
        told = [{**vars(one), "effect": one.effect, "remedy": one.remedy, "fatal": one.fatal} for one in found]
        print(json.dumps({"pictures": count, "problems": told}))
    else:
        print(f"{count} picture{'' if count == 1 else 's'}. {'' if found else 'Nothing is wrong with them.'}".strip())
        for finding in checks.gathered(found):
            kind = checks.KINDS[finding.kind]
            print(f"\n{finding.title}\n  {say(kind.effect)} {say(kind.remedy)}")
            lines = [f"  - {one.name}: {one.message}" for one in found if one.kind == finding.kind and one.name]
            more = [f"  - and {len(lines) - 10} more"] if len(lines) > 10 else []
            print("\n".join(lines[:10] + more))
    return 2 if any(problem.fatal for problem in found) else 0


def _doctor(parsed: argparse.Namespace) -> int:
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    facts = {
        "limner": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": gpus
        or (["MPS"] if torch.backends.mps.is_available() else ["CPU only: use the built-in base micro"]),
        "cpu_cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "memory_free_gb": round(psutil.virtual_memory().available / 2**30, 1),
        "disk_free_gb": round(storage.free_space(paths.home()) / 2**30, 1),
        "datasets": dataset.names(),
        **{name: _version(name) for name in ("torch", "diffusers", "transformers", "peft", "gradio", "safetensors")},
    }
    adapter_files.tell(facts, as_json=parsed.json)
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _gauge(parsed: argparse.Namespace) -> int:
    from trainer.training import gauge

    for name, figure in gauge.complete(dataset.folder_of(parsed.dataset)).items():
        print(f"{name} {figure:.4f}")
    return 0


def _paint(_: argparse.Namespace) -> int:
    from trainer.sampling.server import serve

    serve()
    return 0
