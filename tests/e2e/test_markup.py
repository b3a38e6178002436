"""Sixty texts that would run if the page took them for markup, in each place that shows what comes from outside."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save as save_tensors

from tests.e2e.conftest import Page, Server, Visit
from tests.e2e.test_images import choose, fill
from tests.e2e.test_page import cards, tab, upload
from tests.hostile.markup import VALUES
from tests.unit.adapter_files.test_compatibility import good
from trainer import config, runs
from trainer.data import caption_edits
from trainer.runs import Run, events

PROJECT, PROMPTS = "markup", 16


def image(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def name(number: int) -> str:
    """A file's name with a value in it, which may have no slash."""
    return f"{VALUES[number].replace('/', '_')[:100]} {number:02}.png"


def make_project(home: Path) -> Path:
    folder = home / "datasets" / PROJECT
    folder.mkdir(parents=True)
    for number, value in enumerate(VALUES):
        (folder / name(number)).write_bytes(image(number))
        (folder / name(number)).with_suffix(".txt").write_text(value, encoding="utf-8")
    return folder


def make_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that finished, with every value wherever a run has a list, and all of them wherever it has one text."""
    monkeypatch.setenv("LIMNER_HOME", str(home))
    settings = {"name": "odd", "dataset": PROJECT, "trigger": VALUES[1], "preview": {"prompts": VALUES[:PROMPTS]}}
    run = runs.create(config.build(settings))
    run.export.write_bytes(adapter())
    (run.folder / "previews").mkdir()
    for number in range(PROMPTS):
        (run.folder / "previews" / f"000001_{number}.png").write_bytes(image(number))
    (run.folder / "worker.log").write_text("\n".join(VALUES), encoding="utf-8")
    previews = [
        events.Preview(step=1, file=f"previews/000001_{number}.png", prompt=VALUES[number], seed=1)
        for number in range(PROMPTS)
    ]
    for event in (
        events.Started(step=0, steps=1, pid=1, device=VALUES[0]),
        *(events.Warned(message=value) for value in VALUES),
        *previews,
        events.Verified(
            file="odd.safetensors",
            verdicts=tuple((value, number % 2 == 0, value) for number, value in enumerate(VALUES)),
            problems=VALUES,
            notes=VALUES,
        ),
        events.Finished(step=1, export="odd.safetensors"),
    ):
        run.report(event)
    return run


def adapter() -> bytes:
    """An adapter with a value in every entry that is shown; the others are in its tags and in keys of its own."""
    tensors = {key: np.zeros(tensor.shape, np.float32) for key, tensor in good("sd15", "micro").items()}
    entries = ("modelspec.title", "modelspec.trigger_phrase", "ss_output_name", "ss_network_module", "ss_optimizer")
    metadata = {
        key: " ".join(VALUES)[start : start + 900] for start, key in zip(range(0, 4500, 900), entries, strict=True)
    }
    metadata |= {"ss_tag_frequency": json.dumps({"a": dict.fromkeys(VALUES, 3)})}
    metadata |= {f"odd {number} {value}": value for number, value in enumerate(VALUES)}
    return save_tensors(tensors, metadata)


def unhurt(page: Page, place: str) -> None:
    """No value became an element or a script, and no address was asked for."""
    made = "[onerror], [onload], [onclick], [onfocus], [onmouseover], img[src='x'], iframe, embed, object, marquee"
    assert page.evaluate("window.limnerHit ?? 0") == 0, place
    assert page.locator(made).evaluate_all("elements => elements.map((element) => element.outerHTML)") == [], place


def missing(text: str) -> list[str]:
    return [value for value in VALUES if value not in text]


@pytest.fixture
def page(server: Server, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    folder = make_project(server.home)
    caption_edits.propose(
        folder, [caption_edits.Edit(name(number), value, f"{value}!") for number, value in enumerate(VALUES)]
    )
    make_run(server.home, monkeypatch)
    page, urls = visit(server), list[str]()
    page.on("request", lambda request: urls.append(request.url))
    choose(page, PROJECT)
    yield page
    assert not [url for url in urls if url.endswith("/limner-hit") or "example.org" in url]


def test_sixty_values_are_shown_as_they_are(page: Page, server: Server, tmp_path: Path) -> None:
    # Captions, names of files, tags, and what a model proposes
    cards(page, len(VALUES))
    captions = page.locator("#captions textarea").evaluate_all("areas => areas.map((area) => area.value)")
    assert sorted(captions) == sorted(VALUES)
    names = page.locator(".card .file").evaluate_all("files => files.map((file) => file.textContent)")
    assert sorted(names) == sorted(name(number) for number in range(len(VALUES)))
    proposed = page.locator(".card .proposed q").evaluate_all("quotes => quotes.map((quote) => quote.textContent)")
    assert sorted(proposed) == sorted(f"{value}!" for value in VALUES)
    tags = page.locator(".chip").evaluate_all("chips => chips.map((chip) => chip.dataset.tag)")
    assert {tag for value in VALUES for tag in map(str.strip, value.split(",")) if tag} == {*tags}
    page.locator(".card .shape").first.click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    unhurt(page, "images")
    # A trigger word, and a change of many captions
    for number in (0, 1, 45, 50):
        fill(page, "trigger", VALUES[number])
        page.locator("#trigger :is(input, textarea)").first.blur()
    unhurt(page, "trigger")
    # A run: its warnings, prompts, log and alarms
    tab(page, "Train")
    page.locator("#status [data-status=finished]").wait_for()
    assert not missing(page.locator("#notes").text_content() or "")
    assert not missing(page.locator("#log-text").text_content() or "")
    prompts = page.locator("#previews tbody th").evaluate_all("cells => cells.map((cell) => cell.textContent)")
    assert prompts == list(VALUES[:PROMPTS])
    unhurt(page, "run")
    # A base model's name, as one of the hub
    for value in VALUES:
        page.locator("#base input").fill(value)
        page.locator("#base input").press("Enter")
    page.wait_for_timeout(1000)
    unhurt(page, "base model")
    fill(page, "base", "micro")
    page.locator("#base input").press("Enter")
    # The file of a run: which programs load it, as a node may say
    tab(page, "Download")
    page.locator("#runs .run-row").first.wait_for()
    text = page.locator("#runs .verdicts").text_content() or ""
    assert not missing(text)
    rows = page.locator("#runs .verdicts tr").evaluate_all("rows => rows.map((row) => row.children[2].textContent)")
    assert rows == list(VALUES)
    unhurt(page, "verdicts")
    # A file from elsewhere: what its metadata say
    page.get_by_role("button", name="Inspect an adapter file").click()
    (tmp_path / "odd.safetensors").write_bytes(adapter())
    page.locator("#look-file input[type=file]").set_input_files(tmp_path / "odd.safetensors")
    page.locator("#look-result .look table").first.wait_for()
    assert " ".join(VALUES)[:900] in (page.locator("#look-result").text_content() or "")
    unhurt(page, "metadata")


def test_damaged_files_are_named(server: Server, visit: Visit, tmp_path: Path) -> None:
    page = visit(server)
    tab(page, "Download")
    page.get_by_role("button", name="Inspect an adapter file").click()
    for number, value in enumerate(VALUES):
        header = json.dumps({value: {"dtype": value, "shape": [1], "data_offsets": [0, number]}}).encode()
        damaged = tmp_path / f"{name(number)[:-4]}.safetensors"
        damaged.write_bytes(len(header).to_bytes(8, "little") + header)
        page.locator("#look-file input[type=file]").set_input_files(damaged)
        # Uploads lose the characters that some file system refuses: the number at the end is left of every name.
        page.locator("#look-result [role=alert]").filter(has_text=f"{number:02}.safetensors").wait_for()
        unhurt(page, value)


def test_prompts_of_generated_images(server: Server, visit: Visit) -> None:
    page = visit(server)
    tab(page, "Try out")
    page.locator("#try-advanced").get_by_text("Advanced").click()
    fill(page, "try-steps", "1")
    for part in range(0, len(VALUES), 20):
        prompt = " ".join(VALUES[part : part + 20])
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.locator("#prompt textarea").press("Enter")
        page.locator("#made a").nth(part // 20).wait_for()
        page.locator("#made a").first.click()
        assert prompt in (page.locator("dialog.viewer[open] header p").text_content() or "")
        page.keyboard.press("Escape")
        unhurt(page, "prompts")


def test_names_in_a_zip_and_of_a_project(server: Server, visit: Visit, tmp_path: Path) -> None:
    page = visit(server)
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as file:
        for number, value in enumerate(VALUES):
            file.writestr(name(number), image(number))
            file.writestr(f"{name(number)[:-4]}.txt", value)
        for number in range(len(VALUES)):
            file.writestr(f"broken {name(number)}", b"no image")
    page.get_by_role("button", name="New project").click()
    page.get_by_label("Name of the new project").fill(VALUES[1])
    page.get_by_role("button", name="Create", exact=True).click()
    page.locator(".captions .empty").wait_for()
    upload(page, tmp_path / "odd.zip")
    cards(page, len(VALUES))
    captions = page.locator("#captions textarea").evaluate_all("areas => areas.map((area) => area.value)")
    assert sorted(captions) == sorted(VALUES)
    assert page.locator("#report .said").count() == 1
    unhurt(page, "zip")


def test_the_table_has_sixty_values() -> None:
    assert len({*VALUES}) == 60
