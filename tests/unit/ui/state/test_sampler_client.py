"""The client of the sampler, against a small stand-in process: answers, refusals, death, idle time, a closed page."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait
from trainer.config import PictureConfig
from trainer.errors import UserError
from ui.state.sampler_client import SamplerClient

SERVER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
print("noise that is no JSON", flush=True)
for line in sys.stdin:
    picture = json.loads(line)
    if picture["prompt"] == "die":
        sys.exit(3)
    if picture["prompt"] == "refuse":
        print(json.dumps({"error": "Bad.", "remedy": "Change it."}), flush=True)
        continue
    for step in (1, 2):
        print(json.dumps({"progress": step, "of": 2}), flush=True)
    open(picture["out"], "w").write(picture["prompt"])
    print(json.dumps({"done": True}), flush=True)
"""


@pytest.fixture
def sampler(home: Path) -> Iterator[SamplerClient]:
    client = SamplerClient([sys.executable, "-c", SERVER])
    yield client
    client.close()


def request(home: Path, prompt: str) -> PictureConfig:
    return PictureConfig(prompt=prompt, out=str(home / f"{prompt}.png"), steps=2)


def test_what_went_wrong_or_away_does_not_disturb_the_next(sampler: SamplerClient, home: Path) -> None:
    with pytest.raises(UserError, match=r"Bad\. Change it"):
        list(sampler.generate(request(home, "refuse")))
    process = sampler._process
    list(sampler.generate(request(home, "a")))
    assert sampler._process is process
    with pytest.raises(UserError, match="interrupted"):
        list(sampler.generate(request(home, "die")))
    list(sampler.generate(request(home, "b")))
    assert (home / "b.png").exists(), "a new process was started"
    images = sampler.generate(request(home, "a"))
    assert [next(images), next(images)] == [(0, 2), (1, 2)]
    images.close()
    assert list(sampler.generate(request(home, "c"))) == [(0, 2), (1, 2), (2, 2)]
    assert (home / "c.png").read_text() == "c"


def test_an_idle_process_is_ended(home: Path) -> None:
    client = SamplerClient([sys.executable, "-c", SERVER], idle=0.2)
    list(client.generate(request(home, "a")))
    wait(lambda: client._process is None)
