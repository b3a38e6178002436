"""Commands about this machine: what it can do, backups, and downloads of base models."""

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer import __version__, paths, runs, storage
from trainer.base_models import hub, hub_download
from trainer.captioning import kinds
from trainer.cli import adapter_files
from trainer.cli.adapter_files import Json
from trainer.cli.console import DownloadBar, echo, echo_facts, echo_table
from trainer.data import dataset
from trainer.errors import UserError
from trainer.machine import nvidia, other_cards
from trainer.runs import backup

app = typer.Typer()


@app.command()
def download(
    base: Annotated[str, typer.Argument(metavar="NAME", help="owner/name, or owner/name/file.safetensors.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit (default: the newest).")] = "",
    as_json: Json = False,
) -> None:
    """Download a base model or a caption model from the Hugging Face Hub; a download that was interrupted continues."""
    if not hub.NAME.fullmatch(base):
        raise UserError("{base!r} is not a name on the Hugging Face Hub.", "Give owner/name.", base=base[:100])
    if as_json:
        try:
            _download(base, revision, lambda done, total: _print_line(done=done, total=total))
        except UserError as error:
            _print_line(error=error.message, remedy=error.remedy)
            raise typer.Exit(2) from None
        return
    with DownloadBar() as bar:
        _download(base, revision, bar)
    if kinds.find(base, revision):
        echo(f"{base} is ready. Use it with: limner caption DATASET --model {base}")
    else:
        echo(f"{base} is ready. Use it as model.base.")


def _download(base: str, revision: str, report: Callable[[int, int], None]) -> None:
    hub_download.download(base, revision, report, (hub.select, kinds.select))


def _print_line(**values: object) -> None:
    print(json.dumps(values), flush=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Report what this machine can do."""
    folders = {"home": str(paths.home()), "datasets": dataset.names()}
    echo_facts(_facts() | folders, as_json=as_json)


def _facts() -> dict[str, Any]:
    """Return what matters about this machine, without its paths."""
    import psutil

    from trainer import devices

    return {
        "limner": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": devices.names() or ["CPU only: use the built-in base micro"],
        "advice": nvidia.advice() or ("" if devices.count() else other_cards.advice()) or "-",
        "cpu_cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "memory_free_gb": round(psutil.virtual_memory().available / 2**30, 1),
        "disk_free_gb": round(storage.free_space(paths.home()) / 2**30, 1),
        **{name: _version(name) for name in ("torch", "diffusers", "transformers", "peft", "gradio", "safetensors")},
    }


@app.command("export")
def export_backup(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a project or of a run.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The backup.")],
) -> None:
    """Back up a project or a run as one file."""
    adapter_files.check_out(file)
    if name in dataset.names():
        backup.write_project(name, file)
    elif paths.is_name(name) and runs.Run(paths.outputs() / name).config_file.is_file():
        backup.write_run(runs.find(name), file)
    else:
        raise UserError("There is no project or run {name!r}.", "Check the name.", name=name[:80])
    echo(f"{name} is backed up in {file}.")


@app.command()
def selftest(
    out: Annotated[Path, typer.Option("--out", metavar="REPORT.json", help="Report to attach to an issue.")] = Path(
        "selftest.json"
    ),
) -> None:
    """Train, resume, export and draw with micro on each device of this machine, and compare with a reference."""
    from trainer import selftest

    cases = selftest.cases()
    for case in cases:
        print(f"{case.device} {case.precision} ...", file=sys.stderr)
        selftest.run(case)
    rows: list[tuple[str, ...]] = [("device", "precision", "losses differ by", "s/step", "memory", "plan", "")]
    for case in cases:
        memory = f"{case.memory / 2**30:.1f} GB"
        result = "passed" if case.passed else "FAILED"
        row = (case.name or case.device, case.precision, f"{case.deviation:.2%}", f"{case.seconds:.2f}", memory)
        rows.append((*row, case.plan, result))
    echo_table(rows)
    for case in cases:
        for failure in case.failures:
            echo(f"{case.device} {case.precision}: {failure}")
    report = {"machine": _facts(), "cases": [vars(case) for case in cases]}
    storage.write(out, json.dumps(report, indent=1))
    echo(f"Report: {out}")
    if not all(case.passed for case in cases):
        raise typer.Exit(1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
