"""Images dropped by two pages at once, and masks among them, in a real browser."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.conftest import FilePayload, Server, Visit, wait
from tests.e2e.test_images import png
from tests.e2e.test_page import cards, new_project, tab, upload

EACH = 30


def files(first: int) -> list[FilePayload]:
    """Images and captions under the same names, whoever drops them."""
    dropped: list[FilePayload] = []
    for number in range(EACH):
        dropped.append({"name": f"{number:02d}.png", "mimeType": "image/png", "buffer": png(first + number)})
        text = f"caption {first + number}".encode()
        dropped.append({"name": f"{number:02d}.txt", "mimeType": "text/plain", "buffer": text})
    return dropped


def test_masks_are_shown_on_their_images_and_are_no_images(server: Server, visit: Visit) -> None:
    mask = io.BytesIO()
    Image.new("L", (200, 200), 255).save(mask, "PNG")
    page = visit(server)
    new_project(page, "masked")
    names = [("01.png", png(1)), ("01.mask.png", mask.getvalue()), ("02.png", png(2)), ("02-masklabel.png", png(3))]
    upload(page, [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in names])
    cards(page, 2)
    page.get_by_text("Added 2 images. 2 masks came with them.").wait_for()
    masks = page.locator(".card .mask")
    wait(lambda: masks.first.evaluate("image => image.complete && image.naturalWidth > 0"))
    assert [image.is_visible() for image in masks.all()] == [True, True]
    page.get_by_text("2 images have a mask.").wait_for()
    tab(page, "Train")
    page.locator("#plan").get_by_text("2 images").wait_for()
    assert sorted(path.name for path in (server.home / "datasets" / "masked").glob("*.png")) == [
        "01.mask.png", "01.png", "02.mask.png", "02.png",
    ]  # fmt: skip


def test_two_pages_that_edit_one_caption_lose_neither_text(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    first, second = visit(server), visit(server)
    boxes = [page.get_by_label("Caption of 01.png") for page in (first, second)]
    for box in boxes:
        box.wait_for()
    for page, box, text in ((first, boxes[0], "by the first"), (second, boxes[1], "by the second")):
        box.fill(text)
        page.wait_for_timeout(100)
        box.blur()
        wait(lambda: (folder / "01.txt").read_text() == "by the first\n")
    note = second.locator(".card").first.locator(".conflict")
    note.get_by_text("by the first").wait_for()
    assert (boxes[1].input_value(), (folder / "01.txt").read_text()) == ("by the second", "by the first\n")
    note.get_by_role("button", name="Keep my text").click()
    wait(lambda: (folder / "01.txt").read_text() == "by the second\n")
    assert not note.is_visible()
    boxes[0].fill("by the first again")
    boxes[0].blur()
    note = first.locator(".card").first.locator(".conflict")
    note.get_by_role("button", name="Take the other").click()
    second.wait_for_timeout(1000)
    assert (boxes[0].input_value(), (folder / "01.txt").read_text()) == ("by the second", "by the second\n")
    boxes[0].fill("by the first, on top of it")
    boxes[0].blur()
    wait(lambda: (folder / "01.txt").read_text() == "by the first, on top of it\n")


@pytest.mark.nightly
def test_an_upload_that_takes_long_can_be_canceled(server: Server, visit: Visit) -> None:
    page = visit(server)
    new_project(page, "canceled")
    folder = server.home / "outputs" / ".tmp"

    def parts() -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file()]

    network = page.context.new_cdp_session(page)
    slowly = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2**20}
    network.send("Network.emulateNetworkConditions", slowly)
    upload(page, [{"name": "large.png", "mimeType": "image/png", "buffer": png(1) + bytes(40 * 2**20)}])
    cancel = page.get_by_role("button", name="Cancel the upload")
    cancel.click()
    wait(lambda: not parts())
    cancel.wait_for(state="hidden")
    network.send("Network.emulateNetworkConditions", {**slowly, "uploadThroughput": -1})
    page.locator("#upload input[type=file]").wait_for(state="attached")
    upload(page, [{"name": "small.png", "mimeType": "image/png", "buffer": png(2)}])
    page.get_by_text("Added 1 image.").wait_for()
    assert [path.name for path in (server.home / "datasets" / "canceled").glob("*.png")] == ["small.png"]
