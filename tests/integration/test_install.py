"""The package as pip installs it: away from the checkout, with a home folder of its own."""

import json
import os
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

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
    variables = {**os.environ, "PYTHONPATH": str(site_packages), "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
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
            with urllib.request.urlopen(address) as answer:
                page = answer.read().decode()
        finally:
            server.terminate()
        assert server.wait(20) == 0
    assert "Limner" in page
    assert (tmp_path / "limner" / "datasets" / "example-character" / "01.png").is_file()
