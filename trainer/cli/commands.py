"""The `limner` command line: everything the page does, on the same folders.

Progress goes to stderr, results to stdout. Exit code 0 = done, 1 = failed, 2 = wrong usage or refused input.
"""

import json
import runpy
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer import __version__, captioning, config, extension, paths, processes, runs, storage, worker
from trainer.base_models import MICRO, detect
from trainer.cli import adapter_files, machine, run_queue
from trainer.cli.adapter_files import BASE, Json
from trainer.cli.console import echo, track, work_visibly
from trainer.config import PictureConfig, base_notes
from trainer.data import captions, checks, dataset, image_stats
from trainer.data.problems import KINDS, Problem, group_by_kind
from trainer.errors import UserError, explain_disk
from trainer.i18n import _
from trainer.machine import card_memory
from trainer.runs import Run, cards, queue

app = typer.Typer(
    help="Teach Stable Diffusion a character or a style.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(adapter_files.app)
app.add_typer(machine.app)
app.add_typer(run_queue.app, name="queue")
for commands in extension.named("commands"):
    app.add_typer(commands)
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="A name under datasets/, or the path of a folder.")]
MEASURED_AT_ONCE = 200  # images, whose figures are kept before the next are looked at
RunFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Run folder.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    processes.print_all_letters()
    with suppress(OSError):  # a home folder of another user, which some commands can read
        storage.keep_private(paths.datasets(), paths.outputs())
    try:
        app(args=None if arguments is None else list(arguments), prog_name="limner")
    except SystemExit as ending:
        return int(ending.code or 0)
    except UserError as error:
        print(f"{error.message} {error.remedy}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except OSError as error:
        if explained := explain_disk(error):
            print(explained, file=sys.stderr)
            return 1
        what = Path(error.filename).name if error.filename else "a file"
        print(f"{what} cannot be read or written: {error.strerror or 'no reason is known'}.", file=sys.stderr)
        return 1
    return 0


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"limner {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def page(context: typer.Context) -> None:
    """Start the page. `limner page --help` lists its options."""
    sys.argv[1:] = context.args
    runpy.run_module("ui.launch", run_name="__main__", alter_sys=True)  # by its name: the trainer knows no page


# Training -------------------------------------------------------------------------------------------------------


@app.command()
def train(
    settings_file: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Full or partial settings.")],
    folder: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="New run folder (default: outputs/<time>_<name>).")
    ] = None,
    assignments: run_queue.Assignments = None,
) -> None:
    """Train an adapter from a config file."""
    run = runs.create(run_queue.read_settings(settings_file, assignments or []), folder)
    print(f"Run folder: {run.folder}", file=sys.stderr)
    raise typer.Exit(work_visibly(run))


@app.command()
def resume(folder: RunFolder) -> None:
    """Continue a run from its latest intact checkpoint."""
    run = Run(folder)
    if not run.config_file.is_file():
        raise UserError(
            "{name!r} is not a run folder: it has no config.toml.", "Give the folder of a run.", name=folder.name
        )
    if not runs.is_locked(run.lock):  # asked for before it ended
        storage.remove(run.folder / "ask" / "stop")
    runs.pause(run, go_on=True)
    queue.hold(run, release=True)
    raise typer.Exit(work_visibly(run))


@app.command(hidden=True)
def work(folder: Annotated[Path | None, typer.Argument(metavar="RUN")] = None) -> None:
    """Work on one run (started by the page); without a folder, on the one that standard input will name."""
    run = Run(folder) if folder else worker.wait_for_run()
    raise typer.Exit(worker.work(run) if run else 0)


