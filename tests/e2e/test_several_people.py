"""The example of docs/several-people.md with processes for containers: two servers, each behind its name in Caddy."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import HANG, free_port, wait
from tests.e2e.conftest import CHECKOUT, Browser, Server, make_home
from trainer import runs
from trainer.runs import queue

pytestmark = pytest.mark.nightly

DOMAIN = "localhost"  # instead of limner.example: it leads to this machine, and Caddy signs its certificates itself
NAMES = ("anna", "ben")


@dataclass(frozen=True)
class Person:
    """A person with the passwords for Caddy and for Limner, and their server."""

    name: str
    login: str
    password: str
    server: Server
    web: httpx.Client

    @property
    def host(self) -> str:
        return str(self.web.headers["host"])

    def enter(self) -> httpx.Response:
        return self.web.post("/login", data={"password": self.password})

    def call(self, endpoint: str, *data: object) -> Any:  # noqa: ANN401 - JSON
        joined = self.web.post(f"/gradio_api/call/{endpoint}", json={"data": data})
        output = self.web.get(f"/gradio_api/call/{endpoint}/{joined.json()['event_id']}").text
        assert output.startswith("event: complete"), output
        return json.loads(output.partition("data: ")[2])[0]


def example(name: str) -> str:
    return (CHECKOUT / "docker" / name).read_text(encoding="utf-8").replace("limner.example", DOMAIN)


@pytest.fixture(scope="module")
def caddy() -> str:
    program = shutil.which("caddy")
    if not program:
        pytest.skip("no Caddy: apt-get install caddy")
    return program


@pytest.fixture(scope="module")
def version(caddy: str) -> tuple[int, ...]:
    output = subprocess.run([caddy, "version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in re.findall(r"\d+", output)[:2])


def for_version(text: str, version: tuple[int, ...]) -> str:
    """Return a Caddyfile with the directive's name of before Caddy 2.8, which Debian still has, if it is that old."""
    return text if version >= (2, 8) else text.replace("basic_auth", "basicauth")


