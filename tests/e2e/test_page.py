"""The page in a real browser, used as a person uses it, with real training on the built-in base."""

import os
import re
from pathlib import Path

from tests.conftest import wait
from tests.e2e.conftest import EXAMPLES, Page, Server, Visit
from trainer.runs import events

CHARACTER = EXAMPLES / "example-character"
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
TABS = ["Images", "Train", "Try out", "Download"]


def new_project(page: Page, name: str) -> None:
    page.get_by_role("button", name="New project").click()
    page.locator("#new-name :focus").wait_for()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.locator(f".captions[data-project='{name}'] .empty").wait_for()


def upload(page: Page, files: object) -> None:
    page.locator("#upload input[type=file]").set_input_files(files)


def cards(page: Page, count: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('#captions .card').length === n", arg=count)


def report(page: Page) -> str:
    page.locator("#report .said").wait_for()
    return page.locator("#report .said").inner_text()


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def advanced(page: Page, **values: object) -> None:
    """Open the generated form and set fields of it by their ids."""
    page.locator("#tabs").get_by_role("tab").nth(1).click()
    page.locator("#advanced").get_by_text("Advanced").click()
    for key, value in values.items():
        page.locator(f"#form-{key.replace('_', '-')} :is(input, textarea)").first.fill(str(value))


def start(page: Page) -> str:
    """Click Start; returns the run's name once it trains."""
    tab(page, "Train")
    page.get_by_role("button", name="Start training").click()
    page.locator("#status [data-status=running]").wait_for()
    return page.locator("#status [data-status]").get_attribute("data-run")


def step(page: Page) -> int:
    element = page.locator("#step-now")
    return int(element.inner_text()) if element.count() else 0


def points(page: Page) -> int:
    element = page.locator("#chart svg[data-points]")
    return int(element.get_attribute("data-points")) if element.count() else 0


def finished(page: Page) -> None:
    page.locator("#status [data-status=finished]").wait_for()


def picture(page: Page, server: Server, strength: str) -> bytes:
    """The bytes of the finished picture of a strength, as the page shows it."""
    page.locator(f".pictures.done figure[data-strength='{strength}'] img").first.wait_for()
    source = page.locator(f".pictures.done figure[data-strength='{strength}'] img").first.get_attribute("src")
    answer = page.request.get(server.url + source)
    assert answer.headers["content-type"] == "image/png"
    return answer.body()


def test_a_run_outlives_the_server_and_a_kill(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    assert page.locator(".captions").get_attribute("data-project") == "example-character"
    advanced(page, training_steps=4000, training_batch_size=1, preview_every=0, checkpoint_every=10)
    run = start(page)
    wait(lambda: step(page) >= 3)
    shared.kill()
    log = shared.home / "outputs" / run / "events.jsonl"
    size = log.stat().st_size
    wait(lambda: log.stat().st_size > size)
    shared.start()
    page = visit(shared)
    page.locator(f"#status [data-run='{run}'][data-status=running]").wait_for()
    wait(lambda: step(page) >= 20)
    os.kill(events.fold(events.State(), events.read(log)[0]).pid, 9)
    alarm = page.get_by_role("alert").filter(has_text="Training was interrupted")
    alarm.wait_for()
    assert re.search(r"continues from step [1-9]\d*0\b", alarm.inner_text())
    page.get_by_role("button", name="Resume").click()
    page.locator("#status [data-status=running]").wait_for()
    page.get_by_role("button", name="Save now").click()
    # A second one waits for its turn and says so.
    page.get_by_role("button", name="Queue another run").click()
    page.locator("#status").get_by_text("number 1 in the queue").wait_for()
    page.locator("#run-buttons").get_by_role("button", name="Stop and save").click()
    page.locator("#status [data-status=stopped]").wait_for()
    page.locator("#run input").click()
    page.get_by_role("option").filter(has_text="example-character").last.click()
    page.locator(f"#status [data-run='{run}']").wait_for()
    page.get_by_role("button", name="Stop and save").click()
    page.locator("#status [data-status=stopped]").wait_for()
    state = events.fold(events.State(), events.read(log)[0])
    assert sorted(state.losses) == list(range(1, state.step + 1))


def test_the_whole_way(shared: Server, visit: Visit) -> None:
    page = visit(shared)
    # Pictures and captions
    new_project(page, "mira")
    upload(page, [CHARACTER / f"{number:02d}.{kind}" for number in range(1, 13) for kind in ("png", "txt")])
    cards(page, 12)
    assert report(page) == "Added 12 images. 12 captions came with them."
    folder = shared.home / "datasets" / "mira"
    page.get_by_label("Caption of 01.png").fill("smiling in her own words, teal background")
    wait(lambda: (folder / "01.txt").read_text() == "smiling in her own words, teal background\n")
    page.get_by_text("All captions are saved.").wait_for()
    page.get_by_label("Trigger word").first.fill("miraxo")
    page.get_by_role("button", name="Add to the front of every caption").click()
    wait(lambda: (folder / "01.txt").read_text() == "miraxo, smiling in her own words, teal background\n")
    wait(lambda: page.get_by_label("Caption of 01.png").input_value().startswith("miraxo, smiling in her own"))
    # Training
    tab(page, "Train")
    wait(lambda: page.locator("#train-trigger :is(input, textarea)").input_value() == "miraxo")
    prompts = "miraxo, smiling, red shirt, teal background"
    advanced(page, training_steps=24, preview_every=12, preview_steps=4, preview_prompts=prompts)
    run = start(page)
    in_sight = "shown => { const box = shown.getBoundingClientRect(); return box.top >= 0 && box.bottom < innerHeight }"
    wait(lambda: page.locator("#status").evaluate(in_sight))  # though the settings above it are open
    wait(lambda: points(page) >= 3)
    before = points(page)
    wait(lambda: points(page) > before)
    page.locator("#previews img").first.wait_for()
    page.reload()
    page.locator(f"#status [data-run='{run}']").wait_for()  # without a click: the Train tab is shown
    finished(page)
    page.locator("#plan").get_by_text("12 images, 24 steps on micro").wait_for()  # as was typed before the reload
    assert points(page) == 24
    assert page.locator("#previews .previews img").count() == 3  # the first before the first step
    # Trying out
    tab(page, "Try out")
    page.wait_for_function("document.querySelector('#prompt textarea')?.value?.startsWith('miraxo')")
    page.get_by_role("button", name="Generate image").click()
    full = picture(page, shared, "1")
    page.locator("#strength input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    moved = picture(page, shared, "0.95")
    page.locator("#strength input[type=range]").click(position={"x": 0, "y": 2})
    zero = picture(page, shared, "0")
    page.locator("#strength input[type=number]").fill("1")
    page.keyboard.press("Enter")
    assert picture(page, shared, "1") == full
    assert len({full, moved, zero}) == 3
    page.get_by_label("Side by side", exact=True).check()
    assert picture(page, shared, "0") == zero
    # Downloading
    tab(page, "Download")
    with page.expect_download() as download:
        page.locator("#runs a.download").click()
    assert download.value.suggested_filename == "mira.safetensors"
    assert Path(download.value.path()).read_bytes() == (shared.home / "outputs" / run / "mira.safetensors").read_bytes()
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("No adapters yet").wait_for()
    page.get_by_role("button", name="Restore the last deleted run").click()
    page.locator("#runs a.download").wait_for()