@app.command()
def caption(
    name: DatasetName,
    model: Annotated[
        str, typer.Option(metavar="FOLDER|HUB-NAME", help="Caption model; with --server, its name there.")
    ] = captioning.SUGGESTED,
    server: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible server, such as http://127.0.0.1:1234/v1.")
    ] = "",
    existing: Annotated[captioning.Existing, typer.Option(help="What to do with existing captions.")] = "keep",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the captions, and save none.")] = False,
    review: Annotated[bool, typer.Option("--review", help="Keep the captions for review on the page.")] = False,
    threshold: Annotated[float, typer.Option(help="Taggers: minimum probability of a tag.")] = 0.35,
    character_threshold: Annotated[float, typer.Option(help="WD14: the same for tags of characters.")] = 0.85,
    category: Annotated[
        list[str] | None,
        typer.Option(help="WD14: kind of tags to name; may be repeated (default: general, character)."),
    ] = None,
    blacklist: Annotated[str, typer.Option(metavar="TAG,TAG,...", help="Taggers: tags to leave out.")] = "",
    task: Annotated[captioning.FlorenceTask, typer.Option(help="Florence-2: what to write.")] = "detailed_caption",
    prompt: Annotated[str, typer.Option(help="Servers: what to ask.")] = captioning.PROMPT,
    tokens: Annotated[int, typer.Option(help="Maximum length in tokens; 0 = what suits the model.")] = 0,
) -> None:
    """Write captions for the images of a dataset that have none."""
    dataset.install_examples()
    if not paths.is_name(name):
        name = str(dataset.find_folder(name).resolve())
    settings = {
        "dataset": name,
        "model": model,
        "server": server,
        "existing": existing,
        "result": "none" if dry_run else "review" if review else "save",
        "threshold": threshold,
        "character_threshold": character_threshold,
        "categories": category or ["general", "character"],
        "blacklist": blacklist,
        "florence_task": task,
        "prompt": prompt,
        "tokens": tokens,
    }
    run = captioning.create(config.check(captioning.CaptionConfig, settings))
    code = work_visibly(run)
    for image, text in captioning.read_captions(run).items():
        echo(f"{image}: {text}")
    raise typer.Exit(code)


# Images ---------------------------------------------------------------------------------------------------------


@app.command()
def sample(
    prompt: Annotated[str, typer.Option()],
    out: Annotated[Path, typer.Option(metavar="IMAGE.png")],
    base: Annotated[str, typer.Option(metavar=BASE)] = MICRO,
    adapter: Annotated[list[str] | None, typer.Option(metavar="FILE[:STRENGTH]", help="May be repeated.")] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    seed: Annotated[int, typer.Option()] = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps; 0 = what suits the base.")] = 0,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 0 = what suits the base.")] = 0,
    vae: Annotated[str, typer.Option(metavar="FILE|FOLDER", help="VAE in place of the base model's own.")] = "",
    clip_skip: Annotated[int, typer.Option(help="Clip skip; 0 = as the adapter was trained.")] = 0,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size in pixels (default: that of the base).")] = "",
    count: Annotated[int, typer.Option(min=1, help="Number of images, with seeds from --seed on.")] = 1,
) -> None:
    """Generate images with a base model and adapters."""
    adapters = [adapter_files.parse_adapter(text) for text in adapter or []]
    settings: dict[str, Any] = {
        **_suited(base, steps, guidance, clip_skip or adapter_files.clip_skip(adapters)),
        **_size(size),
        "vae": vae,
        "adapters": adapters,
        "prompt": prompt,
        "negative": negative,
    }
    files = [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(count)]
    images = [
        config.check(PictureConfig, {**settings, "seed": seed + number, "out": str(file)})
        for number, file in enumerate(files)
    ]
    adapter_files.check_out(out)
    from trainer.sampling import png_info
    from trainer.sampling.sampler import Sampler

    sampler = Sampler()
    for image in images:
        png_info.write(Path(image.out), sampler.generate(image), image)
        echo(image.out)
    for note in sampler.notes:
        echo(note)


@app.command("generate-regularization")
def generate_regularization(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Dataset under datasets/ to make or to complete.")],
    prompts: Annotated[
        list[str], typer.Option("--prompt", help="What to show, and the caption; of several, images take turns.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 50,
    base: Annotated[str, typer.Option(metavar=BASE)] = MICRO,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    seed: Annotated[int, typer.Option(help="Of the first image; each further one has the next.")] = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps; 0 = what suits the base.")] = 0,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 0 = what suits the base.")] = 0,
    vae: Annotated[str, typer.Option(metavar="FILE|FOLDER", help="VAE in place of the base model's own.")] = "",
    size: Annotated[str, typer.Option(metavar="WxH", help="Size in pixels (default: that of the base).")] = "",
) -> None:
    """Generate a dataset of regularization images with a base model; images that are there are kept."""
    from trainer.sampling import regularization

    dataset.install_examples()
    folder = paths.datasets() / paths.check_name(name, "dataset")
    settings = {**_suited(base, steps, guidance), **_size(size), "vae": vae, "negative": negative}
    images = []
    for number in range(count):
        own = {"prompt": prompts[number % len(prompts)], "seed": seed + number}
        file = regularization.file_of(folder, number + 1)
        images.append(config.check(PictureConfig, {**settings, **own, "out": str(file)}))
    generated = 0
    for path in regularization.generate(dataset.create(name), images):
        echo(str(path))
        generated += 1
    echo(f"Generated {generated}, kept {count - generated}. Use them as regularization.dataset = {name!r}.")


