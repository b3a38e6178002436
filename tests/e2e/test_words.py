"""The page in another language, from its tabs to what a run says of itself."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Server, Visit, make_home, serving
from tests.e2e.test_feel import keep
from tests.e2e.test_page import PHONE, advanced

SCREENS = {
    "Bilder": ("#dataset-summary", "bereit zum Training"),
    "Trainieren": ("#status", "Der Adapter ist fertig."),
    "Ausprobieren": ("#result", "Stärke 1"),
    "Herunterladen": ("#runs", "Geprüft: lädt in"),
}


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(make_home(tmp_path_factory.mktemp("home")), LANGUAGE="de") as made:
        yield made


@pytest.mark.nightly
def test_each_screen_is_in_german(german: Server, visit: Visit) -> None:
    page = visit(german, tab="Bilder", locale="de-DE", **PHONE)
    assert page.evaluate("document.documentElement.lang") == "de"
    page.get_by_text("Alle Beschreibungen sind gespeichert.").wait_for()
    for name, (place, words) in SCREENS.items():
        page.get_by_role("tab", name=name).click()
        if name == "Trainieren" and not page.locator("#status [data-status=finished]").count():
            advanced(page, opener="Erweitert", training_steps=6, preview_every=3, preservation_share=0)
            page.get_by_role("button", name="Training starten").click()
            page.locator("#status [data-status=finished]").wait_for(timeout=180_000)
        if name == "Ausprobieren":
            page.wait_for_function("document.querySelector('#prompt textarea')?.value?.startsWith('miraxo')")
            page.get_by_role("button", name="Bild erzeugen").click()
            page.locator("#result .pictures.done img").first.wait_for(timeout=180_000)
        page.locator(place).get_by_text(words).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
        keep(page, f"german-{name.lower()}")
