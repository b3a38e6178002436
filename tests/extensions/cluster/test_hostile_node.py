"""A node that lies. Whatever it answers, it gets and changes nothing here but its run, in bounded memory and time."""

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, cast, get_args, get_origin

import pytest
from pydantic import BaseModel

from limner_extensions.cluster import border, relay
from limner_extensions.cluster.border import Border
from limner_extensions.cluster.node import PIECE, News, Node, NodeLostError
from limner_extensions.cluster.ssh_machine import Address, _SshNode
from tests.conftest import little_memory
from trainer import config, runs, storage
from trainer.errors import UserError
from trainer.runs import Run, events, run_files

pytestmark = pytest.mark.slow
SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"
MEMORY = 256 * 2**20  # bytes that an attack may make the relay allocate


class Lying(Node):
    """A node whose worker does nothing; `lie` changes each answer to `news`, `pieces` what is read of a file."""

    def __init__(self, root: Path, lie: Callable[[News], News], pieces: Callable[[str, int], Any]) -> None:
        super().__init__(root)
        self.received: list[bytes] = []
        self.lie, self.pieces, self.calls = lie, pieces, 0

    def begin(self) -> None:
        (self._run.folder / "ask").mkdir(exist_ok=True)

    def receive(self, key: str, path: str, piece: bytes, *, last: bool) -> None:
        self.received.append(piece)
        super().receive(key, path, piece, last=last)

    def receive_run(self, run_id: str, path: str, piece: bytes, *, last: bool) -> None:
        self.received.append(piece)
        super().receive_run(run_id, path, piece, last=last)

    def news(self, *values: Any) -> News:  # noqa: ANN401 - as of a node
        self.calls += 1
        if self.calls > 20:
            raise NodeLostError("the connection was dropped")
        news = super().news(*values)
        return self.lie(news) if self.calls > 1 else news  # the first call only lists what was sent

    def read(self, path: str, offset: int) -> bytes | None:
        piece: bytes | None = self.pieces(path, offset)
        return piece


class Victim:
    """A run here, and a key beside it that nobody else should ever see."""

    def __init__(self, home: Path, root: Path) -> None:
        self.home, self.root = home, root
        secret = home / "ssh"
        secret.mkdir()
        for name in ("id_ed25519", "config", "known_hosts"):
            storage.write(secret / name, SECRET)
        self.run = runs.create(config.build({"name": "rin", "dataset": "rin"}), cluster="ssh://gpu")
        self.settings = self.run.config()
        self.placed: list[Lying] = []

    def attacked(
        self,
        lie: Callable[[News], News] = lambda news: news,
        pieces: Callable[[str, int], Any] = lambda path, offset: None,
    ) -> str:
        """Relay the run to nodes that lie; return how it ended. Nothing but the run has changed, no secret was sent."""
        before, self.placed = self._files(), []

        def place(devices: int, wait: Callable[[], None]) -> Node:
            self.placed.append(Lying(self.root / f"node-{len(self.placed)}", lie, pieces))
            return self.placed[-1]

        with little_memory(MEMORY), pytest.raises(UserError) as error:
            relay.work(self.run, SimpleNamespace(place=place))
        received = b"".join(piece for node in self.placed for piece in node.received)
        assert SECRET not in received
        assert b"settings of the attacker" not in received
        assert self._files() == before
        assert self.run.cluster == "ssh://gpu"
        after = self.run.config()
        assert (after.taught, after.model) == (self.settings.taught, self.settings.model)
        assert after.regularization == self.settings.regularization
        return str(error.value)

    def _files(self) -> dict[str, bytes]:
        """Everything in the home folder but what the run is made of."""
        run = self.run.folder
        own = {run / "config.toml", run / "events.jsonl", run / "worker.log"}
        return {
            path.relative_to(self.home).as_posix(): path.read_bytes()
            for path in self.home.rglob("*")
            if path.is_file() and path not in own and run / "ask" not in path.parents
        }