def test_the_caddyfile_is_valid(caddy: str, version: tuple[int, ...], tmp_path: Path) -> None:
    file = tmp_path / "Caddyfile"
    file.write_text(for_version(example("Caddyfile"), version), encoding="utf-8")
    command = [caddy, "validate", "--adapter", "caddyfile", "--config", file]
    done = subprocess.run(command, env=own_folders(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def own_folders(folder: Path) -> dict[str, str]:
    """Return an environment in which Caddy keeps its certificates in a folder."""
    return {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


@pytest.fixture(scope="module")
def people(caddy: str, version: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Person]]:
    folder = tmp_path_factory.mktemp("several")
    services = yaml.safe_load(example("compose.yaml"))["services"]
    port, caddyfile = free_port(), for_version(example("Caddyfile"), version)
    with ExitStack() as stack:
        result = []
        for name in NAMES:
            home = folder / name
            home.mkdir()
            server = Server(make_home(home))
            stack.callback(server.end_workers)
            stack.callback(server.stop)
            # On the loopback address alone: there is no network of containers here.
            options = [option for option in services[name]["command"][2:] if option != "--listen"]
            login, password = f"{name} at Caddy", f"{name} at Limner"
            server.start(*options, LIMNER_PASSWORD=password, LIMNER_SHARED=str(folder / "shared"))
            hashing = [caddy, "hash-password", "--plaintext", login]
            hashed = subprocess.run(hashing, capture_output=True, text=True, check=True).stdout.strip()
            caddyfile = re.sub(rf"(\t{name}) \$2a\S+", lambda match, hashed=hashed: f"{match[1]} {hashed}", caddyfile)
            caddyfile = caddyfile.replace(f"{name}:7860", f"127.0.0.1:{server.port}")
            host = f"{name}.{DOMAIN}:{port}"
            web = httpx.Client(
                base_url=f"https://127.0.0.1:{port}",
                headers={"host": host},
                auth=(name, login),
                verify=False,
                timeout=HANG,
            )
            web.event_hooks["request"].append(
                lambda request, name=name: request.extensions.update(sni_hostname=f"{name}.{DOMAIN}")
            )
            result.append(Person(name, login, password, server, stack.enter_context(web)))
        here = f"{{\n\tadmin off\n\tskip_install_trust\n\thttps_port {port}\n\thttp_port {free_port()}\n"
        (folder / "Caddyfile").write_text(f"{here}\tdefault_bind 127.0.0.1\n}}\n{caddyfile}", encoding="utf-8")
        command = [caddy, "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]
        with (folder / "caddy.log").open("w") as output:
            process = subprocess.Popen(command, env=own_folders(folder), stdout=output, stderr=output)
        stack.callback(process.wait)
        stack.callback(process.terminate)

        def answers() -> bool:
            assert process.poll() is None, (folder / "caddy.log").read_text(encoding="utf-8")
            try:
                return result[-1].web.get("/").status_code == 303
            except httpx.TransportError:
                return False

        wait(answers)
        yield result


def test_each_person_reaches_their_own_server_alone(people: list[Person]) -> None:
    anna, ben = people
    assert anna.web.get("/", auth=("ben", ben.login)).status_code == 401, "Ben, at Caddy"
    assert anna.web.get("/", auth=None).headers["www-authenticate"].startswith("Basic")
    for person in people:
        answer = person.enter()
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "Secure" in answer.headers["set-cookie"], "Limner knows that there is TLS"
        assert person.web.get("/").status_code == 200
        assert person.web.get("/config").json()["root"] == f"https://{person.host}"
    anna.web.headers["cookie"] = f"limner-session={ben.web.cookies['limner-session']}"
    assert anna.web.get("/config").status_code == 401, "Ben's session"
    del anna.web.headers["cookie"]
    anna.call("create_project", "mira")
    assert ("mira" in anna.call("projects"), "mira" in ben.call("projects")) == (True, False)
    foreign = anna.web.post("/logout", headers={"origin": f"https://{ben.host}"})
    assert (foreign.status_code, foreign.text) == (403, "Requests from other web sites are refused.")
    assert httpx.get(anna.server.url, headers={"host": f"ben.{DOMAIN}"}).status_code == 403


def test_a_browser_cannot_choose_the_address_that_it_guesses_from(people: list[Person]) -> None:
    statuses = []
    for number in range(7):
        spoofed = {"x-forwarded-for": f"10.{number}.0.1"}
        statuses.append(people[1].web.post("/login", data={"password": "wrong"}, headers=spoofed).status_code)
    assert statuses == [403] * 5 + [429] * 2
    log = (people[1].server.home / "outputs" / ".audit.log").read_text(encoding="utf-8")
    assert '"address": "127.0.0.1"' in log
    assert "10.0.0.1" not in log


def test_the_cards_are_for_one_run_at_a_time(people: list[Person], monkeypatch: pytest.MonkeyPatch) -> None:
    anna, ben = people
    for person in people:
        if person.web.get("/config").status_code == 401:
            wait(lambda person=person: person.enter().status_code == 303, every=2)
    first = anna.call("start_training", "example-character", "character", {"training.steps": 5000})["run"]
    wait(lambda: anna.call("status", first)["step"] > 0)
    second = ben.call("start_training", "example-style", "character", {"training.steps": 2})["run"]
    assert [item["run"] for item in ben.call("list_runs")] == [second]
    monkeypatch.setenv("LIMNER_HOME", str(ben.server.home))
    monkeypatch.setenv("LIMNER_SHARED", str(ben.server.home.parent / "shared"))
    wait(lambda: queue.position(runs.find(second)) or ben.call("status", second)["status"] != "waiting")
    assert queue.position(runs.find(second)) == 1, "it waits for the run of Anna"
    anna.call("control", first, "stop")
    wait(lambda: ben.call("status", second)["status"] == "finished")


def test_the_page_works_behind_its_name(people: list[Person], browser: Browser) -> None:
    person = people[0]
    credentials = {"username": person.name, "password": person.login}
    context = browser.new_context(ignore_https_errors=True, http_credentials=credentials)
    context.set_default_timeout(HANG * 1000)
    page = context.new_page()
    try:
        page.goto(f"https://{person.host}")
        page.get_by_label("Password").fill(person.password)
        page.get_by_role("button", name="Log in").click()
        page.get_by_label("Caption of 01.png").fill("behind Caddy")
        page.get_by_text("All captions are saved.").wait_for()
        page.get_by_role("tab", name="Download").click()
        page.get_by_role("link", name="Log out").wait_for()
    finally:
        context.close()
    captions = (person.server.home / "datasets").glob("*/01.txt")
    assert "behind Caddy\n" in [caption.read_text(encoding="utf-8") for caption in captions]
