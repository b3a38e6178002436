"""Pushing to the hub: only when asked, with a token that is stored nowhere, and never over somebody's model card."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fake_hub
from tests.conftest import CHECKOUT
from tests.fake_hub import FakeHub
from tests.integration.training.test_train import cases
from trainer.runs import Run

TOKEN = "hf_secret-of-anna"
NAME = "anna/rin"


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with fake_hub.serving({"anna/known": {"README.md": b"written by hand"}}) as made:
        made.token = TOKEN
        yield made


def publish(fake: FakeHub, folder: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", "publish", str(folder), "--to", str(folder.parent / "rin"), *arguments]
    environment = {**os.environ, "HF_ENDPOINT": fake.url, "HF_HOME": str(folder.parent / "hf"), "HF_TOKEN": token}
    environment.pop("HF_HUB_OFFLINE")
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, env=environment)


def test_a_run_is_pushed_to_a_private_repository(fake: FakeHub, run: Run) -> None:
    done = publish(fake, run.folder, "--push", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"Uploaded: {fake.url}/{NAME}\n")
    folder = run.folder.parent / "rin"
    local = fake_hub.folder_files(folder)
    assert (fake.repositories[NAME], fake.private) == (local, {NAME})
    assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in run.folder.parent.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_card_that_is_there_is_left_and_others_see_it_if_asked(fake: FakeHub, run: Run) -> None:
    done = publish(fake, run.folder, "--push=anna/known", "--public")
    assert done.returncode == 0, done.stderr
    assert "has a README.md already" in done.stdout
    assert fake.repositories["anna/known"]["README.md"] == b"written by hand"
    assert "rin.safetensors" in fake.repositories["anna/known"]
    assert fake.private == set()


WHY = {
    "nobody": ("", NAME, "You are not logged in to the Hugging Face Hub. Log in with: hf auth login, or set HF_TOKEN."),
    "another": ("hf_of-ben", NAME, "The Hugging Face Hub refused the upload to anna/rin."),
    "address": (TOKEN, "https://x/y", "'https://x/y' is not a name on the Hugging Face Hub. Give owner/name."),
}


@pytest.mark.parametrize("who", cases(WHY, pytest.mark.slow, ["nobody"]))
def test_why_nothing_was_uploaded(fake: FakeHub, run: Run, who: str) -> None:
    token, name, sentence = WHY[who]
    done = publish(fake, run.folder, "--push", name, token=token)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert NAME not in fake.repositories
