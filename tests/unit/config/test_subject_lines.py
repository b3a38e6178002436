"""Lines that name further datasets of a run, and what does not go together in one run."""

from typing import Any

import pytest

from trainer import config
from trainer.config import TrainConfig, subject_lines
from trainer.data.dataset import Subject
from trainer.errors import UserError


def build(*lines: str, **changes: Any) -> TrainConfig:  # noqa: ANN401 - any settings
    return config.build({"name": "x", "dataset": "rin", "trigger": "rinx", "subjects": list(lines)} | changes)


def test_a_line_is_read_and_written() -> None:
    subject = subject_lines.parse_subject_line("my kim --trigger kmx2 --repeats 3")
    assert subject == Subject("my kim", "kmx2", 3)
    assert subject_lines.parse_subject_line(subject_lines.write(subject)) == subject
    assert subject_lines.write(Subject("kim", "kmx2")) == "kim --trigger kmx2"
    subject = subject_lines.parse_subject_line("kim --class young girl --trigger kmx2 --regularization /data/my girls")
    assert subject == Subject("kim", "kmx2", 1, "young girl", "/data/my girls")
    assert subject_lines.parse_subject_line(subject_lines.write(subject)) == subject
    line = "/home/anna/kim --trigger kmx2 --regularization /home/anna/girls"
    published = config.without_paths(build(line, dataset="/home/anna/rin"))
    assert (published.dataset, published.subjects) == ("rin", ("kim --trigger kmx2 --regularization girls",))


@pytest.mark.parametrize(
    ("line", "changes", "words"),
    [
        ("kim", {}, "needs a dataset and a trigger word"),
        ("--trigger kmx2", {}, "needs a dataset and a trigger word"),
        ("kim --word kmx2", {}, "unknown flag --word"),
        ("kim --trigger kmx2 --repeats 0", {}, "should be 1 to 100"),
        ("kim --trigger kmx2 --class", {}, "--class of .* has no value"),
        ("kim --trigger kmx2 --regularization", {}, "--regularization of .* has no value"),
        ("kim --trigger RINX", {}, "different trigger words"),
        ("rin --trigger kmx2", {}, "named twice"),
        ("kim --trigger kmx2", {"trigger": ""}, "the first has none"),
        ("kim --trigger kmx2", {"class_word": "a kmx2"}, "class word has a trigger word in it"),
    ],
)
def test_a_wrong_line_is_refused_in_words(line: str, changes: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(line, **changes)


def test_a_run_teaches_its_dataset_first() -> None:
    assert build("kim --trigger kmx2").taught == (Subject("rin", "rinx"), Subject("kim", "kmx2"))
    assert build().taught == (Subject("rin", "rinx"),)
    whole = build("kim --trigger kmx2 --class boy", class_word=" girl ", regularization={"dataset": "girls"})
    assert whole.taught == (Subject("rin", "rinx", 1, "girl", "girls"), Subject("kim", "kmx2", 1, "boy"))
    assert whole.class_words == {"rinx": "girl", "kmx2": "boy"}
