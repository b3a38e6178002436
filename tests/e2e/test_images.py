"""The Images tab with many pictures, odd uploads, and captions typed while other things go on.

The limits in seconds are wide: the page is to be right on a slow and busy machine too.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from PIL import Image, ImageFilter

from tests.conftest import CHECKOUT
from tests.e2e.conftest import Server, Visit, wait
from tests.e2e.test_page import CHARACTER, advanced, cards, new_project, report, start, tab, upload
from trainer.data import dataset

if TYPE_CHECKING:
    from playwright.sync_api import Page

SLACK = float(os.environ.get("LIMNER_SLACK", "4"))  # how many times slower than wanted a test machine may be


def picture(seed: int, size: tuple[int, int] = (1024, 768)) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, (200, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def choose(page: Page, project: str) -> None:
    page.locator("#project input").click()
    page.get_by_role("option", name=project, exact=True).click()
    page.locator(f".captions[data-project='{project}'] .card").first.wait_for(state="attached")


def fill(page: Page, field: str, text: str) -> None:
    page.locator(f"#{field} :is(input, textarea)").first.fill(text)


def looked_at(page: Page) -> None:
    """Wait until the server has measured all pictures."""
    page.wait_for_function("document.querySelector('#captions .captions')?.dataset.left === '0'", timeout=90_000)


def note(what: str, value: float) -> None:
    """Print a figure, and keep it where the caller asks for."""
    print(f"{what}: {value:.2f}")
    if folder := os.environ.get("LIMNER_E2E_KEEP"):
        with (Path(folder) / "figures.jsonl").open("a") as file:
            file.write(json.dumps({what: round(value, 2)}) + "\n")


@pytest.mark.nightly
def test_two_hundred_pictures(server: Server, visit: Visit) -> None:
    source = server.home / "mine"
    source.mkdir()
    for number in range(200):
        picture(number).save(source / f"p{number:03d}.jpg", quality=90)
        (source / f"p{number:03d}.txt").write_text(f"mood {number % 7}, thing {number}")
    page = visit(server)
    new_project(page, "many")
    ended = []
    page.on("requestfinished", lambda one: ended.append(time.monotonic()) if "/upload?" in one.url else None)
    upload(page, [str(path) for path in sorted(source.iterdir())])
    cards(page, 100)  # a page of them
    note("seconds from the end of the upload to the cards", time.monotonic() - ended[-1])
    assert time.monotonic() - ended[-1] < 5 * SLACK
    assert report(page) == "Added 200 images. 200 captions came with them."
    looked_at(page)
    folder, process = server.home / "datasets" / "many", psutil.Process(server.pid)
    fill(page, "trigger", "zorb")
    memory = []
    for _ in range(4):
        begun = time.monotonic()
        page.locator("#prefix").click()
        page.wait_for_function("document.querySelector('#captions textarea')?.value === 'zorb, mood 0, thing 0'")
        note("seconds for the trigger in front of all", time.monotonic() - begun)
        assert time.monotonic() - begun < 3 * SLACK
        assert all(path.read_text().startswith("zorb, mood") for path in folder.glob("*.txt"))
        page.get_by_role("button", name="Undo: put 'zorb' in front").click()
        page.wait_for_function("document.querySelector('#captions textarea')?.value === 'mood 0, thing 0'")
        memory.append(process.memory_info().rss / 2**20)
    note("MB that the server took", memory[-1])
    assert memory[-1] - memory[0] < 40, memory
    page.get_by_role("button", name="101 to 200").click()
    page.get_by_label("Caption of p199.jpg").fill("the last of all")
    wait(lambda: (folder / "p199.txt").read_text() == "the last of all\n")


@pytest.mark.nightly
def test_a_thousand_pictures_by_pages(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "thousand"
    folder.mkdir()
    for number in range(1000):
        picture(number, (96, 72)).save(folder / f"p{number:04d}.png", compress_level=1)
        (folder / f"p{number:04d}.txt").write_text(f"mood {number % 7}, thing {number}")
    page = visit(server)
    choose(page, "thousand")
    cards(page, 100)
    page.get_by_role("button", name="901 to 1000").click()
    area = page.get_by_label("Caption of p0950.png")
    area.fill("typed while the pictures are looked at")
    wait(lambda: (folder / "p0950.txt").read_text() == "typed while the pictures are looked at\n")
    looked_at(page)
    assert page.locator(".captions").get_attribute("data-page") == "10"
    assert area.input_value() == "typed while the pictures are looked at"
    page.get_by_role("button", name="801 to 900").click()
    page.get_by_label("Caption of p0899.png").press("Enter")  # goes on at the next page
    page.wait_for_function("document.activeElement.dataset.name === 'p0900.png'")
    page.locator(".overview .tags summary").click()
    page.locator(".chip").filter(has_text="mood 3").click()
    page.get_by_text("Only 143 images with the tag 'mood 3'").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Order of the images").select_option("problems")
    page.wait_for_function("document.querySelector('.captions')?.dataset.page === '1'")


def test_a_zip_and_a_folder_with_all_that_can_be_wrong(server: Server, visit: Visit) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for name, data in {
            "set/one.png": png(1), "set/one.txt": b"first", "other/one.png": png(2), "other/one.txt": b"second",
            "../../outside.png": png(3), "again.png": png(1), "half.png": png(4)[:900], "notes.pdf": b"%PDF",
        }.items():  # fmt: skip
            made.writestr(name, data)
        made.writestr("bomb.png", bytes(120 * 2**20), zipfile.ZIP_DEFLATED)
    page = visit(server)
    new_project(page, "odd")
    upload(page, [{"name": "all.zip", "mimeType": "application/zip", "buffer": archive.getvalue()}])
    cards(page, 3)
    taken, _, refused = report(page).partition("Not used: ")
    assert taken == "Added 3 images. 2 captions came with them. 1 already there, skipped. "
    assert set(refused.rstrip(".").split("; ")) == {
        "half.png (damaged)", "notes.pdf (not an image)",
        "bomb.png (too large when unpacked)",
    }  # fmt: skip
    folder = server.home / "datasets" / "odd"
    told = {(path.read_bytes(), path.with_suffix(".txt").exists()) for path in folder.glob("*.png")}
    assert told == {(png(1), True), (png(2), True), (png(3), False)}
    assert {png(1): "first\n", png(2): "second\n"} == {
        path.read_bytes(): path.with_suffix(".txt").read_text()
        for path in folder.glob("*.png")
        if path.with_suffix(".txt").exists()
    }
    assert not [path for path in server.home.rglob("outside*") if folder not in path.parents]
    # A folder whose own folders have files of the same names, and captions that come later than their pictures
    mine = server.home / "mine"
    for number, name in enumerate(("left", "right")):
        (mine / name).mkdir(parents=True)
        (mine / name / "a.png").write_bytes(png(10 + number))
        (mine / name / "a.txt").write_text(name)
    (mine / ".DS_Store").write_text("x")
    page.locator("#folder input[type=file]").set_input_files(mine)
    cards(page, 5)
    page.get_by_text("Added 2 images. 2 captions came with them.", exact=True).wait_for()
    found = {path.read_bytes(): path.with_suffix(".txt") for path in folder.glob("*.png")}
    assert [found[png(10 + number)].read_text() for number in range(2)] == ["left\n", "right\n"]
    upload(page, [{"name": "outside.txt", "mimeType": "text/plain", "buffer": b"came later"}])
    page.wait_for_function("[...document.querySelectorAll('textarea')].some((one) => one.value === 'came later')")


def test_what_is_wrong_is_shown_and_mended(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    with Image.open(folder / "03.png") as image:
        image.convert("RGB").filter(ImageFilter.GaussianBlur(6)).save(folder / "03.png")
    with Image.open(folder / "04.png") as image:
        image.convert("RGB").resize((200, 200)).save(folder / "zz.jpg", quality=80)
    page = visit(server)
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


@pytest.mark.nightly
def test_many_captions_are_changed_after_a_look_at_what_will_be(server: Server, visit: Visit) -> None:
    page = visit(server)
    caption = server.home / "datasets" / "example-character" / "01.txt"
    begun = caption.read_text()
    page.locator(".overview .tags summary").click()
    page.locator(".chip").filter(has_text="orange shirt").click()
    cards(page, 2)
    page.locator("#bulk").get_by_text("Edit many captions").click()
    page.wait_for_function("document.querySelector('#find :is(input, textarea)')?.value === 'orange shirt'")
    fill(page, "replacement", "green <b>coat</b>")
    after = page.locator("#replacing ins").first
    wait(lambda: after.count() and after.inner_text() == "miraxo, smiling, green <b>coat</b>, black background")
    page.get_by_text("2 captions change:").wait_for()
    assert caption.read_text() == begun
    page.get_by_role("button", name="Replace in all").click()
    wait(lambda: "green <b>coat</b>" in caption.read_text())
    cards(page, 14)
    page.get_by_role("tab", name="Fill in a template").click()

    def told() -> bool:
        fill(page, "class", "a woman")  # a tab that was just opened may still be given the values of its fields
        return page.get_by_text("14 captions change:").is_visible()

    wait(told, every=1)
    page.get_by_role("button", name="Fill in all").click()
    wait(lambda: caption.read_text().startswith("miraxo, a woman, smiling, green"))
    # Level by level back; what was typed since stays. (A box that is drawn anew while a text is selected loses that.)
    area = page.get_by_label("Caption of 02.png")
    wait(lambda: area.input_value().startswith("miraxo, a woman"))
    area.fill("typed after that")
    page.get_by_role("button", name="Undo: fill in the template").click()
    page.get_by_text("Captions that were edited since then were left alone: 1.").wait_for()
    page.get_by_role("button", name="Undo: replace 'orange shirt'").click()
    wait(lambda: caption.read_text() == begun)
    wait(lambda: caption.with_name("02.txt").read_text() == "typed after that\n")


@pytest.mark.nightly
def test_captions_are_typed_while_a_model_writes_and_a_run_trains(server: Server, visit: Visit) -> None:
    code = "import sys, pathlib; from tests.tiny_captioners import make_tagger; make_tagger(pathlib.Path(sys.argv[1]))"
    model = server.home / "tagger"
    subprocess.run([sys.executable, "-c", code, model], cwd=CHECKOUT, check=True, capture_output=True)
    folder = server.home / "datasets" / "half"
    shutil.copytree(CHARACTER, folder, ignore=shutil.ignore_patterns(".*"))
    for path in sorted(folder.glob("*.txt"))[2:]:
        path.unlink()
    page = visit(server)
    advanced(page, training_steps=400, preview_every=0)
    start(page)  # polled each second while the rest goes on
    tab(page, "Images")
    choose(page, "half")
    page.locator("#bulk").get_by_text("Edit many captions").click()
    page.get_by_role("tab", name="Written by a model").click()
    page.get_by_role("button", name="Write captions").click()
    page.locator(".toast-body").filter(has_text="No caption model is chosen.").wait_for()
    fill(page, "caption-model", str(model))
    page.get_by_role("button", name="Write captions").click()
    page.get_by_role("button", name="Stop and keep finished captions").wait_for()
    area = page.get_by_label("Caption of 05.png")
    area.click()
    page.keyboard.type("slowly typed by a person while others are at work", delay=60)
    wait(lambda: (folder / "05.txt").exists())
    tab(page, "Train")
    page.get_by_role("button", name="Stop and save").click()  # the model waits for its turn
    tab(page, "Images")
    page.get_by_text("captions were written.").wait_for(timeout=90_000)
    page.wait_for_function("document.querySelectorAll('#captions textarea')[7].value === 'pink hair, glasses'")
    assert area.input_value() == "slowly typed by a person while others are at work"
    assert (folder / "05.txt").read_text() == "slowly typed by a person while others are at work\n"
    assert (folder / "01.txt").read_text() == (CHARACTER / "01.txt").read_text()
    page.get_by_role("button", name="Undo: automatic captions").click()
    wait(lambda: (folder / "07.txt").read_text() == "\n")


def test_captions_by_a_model_are_reviewed_below_their_images(server: Server, visit: Visit) -> None:
    code = "import sys, pathlib; from tests.tiny_captioners import make_tagger; make_tagger(pathlib.Path(sys.argv[1]))"
    model = server.home / "reviewed-tagger"
    subprocess.run([sys.executable, "-c", code, model], cwd=CHECKOUT, check=True, capture_output=True)
    folder = server.home / "datasets" / "reviewed"
    shutil.copytree(CHARACTER, folder, ignore=shutil.ignore_patterns(".*", "0[4-9].*", "1*", "*.txt"))
    page = visit(server)
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
    page.get_by_text("3 proposed captions").wait_for(timeout=90_000)
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


def test_a_click_enlarges_an_image_with_its_size_its_crop_and_its_caption(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    picture(1, (1200, 500)).save(folder / "00.png")
    page = visit(server)
    page.get_by_label("Caption of 00.png").fill("a wide one")
    page.locator(".card[data-name='00.png'] .shape").click()
    viewer = page.locator("dialog.viewer[open]")
    viewer.get_by_text("00.png · 1200 x 500 pixels · trained at 192 x 64 · a wide one", exact=True).wait_for()
    page.wait_for_function("document.querySelector('.viewer figure img').naturalWidth === 1200")
    # Of 500 rows, 1200 / 3 = 400 are trained: 50 are dark above and below.
    assert viewer.locator(".over path").get_attribute("d") == "M0 0H1200V500H0Z M0 50H1200V450H0Z"
    with page.expect_download() as saved:
        viewer.get_by_role("link", name="Save").click()
    assert saved.value.suggested_filename == "00.png"
    assert saved.value.path().read_bytes() == (folder / "00.png").read_bytes()
    page.keyboard.press("ArrowRight")
    viewer.get_by_text("01.png · 256 x 256 pixels").wait_for()
    assert not viewer.locator(".over path").get_attribute("d")
    page.keyboard.press("Escape")
    page.locator("dialog.viewer[open]").wait_for(state="detached")


def drag(page: Page, over: str, *points: tuple[float, float]) -> None:
    """Drag with the mouse through points of an element, given as shares of its width and height."""
    box = page.locator(over).bounding_box()
    assert box is not None
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def test_an_image_is_rotated_and_cropped_and_its_original_comes_back(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    picture(1, (1200, 500)).save(folder / "00.png")
    (folder / "00.txt").write_text("a wide one\n")
    original = (folder / "00.png").read_bytes()
    page = visit(server)
    page.locator(".card[data-name='00.png'] .shape").click()
    viewer = page.locator("dialog.viewer[open]")
    viewer.get_by_role("button", name="Rotate right").click()
    viewer.get_by_text("00.png · 500 x 1200 pixels · trained at 64 x 256 · a wide one").wait_for()
    viewer.get_by_role("button", name="Crop", exact=True).click()
    shown = viewer.locator(".over path").get_attribute("d")
    drag(page, ".viewer .over", (0.5, 0.5), (0.6, 0.4), (1.0, 0.25))  # from the middle to the right edge, and up
    viewer.get_by_text("250 x 300 pixels · trained at 128 x 128").wait_for()
    assert viewer.locator(".over path").get_attribute("d") != shown
    viewer.get_by_role("button", name="Crop to it").click()
    viewer.get_by_text("00.png · 250 x 300 pixels").wait_for()
    with Image.open(folder / "00.png") as image:
        expected = picture(1, (1200, 500)).transpose(Image.Transpose.ROTATE_270).crop((250, 300, 500, 600))
        assert (np.asarray(image) == np.asarray(expected)).all()
    assert (folder / "00.txt").read_text() == "a wide one\n"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo: crop 00.png").click()
    page.get_by_role("button", name="Undo: rotate 00.png").wait_for()
    page.locator(".card[data-name='00.png'] .shape").click()
    viewer.get_by_text("00.png · 500 x 1200 pixels").wait_for()
    viewer.get_by_role("button", name="Restore the original").click()
    viewer.get_by_text("00.png · 1200 x 500 pixels").wait_for()
    assert (folder / "00.png").read_bytes() == original
    viewer.get_by_role("button", name="Restore the original").wait_for(state="hidden")


def test_several_images_are_selected_and_changed_at_once(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    page = visit(server)
    page.get_by_label("Select 02.png").check()
    page.get_by_label("Select 05.png").click(modifiers=["Shift"])
    page.locator(".card[data-name='04.png'] .shape").click(modifiers=["Control"])  # not this one
    page.locator(".card[data-name='08.png'] .shape").click(modifiers=["Control"])
    page.get_by_text("4 selected").wait_for()
    assert not page.locator("dialog.viewer[open]").count()
    chosen, other = ("02", "03", "05", "08"), "04"
    begun = {path.name: path.read_bytes() for path in folder.glob("0*.*")}
    bar = page.locator("#selection")
    bar.get_by_label("Tag", exact=True).fill("outdoors")
    bar.get_by_role("button", name="Add tag").click()
    page.get_by_role("button", name="Undo: add 'outdoors'").wait_for()
    assert all((folder / f"{name}.txt").read_text().endswith(", outdoors\n") for name in chosen)
    assert (folder / f"{other}.txt").read_bytes() == begun[f"{other}.txt"]
    page.get_by_role("button", name="Undo: add 'outdoors'").click()
    page.get_by_text("Undone: add 'outdoors'.").wait_for()
    bar.get_by_role("button", name="Rotate right").click()
    page.get_by_role("button", name="Undo: rotate 4 images").click()
    page.get_by_text("Undone: rotate 4 images.").wait_for()
    assert {path.name: path.read_bytes() for path in folder.glob("0*.*")} == begun
    bar.get_by_role("button", name="Remove").click()
    cards(page, 10)
    bar.locator(".count").wait_for(state="hidden")
    page.get_by_role("button", name="Restore what was removed").click()
    cards(page, 14)


@pytest.mark.nightly
def test_images_that_are_nearly_the_same_are_compared_and_one_is_removed(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    for number, copy in (("04", "zy"), ("07", "zz")):
        with Image.open(folder / f"{number}.png") as image:
            image.convert("RGB").resize((200, 200)).save(folder / f"{copy}.jpg", quality=80)
    page = visit(server)
    looked_at(page)
    page.locator(".doctor").get_by_role("button", name="Side by side").click()
    viewer = page.locator("dialog.viewer[open]")
    sides = viewer.locator("figure")
    assert sides.nth(0).inner_text().startswith("04.png · 256 x 256 pixels")
    assert sides.nth(1).inner_text().startswith("zy.jpg · 200 x 200 pixels")
    page.wait_for_function(
        "[...document.querySelectorAll('.viewer figure img')].map((i) => i.naturalWidth) + '' === '256,200'"
    )
    with dataset.captions_lock(folder):  # the second is asked for while the first is under way
        viewer.get_by_role("button", name="Remove zy.jpg").click()
        page.wait_for_timeout(500)
        viewer.get_by_role("button", name="Remove 07.png").click()
    page.locator("dialog.viewer[open]").wait_for(state="detached")  # no pair is left
    cards(page, 14)
    assert [(folder / name).exists() for name in ("04.png", "zy.jpg", "07.png", "zz.jpg")] == [True, False, False, True]
    page.get_by_role("button", name="Restore what was removed").click()
    cards(page, 15)


def test_a_mask_is_painted_over_an_image(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    mask = folder / "01.mask.png"
    page = visit(server)
    page.locator(".card[data-name='01.png'] .shape").click()
    viewer = page.locator("dialog.viewer[open]")
    viewer.get_by_role("button", name="Mask", exact=True).click()
    drag(page, ".viewer .mask-layer", (0.5, 0.3), (0.5, 0.5), (0.5, 0.7))
    viewer.get_by_role("button", name="Invert").click()
    viewer.get_by_role("button", name="Save the mask").click()
    page.locator(".card[data-name='01.png'] .mask:not([hidden])").wait_for(state="attached")
    with Image.open(mask) as image:
        assert image.size == (256, 256)
        assert (image.getpixel((128, 128)), image.getpixel((5, 5))) == (255, 0)  # only the stroke is learned
    # It is shown over the image, and goes on from there.
    page.wait_for_function(
        "document.querySelector('.mask-layer').getContext('2d').getImageData(5, 5, 1, 1).data[3] === 255"
    )
    viewer.get_by_role("button", name="Mask", exact=True).click()
    viewer.get_by_role("button", name="Erase").click()
    drag(page, ".viewer .mask-layer", (0.5, 0.05), (0.5, 0.3))
    viewer.get_by_role("button", name="Save the mask").click()
    viewer.get_by_role("button", name="Mask", exact=True).wait_for()
    with Image.open(mask) as image:
        assert (image.getpixel((128, 20)), image.getpixel((5, 5))) == (255, 0)
    viewer.get_by_role("button", name="Mask", exact=True).click()
    viewer.get_by_role("button", name="From transparency").click()
    viewer.get_by_text("This image has no transparent part.").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo: mask 01.png").click()
    page.get_by_text("Undone: mask 01.png.").wait_for()
    page.get_by_role("button", name="Undo: mask 01.png").click()
    page.locator(".card[data-name='01.png'] .mask").wait_for(state="hidden")
    assert not mask.exists()


def test_the_buckets_and_sizes_are_drawn(server: Server, visit: Visit) -> None:
    folder = server.home / "datasets" / "example-character"
    picture(1, (1200, 500)).save(folder / "00.png")
    page = visit(server)
    chart = page.get_by_role("img", name="Buckets at a resolution of 128")
    chart.wait_for()
    assert chart.locator("rect").count() == 2
    assert chart.locator("text").all_text_contents() == ["128 x 128", "14", "192 x 64", "1"]
    assert (
        page.get_by_role("img", name="Sizes of the images").locator("circle title").all_text_contents()[-1]
        == "1200 x 500: 1"
    )
