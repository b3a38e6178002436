"""Commands on adapter files: inspect, verify, merge, resize, convert, extract, bake.

Results go to stdout, as JSON with `--json`, which is how the page runs them. What loads torch is imported when needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trainer import storage
from trainer.adapter_files import compatibility, safetensors_reader, summary
from trainer.adapter_files.programs import sources
from trainer.cli.console import echo, echo_facts, echo_table
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.adapter_files.base_weights import Checkpoint
    from trainer.adapter_files.reader import AdapterFile
    from trainer.adapter_files.transforms import Made
    from trainer.adapter_files.writer import Draft
    from trainer.base_models.registry import FamilyName

BASE = "micro|FOLDER|FILE|HUB-NAME"


app = typer.Typer()
AdapterPath = Annotated[Path, typer.Argument(metavar="FILE", help="Adapter file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OutFile = Annotated[Path, typer.Option(metavar="FILE", help="Adapter file to write.")]
Format = Annotated[Literal["kohya", "peft"], typer.Option("--to", help="File format.")]
Precision = Annotated[Literal["fp16", "bf16", "fp32"], typer.Option()]
Strip = Annotated[bool, typer.Option("--strip", help="Leave out metadata that no program needs.")]


@dataclass(frozen=True)
class Output:
    """Options for writing and reporting a new adapter file."""

    file: Path
    form: Literal["kohya", "peft"]
    precision: Literal["fp16", "bf16", "fp32"]
    strip: bool
    as_json: bool


def parse_adapter(text: str) -> tuple[str, float]:
    """Split FILE[:STRENGTH] into the file and the strength, which is 1 where there is none."""
    file, colon, strength = text.rpartition(":")
    if colon:
        try:
            value = float(strength)
        except ValueError:
            return text, 1.0
        if math.isfinite(value):
            return file, value
    return text, 1.0


def clip_skip(adapters: Sequence[tuple[str, float]]) -> int:
    """Return the clip skip that the first of some adapters was trained with; 0 if it does not say."""
    for file, _strength in adapters[:1]:
        if Path(file).is_file():
            return summary.clip_skip(safetensors_reader.read(Path(file)).metadata)
    return 0


@app.command("inspect")
def inspect_file(file: AdapterPath, as_json: Json = False) -> None:
    """Show the contents of an adapter file."""
    facts = summary.describe(safetensors_reader.read(file))
    facts["problems"] = list(compatibility.check(file).problems)
    if not as_json:
        facts["blocks"] = [f"{block} {size / 1024:.0f} KB" for block, size in facts["blocks"].items()]
        facts["recipe"] = [f"{name} {value}" for name, value in facts["recipe"].items()]
        facts["config"] = "in the file (limner.config)" if facts["config"] else ""
        facts["cover"] = "yes" if facts["cover"] else "no"
    echo_facts(facts, as_json=as_json)
    if not (facts["finite"] and facts["modules"]):
        raise typer.Exit(2)


@app.command()
def verify(file: AdapterPath, as_json: Json = False) -> None:
    """Check for each program whether it loads an adapter file, and if not, why."""
    report = compatibility.check(file)
    _echo_report(report, as_json=as_json)
    if not report.good:
        raise typer.Exit(2)


def _echo_report(report: compatibility.Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(of_report(report)))
        return
    echo(f"{report.file}: {report.family}, {report.keys} keys")
    for line in (*report.problems, *report.notes):
        echo(f"  {line}")
    echo_table([("yes" if verdict.loads else "NO", verdict.program, verdict.words) for verdict in report.verdicts])
    echo(sources())


def of_report(report: compatibility.Report) -> dict[str, Any]:
    """A report ready for JSON."""
    return {**vars(report), "good": report.good, "verdicts": [vars(verdict) for verdict in report.verdicts]}


# Tools ----------------------------------------------------------------------------------------------------------


@app.command()
def merge(
    files: Annotated[list[str], typer.Argument(metavar="FILE[:STRENGTH]...")],
    out: OutFile,
    rank: Annotated[int, typer.Option(help="Cut the result to this rank; 0 = exact, the ranks add up.")] = 0,
    form: Format = "kohya",
    precision: Precision = "fp16",
    strip: Strip = False,
    as_json: Json = False,
) -> None:
    """Merge several adapters into one LoRA."""
    from trainer.adapter_files import transforms, writer

    if rank < 0:
        raise UserError("The rank cannot be below 0.", "Give a whole number, or leave it out.")
    adapters = _read_adapters(files)
    sources = [adapter_file for _, adapter_file, _ in adapters]
    _write(
        lambda draft: transforms.merge(adapters, rank, draft),
        Output(out, form, precision, strip, as_json),
        lambda draft: writer.inherited(sources, draft, out.stem),
        sources[0].family,
    )


@app.command()
def resize(
    file: AdapterPath,
    out: OutFile,
    rank: Annotated[int, typer.Option(help="Maximum rank of a layer.")] = 0,
    energy: Annotated[float, typer.Option(help="Share of its squared effect that a layer keeps, e.g. 0.95.")] = 1.0,
    form: Format = "kohya",
    precision: Precision = "fp16",
    strip: Strip = False,
    as_json: Json = False,
) -> None:
    """Approximate an adapter by a LoRA of lower rank."""
    from trainer.adapter_files import reader, transforms, writer

    if not rank and energy == 1:
        raise UserError("There is no target size.", "Give --rank or --energy.")
    source = reader.scan(file)
    _write(
        lambda draft: transforms.resize(source, rank, energy, draft),
        Output(out, form, precision, strip, as_json),
        lambda draft: writer.inherited([source], draft, out.stem),
        source.family,
    )


@app.command()
def convert(
    file: AdapterPath,
    out: OutFile,
    form: Format = "kohya",
    precision: Precision = "fp16",
    strip: Strip = False,
    as_json: Json = False,
) -> None:
    """Write an adapter in another format or precision."""
    from trainer.adapter_files import joined, reader, transforms, writer

    source = reader.scan(file)

    def unchanged(draft: Draft) -> Made:
        draft.update(source.modules)
        return transforms.Made(draft)

    output = Output(out, form, precision, strip, as_json)
    joins = joined.can_join(source.modules, source.family)
    _write(unchanged, output, lambda _draft: writer.for_family(source), source.family, joins=joins)


@app.command("extract")
def extract_lora(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Fine-tuned model.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="Base model it was made from.")],
    rank: Annotated[int, typer.Option(min=1)],
    out: OutFile,
    energy: Annotated[float, typer.Option(help="Share of a layer's squared difference to keep.")] = 1.0,
    form: Format = "kohya",
    precision: Precision = "fp16",
    strip: Strip = False,
    as_json: Json = False,
) -> None:
    """Extract a LoRA from the difference between a fine-tuned model and its base."""
    from trainer.adapter_files import transforms, writer
    from trainer.base_models import detect

    checkpoint = _checkpoint(base)
    tuned_checkpoint = _checkpoint(tuned)
    predicts = detect.look(checkpoint.path).prediction_type or "epsilon"
    _write(
        lambda draft: transforms.difference(tuned_checkpoint, checkpoint, rank, energy, draft),
        Output(out, form, precision, strip, as_json),
        lambda draft: writer.inherited([], draft, out.stem) | writer.of_family(checkpoint.family, predicts),
        checkpoint.family,
    )


@app.command()
def bake(
    base: Annotated[str, typer.Argument(metavar=BASE)],
    adapter: Annotated[list[str], typer.Option(metavar="FILE[:STRENGTH]", help="May be repeated.")],
    out: Annotated[Path, typer.Option(metavar="FILE|FOLDER", help="In the same format as the base.")],
    as_json: Json = False,
) -> None:
    """Write a base model with adapters merged into its weights."""
    from trainer.adapter_files import transforms

    check_out(out)
    adapters = _read_adapters(adapter)
    count, notes = transforms.bake(_checkpoint(base), adapters, out)
    echo_facts({"file": out.name, "layers": count, "notes": list(notes)}, as_json=as_json)


def _read_adapters(texts: Sequence[str]) -> list[tuple[str, AdapterFile, float]]:
    from trainer.adapter_files import reader

    adapters = []
    for file, strength in map(parse_adapter, texts):
        adapters.append((Path(file).name, reader.scan(Path(file)), strength))
    return adapters


def _checkpoint(base: str) -> Checkpoint:
    from trainer.adapter_files.base_weights import open_checkpoint
    from trainer.base_models import detect

    return open_checkpoint(detect.locate(base)[0])


def check_out(out: Path) -> None:
    """Check that the folder of a file to write exists, and remove what a killed command left of the file there.

    Raises:
        UserError: it does not.
    """
    if not out.parent.is_dir():
        raise UserError("There is no folder {name!r}.", "Make it first, or choose another one.", name=out.parent.name)
    storage.remove_leftovers_of(out)


def _write(
    fill: Callable[[Draft], Made],
    output: Output,
    metadata: Callable[[Draft], Mapping[str, str]],
    family: FamilyName | None,
    *,
    joins: bool = True,
) -> None:
    """Write the new adapter, check it by the rules of the programs, and report how exact it is."""
    from trainer.adapter_files import writer

    check_out(output.file)
    with storage.open_scratch(output.file.parent) as body:
        draft = writer.Draft(body, output.form, output.precision, family, joins=joins)
        adapter = fill(draft)
        storage.write_chunks(output.file, draft.chunks(metadata(draft), strip=output.strip))
    report = compatibility.check(output.file)
    ranks = sorted({module.rank for module in adapter.modules.values()})
    facts = {
        "file": output.file.name,
        "layers": len(adapter.modules),
        "ranks": ranks if len(ranks) <= 8 else [f"{ranks[0]} to {ranks[-1]}"],
        "bytes": output.file.stat().st_size,
        "error": adapter.error,
        "worst_layer_error": adapter.worst,
        "notes": list(adapter.notes),
    }
    if output.as_json:
        print(json.dumps({**facts, "report": of_report(report)}))
        return
    facts |= {"error": f"{adapter.error:.3g} of the effect", "worst_layer_error": f"{adapter.worst:.3g}"}
    echo_facts(facts, as_json=False)
    _echo_report(report, as_json=False)
