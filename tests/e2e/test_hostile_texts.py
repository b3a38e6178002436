"""Texts that look like code, in every place where the page shows what people wrote: shown as they are, never run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save as save_tensors

from tests.conftest import wait
from tests.e2e.conftest import Page, Server, Visit
from tests.e2e.test_images import choose, fill
from tests.e2e.test_page import cards, tab
from tests.unit.adapter_files.test_compatibility import good
from trainer import config, paths, runs
from trainer.runs import events
from ui.tabs import download

HIT = "window.limnerHit = (window.limnerHit ?? 0) + 1"
PAYLOADS = {
    "template": f"${{{HIT}}}",
    "fetch": "${fetch('/limner-hit')}",
    "backslashes": "miku \\(vocaloid\\), \\u0041 \\x41 \\u \\x \\",
    "open": "an unclosed ${ and a `backtick`",
    "quotes": "\"double\" 'single' & <b>bold</b> &amp;",
    "area": f"</textarea><img src=x onerror='{HIT}'><script>{HIT}</script>",
    "braces": "{{this}} {{{value}}} {{#each value.items}} {name}",
    "emoji": "😀 👩‍🎨 café",
    "right to left": "שלום עולם, مرحبا, می‌خواهم",
}
# A file's name has no slash; all else is allowed where the folder was filled by hand.
NAMES = {key: f"{text.replace('/', '_')[:60]} {key}.png" for key, text in PAYLOADS.items()}
TRIGGER = PAYLOADS["template"] + " \\("


def fill_project(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, (key, text) in enumerate(PAYLOADS.items()):
        cells = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((256, 192)).save(folder / NAMES[key])
        (folder / NAMES[key]).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    with Image.open(folder / NAMES["template"]) as image:
        image.resize((200, 150)).save(folder / "a copy.png")


def make_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that failed, with hostile texts wherever a run holds texts."""
    monkeypatch.setenv("LIMNER_HOME", str(home))
    hostile = PAYLOADS["area"] + PAYLOADS["template"]
    settings = config.build(
        {"name": "odd", "dataset": "odd", "trigger": TRIGGER, "preview": {"prompts": list(PAYLOADS.values())}}
    )
    for _earlier in range(download.SEARCHED_FROM):
        run = runs.create(settings)
    (run.folder / "previews").mkdir()
    Image.new("RGB", (32, 32)).save(run.folder / "previews" / "000001_0.png")
    (run.folder / "worker.log").write_text("\n".join(PAYLOADS.values()), encoding="utf-8")
    for event in (
        events.Started(step=0, steps=4, pid=1, device=hostile),
        events.Warned(message=hostile),
        events.Preview(step=1, file="previews/000001_0.png", prompt=hostile, seed=1),
        events.Verified(file="odd.safetensors", verdicts=((hostile, False, hostile),), problems=(hostile,)),
        events.Failed(message=hostile, remedy=hostile, traceback=hostile, change={"adapter.kind": hostile}),
    ):
        run.report(event)


def adapter_file(path: Path) -> Path:
    tensors = {key: np.zeros(tensor.shape, np.float32) for key, tensor in good("sd15", "micro").items()}
    metadata = {
        "ss_output_name": PAYLOADS["area"],
        "modelspec.title": PAYLOADS["template"],
        "modelspec.trigger_phrase": TRIGGER,
        "ss_base_model_version": PAYLOADS["open"],
        "ss_tag_frequency": json.dumps({"a": {PAYLOADS["area"]: 3}}),
        "modelspec.thumbnail": f"data:image/png;base64,iV'{PAYLOADS['area']}",
        "ss_network_module": PAYLOADS["quotes"],
    }
    path.write_bytes(save_tensors(tensors, metadata))
    return path


def captions(page: Page) -> dict[str, str]:
    areas = page.locator("#captions textarea")
    return {area.get_attribute("data-name"): area.input_value() for area in areas.all()}


def unhurt(page: Page) -> None:
    """No text of a person has become a script or a part of the page."""
    assert (page.evaluate("window.limnerHit ?? 0"), page.locator("img[src='x'], img[onerror]").count()) == (0, 0)
    assert page.locator(".error-container").count() == 0


