"""Writing: whole or not at all, whatever happens in between."""

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from filelock import FileLock

from tests.conftest import python
from trainer import storage
from trainer.cli import adapter_files


@pytest.mark.parametrize("moment", ["before it is taken", "after it is taken"])
def test_a_lock_never_brings_back_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    folder, away, take = tmp_path / "datasets" / "rin", tmp_path / "bin", FileLock.acquire
    (folder / ".cache").mkdir(parents=True)

    def acquire(lock: FileLock, timeout: float) -> object:
        taken = take(lock, timeout) if moment == "after it is taken" else None
        folder.rename(away)
        return taken or take(lock, timeout)

    lock = FileLock(folder / ".cache" / "captions.lock")
    with lock:
        assert lock.is_locked
    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(FileNotFoundError):
        storage.take_lock(lock)
    assert (lock.is_locked, folder.exists()) == (False, False)
    assert (away / ".cache" / "captions.lock").exists()


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_replace = Path.replace

    def sync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").resolve().name.strip(".").partition(".")[0])

    def replace(self: Path, target: Path) -> Path:
        order.append(f"named {target.name}")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    storage.write(tmp_path / "a", "x")
    assert order == ["a", "named a", tmp_path.name]
    order.clear()
    storage.append(tmp_path / "part", [b"y"], from_start=True)
    storage.finish(tmp_path / "part", tmp_path / "a")
    assert order == ["part", "named a", tmp_path.name], "what was written piece by piece, too"
    assert (tmp_path / "a").read_bytes() == b"y"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    order.clear()
    storage.write_folder(tmp_path / "5", lambda part: storage.write(part / "a", "x"))
    assert order == ["a", "named a", "5", "5", "named 5", tmp_path.name], "what is in a folder, and then the folder"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_is_for_the_system_to_say(tmp_path: Path, umask: int, mode: int) -> None:
    os.umask(umask)  # as before after each test
    for text in "xy":
        storage.write(tmp_path / "a", text)
    storage.write_folder(tmp_path / "b", lambda folder: storage.write(folder / "c", "x"))
    for path in (tmp_path / "a", tmp_path / "b" / "c"):
        assert path.stat().st_mode & 0o777 == mode


def test_a_folder_appears_and_disappears_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        storage.write_folder(tmp_path / "000001", broken)
    assert list(tmp_path.iterdir()) == []
    storage.write_folder(tmp_path / "000001", lambda folder: storage.write(folder / "a", "x"))
    assert (tmp_path / "000001" / "a").read_text() == "x"
    with monkeypatch.context() as power:
        power.setattr(os, "unlink", Mock(side_effect=KeyboardInterrupt))  # after nothing or some of it was removed
        with pytest.raises(KeyboardInterrupt):
            storage.remove_folder(tmp_path / "000001")
    assert not (tmp_path / "000001").exists()
    (tmp_path / ".x.1234.part").touch()
    (tmp_path / "mine.part").touch()  # hidden ones alone are ours
    storage.remove_leftovers(tmp_path, tmp_path / "absent")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.part"]


KILLED = """
import os, signal, sys
from pathlib import Path
from trainer import storage

def chunks():
    yield b"begun"
    os.kill(os.getpid(), signal.SIGKILL)

storage.write_chunks(Path(sys.argv[1]), chunks())
"""


def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "merged [1].safetensors"
    python("-c", KILLED, out)
    (part,) = tmp_path.iterdir()
    names = (f".{out.name}.{os.getpid()}-00000000.part", ".other.safetensors.99-00000000.part", ".x.part")
    others = [tmp_path / name for name in names]
    for other in others:
        other.touch()
        os.utime(other, (1, 1))
    adapter_files.check_out(out)
    assert part.exists(), "it may be written by another machine"
    os.utime(part, (1, 1))
    adapter_files.check_out(out)
    assert sorted(tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "ü" * 120 + ".txt", "犬" * 83 + ".txt"])
def test_a_name_as_long_as_the_disk_allows_can_be_written(tmp_path: Path, name: str) -> None:
    first, created, folder, removed = (tmp_path / f"{start}{name[1:]}" for start in (name[0], *"yzw"))
    for text in ("a caption", "another one"):
        storage.write(first, text)
        storage.write_folder(folder, lambda part, text=text: storage.write(part / "a", text))
    assert first.read_text() == (folder / "a").read_text() == "another one"
    storage.create(created, [b"z"])
    storage.create_folder(removed, lambda part: storage.write(part / "a", "b"))
    storage.remove_folder(removed)
    assert {*tmp_path.iterdir()} == {first, created, folder}


def test_names_that_begin_alike_have_own_temporary_files(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{'x' * 240}{end}" for end in ("a", "b"))
    left = storage._part(first, "1-00000000")
    left.touch()
    os.utime(left, (0, 0))
    storage.remove_leftovers_of(second)
    assert left.exists()
