"""Names that may stand in a path, and which paths of others may be named."""

from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from trainer import paths
from trainer.errors import UserError
from trainer.runs import cards


@pytest.mark.parametrize("name", ["../x", "", ".", "..", "a" * 65, "a b", "C:\\x", "/etc/passwd", "a\n", "NUL", "lpt¹"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(UserError, match="not a valid name"):
        paths.check_name(name, "run")
    for file in ("../x", "", ".x", "x.", "x ", "nul.safetensors", "aux .txt"):
        with pytest.raises(UserError, match="not a valid file name"):
            paths.check_file_name(file)
    assert paths.check_file_name("model 00001-of-2.safetensors")


SAFE = {"rin": "rin", "../../x": "x", "my cat 1": "my-cat-1", "犬": "犬", "///": "picture", "aux": "aux_"}


@pytest.mark.parametrize(("text", "name"), SAFE.items())
def test_safe_names(text: str, name: str) -> None:
    assert paths.safe_name(text, "picture") == name
    assert paths.check_name(paths.safe_name(text, "picture"), "picture")


def test_servers_may_share_models_and_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "anna"))
    assert paths.shared() == tmp_path / "anna"
    monkeypatch.setenv("LIMNER_SHARED", str(tmp_path / "shared"))
    assert paths.models() == tmp_path / "shared" / "models"
    assert paths.datasets() == tmp_path / "anna" / "datasets"
    assert cards.Card("0", "0").lock == tmp_path / "shared" / "outputs" / ".card-0.lock"


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMNER_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert paths.home() == CHECKOUT
    monkeypatch.setattr(paths, "CODE", tmp_path / "site-packages")
    assert paths.home() == tmp_path / "limner"
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "elsewhere"))
    assert paths.home() == tmp_path / "elsewhere"