def test_texts_stay_texts(server: Server, visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = server.home / "datasets" / "odd"
    fill_project(folder)
    make_run(server.home, monkeypatch)
    page = visit(server)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    choose(page, "odd")
    cards(page, len(PAYLOADS) + 1)
    assert captions(page) == {"a copy.png": "", **{NAMES[key]: text for key, text in PAYLOADS.items()}}
    files = page.locator(".card .file")
    assert sorted(files.all_inner_texts()) == sorted([*NAMES.values(), "a copy.png"])
    # Typed at the end of each, it is on disk to the byte; so it is after a reload.
    for key, text in PAYLOADS.items():
        area = page.get_by_label(f"Caption of {NAMES[key]}")
        area.click()
        page.keyboard.press("Control+End")
        page.keyboard.type("!")
        file = (folder / NAMES[key]).with_suffix(".txt")
        wait(lambda file=file, text=text: file.read_text(encoding="utf-8") == f"{text}!\n")
    page.reload()  # of the project that was chosen: choosing it again would empty fields once more, at any time later
    cards(page, len(PAYLOADS) + 1)
    typed = {"a copy.png": "", **{NAMES[key]: f"{text}!" for key, text in PAYLOADS.items()}}
    assert captions(page) == typed
    unhurt(page)
    # A badge, the trigger, and tags
    fill(page, "trigger", TRIGGER)
    page.locator("#trigger input, #trigger textarea").first.blur()
    page.locator(".badges").get_by_text(f"Nearly the same as {NAMES['template']}.").wait_for()
    page.locator(".overview .tags summary").click()
    chip = page.locator(".chip").filter(has_text="miku \\(vocaloid\\)")
    chip.click()
    page.get_by_text("Only 1 image with the tag 'miku \\(vocaloid\\)'").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.locator("#bulk").get_by_text("Edit many captions").click()
    fill(page, "find", "a `backtick`")
    fill(page, "replacement", PAYLOADS["area"])
    page.locator("#replacing ins").get_by_text(f"an unclosed ${{ and {PAYLOADS['area']}!", exact=True).wait_for()
    unhurt(page)
    page.get_by_role("button", name="Add to the front of every caption").click()
    wait(lambda: all(text.startswith(TRIGGER) or TRIGGER in text for text in captions(page).values()))
    page.get_by_role("button", name="Undo: put ").click()
    wait(lambda: captions(page) == typed)
    # The run, with its log, previews and failure
    tab(page, "Train")
    wait(lambda: page.locator("#train-trigger :is(input, textarea)").input_value() == TRIGGER)
    page.locator("#status [data-status=failed]").wait_for()
    page.locator("#status .alarm").get_by_text(PAYLOADS["area"]).first.wait_for()
    page.locator("#log").get_by_text("Log").click()
    page.locator("#previews a").first.click()
    page.keyboard.press("Escape")
    unhurt(page)
    # A prompt
    tab(page, "Try out")
    prompt = " ".join(PAYLOADS.values())
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.locator("#try-advanced").get_by_text("Advanced").click()
    fill(page, "try-steps", "1")
    page.locator("#prompt textarea").press("Enter")
    page.locator(".pictures.done img").first.wait_for()
    page.locator("#made a").first.wait_for()
    page.locator("#made a").first.click()
    assert prompt in page.locator("dialog.viewer[open] header p").inner_text()
    page.keyboard.press("Escape")
    unhurt(page)
    # The list of runs, and a file from elsewhere
    tab(page, "Download")
    page.locator("#runs .run-row").first.wait_for()
    page.locator("#runs").get_by_text(TRIGGER).first.wait_for()
    fill(page, "find-run", PAYLOADS["area"])
    page.get_by_text(f"No run matches “{PAYLOADS['area']}”.").wait_for()
    page.get_by_role("button", name="Inspect an adapter file").click()
    page.locator("#look-file input[type=file]").set_input_files(adapter_file(tmp_path / "odd.safetensors"))
    page.locator("#look-result .look").wait_for()
    assert TRIGGER in page.locator("#look-result").inner_text()
    unhurt(page)
    page.get_by_role("button", name="New project").click()
    page.get_by_label("Name of the new project").fill(PAYLOADS["area"])
    page.get_by_role("button", name="Create", exact=True).click()
    wait(lambda: page.locator("#project input").input_value() == PAYLOADS["area"][:100])
    assert (server.home / "datasets" / paths.safe_name(PAYLOADS["area"], "project")).is_dir()
    unhurt(page)
    assert not [url for url in urls if url.endswith("/limner-hit")]
