"""A run's folder and its copy on a node: what is sent, what comes back, and in which form. No worker, no network."""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trainer import config, runs, storage
from trainer.cluster.mirror import Mirror
from trainer.cluster.node import Node
from trainer.cluster.parcels import Luggage
from trainer.runs import Run, events


class Rig:
    """A run here, its mirror, and the copy on a node, whose worker is the test."""

    def __init__(self, run: Run, root: Path) -> None:
        self.run, self.root = run, root
        self.node = Node(root)
        self.mirror = Mirror(run, self.node, Luggage(), "desk-2")
        settings = self.mirror.luggage.pack(run.config())
        for parcel in self.mirror.luggage.parcels.values():
            self.mirror.send_parcel(parcel)
        self.mirror.send_run(config.dump(settings))
        (self.there.folder / "ask").mkdir()

    @property
    def there(self) -> Run:
        return Run(next((self.root / "runs").glob(f"*/outputs/{self.run.id}")))


@pytest.fixture
def rig(character: Path, tmp_path: Path) -> Rig:
    return Rig(runs.create(config.build({"name": "rin", "dataset": "rin"})), tmp_path / "node")


def started(step: int) -> events.Started:
    return events.Started(step=step, steps=9, pid=1, device="CPU")


def checkpoint(run: Run, step: int) -> None:
    def fill(folder: Path) -> None:
        storage.write(folder / "adapter.safetensors", f"adapter {step}")
        storage.write(folder / "manifest.json", f"manifest {step}")

    storage.write_folder(run.folder / "checkpoints" / f"{step:06d}", fill)
    run.report(events.Checkpoint(step=step, folder=f"checkpoints/{step:06d}"))


def test_events_come_back_as_those_of_the_process_here_at_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, news = datetime.now(UTC) + timedelta(hours=1), rig.node.news
    rig.there.report(events.Began(pid=1, cards=("3",), time=ahead))
    rig.there.report(started(0).model_copy(update={"time": ahead}))
    monkeypatch.setattr(rig.node, "news", lambda *values: replace(news(*values), now=ahead.timestamp()))
    assert rig.mirror.update() is None
    state = runs.look(rig.run).state
    assert (state.pid, state.cards, state.device) == (os.getpid(), (), "CPU, desk-2")
    assert state.updated is not None
    assert abs(state.updated.timestamp() - time.time()) < 60


def test_a_line_that_is_not_complete_yet_comes_when_it_is(rig: Rig) -> None:
    rig.there.report(started(0))
    line = events.Stopped(step=4).model_dump_json().encode() + b"\n"
    with rig.there.log.open("ab") as log:
        log.write(line[:20])
    rig.mirror.update()
    assert runs.look(rig.run).state.end == ""
    with rig.there.log.open("ab") as log:
        log.write(line[20:])
    rig.mirror.update()
    assert runs.look(rig.run).state.end == "stopped"


def test_checkpoints_come_as_whole_folders_and_go_as_on_the_node(rig: Rig) -> None:
    checkpoint(rig.there, 5)
    storage.write(rig.there.folder / "preview-less.txt", b"")
    rig.mirror.update()
    here = rig.run.folder / "checkpoints"
    assert (here / "000005" / "manifest.json").read_text() == "manifest 5"
    assert (rig.run.folder / "preview-less.txt").read_bytes() == b""
    checkpoint(rig.there, 7)
    storage.remove_folder(rig.there.folder / "checkpoints" / "000005")
    rig.mirror.update()
    assert [folder.name for folder in here.iterdir()] == ["000007"]
    assert [mark.step for mark in runs.look(rig.run).state.checkpoints] == [5, 7]


def test_a_node_writes_nothing_here_but_files_of_the_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("worker.lock", "cluster", "config.toml", "ask/stop", ".hidden", "previews/.hidden")
    for name in names:
        (rig.there.folder / name).parent.mkdir(exist_ok=True)
        storage.write(rig.there.folder / name, "from there")
    news, files, settings = rig.node.news, dict.fromkeys(names, (1, 1)), config.dump(rig.run.config())
    monkeypatch.setattr(rig.node, "news", lambda *values: replace(news(*values), files=files, config=settings))
    before = {path: path.read_bytes() for path in rig.run.folder.rglob("*") if path.is_file()}
    rig.mirror.update()
    assert {path: path.read_bytes() for path in rig.run.folder.rglob("*") if path.is_file()} == before


