"""A run's folder and its copy on a node: messages, what is sent, what comes back. No worker, no network."""

import io
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner_extensions.cluster import parcels, wire
from limner_extensions.cluster.border import Border
from limner_extensions.cluster.mirror import Mirror
from limner_extensions.cluster.node import Node
from limner_extensions.cluster.wire import Wire
from tests.extensions.cluster.returns import adapter, checkpoint
from tests.unit.base_models.test_detect import SD3, write
from trainer import config, runs, storage
from trainer.data import dataset
from trainer.runs import Run, checkpoints, events

ADAPTER = "adapters/5.safetensors"


class Rig:
    """A run here, its mirror, and the copy on a node, whose worker is the test."""

    def __init__(self, run: Run, root: Path) -> None:
        self.run, self.root = run, root
        self.node = Node(root)
        packed = parcels.pack(run.config())
        self.mirror = Mirror(run, Border(self.node, run.folder), packed, "desk-2")
        for parcel in packed.values():
            self.mirror.send_parcel(parcel)
        self.mirror.send_run(config.dump(parcels.named_there(run.config(), packed)))
        (self.there.folder / "ask").mkdir()

    @property
    def there(self) -> Run:
        return Run(next((self.root / "runs").glob(f"*/outputs/{self.run.id}")))


@pytest.fixture
def rig(character: Path, tmp_path: Path) -> Rig:
    return Rig(runs.create(config.build({"name": "rin", "dataset": "rin"})), tmp_path / "node")


def started(step: int) -> events.Started:
    return events.Started(step=step, steps=9, pid=1, device="CPU")


def test_events_come_back_as_of_the_process_here_at_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
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
    rig.mirror.update()
    here = rig.run.folder / "checkpoints"
    assert checkpoints.is_intact(here / "000005")
    checkpoint(rig.there, 7)
    storage.remove_folder(rig.there.folder / "checkpoints" / "000005")
    rig.mirror.update()
    assert [folder.name for folder in here.iterdir()] == ["000007"]
    assert [mark.step for mark in runs.look(rig.run).state.checkpoints] == [5, 7]