def _suited(base: str, steps: int, guidance: float, clip_skip: int = 0) -> dict[str, Any]:
    """Return settings of images for a base model; what is 0 is what suits it."""
    suited = config.preset("character", base)
    defaults = suited.get("preview", {})
    return {
        "base": base,
        "clip_skip": clip_skip or suited.get("model", {}).get("clip_skip", 1),
        "steps": steps or defaults.get("steps", config.PreviewConfig().steps),
        "guidance": guidance or defaults.get("guidance", config.PreviewConfig().guidance),
    }


def _size(text: str) -> dict[str, int]:
    if not text:
        return {"width": 0, "height": 0}
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise UserError("{text!r} is not a size.", "Write it as 512x512.", text=text)
    return {"width": int(width), "height": int(height)}


@app.command(hidden=True)
def sampler() -> None:
    """Generate images for the page: requests on stdin, answers on stdout."""
    with cards.visible(cards.beside_runs()):
        from trainer.sampling.server import serve

        serve()


# Datasets -------------------------------------------------------------------------------------------------------


@app.command()
def check(
    name: DatasetName,
    trigger: Annotated[str, typer.Option(help="Trigger word.")] = "",
    preset: Annotated[config.Preset, typer.Option(help="What you are teaching.")] = "character",
    base: Annotated[
        str, typer.Option(metavar=BASE, help="Sets the image size and how much of a caption is read.")
    ] = MICRO,
    as_json: Json = False,
) -> None:
    """Report what is wrong with a dataset, and how to fix it."""
    dataset.install_examples()
    resolution = config.preset(preset, base).get("training", {}).get("resolution", 0)
    problems: list[Problem] = []
    folder = dataset.find_folder(name)
    count, forms = 0, [line for describe in extension.panels("check") for line in describe(folder)]
    for part in dataset.parts(folder):
        _measure(part.folder)
        examined = checks.examine(part.folder, trigger, preset=preset, base=base, resolution=resolution)
        problems += [problem for problem in examined.problems if not part.caption or problem.kind != "no caption"]
        count += len(examined.examples)
        forms += _forms(part)
    if as_json:
        rows = [
            {**vars(problem), "effect": problem.effect, "remedy": problem.remedy, "fatal": problem.fatal}
            for problem in problems
        ]
        print(json.dumps({"pictures": count, "forms": forms, "problems": rows}))
    else:
        for form in forms:
            echo(form)
        _echo_problems(problems, count)
        if count and not any(problem.fatal for problem in problems):
            data = {"name": "check", "dataset": name, "trigger": trigger, "preset": preset, "model": {"base": base}}
            settings = config.build(data)
            if time := run_queue.takes(settings):
                echo(_("To train it takes {time}.", time=time))
            if memory := card_memory.describe(settings):
                echo(memory)
            if facts := detect.glance(base):
                for note in base_notes.find(settings, facts):
                    echo(note)
    if any(problem.fatal for problem in problems):
        raise typer.Exit(2)


def _measure(folder: Path) -> None:
    """Measure the images of a dataset with a bar of progress; when it is stopped, what has been measured is kept."""
    portions = range(0, len(image_stats.look(folder).missing), MEASURED_AT_ONCE)
    for _start in track(portions, "Looking at the images"):
        image_stats.measure_missing(folder, MEASURED_AT_ONCE)


def _forms(part: dataset.Part) -> list[str]:
    """Describe what of a dataset is in the form of another program, and what it is taken for."""
    images, forms = dataset.image_files(part.folder), []
    if part.caption:
        forms.append(
            f"{part.folder.name}: {_counted(len(images), 'image')}, seen {_counted(part.repeats, 'time')} in an epoch; "
            f"those without a caption get {part.caption!r}."
        )
    sources = Counter(path.suffix for path in map(captions.source, images) if path)
    for suffix, name in ((".caption", ".caption files"), (".jsonl", captions.METADATA)):
        if sources[suffix]:
            forms.append(f"{_counted(sources[suffix], 'caption')} read from {name}.")
    if masks := len(dataset.masked(part.folder, images)):
        forms.append(f"{_counted(masks, 'mask')}, used with objective.masked_loss.")
    return forms


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _echo_problems(problems: Sequence[Problem], count: int) -> None:
    echo(f"{_counted(count, 'image')}.{'' if problems else ' No problems.'}")
    for group in group_by_kind(problems):
        kind = KINDS[group.kind]
        echo(f"\n{group.title}\n  {_(kind.effect)} {_(kind.remedy)}")
        lines = [
            f"  - {problem.name}: {problem.message}"
            for problem in problems
            if problem.kind == group.kind and problem.name
        ]
        for line in lines[:10]:
            echo(line)
        if len(lines) > 10:
            echo(f"  - and {len(lines) - 10} more")
