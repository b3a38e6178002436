"""Dataset checks: which problems are found, which are not, and the fixes of the program."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.conftest import CHARACTER, STYLE
from tests.hostile.pictures import exif
from trainer import paths
from trainer.data import checks, dataset, fixes, image_stats, token_count, undo
from trainer.errors import UserError

Spoil = Callable[[Path], object]


def drawing(seed: int = 0, size: tuple[int, int] = (256, 256), background: str = "white") -> Image.Image:
    """A picture with sharp edges, different for each seed."""
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    for number in range(7):
        x, y = (seed * 37 + number * 53) % size[0] // 2, (seed * 61 + number * 29) % size[1] // 2
        side = min(size) // 4 + (seed + number) % 5 * min(size) // 20
        shade = tuple((seed * step + number * 40) % 256 for step in (91, 57, 23))
        x, y = x + size[0] // 8, y + size[1] // 6
        draw.rectangle((x, y, x + side, y + side), fill=shade)
    return image


def save(folder: Path, name: str, image: Image.Image, caption: str = "", **options: object) -> None:
    image.save(folder / name, **options)
    if caption:
        dataset.write_caption(folder / name, caption)


@pytest.fixture
def folder(home: Path) -> Path:
    return dataset.create("rin")


@pytest.fixture
def six(folder: Path) -> Path:
    for number, background in enumerate(["red", "green", "blue", "yellow", "gray", "pink"]):
        save(folder, f"{number}.png", drawing(number, background=background), f"rin, a robot, number {number}")
    return folder


def files_by_kind(folder: Path, trigger: str = "rin", **about: object) -> dict[str, list[str]]:
    image_stats.measure_missing(folder)
    result: dict[str, list[str]] = {}
    for problem in checks.examine(folder, trigger, **{"resolution": 256, **about}).problems:
        result.setdefault(problem.kind, []).append(problem.name)
    return result


@pytest.mark.parametrize(("shipped", "preset"), [(CHARACTER, "character"), (STYLE, "style")])
def test_the_examples_have_none_but_hints(home: Path, shipped: Path, preset: str) -> None:
    folder = shutil.copytree(shipped, home / "datasets" / "shipped", ignore=shutil.ignore_patterns(".cache"))
    image_stats.measure_missing(folder)
    problems = checks.examine(folder, preset=preset, resolution=128).problems
    assert [problem.kind for problem in problems if not problem.hint] == []


def bad(image: Image.Image, caption: str = "rin, x", name: str = "bad.png", **options: object) -> Spoil:
    return lambda folder: save(folder, name, image, caption, **options)


def see_through() -> Image.Image:
    image = drawing(9).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 256, 60))
    return image


def with_other_caption(folder: Path) -> None:
    bad(BROWN, "rin, the caption that is read")(folder)
    (folder / "bad.caption").write_text("rin, another one")


BROWN = drawing(9, background="brown")


SPOILT: dict[str, tuple[Spoil, str]] = {
    "blurred": (bad(BROWN.filter(ImageFilter.GaussianBlur(6))), "blurred"),
    "black": (bad(Image.new("RGB", (256, 256))), "blank"),
    "small": (bad(drawing(9, (130, 130), "brown")), "small"),
    "copied": (bad(drawing(3, background="yellow").resize((200, 200)), name="bad.jpg", quality=60), "copy"),
    "a strip": (bad(drawing(9, (1600, 300), "brown")), "cropped"),
    "see-through": (bad(see_through()), "transparent"),
    "on its side": (bad(BROWN, name="bad.jpg", exif=exif(6)), "turned"),
    "no caption": (bad(BROWN, ""), "no caption"),
    "no trigger": (bad(BROWN, "a string"), "no trigger"),
    "long": (bad(BROWN, "rin, " + "red, " * 40), "long caption"),
    "two captions": (with_other_caption, "other caption"),
    "cut off": (lambda folder: (folder / "bad.png").write_bytes((folder / "0.png").read_bytes()[:300]), "unreadable"),
    "broken": (lambda folder: (folder / "bad.png").write_bytes(b"junk"), "unreadable"),
}


@pytest.mark.parametrize(("spoil", "kind"), SPOILT.values(), ids=SPOILT)
def test_one_bad_picture_is_found_and_named(six: Path, spoil: Spoil, kind: str) -> None:
    spoil(six)
    by_kind = files_by_kind(six)
    assert [name[:4] for name in by_kind.pop(kind)] == ["bad."]
    assert by_kind == {}


@pytest.mark.parametrize("name", ["copied", "blurred", "broken", "no trigger"])
def test_a_remedy_mends_it_and_can_be_taken_back(six: Path, name: str) -> None:
    spoil, kind = SPOILT[name]
    spoil(six)
    before = {path.name: path.read_bytes() for path in six.iterdir() if path.is_file()}
    image_stats.measure_missing(six)
    problems = checks.examine(six, "rin", resolution=256).problems
    fixes.apply_fix(six, problems, kind, "rin")
    assert files_by_kind(six) == {}
    assert image_stats.look(six).damaged == set()
    assert dataset.restore_last(six) or undo.undo(six)
    assert {path.name: path.read_bytes() for path in six.iterdir() if path.is_file()} == before


def test_of_two_copies_the_sharp_one_is_kept(six: Path) -> None:
    soft = drawing(0, background="red").filter(ImageFilter.GaussianBlur(6)).resize((512, 512))
    save(six, "soft.png", soft, "rin, a robot, number 0")
    assert files_by_kind(six) == {"blurred": ["soft.png"], "copy": ["soft.png"]}, "though it is larger"


def test_problems_of_the_whole_set(folder: Path) -> None:
    assert files_by_kind(folder) == {"empty": [""]}
    for number in range(4):
        save(folder, f"{number}.png", drawing(number), "rin, standing")
    (folder / "lonely.txt").write_text("x")
    (folder / "0.jpg").write_bytes((folder / "0.png").read_bytes())
    by_kind = files_by_kind(folder)
    assert {"same caption", "no class", "lonely caption", "shared caption", "backdrop"} <= by_kind.keys()
    for preset in ("style", "plain"):  # either may teach a style
        assert "no class" not in files_by_kind(folder, preset=preset)
    assert by_kind["shared caption"] == ["0.txt"]
    (folder / "0.jpg").unlink()
    assert files_by_kind(folder)["few"] == [""]
    image_stats.measure_missing(folder)
    problems = checks.examine(folder, "rin").problems
    assert "4 of 4 images have the same white background." in [problem.message for problem in problems]
    assert fixes.apply_fix(folder, problems, "backdrop") == "Added 'white background' to 4 captions."
    assert "backdrop" not in files_by_kind(folder)
    with pytest.raises(UserError):
        fixes.apply_fix(folder, [], "backdrop")


def test_pictures_that_share_a_caption_get_one_each(six: Path) -> None:
    save(six, "2.jpg", drawing(20, background="brown"))
    read = dataset.read(six)[1:]  # the first image came a moment later
    assert "unreadable" not in [each.kind for each in checks.examine(six, "rin", examples=read).problems]
    problems = checks.examine(six, "rin").problems
    assert fixes.apply_fix(six, problems, "shared caption") == "Renamed 1 image: 2-2.png."
    captions = {example.name: example.caption for example in dataset.read(six)}
    assert captions["2.jpg"] == captions["2-2.png"] == "rin, a robot, number 2"
    assert files_by_kind(six) == {}


def test_pictures_are_measured_once(six: Path) -> None:
    image_stats.measure_missing(six)
    assert image_stats.look(six).missing == []
    dataset.write_caption(six / "0.png", "other words")
    assert image_stats.look(six).missing == []
    save(six, "1.png", drawing(17))
    assert [path.name for path in image_stats.look(six).missing] == ["1.png"]
    assert set(image_stats.measure_missing(six)) == {f"{number}.png" for number in range(6)}
    (six / paths.CACHE / "measurements.json").write_text("{")
    assert image_stats.known(six) == {}
    assert len(image_stats.measure_missing(six, limit=2)) == 2


@pytest.mark.parametrize(
    ("base", "tokenizer", "most"), [("a/base", token_count._CLIP, 75), ("micro", token_count._MICRO, 38)]
)
def test_a_caption_is_too_long_from_the_first_token_not_read(six: Path, base: str, tokenizer: Path, most: int) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(str(tokenizer))
    for text in ("", "a photo of a cat", "it's 2024!! né café  ünïcode", "a_b-c (x:1.2), miraxo", "日本語"):
        assert token_count.count(text, base) == len(theirs(text, add_special_tokens=False).input_ids)
    for more in (0, 1):
        caption = "rin" + " cat" * (most + more - token_count.count("rin", base))
        assert len(theirs(caption).input_ids) == most + more + 2  # with the two marks around it
        dataset.write_caption(six / "0.png", caption)
        problems = [each for each in checks.examine(six, "rin", base=base).problems if each.kind == "long caption"]
        expected = [("0.png", f"{most + 1} tokens; only {most} are read.")] * more
        assert [(problem.name, problem.message) for problem in problems] == expected


def test_files_that_are_left_out_are_said(character: Path) -> None:
    (character / "link.png").symlink_to(character / "01.png")
    for name in ("scan.TIFF", "scan.txt", "moving.gif", "photo.heic", ".hidden.gif", "notes.md"):
        (character / name).touch()
    (character / "02.txt").rename(character / "02.TXT")
    problems = checks.examine(character).problems
    assert {problem.name: problem.message for problem in problems if problem.kind == "left out"} == {
        "02.TXT": "Its ending has capital letters.",
        "link.png": "It is a link to an image.",
        "moving.gif": "GIF is not read here.",
        "photo.heic": "HEIC is not read here.",
        "scan.TIFF": "TIFF is not read here.",
    }
    assert "lonely caption" not in {problem.kind for problem in problems}, "of an image that is left out, it is kept"


def test_images_in_subfolders_are_said(character: Path) -> None:
    for name in ("10_rin", "masks", ".hidden", "empty"):
        (character / name).mkdir()
    for name in ("10_rin", "masks", ".hidden"):
        shutil.copy(character / "01.png", character / name / "01.png")
    (problem,) = (problem for problem in checks.examine(character).problems if problem.kind == "folder")
    assert (problem.name, problem.message) == ("10_rin", "1 image in it is not read.")
