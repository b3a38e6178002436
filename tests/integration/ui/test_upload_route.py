"""Uploads that would fill the disk together, are cut off, or have odd names, sent as a browser sends them."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.unit.data.test_dataset import png
from trainer import paths
from trainer.data import dataset
from trainer.data.captions import read_caption
from ui.server import request_body, upload_route
from ui.server.security import SecurityMiddleware
from ui.state import pending_uploads

MB = 2**20
BOUNDARY = b"limnertest"
TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def part(name: str, data: bytes) -> bytes:
    head = f'--{BOUNDARY.decode()}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode(errors="surrogatepass") + data + b"\r\n"


def body(files: Sequence[tuple[str, bytes]]) -> bytes:
    return b"".join(part(*file) for file in files) + b"--" + BOUNDARY + b"--\r\n"


def waiting() -> list[Path]:
    return [path for path in paths.uploads().rglob("*") if path.is_file()]


def size() -> int:
    return sum(path.stat().st_size for path in waiting())


@pytest.fixture(autouse=True)
def _server_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's current folder is its home."""
    monkeypatch.chdir(home)


def app(room: int = 2**40) -> SecurityMiddleware:
    """The route behind the middleware, on a disk that has room for so many bytes of uploads."""
    inner = FastAPI()
    inner.include_router(upload_route.router)
    return SecurityMiddleware(inner, upload_room=lambda: room - size())


def run(work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - of the work
    with ThreadPoolExecutor(1) as other_thread:  # in this one a browser test may have left a loop running
        return other_thread.submit(lambda: asyncio.run(work)).result()


async def ask(asgi: SecurityMiddleware, path: str = "/gradio_api/upload", **request: Any) -> httpx.Response:  # noqa: ANN401 - as of httpx
    async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://127.0.0.1") as client:
        return await client.post(path, **request)


async def send(asgi: SecurityMiddleware, content: bytes | AsyncIterator[bytes], length: int = 0) -> httpx.Response:
    headers = {**TYPE, "content-length": str(length)} if length else TYPE
    return await ask(asgi, content=content, headers=headers)


def post(content: bytes) -> httpx.Response:
    answer: httpx.Response = run(send(app(), content))
    return answer


@pytest.mark.parametrize("tells_its_length", [True, False])
def test_uploads_at_once_do_not_fill_the_disk_together(tells_its_length: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of which each alone fits: two of them fit beside each other, and never is more written."""
    monkeypatch.setattr(request_body, "CHECKED_EVERY", MB)
    data = body([("a.png", bytes(4 * MB))])
    room, most = 10 * MB, 0

    async def attack() -> list[httpx.Response]:
        asgi, all_begun = app(room), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            nonlocal most
            yield data[:1000]
            await all_begun.wait()
            for start in range(1000, len(data), MB // 4):
                yield data[start : start + MB // 4]
                most = max(most, size())
                await asyncio.sleep(0)

        sending = [asyncio.create_task(send(asgi, slowly(), len(data) if tells_its_length else 0)) for _ in range(6)]
        await asyncio.sleep(0.3)
        all_begun.set()
        return await asyncio.gather(*sending)

    answers = run(attack())
    statuses = sorted(answer.status_code for answer in answers)
    assert most <= room
    if tells_its_length:
        assert (statuses, size()) == ([200, 200, 413, 413, 413, 413], 2 * 4 * MB)
    assert set(statuses) <= {200, 413}
    assert all("no room" in answer.text for answer in answers if answer.status_code == 413)
    assert len(waiting()) == statuses.count(200)


def test_what_an_upload_reserved_is_given_back() -> None:
    async def one_after_the_other() -> list[int]:
        asgi, statuses = app(10 * MB), []
        for number in range(5):
            answer = await send(asgi, body([("a.png", bytes(6 * MB if number % 2 else 20 * MB))]))
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                pending_uploads.discard(pending_uploads.find(path) or Path() for path in answer.json())
        return statuses

    assert run(one_after_the_other()) == [413, 200, 413, 200, 413]
    assert list(paths.uploads().iterdir()) == []


def test_an_upload_that_is_cut_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser disconnects, or the body ends too early, in the second of two files."""

    async def cut_off(last: dict[str, object]) -> list[dict[str, Any]]:
        cut = body([("a.png", bytes(100_000)), ("b.png", bytes(MB))])[:-500_000]
        more = last["type"] == "http.disconnect"
        parts = iter([{"type": "http.request", "body": cut, "more_body": more}, last])
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return next(parts)

        async def send_answer(message: Any) -> None:  # noqa: ANN401 - of ASGI
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"content-type", TYPE["content-type"].encode())]
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "client": None, "query_string": b""}
        scope["headers"] = headers
        await app()(scope, receive, send_answer)
        return sent

    for last in ({"type": "http.disconnect"}, {"type": "http.request"}):
        run(cut_off(last))
        assert list(paths.uploads().iterdir()) == []


