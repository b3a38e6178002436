"""The Images tab with many pictures, odd uploads, and captions typed while other things go on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.conftest import wait
from tests.e2e.conftest import Page, Server, Visit, copy_project
from tests.e2e.test_page import cards, new_project, upload
from tests.integration.data.test_uploads import png
from tests.tiny_captioners import make_tagger


def picture(seed: int, size: tuple[int, int] = (1024, 768)) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def choose(page: Page, project: str) -> None:
    page.locator("#project input").click()
    page.get_by_role("option", name=project, exact=True).click()
    page.locator(f".captions[data-project='{project}'] .card").first.wait_for(state="attached")


@pytest.fixture
def project(shared: Server, request: pytest.FixtureRequest) -> Path:
    """A copy of the example character under the name of the test."""
    return copy_project("example-character", shared.home / "datasets" / request.node.name)


def open_project(visit: Visit, server: Server, project: Path) -> Page:
    page = visit(server)
    choose(page, project.name)
    return page


def fill(page: Page, field: str, text: str) -> None:
    page.locator(f"#{field} :is(input, textarea)").first.fill(text)


def looked_at(page: Page) -> None:
    """Wait until the server has measured all pictures."""
    page.wait_for_function("document.querySelector('#captions .captions')?.dataset.left === '0'")


def drop(page: Page, *files: Path) -> None:
    """Drop files or folders on the page, as from a file manager."""
    data = {"items": [], "files": list(map(str, files)), "dragOperationsMask": 1}
    browser = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 400, "data": data})


def test_a_folder_is_dropped_and_captions_may_come_later(shared: Server, visit: Visit) -> None:
    """Of a folder whose own folders have files of the same names, images and captions stay together."""
    page = visit(shared)
    new_project(page, "odd")
    mine = shared.home / "mine"
    for number, name in enumerate(("left", "right")):
        (mine / name).mkdir(parents=True)
        (mine / name / "a.png").write_bytes(png(10 + number))
        (mine / name / "a.txt").write_text(f"zorblax, {name}")
    (mine / ".DS_Store").write_text("x")
    (mine / "single.png").write_bytes(png(1))
    drop(page, mine)
    cards(page, 3)
    page.get_by_text("Added 3 images. 2 captions came with them.", exact=True).wait_for()
    folder = shared.home / "datasets" / "odd"
    captions = {path.read_bytes(): path.with_suffix(".txt") for path in folder.glob("*.png")}
    assert [captions[png(10 + number)].read_text() for number in range(2)] == ["zorblax, left\n", "zorblax, right\n"]
    trigger = page.locator("#trigger :is(input, textarea)").first
    assert trigger.input_value() == "", "it is in two of three captions"
    caption = {"mimeType": "text/plain", "buffer": b"zorblax, came later"}
    new = {"name": "new.png", "mimeType": "image/png", "buffer": png(2)}
    for count, word, files in (
        (3, "zorblax", [{"name": "single.txt", **caption}]),
        (4, "own", [new, {"name": "new.txt", **caption}]),
    ):
        upload(page, files)
        cards(page, count)
        script = "word => document.querySelector('#trigger :is(input, textarea)').value === word"
        page.wait_for_function(script, arg=word)  # proposed where there is none yet
        fill(page, "trigger", "own")
    assert [path.read_text() for path in folder.glob("single.txt")] == ["zorblax, came later\n"]


def test_what_is_wrong_is_shown_and_mended(shared: Server, visit: Visit, project: Path) -> None:
    with Image.open(project / "03.png") as image:
        image.convert("RGB").filter(ImageFilter.GaussianBlur(6)).save(project / "03.png")
    with Image.open(project / "04.png") as image:
        image.convert("RGB").resize((200, 200)).save(project / "zz.jpg", quality=80)
    page = open_project(visit, shared, project)
    looked_at(page)
    doctor = page.locator(".doctor")
    doctor.get_by_text("1 image is blurred.").wait_for()
    page.locator(".card[data-name='03.png'] .badges").get_by_text("Blurred.").wait_for()
    page.get_by_label("Order of the images").select_option("problems")
    page.wait_for_function("document.querySelector('.card')?.dataset.name === 'zz.jpg'")
    doctor.get_by_role("button", name="Show: 1 image is blurred.").click()
    cards(page, 1)
    page.get_by_role("button", name="Show all").click()
    cards(page, 15)
    doctor.get_by_role("button", name="Keep the best of each").click()
    cards(page, 14)
    page.get_by_role("button", name="Restore what was removed").click()
    cards(page, 15)
    # Typing changes the list above by itself.
    page.get_by_label("Caption of zz.jpg").fill("miraxo, " + "many words and more, " * 20)
    page.locator(".card[data-name='zz.jpg'] .tokens.long").wait_for()
    doctor.get_by_text("1 caption is too long.").wait_for()


def test_captions_by_a_model_are_reviewed_below_their_images(shared: Server, visit: Visit) -> None:
    model = make_tagger(shared.home / "reviewed-tagger")
    folder = copy_project("example-character", shared.home / "datasets" / "reviewed", "0[4-9].*", "1*", "*.txt")
    page = visit(shared)
    choose(page, "reviewed")
    page.locator("#bulk").get_by_text("Edit many captions").click()
    page.get_by_role("tab", name="Written by a model").click()
    field = page.locator("#caption-model input")
    field.click()
    page.get_by_role("option", name="Florence-2: one to many sentences, to download").click()
    page.get_by_text("Florence-2: one to many sentences is not on this machine yet: 1.6 GB").wait_for()
    page.locator("#caption-task").wait_for()
    fill(page, "caption-model", str(model))
    field.press("Enter")
    page.locator("#caption-task").wait_for(state="hidden")
    fill(page, "caption-blacklist", "glasses")
    page.get_by_label("Review before they are kept").check()
    page.get_by_role("button", name="Write captions").click()
    page.get_by_text("3 proposed captions").wait_for()
    assert not list(folder.glob("*.txt"))
    first, second, third = (page.locator(f".card[data-name='0{number}.png']") for number in (1, 2, 3))
    first.get_by_text("pink hair").wait_for()
    first.get_by_role("button", name="Keep", exact=True).click()
    page.get_by_text("Kept 1 proposed caption.").wait_for()
    wait(lambda: (folder / "01.txt").read_text() == "pink hair\n")
    assert page.get_by_label("Caption of 01.png").input_value() == "pink hair"
    second.get_by_role("button", name="Discard", exact=True).click()
    page.get_by_text("1 proposed caption", exact=True).wait_for()
    assert third.locator(".proposed").is_visible()
    assert not second.locator(".proposed").is_visible()
    page.get_by_role("button", name="Keep all").click()
    wait(lambda: (folder / "03.txt").exists())
    page.locator("#captions .proposals").wait_for(state="hidden")
    assert not (folder / "02.txt").exists()


def drag(page: Page, over: str, *points: tuple[float, float]) -> None:
    """Drag with the mouse through points of an element, given as shares of its width and height."""
    box = page.locator(over).bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def test_an_image_is_rotated_cropped_masked_and_restored(shared: Server, visit: Visit, project: Path) -> None:
    picture(1, (1200, 500)).save(project / "00.png")
    original = (project / "00.png").read_bytes()
    page = open_project(visit, shared, project)
    page.locator(".card[data-name='00.png'] .shape").click()
    viewer = page.locator("dialog.viewer[open]")
    viewer.get_by_role("button", name="Rotate right").click()
    viewer.get_by_text("00.png · 500 x 1200 pixels · trained at 64 x 256").wait_for()
    viewer.get_by_role("button", name="Crop", exact=True).click()
    outline = viewer.locator(".over path").get_attribute("d")
    drag(page, ".viewer .over", (0.5, 0.5), (0.6, 0.4), (1.0, 0.25))  # from the middle to the right edge, and up
    viewer.get_by_text("250 x 300 pixels · trained at 128 x 128").wait_for()
    assert viewer.locator(".over path").get_attribute("d") != outline
    viewer.get_by_role("button", name="Crop to it").click()
    viewer.get_by_text("00.png · 250 x 300 pixels").wait_for()
    with Image.open(project / "00.png") as image:
        expected = picture(1, (1200, 500)).transpose(Image.Transpose.ROTATE_270).crop((250, 300, 500, 600))
        assert (np.asarray(image) == np.asarray(expected)).all()
    viewer.get_by_role("button", name="Mask", exact=True).click()
    drag(page, ".viewer .mask-layer", (0.5, 0.3), (0.5, 0.5), (0.5, 0.7))
    viewer.get_by_role("button", name="Invert").click()
    viewer.get_by_role("button", name="Save the mask").click()
    page.locator(".card[data-name='00.png'] .mask:not([hidden])").wait_for(state="attached")
    with Image.open(project / "00.mask.png") as image:
        assert image.size == (250, 300)
        assert (image.getpixel((125, 150)), image.getpixel((5, 5))) == (255, 0)  # only the stroke is learned
    # It is shown over the image, and goes on from there.
    page.wait_for_function(
        "document.querySelector('.mask-layer').getContext('2d').getImageData(5, 5, 1, 1).data[3] === 255"
    )
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo: mask 00.png").click()
    page.get_by_role("button", name="Undo: crop 00.png").click()
    page.get_by_role("button", name="Undo: rotate 00.png").wait_for()
    page.locator(".card[data-name='00.png'] .shape").click()
    viewer.get_by_text("00.png · 500 x 1200 pixels").wait_for()
    viewer.get_by_role("button", name="Restore the original").click()
    viewer.get_by_text("00.png · 1200 x 500 pixels").wait_for()
    assert ((project / "00.png").read_bytes(), (project / "00.mask.png").exists()) == (original, False)
    viewer.get_by_role("button", name="Restore the original").wait_for(state="hidden")
