"""The report of a run: one file, whole in itself, with nothing private and nothing that could run."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limner_extensions.publishing import loss_svg, report
from tests.extensions.publishing.conftest import SECRET
from trainer.errors import UserError
from trainer.runs import Run, events


class Page(HTMLParser):
    """Its tags with their attributes, and its text; an unclosed or wrongly closed tag fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_a_report_asks_nobody_runs_nothing_and_tells_no_path(run: Run) -> None:
    """But it holds all there is to judge a run."""
    text = report.render(run)
    page = Page(text)
    images = page.all("img")
    assert len(images) == 10
    assert [image["alt"] for image in images[:2]] == [
        f'Step {n}: miraxo, <script>alert(1)</script> & "quotes"' for n in (0, 1)
    ]
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in images)
    assert len(page.all("polyline")) == 2
    for words in (
        "rin",
        "miraxo",
        "fox.safetensors (Stable Diffusion XL)",
        "NVIDIA RTX 4090",
        "2 min",
        "14 images",
        "14 with a caption",
        "refuses <it>",
        "Exact to 0.01 %.",
        "ab" * 32,
        "Batch size",
        "512 x 512 (14)",
        "batch_size = 3",
        "orange",
        "Preset: Character",
    ):
        assert words in page.text, words
    assert {"script", "link", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not re.findall(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in str(page.all("meta")[1]["content"])
    for private in (SECRET, "anna", str(run.folder.parents[1]), run.id, "01.png"):
        assert private not in text, private


def test_a_log_from_elsewhere_brings_no_other_file_into_a_report(run: Run, home: Path) -> None:
    secret = home / "datasets" / "rin" / "01.png"
    assert secret.is_file()
    for name in ("../../datasets/rin/01.png", str(secret), "previews/../../../datasets/rin/01.png"):
        run.report(events.Preview(step=3, file=name, prompt="stolen", seed=1))
    (run.folder / "previews" / "000003_1.png").unlink()
    (run.folder / "previews" / "000003_1.png").symlink_to(secret)
    page = Page(report.render(run))
    assert len(page.all("img")) == 9
    assert "stolen" not in page.text


def test_many_steps_are_thinned_and_damaged_previews_left_out(run: Run) -> None:
    for step in range(5, 60):
        name = f"previews/{step:06d}_0.png"
        (run.folder / name).write_bytes((run.folder / "previews" / "000001_0.png").read_bytes())
        run.report(events.Preview(step=step, file=name, prompt="many", seed=7))
    (run.folder / "previews" / "000059_0.png").write_bytes(b"damaged")
    page = Page(report.render(run))
    heads = re.findall(r"<th scope='col'>(\d+)</th>", report.render(run))
    assert (len(heads), heads[0], heads[-1]) == (12, "0", "59")
    assert len(page.all("img")) == 11 + 1  # of the first prompt but for the damaged one; and the other one's at step 0


def test_a_run_that_has_just_begun_has_a_report_too(run: Run) -> None:
    run.log.unlink()
    page = Page(report.render(run))
    assert page.all("img") == page.all("svg") == []
    assert "Interrupted" in page.text
    run.config_file.write_text("broken")
    with pytest.raises(UserError, match="not a TOML file"):
        report.render(run)


def test_captions_that_were_changed_since_are_said_to_be(run: Run, character: Path) -> None:
    assert "changed after this run began" not in report.render(run)
    (character / "01.txt").write_text("miraxo, a Zebra, zebra")
    text = report.render(run)
    assert "changed after this run began" in text
    assert "zebra <b>1</b>" in text
    assert "<li>miraxo" not in text


def test_odd_losses_are_drawn_and_ticks_are_round() -> None:
    def state(*losses: float) -> events.State:
        return events.State(losses=dict(enumerate(losses, 1)), steps=len(losses))

    assert loss_svg.draw(state(1.0)) == loss_svg.draw(state(1.0, float("nan"))) == ""
    assert "nan" not in loss_svg.draw(state(1.0, float("nan"), 1.0, float("inf")))
    assert loss_svg.ticks(0.071, 0.112) == pytest.approx([0.08, 0.09, 0.1, 0.11])
