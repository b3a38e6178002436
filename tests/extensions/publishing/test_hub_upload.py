"""Pushing to the hub: only when asked, with a token that is stored nowhere, and never over somebody's model card."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests import fake_hub
from tests.conftest import python
from tests.fake_hub import FakeHub
from trainer.runs import Run

TOKEN = "hf_secret-of-anna"
NAME = "anna/rin"


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with fake_hub.serving({"anna/known": {"README.md": b"written by hand"}}) as made:
        made.token = TOKEN
        yield made


# Lines of a token and arguments, each as of a process of its own, of which the imports take the longest.
EACH = """
import os, sys
from limner_extensions.publishing import hub_upload
from trainer.cli.commands import main
for line in sys.argv[1:]:
    if os.fork() == 0:
        token, *words = line.split(" ")
        os.environ["HF_TOKEN"] = token
        print(main(["publish", *words]), flush=True)
        os._exit(0)
    os.wait()
"""


def published(fake: FakeHub, run: Run, *lines: str) -> subprocess.CompletedProcess[str]:
    words = [f"{line} {run.folder} --to {run.folder.parent / f'rin-{number}'}" for number, line in enumerate(lines)]
    hub = {"HF_ENDPOINT": fake.url, "HF_HOME": str(run.folder.parent / "hf"), "HF_HUB_OFFLINE": "0"}
    return python("-c", EACH, *words, environment=os.environ | hub)


@pytest.mark.slow
def test_a_run_is_pushed_to_a_private_repository_or_refused(fake: FakeHub, run: Run) -> None:
    """Others may see it if that is asked for. All in one process, as its start takes the longest."""
    pushed = (f"{TOKEN} --push {NAME}", f"{TOKEN} --push=anna/known --public")
    refused = (" --push anna/other", "hf_of-ben --push anna/other", f"{TOKEN} --push https://x/y")
    done = published(fake, run, *pushed, *refused)
    assert done.stdout.count(f"Uploaded: {fake.url}/{NAME}\n0\n") == 1, done.stderr
    assert (fake.repositories[NAME], fake.private) == (fake_hub.folder_files(run.folder.parent / "rin-0"), {NAME})
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in run.folder.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert "has a README.md already" in done.stdout
    assert fake.repositories["anna/known"]["README.md"] == b"written by hand"
    assert "rin.safetensors" in fake.repositories["anna/known"]
    assert re.findall(r"^\d$", done.stdout, re.M) == ["0"] * 2 + ["2"] * 3
    for sentence in (
        "You are not logged in to the Hugging Face Hub. Log in with: hf auth login, or set HF_TOKEN.",
        "The Hugging Face Hub refused the upload to anna/other.",
        "'https://x/y' is not a name on the Hugging Face Hub. Give owner/name.",
    ):
        assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert fake.repositories.keys() == {NAME, "anna/known"}