@pytest.fixture
def victim(
    character: Path, home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Victim:
    monkeypatch.setattr(relay, "EVERY", 0)
    for path in character.glob("*.*"):
        if not path.name.startswith("01."):  # one image is sent sooner than all
            path.unlink()
    return Victim(home, tmp_path_factory.mktemp("attacker"))


def test_settings_that_come_back_do_not_choose_what_is_sent_next(victim: Victim) -> None:
    folder = str(victim.home / "ssh")
    file = f"{folder}/id_ed25519"
    changes = {"dataset": folder, "model": {"base": folder, "vae": file, "training_adapter": file}}
    changes |= {"adapter": {"start": file}}
    changes |= {"regularization": {"dataset": folder}, "trigger": "a", "subjects": [f"{folder}/../ssh --trigger b"]}
    data = config.merge(victim.settings.model_dump(mode="json"), changes)
    text = config.dump(config.build(data))
    victim.attacked(lambda news: replace(news, config=text))
    assert len(victim.placed) == relay.LOSSES, "the folder was asked for at each reconnection"
    victim.attacked()  # resumed, it sends what was chosen here


FOREIGN = ["./config.toml", "cluster", "CLUSTER", "config.toml\n", "worker.log", "worker.lock", "ask/stop"]
FOREIGN += ["previews/.hidden", "checkpoints/000001/../../cluster", "../other/config.toml", "/etc/passwd", "C:\\x.png"]
FOREIGN += ["checkpoints/000001/evil.py", "nul.safetensors", "", "a" * 5000]


def test_only_files_of_a_run_are_written(victim: Victim) -> None:
    assert [path for path in FOREIGN if run_files.is_file(path)] == []
    content = b"settings of the attacker"
    message = victim.attacked(lambda news: replace(news, files={"../other/config.toml": (24, 1)}), lambda *_: content)
    assert "not a file of a run" in message
    assert not any(node.calls > 19 for node in victim.placed)


# Files that a node announces: path, size, how it sends them, and what is said.
FILES: dict[str, tuple[str, int, Callable[[str, int], bytes], str]] = {
    "320 MB": ("rin.safetensors", 5, lambda _, offset: b"x" * PIECE if offset < 20 * PIECE else b"", "announced"),
    "less": ("rin.safetensors", 500, lambda _, offset: b"x" * 5 if not offset else b"", "announced"),
    "nothing": ("rin.safetensors", 10 * PIECE, lambda _, offset: b"", "announced"),
    "a page": ("previews/000001_0.png", 25, lambda _, offset: b"<script>alert(1)</script>"[offset:], "_0.png"),
    "a pickle": ("rin.safetensors", 12, lambda _, offset: b"\x80\x04\x95 a pickle"[offset:], "rin.safetensors"),
    "no header": ("adapters/000001.safetensors", 100, lambda _, offset: b"\xff" * (100 - offset), "000001.safetensors"),
}


@pytest.mark.parametrize(("path", "size", "pieces", "words"), FILES.values(), ids=FILES)
def test_a_file_is_as_announced_and_what_its_name_says(
    victim: Victim, path: str, size: int, pieces: Callable[..., Any], words: str
) -> None:
    message = victim.attacked(lambda news: replace(news, files={path: (size, 1)}), pieces)
    assert words in message
    assert not (victim.run.folder / path).exists()


def line(event: events.Event) -> bytes:
    return event.model_dump_json().encode() + b"\n"


EVENTS = [
    events.Preview(step=1, file="../../ssh/id_ed25519", prompt="", seed=1),
    events.Checkpoint(step=1, folder="../../ssh"),
    events.Verified(file="cluster", verdicts=()),
    events.Finished(step=1, export="../../ssh/id_ed25519"),
    events.Finished(step=1, export="rin.safetensors", sha256={"../../ssh/id_ed25519": ""}),
    events.Failed(message="", remedy="", traceback="", change={"model.base": "/home/me/.ssh"}),
    events.Step(step=10**30, loss=1, learning_rate=1, grad_norm=1, seconds=1, memory=1),
]


def test_events_name_only_files_and_settings_of_the_run(victim: Victim) -> None:
    for event in EVENTS:
        with pytest.raises(NodeLostError):
            border.read_events(line(event))
    victim.attacked(lambda news: replace(news, events=line(EVENTS[0])))
    assert not runs.look(victim.run).state.previews


def test_texts_do_not_steer_a_terminal_and_clocks_may_be_wrong(victim: Victim) -> None:
    """A machine without a battery begins in 1970; that ends nothing."""
    text = "\x1b]0;owned\x07\x1b[2J"
    warning = events.Warned(message="hello", time=events._now() - timedelta(days=365 * 56))
    ended = line(warning) + line(events.Failed(message=text, remedy=text, traceback=text))
    victim.attacked(lambda news: replace(news, now=0.0, events=ended, log=text.encode()))
    state = runs.look(victim.run).state
    assert "\x1b" not in state.message + state.remedy + state.traceback
    assert "hello" in state.warnings


ODD = "\x1b[2J\u202e"  # what steers a terminal, or turns the letters that follow around
HOSTILE = f"{ODD}</b><img src=x onerror='window.limnerHit = 1'>"
PATHS = {"file": "rin.safetensors", "export": "rin.safetensors", "folder": "checkpoints/000001"}
TABLES = {"change": {"optimizer.learning_rate": HOSTILE}, "sha256": {"rin.safetensors": HOSTILE}}


def odd(kind: type[BaseModel]) -> BaseModel:
    """An event of a kind, with a hostile text wherever it takes a text, at any depth."""
    values: dict[str, Any] = {name: PATHS[name] for name in PATHS if name in kind.model_fields}
    for name, info in kind.model_fields.items():
        if name not in {*values, "kind", "time"}:
            values[name] = TABLES[name] if get_origin(info.annotation) is dict else _odd(info.annotation)
    return kind(**values)


def _odd(annotation: Any) -> Any:  # noqa: ANN401 - a type as fields of a dataclass have it
    if annotation in (int, float, bool):
        return 1
    if annotation is str:
        return HOSTILE
    inner = [each for each in get_args(annotation) if each is not ...]
    if get_origin(annotation) is tuple:
        return tuple(_odd(each) for each in inner)
    return next(_odd(each) for each in inner if each is not NoneType)


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts(inner)


@pytest.mark.parametrize("kind", get_args(events.Event), ids=lambda kind: kind.__name__)
def test_texts_at_any_depth_are_clean_and_otherwise_as_they_were_sent(kind: type[events.Event]) -> None:
    (event,), _length = border.read_events(line(cast(events.Event, odd(kind))))
    sent = [text for text in texts(odd(kind).model_dump()) if ODD in text]
    reported = [text for text in texts(event.model_dump()) if "onerror" in text]
    assert reported == ["\ufffd[2J\ufffd" + text.removeprefix(ODD) for text in sent]


def test_texts_and_lists_have_an_end(victim: Victim) -> None:
    long = "x" * 2 * border.MAX_TEXT
    (event,), _length = border.read_events(line(events.Verified(file="rin.safetensors", verdicts=(), notes=(long,))))
    assert isinstance(event, events.Verified)
    assert event.notes == ("x" * border.MAX_TEXT,)
    many = ("x",) * (border.MAX_ITEMS + 1)
    for endless in (
        events.Began(pid=1, cards=many),
        events.Verified(file="rin.safetensors", verdicts=(), problems=many),
        events.Verified(file="rin.safetensors", verdicts=(("a", True, "b"),) * len(many)),
    ):
        with pytest.raises(NodeLostError, match="a list of more than 1,000 entries"):
            border.read_events(line(endless))
    about: Any = SimpleNamespace(about=lambda: SimpleNamespace(name=HOSTILE, version=ODD))
    assert ODD[0] not in "".join(vars(Border(about, victim.run.folder).about()).values())
    text = config.dump(
        config.build(config.merge(victim.settings.model_dump(mode="json"), {"preview": {"prompts": [f"a cat {ODD}"]}}))
    )
    assert border.take_settings(victim.settings, text).preview.prompts == ("a cat \ufffd[2J\ufffd",)


def test_why_a_node_is_lost_is_clean_and_short(victim: Victim, capsys: pytest.CaptureFixture[str]) -> None:
    def lose(news: News) -> News:
        raise NodeLostError(f"{HOSTILE * 1000}")

    message = victim.attacked(lose)
    assert ODD[0] not in message + capsys.readouterr().err
    assert len(message) < 1000


ANSWERS: list[dict[str, Any]] = [{"now": math.nan}, {"now": "soon"}, {"code": [1]}, {"requests": 5}]
ANSWERS += [{"config": b"\xff"}]
ANSWERS += [{"config": "name = 'rin'\n" * 10**6}, *({"events": each} for each in (None, b"x" * (PIECE + 1)))]
ANSWERS += [{"log": each} for each in (5, b"x" * (PIECE + 1))]
ANSWERS += [{"files": {"rin.safetensors": each}} for each in (5, (2**60, 1), (-1, 1))]
ANSWERS += [{"files": {f"previews/{number:06d}_0.png": (1, 1) for number in range(30_000)}}]
ANSWERS += [{"files": {f"previews/{number:06d}_0.png": (2**33, 1) for number in range(100)}}]


def test_answers_of_another_kind_or_size_end_the_connection(victim: Victim) -> None:
    """A code of -9 is that of a worker that the kernel killed: the node lives, but the run did not end."""
    news = News(time.time(), None, b"", b"", "", {}, frozenset())
    for changes in ANSWERS:
        node: Any = SimpleNamespace(news=lambda *_, changes=changes: replace(news, **changes))
        with pytest.raises(NodeLostError):
            Border(node, victim.run.folder).news(0, 0, [], [])
    for settings in ("x = " + "[" * 50_000, "x = 1"):
        with pytest.raises(NodeLostError):
            border.take_settings(victim.settings, settings)
    for changes in ({"code": -9}, {"config": "x = 1"}, {"files": {"rin.safetensors": (2**60, 1)}}):
        assert "lost" in victim.attacked(lambda news, changes=changes: replace(news, **changes))


def test_a_log_and_a_line_without_end_are_cut(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(border, "MAX_LOG", 1000)
    long_line = b'{"kind": "warned", "message": "' + b"[" * 2**21 + b'"}\n'
    for events_of_it in (b"x" * PIECE, long_line):
        victim.attacked(lambda news, events_of_it=events_of_it: replace(news, log=b"x" * 999, events=events_of_it))
    assert len(capsys.readouterr().out) < 12_000


SERVER = """
import json, sys
out = sys.stdout.buffer
def message(value):
    data = json.dumps(value).encode()
    return len(data).to_bytes(4, "big") + data
def answers(data):
    out.write(b"welcome\\nlimner node\\n" + data); out.flush()
def endless(data):
    for _ in range(400): out.write(data * 2**20)
{attack}
sys.stdin.buffer.read()
"""


@contextmanager
def ssh_node() -> Iterator[_SshNode]:
    node = _SshNode(Address("gpu"))
    try:
        yield node
    finally:
        node._ssh.kill()
        node.end()


ATTACKS = (
    'answers(message(["answer", {"bytes": 2**40}])); endless(b"x")',
    'answers(b"\\x00\\x10\\x00\\x00" + b"[" * 2**20)',
    'answers(b"\\xff\\xff\\xff\\xff")',
    'answers(message({"answer": 1}))',
    'answers(message(["answer", ["name", "version"]]))',
    'answers(message(["refused", 5]))',
    'answers(message(["refused", ["{0.__class__}", "{x}"]]))',
    'answers(message(["failed", "\\x1b[2J" + "x" * 2**20]))',
    'endless(b"x"); sys.exit(3)',
    'sys.stdout = sys.stderr; out = sys.stderr.buffer; endless(b"x"); sys.exit(3)',
)


@pytest.mark.parametrize("attack", ATTACKS, ids=range(10))
def test_bytes_that_are_no_answer_end_the_connection(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a program in the place of ssh. The last two chatter without end instead of a greeting."""
    server, ssh = tmp_path / "server.py", tmp_path / "ssh"
    server.write_text(SERVER.replace("{attack}", attack), encoding="utf-8")
    ssh.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(server))}\n", encoding="utf-8")
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with little_memory(MEMORY), pytest.raises((NodeLostError, UserError)) as error, ssh_node() as node:
        relay.check_version(Border(cast(Node, node), tmp_path).about())
    assert len(str(error.value)) < 2000
    assert "\x1b" not in str(error.value)
    assert len(capsys.readouterr().err) < 2**22


@pytest.fixture
def node(home: Path, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "there")
    yield node
    node.end()


CALLS: list[Callable[[Node], object]] = [
    lambda node: node.receive("../../evil", "x.png", b"x", last=True),
    lambda node: node.keep("../runs"),
    lambda node: node.lacks("../.."),
    lambda node: node.receive_run("../evil", "config.toml", b"x", last=True),
    lambda node: node.receive_run("rin", "../evil", b"x", last=True),
    lambda node: node.receive_run("rin", "worker.lock", b"x", last=True),
    lambda node: node.news(0, 0, ["../evil"], []),
    lambda node: node.news(0, 0, [], ["../config.toml"]),
    lambda node: node.read("../../../secret", 0),
    lambda node: node.read("worker.log", 0),
]


@pytest.mark.parametrize("call", CALLS, ids=range(10))
def test_a_relay_that_lies_reaches_nothing_but_its_run(
    node: Node, tmp_path: Path, call: Callable[[Node], object]
) -> None:
    node.receive_run("rin", "config.toml", b"name = 'rin'", last=True)
    Run(node.home / "outputs" / "rin").worker_log.write_text("log")
    storage.write(tmp_path / "secret", SECRET)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((UserError, ValueError)):
        call(node)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
