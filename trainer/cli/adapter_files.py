"""The commands that work on adapter files: inspect, verify, merge, resize, convert, bake, extract.

Results go to stdout, as JSON with `--json`, which is how the page runs them. What loads torch is imported when needed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainer import storage
from trainer.adapter_files import compatibility, safetensors_reader, summary
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.adapter_files.base_weights import Checkpoint
    from trainer.adapter_files.reader import AdapterFile
    from trainer.adapter_files.transforms import Made

BASE = "micro|FOLDER|FILE|HUB-NAME"


class Commands(Protocol):
    """Adds a command to the command line."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        """Its parser, for its arguments."""


def add(command: Commands) -> None:
    """Add all commands of this module."""
    for name, run, text in (
        ("inspect", _inspect, "Tell what is in an adapter file."),
        ("verify", _verify, "Tell for each program whether it loads an adapter file, and what is wrong if not."),
    ):
        one = command(name, run, text)
        one.add_argument("file", type=Path, metavar="FILE")
        one.add_argument("--json", action="store_true")
    one = command("merge", _merge, "Make one LoRA of several adapters.")
    one.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]")
    one.add_argument("--rank", type=int, default=0, help="cut the result to this rank (default: exact, ranks add up)")
    _written(one)
    one = command("resize", _resize, "Make a LoRA of lower rank that does nearly the same.")
    one.add_argument("file", type=Path, metavar="FILE")
    one.add_argument("--rank", type=int, default=0, help="the most that a layer may have")
    one.add_argument("--energy", type=float, default=1.0, help="share of its squared effect that a layer keeps: 0.95")
    _written(one)
    one = command("convert", _convert, "Write an adapter in another form or precision.")
    one.add_argument("file", type=Path, metavar="FILE")
    _written(one)
    one = command("extract", _difference, "Make a LoRA of what makes a tuned model differ from its base.")
    one.add_argument("tuned", metavar="TUNED")
    one.add_argument("base", metavar="BASE")
    one.add_argument("--rank", type=int, required=True)
    one.add_argument("--energy", type=float, default=1.0, help="share of a layer's squared difference that is enough")
    _written(one)
    one = command("bake", _bake, "Write a base model with adapters in its weights.")
    one.add_argument("base", metavar=BASE)
    one.add_argument("--adapter", dest="files", action="append", required=True, metavar="FILE[:STRENGTH]")
    one.add_argument("--out", type=Path, required=True, metavar="FILE|FOLDER", help="of the form that the base has")
    one.add_argument("--json", action="store_true")


def _written(one: argparse.ArgumentParser) -> None:
    one.add_argument("--to", choices=("kohya", "peft"), default="kohya", help="form of the file (default: kohya)")
    one.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    one.add_argument("--strip", action="store_true", help="leave out of the metadata what no program needs")
    one.add_argument("--out", type=Path, required=True, metavar="FILE")
    one.add_argument("--json", action="store_true")


def adapter(text: str) -> tuple[str, float]:
    """The file and the strength in FILE[:STRENGTH]."""
    file, colon, strength = text.rpartition(":")
    if colon:
        try:
            value = float(strength)
        except ValueError:
            return text, 1.0
        if math.isfinite(value):
            return file, value
    return text, 1.0


def tell(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print facts for people, or for programs."""
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{key.replace('_', ' '):{width}}  {shown}")


def _inspect(parsed: argparse.Namespace) -> int:
    facts = summary.describe(safetensors_reader.read(parsed.file))
    facts["problems"] = list(compatibility.check(parsed.file).problems)
    if not parsed.json:
        facts["blocks"] = [f"{block} {size / 1024:.0f} KB" for block, size in facts["blocks"].items()]
        facts["recipe"] = [f"{name} {value}" for name, value in facts["recipe"].items()]
        facts["config"] = "in the file (limner.config)" if facts["config"] else ""
        facts["cover"] = "yes" if facts["cover"] else "no"
    tell(facts, as_json=parsed.json)
    return 0 if facts["finite"] and facts["modules"] else 2


def _verify(parsed: argparse.Namespace) -> int:
    report = compatibility.check(parsed.file)
    _tell_report(report, as_json=parsed.json)
    return 0 if report.good else 2


def _tell_report(report: compatibility.Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(of_report(report)))
        return
    print(f"{report.file}: {report.family}, {report.keys} keys")
    for line in (*report.problems, *report.notes):
        print(f"  {line}")
    for one in report.verdicts:
        print(f"  {'yes' if one.loads else 'NO ':3}  {one.program:10}  {one.words}")