def test_a_large_file_comes_in_pieces(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("trainer.cluster.node.PIECE", "trainer.cluster.mirror.PIECE"):
        monkeypatch.setattr(module, 4)
    for size in (0, 3, 4, 8, 9):
        storage.write(rig.there.folder / f"{size}.bin", b"x" * size)
    rig.mirror.update()
    assert {path.stem: path.stat().st_size for path in rig.run.folder.glob("*.bin")} == {
        "0": 0, "3": 3, "4": 4, "8": 8, "9": 9,
    }  # fmt: skip


def test_requests_go_there_and_what_is_taken_there_is_taken_here(rig: Rig) -> None:
    asked, there = rig.run.folder / "ask", rig.there.folder / "ask"
    for name in ("preview", "pause"):
        (asked / name).touch()
    rig.mirror.update()
    assert sorted(path.name for path in there.iterdir()) == ["pause", "preview"]
    assert rig.there.take_request("preview")
    rig.mirror.update()
    assert [path.name for path in asked.iterdir()] == ["pause"], "the preview was taken"
    runs.pause(rig.run, go_on=True)
    rig.mirror.update()
    assert list(there.iterdir()) == []


def test_settings_that_the_worker_completes_come_back_with_the_paths_here(character: Path, tmp_path: Path) -> None:
    elsewhere, base = tmp_path / "photos" / "rin", tmp_path / "models" / "base"
    for name in ("model_index.json", "unet/model.safetensors", "unet/model.bin"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write(base / name, name)
    elsewhere.parent.mkdir()
    character.rename(elsewhere)
    settings = {"name": "rin", "dataset": str(elsewhere), "model": {"base": str(base)}}
    rig = Rig(runs.create(config.build(settings)), tmp_path / "node")
    before, there = rig.run.config(), rig.there.config()
    assert str(tmp_path) not in config.dump(there)
    sent = rig.root / there.model.base
    assert sorted(path.relative_to(sent).as_posix() for path in sent.rglob("*.*")) == [
        "model_index.json", "unet/model.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in (rig.root / there.dataset).iterdir()) == sorted(
        path.name for path in elsewhere.iterdir()
    )
    training = there.training.model_copy(update={"steps": 77})
    rig.there.save_config(there.model_copy(update={"training": training}))
    done = events.Finished(step=9, export="rin.safetensors", sha256={"config.toml": "of the node"})
    rig.there.report(done)
    rig.mirror.update()
    assert rig.run.config() == before.model_copy(update={"training": before.training.model_copy(update={"steps": 77})})
    assert runs.look(rig.run).state.sha256["config.toml"] == storage.sha256(rig.run.config_file)


def test_a_parcel_is_sent_once_and_only_if_it_is_whole(rig: Rig) -> None:
    (parcel,) = rig.mirror.luggage.parcels.values()
    assert not Node(rig.root).lacks(parcel.key)
    other = Node(rig.root)
    other.receive("0" * 32, "rin/1.png", b"not what was sent", last=True)
    with pytest.raises(OSError, match="not those that were sent"):
        other.keep("0" * 32)
    assert other.lacks("0" * 32)


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "c:x", "a\\x", ""])
def test_no_path_leads_out_of_a_folder(rig: Rig, path: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        rig.node.read(path, 0)
    with pytest.raises(ValueError, match="leads out"):
        rig.node.receive("0" * 32, path, b"x", last=True)


def test_what_a_dead_node_left_is_removed_by_the_next_one(rig: Rig) -> None:
    rig.node._lock.release()  # as the kernel does
    old = rig.there.folder.parents[1]
    living = Node(rig.root)
    assert not old.exists()
    another = Node(rig.root)
    assert len([path for path in (rig.root / "runs").iterdir() if path.is_dir()]) == 2
    living.end()
    another.end()
    assert [path for path in (rig.root / "runs").iterdir() if path.is_dir()] == []
