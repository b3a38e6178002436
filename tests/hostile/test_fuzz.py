"""Good files with random changes, always the same ones: each is read or refused in words, soon and in little memory."""

import contextlib
import json
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import containers, pictures
from trainer import config, paths
from trainer.adapter_files import compatibility, reader
from trainer.data import dataset, images, uploads
from trainer.data.captions import decode_text, one_line
from trainer.errors import UserError
from trainer.i18n import JOINERS
from trainer.runs import events
from trainer.sampling import png_info

pytestmark = pytest.mark.timeout(300)
WORDS = [b"\xff", b"\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"\n", b'"', b"{", b"["]
WORDS += [b"-1", b"../", b"1e999", b"\xef\xbf\xbd", b"nan", b"true", b"999999999999"]


def changed(data: bytes, rng: random.Random) -> bytes:
    """The same with one to six changes: bits, bytes, odd words, parts left out, doubled or swapped."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, count = rng.randrange(len(made) + 1), rng.choice((1, 2, 8, 64, len(made) // 4))
        match rng.randrange(6):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at : at + 1] = rng.randbytes(1)
            case 2:
                made[at:at] = rng.choice(WORDS)
            case 3:
                del made[at : at + count]
            case 4:
                made[at:at] = made[at : at + count]
            case _:
                made[at : at + count] = rng.randbytes(min(count, 64))
        if not made:
            made = bytearray(b"\0")
    return bytes(made)


@pytest.fixture(params=[60, pytest.param(5000, marks=pytest.mark.nightly)])
def files(request: pytest.FixtureRequest) -> int:
    """Number of changed files that a reader is given."""
    return int(request.param)


def fuzz(
    name: str, seeds: list[bytes], files: int, *readers: Callable[[Any], object], file: Path | None = None
) -> None:
    """Give changed bytes, or a file of them, to each reader; whatever is raised but a `UserError` is a failure."""
    rng = random.Random(name)
    for count in range(files):
        data = changed(rng.choice(seeds), rng)
        if file:
            file.write_bytes(data)
        for read in readers:
            try:
                with contextlib.suppress(UserError):
                    read(file or data)
            except Exception as error:
                raise AssertionError(f"{name} {count}: {type(error).__name__} for {data[:200]!r}") from error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KB; the tests before have their share


def test_pictures(files: int) -> None:
    seeds = [data for _, data, _ in pictures.good().values() if len(data) < 20_000]
    fuzz("pictures", seeds, files, images.decode)


def test_captions(home: Path, files: int) -> None:
    codes = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be")
    seeds = ["caf\u00e9, smiling \u72ac".encode(code) for code in codes]

    def read(data: bytes) -> None:
        text = one_line(decode_text(data))
        assert "".join(letter for letter in text if letter not in JOINERS).isprintable()

    fuzz("captions", seeds, files, read)


def test_zips(home: Path, files: int) -> None:
    folder = dataset.create("rin")
    small = pictures.saved(pictures.two(size=(8, 8)), "PNG")
    sound = containers._zip({"a.png": small, "d/b.png": small, "a.txt": b"one", "c.txt": b"two"}, zipfile.ZIP_DEFLATED)
    odd = [data for data, _, _ in containers.zips().values() if isinstance(data, bytes)]

    def read(path: Path) -> None:
        uploads.add(folder, [("x.zip", path)])
        for kept in folder.iterdir():
            if kept.name != paths.CACHE:
                kept.unlink()

    fuzz("zips", [sound, *(data for data in odd if len(data) < 4000)], files, read, file=home / "outputs" / "x.zip")
    assert {path.name for path in home.iterdir()} == {"datasets", "outputs"}


def test_adapters(home: Path, files: int) -> None:
    seeds = [containers.tensors(), *(data for data, _ in containers.adapters().values() if 8 < len(data) < 4000)]
    file = home / "outputs" / "x.safetensors"
    fuzz("adapters", seeds, files, compatibility.check, reader.read, file=file)


def test_peft_settings(home: Path, files: int) -> None:
    """The settings of PEFT beside a file and in it decide how it is scaled, and are anybody's JSON with expressions."""
    path = home / "outputs" / "pytorch_lora_weights.safetensors"
    path.write_bytes(containers.peft())
    settings = {"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 8, "mid.*": 1}, "rank_pattern": {"^down": 2}}
    seeds = [json.dumps(value).encode() for value in (settings, settings | {"use_rslora": True, "lora_bias": True})]
    readers = (lambda _: compatibility.check(path), lambda _: reader.read(path))
    fuzz("PEFT settings", seeds, files, *readers, file=path.with_name("adapter_config.json"))


def test_settings_in_pictures(home: Path, files: int) -> None:
    path = home / "outputs" / "x.png"
    request = config.PictureConfig(prompt="a fox", negative="blurry", out=str(path))
    png_info.write(path, pictures.two(size=(8, 8)), request)
    fuzz("settings in pictures", [path.read_bytes()], files, png_info.read, file=path)


def test_settings(home: Path, files: int) -> None:
    whole = config.dump(config.build({"name": "rin", "dataset": "rin"})).encode()
    seeds = [whole, b'name = "rin"\ndataset = "rin"\n[training]\nsteps = 3\n']
    fuzz("settings", seeds, files, config.load, file=home / "outputs" / "c.toml")


def test_events(home: Path, files: int) -> None:
    facts = {"learning_rate": 1e-4, "grad_norm": 1.0, "seconds": 0.5, "memory": 9}
    log = [
        events.Started(step=0, steps=3, pid=1, device="CPU"),
        events.Phase(name="x", done=1, total=2),
        events.Step(step=1, loss=0.5, **facts),
        events.Preview(step=1, file="previews/000001_0.png", prompt="a", seed=1),
        events.Checkpoint(step=1, folder="checkpoints/000001"),
        events.Warned(message="w"),
        events.Verified(file="a", verdicts=(("x", True, "y"),)),
        events.Failed(message="m", remedy="r", traceback="t"),
    ]
    lines = b"".join(event.model_dump_json().encode() + b"\n" for event in log)

    def read(path: Path) -> None:
        log, offset = events.read(path)
        events.loss_curve(events.fold(events.State(), log))
        assert offset <= path.stat().st_size
        events.append(path, events.Warned(message="after"))
        assert events.read(path)[0][-1].kind == "warned"

    fuzz("events", [lines], files, read, file=home / "outputs" / "events.jsonl")
