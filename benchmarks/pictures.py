"""Make the pictures of the documentation from the program as it is: `python -m benchmarks.pictures`.

It trains micro on the example character, well and badly, draws with each adapter, and takes pictures of the page in
Chromium. Everything happens in a folder of its own; ten minutes on two cores. Text in the documentation says what each
picture shows, so look at the pictures before you commit them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.conftest import serving

HERE = Path(__file__).resolve().parent.parent
PICTURES = HERE / "docs" / "pictures"
EXAMPLE = HERE / "datasets" / "example-character"
PROMPTS = (
    "miraxo, smiling, blue shirt, yellow background",
    "miraxo, sad, red shirt, teal background",
    "miraxo, laughing, green shirt, pink background",
    "miraxo, surprised, white shirt, purple background",
)
PARTS = ("before-and-after", "wrong", "screens")
SIDE, GAP = 160, 8  # pixels of an image in a strip


def main() -> None:
    """Make all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--browser", default=shutil.which("chromium"), help="path of a Chromium")
    parser.add_argument("names", nargs="*", help=f"{', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shutil.copytree(EXAMPLE, home / "datasets" / EXAMPLE.name)
        (home / "outputs").mkdir()
        os.environ["LIMNER_HOME"] = str(home)
        names = options.names or PARTS
        if "before-and-after" in names:
            before_and_after(home)
        if "wrong" in names:
            wrong(home)
        if "screens" in names:
            screens(home, options.browser)


def before_and_after(home: Path) -> None:
    """Draw the README's strip: four prompts without the adapter, and below with it."""
    adapter = train(home, "mira")
    without = [draw(home, prompt, f"{adapter}:0") for prompt in PROMPTS]
    strip([without, [draw(home, prompt, f"{adapter}:1") for prompt in PROMPTS]], "before-and-after.png")


def wrong(home: Path) -> None:
    """Draw with adapters that have not learned, repeat one image, or show their subject in everybody."""
    right = train(home, "mira")
    others = [prompt.replace("miraxo", "a person") for prompt in PROMPTS]
    strip([[draw(home, prompt, f"{right}:1") for prompt in PROMPTS]], "right.png")
    for name, (prompts, settings) in {
        "nothing": (PROMPTS, ["training.steps=4"]),
        "overtrained": (PROMPTS, ["optimizer.learning_rate=0.02", "preservation.share=0"]),
        "everybody": (others, ["preservation.share=0"]),
    }.items():
        adapter = train(home, name, settings)
        strip([[draw(home, prompt, f"{adapter}:1") for prompt in prompts]], f"{name}.png")
    strip([[draw(home, prompt, f"{right}:1.6", guidance=7.5) for prompt in PROMPTS]], "too-strong.png")
    strip([[draw(home, prompt, f"{right}:1") for prompt in others]], "switch.png")


def train(home: Path, name: str, settings: Sequence[str] = ()) -> Path:
    """Train the example character, once for each name; return the adapter file."""
    run = home / "outputs" / name
    if not run.exists():
        config = home / f"{name}.toml"
        config.write_text(f'name = "{name}"\ndataset = "{EXAMPLE.name}"\ntrigger = "miraxo"\n', encoding="utf-8")
        changes = [part for setting in settings for part in ("--set", setting)]
        limner("train", str(config), "--run", str(run), *changes)
    return run / f"{name}.safetensors"


def draw(home: Path, prompt: str, adapter: str, guidance: float = 3.0) -> Image.Image:
    """Draw an image with an adapter at a strength, as in `limner sample --adapter`."""
    path = home / "image.png"
    limner("sample", "--prompt", prompt, "--adapter", adapter, "--guidance", str(guidance), "--out", str(path))
    with Image.open(path) as image:
        return image.convert("RGB")


def limner(*arguments: str) -> None:
    """Run a command of the program."""
    subprocess.run([sys.executable, "-m", "trainer", *arguments], cwd=HERE, check=True, stdout=subprocess.DEVNULL)


def strip(rows: Sequence[Sequence[Image.Image]], name: str) -> None:
    """Write rows of images as one picture."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    for down, row in enumerate(rows):
        for right, image in enumerate(row):
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (right * step, down * step))
    sheet.quantize(255).save(PICTURES / name, optimize=True)


def screens(home: Path, chromium: str) -> None:
    """Take pictures of the page: a run that is training, and an adapter that is tried out."""
    with serving(home) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = open_page(browser, server.url)
        page.get_by_role("tab", name="Train", exact=True).click()
        page.get_by_role("button", name="Start training").click()
        page.wait_for_function("document.querySelectorAll('.previews img').length >= 6", timeout=300_000)
        take(page, "train.png")
        page.get_by_text("The adapter is ready.").wait_for(timeout=600_000)
        page.get_by_role("tab", name="Try out", exact=True).click()
        page.locator("#prompt textarea").fill(PROMPTS[0])
        page.get_by_label("Strengths").check()
        page.get_by_role("button", name="Generate image").click()
        page.locator(".pictures.done").wait_for(timeout=180_000)
        take(page, "try-out.png")
        browser.close()


def open_page(browser: Browser, address: str) -> Page:
    """Open the page in a window of the size of a laptop's."""
    page = browser.new_page(viewport={"width": 1200, "height": 760}, device_scale_factor=1)
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("#captions .card").first.wait_for()  # until then the page may go to another tab
    return page


def take(page: Page, name: str) -> None:
    """Take a picture of the page as it is seen."""
    page.wait_for_timeout(1500)  # until what moves has come to rest
    page.screenshot(path=PICTURES / name)
    with Image.open(PICTURES / name) as image:
        image.convert("RGB").quantize(255).save(PICTURES / name, optimize=True)


if __name__ == "__main__":
    main()
