"""The package as pip installs it: away from the checkout, with a home folder of its own."""

import json
import os
import subprocess
import sys
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


def test_an_installed_package_trains_an_example_in_the_users_folder(site_packages: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site_packages), "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    environment.pop("LIMNER_HOME", None)
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
