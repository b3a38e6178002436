"""`limner generate-regularization`: a dataset of what the base model draws, which can be completed at any time."""

from pathlib import Path

from typer.testing import CliRunner, Result

from trainer import home_check
from trainer.cli.commands import app
from trainer.data import captions, dataset


def generate(base: Path, name: str, *options: object) -> Result:
    prompts = ("--prompt", "a girl", "--prompt", "a girl in\na park")
    arguments = ["generate-regularization", name, *prompts, "--base", base, "--steps", 2, *options]
    return CliRunner().invoke(app, list(map(str, arguments)))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_what_is_missing_is_generated_as_it_was(home: Path, tiny_sd: Path) -> None:
    done = generate(tiny_sd, "girls", "--count", 2, "--seed", 7)
    assert done.exit_code == 0, done.exception
    folder = home / "datasets" / "girls"
    assert "Generated 2, kept 0." in done.output
    first = contents(folder)
    assert "Generated 1, kept 2." in generate(tiny_sd, "girls", "--count", 3, "--seed", 7).output
    whole = contents(folder)
    assert {name: whole[name] for name in first} == first
    texts = {example.name: example.caption for example in dataset.read(folder)}
    assert list(texts) == [f"generated-000{number}.png" for number in (1, 2, 3)]
    assert list(texts.values()) == ["a girl", "a girl in a park", "a girl"]
    removed = folder / "generated-0002.png"
    removed.unlink()
    dataset.write_caption(folder / "generated-0001.png", "a young girl")
    captions.caption_file(folder / "generated-0003.png").unlink()
    assert "Generated 1, kept 2." in generate(tiny_sd, "girls", "--count", 3, "--seed", 7).output
    assert removed.read_bytes() == whole[removed.name][1]
    assert captions.read_caption(folder / "generated-0001.png") == "a young girl"
    assert captions.read_caption(folder / "generated-0003.png") == "", "the user left it without one"
    assert not list(home_check.check_dataset(folder))
    out = home / "x.png"
    sample = ["sample", "--prompt", "a girl", "--seed", "9", "--steps", "2", "--base", str(tiny_sd), "--out", str(out)]
    assert CliRunner().invoke(app, sample).exit_code == 0
    assert out.read_bytes() == whole["generated-0003.png"][1]


def test_images_of_other_settings_are_not_mixed_in(character: Path, home: Path, tiny_sd: Path) -> None:
    assert "has images of its own" in str(generate(tiny_sd, "rin", "--count", 1).exception)
    assert generate(tiny_sd, "girls", "--count", 1).exit_code == 0
    before = contents(home / "datasets" / "girls")
    for other in (("--seed", 2), ("--negative", "blurry"), ("--size", "64x32")):
        assert "generated with other settings" in str(generate(tiny_sd, "girls", "--count", 2, *other).exception)
    assert contents(home / "datasets" / "girls") == before
    assert "not a valid name" in str(generate(tiny_sd, "../girls", "--count", 1).exception)
    assert not (home / "girls").exists()