def test_a_file_comes_in_pieces_and_later_if_it_changes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, read = rig.run.folder / ADAPTER, rig.there.folder / ADAPTER, rig.node.read
    there.parent.mkdir()
    first, second, third = (adapter(rig.there, seed=seed) for seed in (1, 2, 3))
    for data, piece in ((first, len(first)), (second, len(second) // 2), (third, len(third) - 1), (first, 5000)):
        monkeypatch.setattr("limner_extensions.cluster.node.PIECE", piece)
        storage.write(there, data)
        rig.mirror.update()
        assert here.read_bytes() == data

    def changing(path: str, offset: int) -> bytes | None:
        storage.write(there, third + b" ")
        return read(path, offset)

    storage.write(there, second)
    with monkeypatch.context() as patch:
        patch.setattr(rig.node, "read", changing)
        rig.mirror.update()
    assert here.read_bytes() == first, "as it was"
    storage.write(there, third)
    rig.mirror.update()
    assert here.read_bytes() == third


def test_requests_go_there_and_what_is_taken_there_is_taken_here(rig: Rig) -> None:
    here, there = rig.run.folder / "ask", rig.there.folder / "ask"
    for name in ("preview", "pause"):
        (here / name).touch()
    rig.mirror.update()
    assert sorted(path.name for path in there.iterdir()) == ["pause", "preview"]
    assert rig.there.take_request("preview")
    rig.mirror.update()
    assert [path.name for path in here.iterdir()] == ["pause"], "the preview was taken"
    runs.pause(rig.run, go_on=True)
    rig.mirror.update()
    assert list(there.iterdir()) == []


DECIDED: dict[str, dict[str, object]] = {
    "model": {"family": "sd15", "revision": "abc", "clip_skip": 2},
    "training": {"steps": 77, "precision": "bf16"},
    "adapter": {"rank": 8},
    "optimizer": {"learning_rate": 0.5},
    "preview": {"prompts": ("a fox",)},
}


def test_completed_settings_come_back_with_the_paths_here(character: Path, tmp_path: Path) -> None:
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
    parts = {path.relative_to(sent).as_posix() for path in sent.rglob("*.*")}
    assert parts == {"model_index.json", "unet/model.safetensors"}
    images = {path.name for path in elsewhere.iterdir() if path.suffix in (".png", ".txt")}
    assert {path.name for path in (rig.root / there.dataset).iterdir()} == images
    decided = {section: getattr(there, section).model_copy(update=values) for section, values in DECIDED.items()}
    rig.there.save_config(there.model_copy(update=decided))
    rig.mirror.update()
    expected = {section: getattr(before, section).model_copy(update=values) for section, values in DECIDED.items()}
    assert rig.run.config() == before.model_copy(update=expected)


def test_masks_captions_and_metadata_go_with_the_images_and_nothing_else(character: Path) -> None:
    settings = config.build({"name": "rin", "dataset": "rin"})
    dataset.mask_file(character / "01.png").touch()
    for name in ("metadata.jsonl", "02.caption", "notes.txt", "draft.psd", "id_ed25519", "01.txt.bak", "own/key.txt"):
        (character / name).parent.mkdir(exist_ok=True)
        (character / name).touch()
    (parcel,) = parcels.pack(settings).values()
    names = {path.name for path in character.glob("[01]*.*")} - {"01.txt.bak"} | {"metadata.jsonl"}
    assert {name.partition("/")[2] for name in parcel.files} == names
    assert "01.mask.png" in names


PARTS = ("unet/clip_l", "text_encoders/t5xxl_fp16")  # beside it, and where ComfyUI has them


def test_text_encoders_beside_a_single_file_go_with_it(character: Path, tmp_path: Path) -> None:
    for name in ("unet", "text_encoders"):
        (tmp_path / name).mkdir()
    base = write(tmp_path / "unet" / "sd3.safetensors", SD3)
    names = {base.name, *(write(tmp_path / f"{name}.safetensors", {}).name for name in PARTS)}
    settings = config.build({"name": "rin", "dataset": "rin", "model": {"base": str(base)}})
    assert parcels.pack(settings)[str(base)].files.keys() == names


def test_a_parcel_is_sent_once_and_only_if_it_is_whole(rig: Rig) -> None:
    (parcel,) = rig.mirror.parcels.values()
    assert not Node(rig.root).lacks(parcel.key)
    other = Node(rig.root)
    other.receive("0" * 32, "rin/1.png", b"not what was sent", last=True)
    with pytest.raises(OSError, match="not those that were sent"):
        other.keep("0" * 32)
    assert other.lacks("0" * 32)


def test_what_a_dead_node_left_is_removed_by_the_next_one(rig: Rig) -> None:
    rig.node._lock.release()  # as the kernel does
    old = rig.there.folder.parents[1]
    nodes = [Node(rig.root), Node(rig.root)]
    assert not old.exists()
    assert len([path for path in (rig.root / "runs").iterdir() if path.is_dir()]) == 2
    for node in nodes:
        node.end()
    assert [path for path in (rig.root / "runs").iterdir() if path.is_dir()] == []


plain = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def sent(*messages: object) -> bytes:
    stream = io.BytesIO()
    for message in messages:
        Wire(io.BytesIO(), stream).send(message)
    return stream.getvalue()


@given(st.lists(values, max_size=3), values, st.data())
def test_messages_arrive_as_they_were_sent_and_whole(messages: list[Any], cut: object, data: st.DataObject) -> None:
    stream, last = sent(*messages), sent(cut)
    end = Wire(io.BytesIO(stream + last[: data.draw(st.integers(0, len(last) - 1))]), io.BytesIO())
    assert [end.receive() for _ in messages] == messages
    with pytest.raises(EOFError):
        end.receive()


def test_a_megabyte_tells_that_it_moves() -> None:
    moves: list[None] = []
    stream = sent(b"x" * 2**20)
    assert Wire(io.BytesIO(stream), io.BytesIO(), lambda: moves.append(None)).receive() == b"x" * 2**20
    assert len(moves) == 2 + 2**20 // wire.CHUNK


@pytest.mark.parametrize("stream", [b"\xff\xff\xff\xff", b'\0\0\0\x0d{"bytes": -1}', b"\0\0\0\x02{\xff"])
def test_what_is_too_large_or_broken_is_refused_at_once(stream: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json, too
        Wire(io.BytesIO(stream), io.BytesIO()).receive()
