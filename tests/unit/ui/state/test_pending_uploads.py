"""Uploads that wait: they count, expire, and leave no folder behind."""

import os
from pathlib import Path

import pytest

from trainer import paths
from ui.state import pending_uploads


def test_uploads_that_wait_count_expire_and_leave_no_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pending_uploads.create_folder()
    for number, size in enumerate((1000, 500)):
        (folder / str(number)).mkdir()
        (folder / str(number) / "a.png").write_bytes(bytes(size))
    assert pending_uploads.MAX_BYTES - pending_uploads.room() >= 1500
    os.utime(folder / "0" / "a.png", (1, 1))
    pending_uploads.delete_expired()
    assert [path.name for path in folder.iterdir()] == ["1"]
    pending_uploads.delete_expired(-1.0)
    assert list(paths.uploads().iterdir()) == []
    folder = pending_uploads.create_folder()
    monkeypatch.setattr(pending_uploads, "MAX_FILES", 3)
    for number in range(3):
        assert pending_uploads.room() > 0
        (folder / f"{number}.png").touch()
    assert pending_uploads.room() == 0


def test_only_files_of_uploads_are_found(home: Path) -> None:
    folder = pending_uploads.create_folder()
    (folder / "a.png").touch()
    (home / "outputs" / "b.png").touch()
    assert pending_uploads.find(pending_uploads.public_path(folder / "a.png")) == folder / "a.png"
    assert pending_uploads.find(str(folder / "a.png")) == folder / "a.png"
    for path in ("outputs/b.png", "outputs/.tmp/../b.png", "/etc/passwd", "", "a\0b", str(folder)):
        assert pending_uploads.find(path) is None
