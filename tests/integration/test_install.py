"""The package as pip installs it: away from the checkout, with a home folder of its own."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, HANG, python, unmeasured
from tests.integration.runs.test_processes import limner
from trainer import runs, selftest
from trainer.selftest import Case
from trainer.train import train

CONFIG = 'name = "mira"\ndataset = "example-character"\npreset = "character"\ntrigger = "miraxo"\n'


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(folder), str(CHECKOUT)], check=True)
    return folder


@pytest.fixture
def environment(site_packages: Path, tmp_path: Path) -> dict[str, str]:
    """Of a user who has installed the package and has no other copy of it."""
    variables = unmeasured() | {"PYTHONPATH": str(site_packages), "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    variables.pop("LIMNER_HOME", None)
    return variables


@pytest.mark.nightly
def test_an_installed_package_trains_an_example(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mira.toml").write_text(CONFIG)

    def limner(*arguments: str) -> str:
        command = [sys.executable, "-m", "trainer", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    limner("train", "mira.toml", "--set", "training.steps=2", "--set", "preview.every=0")
    home = tmp_path / "limner"
    assert (home / "datasets" / "example-style" / "LICENSE.md").is_file()
    (adapter,) = home.glob("outputs/*_mira/mira.safetensors")
    assert json.loads(limner("inspect", str(adapter), "--json"))["kind"] == "LoRA"
    assert json.loads(limner("doctor", "--json"))["home"] == str(home)
    if sys.platform != "win32":
        made = [home, home / "datasets", *adapter.parents[1].rglob("*"), adapter.parents[1]]
        modes = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in made}
        others = {path: oct(mode) for path, mode in modes.items() if mode & 0o077}
        assert others == {}, "other users of the machine can read what the page would keep private"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the signal that ends a server is another one there")
def test_an_installed_package_serves_the_page(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "page", "--port", "0", "--no-token"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = server.stdout.readline().split()[-1]
            answers = []
            for path in ("", "/help/docs/troubleshooting.md", "/help/docs/pictures/train.png"):
                with urllib.request.urlopen(address + path) as answer:
                    answers.append(answer.read())
        finally:
            server.terminate()
        assert server.wait(HANG) == 0
    assert b"Limner" in answers[0]
    assert b'id="cuda-out-of-memory"' in answers[1], "the documentation comes with the package"
    assert answers[2].startswith(b"\x89PNG")
    assert (tmp_path / "limner" / "datasets" / "example-character" / "01.png").is_file()


@pytest.mark.nightly
def test_a_fresh_clone_starts(tmp_path: Path) -> None:
    """Downloads the real packages, and opens the address that is printed; test_start_scripts has a second start."""
    limner = tmp_path / "Fresh clöne" / "limner"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(limner)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = [str(limner / "start.sh"), "--port", "0"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, encoding="utf-8", env=environment, **both) as process:
        assert process.stdout
        output = ""
        for line in process.stdout:
            output += line
            if address := re.search(r"Limner is running at (\S+)", line):
                browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
                with browser.open(address[1]) as answer:
                    assert b"Limner" in answer.read()
                process.send_signal(signal.SIGTERM)
                return
    pytest.fail(output)


@pytest.mark.nightly
def test_the_self_test_passes_on_this_cpu(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "cases", lambda: [Case("cpu", "fp32")])
    report = home / "selftest.json"
    done = limner("selftest", "--out", report)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    (case,) = json.loads(report.read_text(encoding="utf-8"))["cases"]
    assert (case["failures"], case["name"], case["plan"]) == ([], "CPU", "1 x off")
    assert case["deviation"] < 0.001
    assert str(home) not in report.read_text(encoding="utf-8")
    assert list(home.glob("outputs/*")) == []  # it has a home of its own


@pytest.mark.slow
def test_the_reference_is_of_the_example_as_it_is_shipped(home: Path) -> None:
    settings = selftest._settings("fp32")
    run = runs.create(settings.model_copy(update={"preview": settings.preview.model_copy(update={"every": 0})}))
    train(run.config(), run)
    losses = selftest._losses(runs.look(run).state)
    assert selftest.deviation(losses, json.loads(selftest.LOSSES.read_text(encoding="utf-8"))) < 0.001


def test_other_losses_are_noticed() -> None:
    reference = json.loads(selftest.LOSSES.read_text(encoding="utf-8"))
    assert (len(reference), selftest.deviation(reference, reference)) == (selftest.STEPS, 0)
    assert selftest.deviation([*reference[:-1], reference[-1] * 1.01], reference) == pytest.approx(0.01)
    assert selftest.deviation(reference[:-1], reference) == float("inf")


WITHOUT_TORCH = """
import sys
import trainer.config, trainer.data.uploads, trainer.runs, trainer.adapter_files.compatibility
from trainer.base_models import detect
from trainer.cli.commands import main
detect.glance("not/here")
assert main(["--help"]) == 0
import ui.page
sys.exit(str([name for name in ("torch", "diffusers", "transformers", "peft") if name in sys.modules] or ""))
"""


@pytest.mark.slow
def test_commands_and_the_page_import_no_library_of_models() -> None:
    done = python("-c", WITHOUT_TORCH)
    assert not done.stderr.strip(), done.stderr