def of_report(report: compatibility.Report) -> dict[str, Any]:
    """A report ready for JSON."""
    return {**vars(report), "good": report.good, "verdicts": [vars(one) for one in report.verdicts]}


# Tools ----------------------------------------------------------------------------------------------------------


def _merge(parsed: argparse.Namespace) -> int:
    from trainer.adapter_files import transforms

    given = _named([adapter(text) for text in parsed.files])
    made = transforms.merge(given, _at_least_0(parsed.rank))
    return _finish(parsed, made, [file for _, file, _ in given])


def _resize(parsed: argparse.Namespace) -> int:
    from trainer.adapter_files import reader, transforms

    if not parsed.rank and parsed.energy == 1:
        raise UserError("It is not said how far to resize.", "Give --rank or --energy.")
    file = reader.read(parsed.file)
    return _finish(parsed, transforms.resize(file, parsed.rank, parsed.energy), [file])


def _convert(parsed: argparse.Namespace) -> int:
    from trainer.adapter_files import reader, transforms

    file = reader.read(parsed.file)
    return _finish(parsed, transforms.Made(file.modules), [file], recipe=True)


def _difference(parsed: argparse.Namespace) -> int:
    from trainer.adapter_files import transforms

    base = _checkpoint(parsed.base)
    made = transforms.difference(_checkpoint(parsed.tuned), base, max(1, parsed.rank), parsed.energy)
    return _finish(parsed, made, [], base=base)


def _bake(parsed: argparse.Namespace) -> int:
    from trainer.adapter_files import transforms

    check_out(parsed.out)
    given = _named([adapter(text) for text in parsed.files])
    count = transforms.bake(_checkpoint(parsed.base), given, parsed.out)
    tell({"file": parsed.out.name, "layers": count}, as_json=parsed.json)
    return 0


def _named(given: Sequence[tuple[str, float]]) -> list[tuple[str, AdapterFile, float]]:
    from trainer.adapter_files import reader

    return [(Path(file).name, reader.read(Path(file)), strength) for file, strength in given]


def _at_least_0(rank: int) -> int:
    if rank < 0:
        raise UserError("The rank cannot be below 0.", "Give a whole number, or leave it out.")
    return rank


def _checkpoint(base: str) -> Checkpoint:
    from trainer.adapter_files.base_weights import open_checkpoint
    from trainer.config import ModelConfig
    from trainer.families import loading

    return open_checkpoint(loading.locate(ModelConfig(base=base))[0])


def check_out(out: Path) -> None:
    """Refuse a file to write whose folder is not there.

    Raises:
        UserError: the folder is not there.
    """
    if not out.parent.is_dir():
        raise UserError("There is no folder {name!r}.", "Make it first, or choose another one.", name=out.parent.name)


def _finish(
    parsed: argparse.Namespace,
    made: Made,
    sources: list[AdapterFile],
    *,
    base: Checkpoint | None = None,
    recipe: bool = False,
) -> int:
    """Write the new adapter, check it by the rules of the programs, and tell how exact it is."""
    from trainer.adapter_files import writer
    from trainer.base_models import detect

    check_out(parsed.out)
    metadata = writer.for_family(sources[0]) if recipe else writer.inherited(sources, made.modules, parsed.out.stem)
    if base:
        metadata |= writer.of_family(base.family, detect.look(base.path).prediction_type or "epsilon")
    family = base.family if base else sources[0].family
    data = writer.write(
        made.modules, metadata, form=parsed.to, precision=parsed.precision, strip=parsed.strip, family=family
    )
    storage.write(parsed.out, data)
    report = compatibility.check(parsed.out)
    ranks = sorted({module.rank for module in made.modules.values()})
    facts = {
        "file": parsed.out.name,
        "layers": len(made.modules),
        "ranks": ranks if len(ranks) <= 8 else [f"{ranks[0]} to {ranks[-1]}"],
        "bytes": len(data),
        "error": made.error,
        "worst_layer_error": made.worst,
        "notes": list(made.notes),
    }
    if parsed.json:
        print(json.dumps({**facts, "report": of_report(report)}))
        return 0
    tell({**facts, "error": f"{made.error:.3g} of the effect", "worst_layer_error": f"{made.worst:.3g}"}, as_json=False)
    _tell_report(report, as_json=False)
    return 0