NAMES = ["", ".", "..", "../../../evil.png", "/etc/passwd", "a/b/c.png", "C:\\\\x\\\\y.png", "\0.png", "con.png", "NUL"]
NAMES += [".DS_Store", "x" * 2000 + ".png", "ä" * 300 + ".png", "日本.png", "a b (1).png", "a:b*c?.png", "trailing. "]


def test_an_odd_name_harms_no_other_file(home: Path) -> None:
    answer = post(body([("good.png", b"good"), *((name, b"odd") for name in NAMES), ("fine.png", b"fine")]))
    assert answer.status_code == 200, answer.text
    files = [home / path for path in answer.json()]
    assert len(files) == len(NAMES) + 2
    assert str(home) not in answer.text, "it shows no path of the server"
    assert [pending_uploads.find(path) for path in answer.json()] == files
    plain = ["good.png", "日本.png", "a b (1).png", "fine.png"]
    assert [file.name for file in files if file.name in plain] == plain
    for file in files:
        assert file.is_file()
        assert file.resolve().is_relative_to(paths.uploads())
        assert not file.name.startswith(".")
        assert not paths.is_device(file.name)


def test_a_batch_has_a_limit_that_the_refusal_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_route, "MAX_FILES", 20)
    answer = post(body([(f"{number}.png", b"") for number in range(21)]))
    assert (answer.status_code, "at most 20 files" in answer.text) == (400, True)
    too_large = run(send(app(), b"", 3 * 2**30))
    assert (too_large.status_code, "at most 2 GB" in too_large.text, waiting()) == (413, True, [])


def test_a_thousand_files_are_not_open_at_once() -> None:
    """Gradio's own route opens them all: two such uploads, and the server can open no file any more."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
    try:
        answer = post(body([(f"{number}.png", b"x") for number in range(upload_route.MAX_FILES)]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (answer.status_code, len(answer.json())) == (200, upload_route.MAX_FILES)


def test_nonsense_is_refused_in_a_sentence() -> None:
    assert post(b"nonsense").text == "The upload did not arrive whole. Try again."
    assert post(body([("a.png", b"a")])[:-10]).status_code == 400
    assert run(ask(app(), json={})).text == "This is not an upload of files. Send it as multipart/form-data."
    assert list(paths.uploads().iterdir()) == []


def add(project: str, content: bytes) -> dict[str, Any]:
    return json.loads(run(ask(app(), "/images", params={"project": project}, content=content, headers=TYPE)).text)


def test_images_are_taken_in_by_the_project_they_are_sent_to() -> None:
    for name in ("rin", "example-character"):
        dataset.create(name)
    files = [("a/1.png", png(1)), ("b/1.png", png(2)), ("b/1.txt", b"miraxo, red"), ("c%22.png", b"no image")]
    answer = add("rin", body(files))
    assert (answer["project"], answer["bad"]) == ("rin", True)
    assert "Added 2 images" in answer["report"]
    assert 'c".png' in answer["report"], "it says which file was refused; browsers send a quote as %22"
    captions = {read_caption(image) for image in dataset.image_files(paths.datasets() / "rin")}
    assert captions == {"", "miraxo, red"}, "equal names in two folders stay apart"
    for number, name in enumerate(("my-pictures", "my-pictures-2")):
        answer = add("example-character", body([("1.png", png(3 + number))]))
        assert (answer["project"], answer["bad"]) == (name, False)
        assert f"They are in the project {name}" in answer["report"]
    assert not dataset.image_files(paths.datasets() / "example-character")
    assert waiting() == []


@pytest.mark.parametrize(
    ("project", "content", "words"),
    [
        ("gone", body([("1.png", b"x")]), "no longer exists"),
        ("../rin", body([("1.png", b"x")]), ""),
        ("rin", body([("1.png", b"x")])[:-9], "did not arrive whole"),
    ],
)
def test_images_that_cannot_be_added_leave_nothing(project: str, content: bytes, words: str) -> None:
    dataset.create("rin")
    answer = add(project, content)
    assert (answer["project"], answer["bad"]) == ("", True)
    assert words in answer["report"]
    assert dataset.names() == ["rin"]
    assert waiting() == []
