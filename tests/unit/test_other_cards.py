"""Cards of AMD and Intel get a sentence; graphics that are part of a processor do not."""

from pathlib import Path

import pytest

from trainer.machine import other_cards


@pytest.mark.parametrize(
    ("bus", "vendor", "memory", "words"),
    [
        ("0000:03:00.0", "0x1002", 16 * 2**30, "card of AMD, which is not used: Limner is untested on it. To try"),
        ("0000:0d:00.0", "0x1002", 2**29, ""),  # of a processor
        ("0000:03:00.0", "0x8086", 0, "the package index for XPU that pytorch.org/get-started names"),
        ("0000:00:02.0", "0x8086", 0, ""),  # of a processor
        ("0000:03:00.0", "0x10de", 0, ""),  # of NVIDIA, about which more is known
    ],
)
def test_a_card_that_needs_another_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bus: str, vendor: str, memory: int, words: str
) -> None:
    device = tmp_path / "devices" / bus
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    if memory:
        (device / "mem_info_vram_total").write_text(f"{memory}\n")
    (tmp_path / "drm" / "card0").mkdir(parents=True)
    (tmp_path / "drm" / "card0" / "device").symlink_to(device)
    monkeypatch.setattr(other_cards, "DEVICES", tmp_path / "drm")
    sentence = other_cards.advice()
    assert words in sentence
    assert bool(words) == bool(sentence)
