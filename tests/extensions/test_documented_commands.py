"""The commands of the documentation: each is one, with options that it has, and they run as they are written."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from accelerate.state import AcceleratorState

from tests.conftest import CHECKOUT
from trainer.cli.commands import app, main
from trainer.runs import events
from ui import launch

PAGES = [CHECKOUT / "README.md", CHECKOUT / "SECURITY.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
COMMAND_LINE = CHECKOUT / "docs" / "command-line.md"
# What is in a command the user's own, and what it is here.
OWN = {
    "outputs/<run>": "outputs/mira",
    "outputs/RUN": "outputs/mira",
    "RUN": "mira",
    "NAME FILE.zip": "mira mira.zip",
    "--base models/anime.safetensors": "",
    "--count 50": "--count 2",
}
# Commands that need a network or another machine, and the tests that run them with a stand-in.
ELSEWHERE = {
    "download ": "integration/base_models/test_hub.py",
    "caption ": "integration/captioning/test_captioning.py",
    "publish RUN --push": "extensions/publishing/test_hub_upload.py",
    "queue add mira.toml --on": "extensions/cluster/test_ray.py",
}


def blocks(page: Path) -> list[str]:
    """Return the lines of code blocks, without comments; a synopsis, with options in brackets, is left out."""
    code = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    shell = [block for language, block in code if language in ("", "bash") and "[--" not in block]
    return [re.sub(r"\s+#.*", "", line) for block in shell for line in block.splitlines()]


def named_options(command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", command))


def test_each_command_has_the_options_that_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    known = typer.main.get_command(app)
    with pytest.raises(SystemExit):
        launch.parse_options(["--help"])
    of_the_page, wrong = capsys.readouterr().out, []
    number = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for program, rest in re.findall(
            r"(?:^|`)(limner|\./start\.sh|start\.bat|(?:uv run |python )app\.py) ([^`\n]+)", text, re.M
        ):
            number += 1
            name = rest.split()[0]
            if (name.startswith("--") and program != "limner") or "app.py" in program:
                wrong += [f"{page.name}: {option}" for option in named_options(rest) if option not in of_the_page]
                continue
            if name.startswith("--") or not re.fullmatch(r"[a-z-]+", name) or name == "page":
                continue
            command = known.commands.get(name)
            group = getattr(command, "commands", {}).values()
            options = {option for part in (command, *group) if part for each in part.params for option in each.opts}
            if command is None or not named_options(rest) - {"--help"} <= options:
                wrong.append(f"{page.name}: {program} {rest}")
    assert number > 50
    assert wrong == []


@pytest.mark.slow
def test_the_commands_run_as_they_are_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of a user's way: first what trains, then what needs the run."""
    shutil.copytree(CHECKOUT / "datasets" / "example-character", home / "datasets" / "example-character")
    shutil.copytree(CHECKOUT / "datasets" / "example-character", home / "datasets" / "mira")
    (settings,) = re.findall(r"```toml\n(.*?)```", COMMAND_LINE.read_text(encoding="utf-8"), re.S)
    short = "[training]\nsteps = 2\nbatch_size = 1\n[preview]\nevery = 0\n"
    (home / "mira.toml").write_text(settings + short, encoding="utf-8")
    shutil.copy(home / "mira.toml", home / "own.toml")
    (home / "recipe.json").write_text('{"LoRA_type": "Standard", "network_dim": 8, "max_train_steps": 2}')
    monkeypatch.chdir(home)
    commands = [line.removeprefix("limner ") for page in PAGES for line in blocks(page) if line.startswith("limner ")]
    here = [command for command in commands if not command.startswith(tuple(ELSEWHERE))]
    own_run = [command for command in here if command.startswith("train mira.toml --run")]
    assert len(own_run) == 1
    assert len(here) > 8
    for command in sorted(here, key=lambda command: (command not in own_run, command.startswith("import-recipe"))):
        for theirs, ours in OWN.items():
            command = re.sub(rf"(?<!\w){re.escape(theirs)}(?!\w)", ours, command)
        more = ["--set", "training.steps=3"] if "--run outputs/mira" in command else []
        assert main([*shlex.split(command), *more]) == 0, command
        AcceleratorState._reset_state(True)
    steps = [event.step for event in events.read(home / "outputs/mira/events.jsonl")[0] if event.kind == "step"]
    assert steps == [1, 2, 3]
    capsys.readouterr()
    assert main(["train", "own.toml", "--run", "outputs/mira"]) == 2
    assert "already exists" in capsys.readouterr().err
