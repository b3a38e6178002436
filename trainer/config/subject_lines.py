"""Lines that name a dataset to teach in the same run: `kim --trigger kmx2 --repeats 2 --class girl`."""

from trainer.config import prompt_lines
from trainer.data.dataset import Subject
from trainer.errors import UserError

MAX_REPEATS = 100
FLAGS = ("trigger", "repeats", "class", "regularization")


def parse_subject_line(line: str) -> Subject:
    """Read a line that names a dataset and its trigger word.

    Raises:
        UserError: it names no dataset or no trigger word, or has an unknown flag or a wrong value.
    """
    dataset, pairs = prompt_lines.split(line)
    flags = dict(pairs)
    if unknown := sorted(flags.keys() - set(FLAGS)):
        raise UserError(
            "A line of further datasets has the unknown flag --{flag}.",
            "Known are {known}.",
            flag=unknown[0],
            known=", ".join(f"--{flag}" for flag in FLAGS),
        )
    trigger, repeats = flags.get("trigger", ""), flags.get("repeats", "1")
    if not dataset or not trigger or not trigger.isprintable():
        raise UserError(
            "The line {line!r} of further datasets needs a dataset and a trigger word.",
            "Write it as: kim --trigger kmx2",
            line=line,
        )
    if not repeats.isascii() or not repeats.isdigit() or not 1 <= int(repeats) <= MAX_REPEATS:
        raise UserError("--repeats of {line!r} should be 1 to {limit}.", "Correct it.", line=line, limit=MAX_REPEATS)
    for flag in ("class", "regularization"):
        value = flags.get(flag)
        if value is not None and (not value or not value.isprintable()):
            raise UserError("--{flag} of {line!r} has no value.", "Correct it.", flag=flag, line=line)
    return Subject(dataset, trigger, int(repeats), flags.get("class", ""), flags.get("regularization", ""))


def write(subject: Subject) -> str:
    """Return a subject as the line that `parse` reads."""
    parts = [subject.dataset]
    if subject.trigger:
        parts += ["--trigger", subject.trigger]
    if subject.repeats > 1:
        parts += ["--repeats", str(subject.repeats)]
    if subject.class_word:
        parts += ["--class", subject.class_word]
    if subject.regularization:
        parts += ["--regularization", subject.regularization]
    return " ".join(parts)
