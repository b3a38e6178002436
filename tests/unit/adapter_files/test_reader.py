"""The strict reader: each way a file can be wrong is refused in words, before anything of it is used."""

from pathlib import Path

import numpy as np
import pytest

from tests.hostile import containers
from tests.hostile.containers import NAME
from trainer import foreign_text
from trainer.adapter_files import compatibility, reader, safetensors_reader
from trainer.errors import UserError


def test_missing_replaced_and_endless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        reader.read(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="folder"):
        reader.read(tmp_path)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {f"lora_unet_{number}.alpha": entry for number in range(foreign_text.MAX_TENSORS + 1)}
    (tmp_path / "x.safetensors").write_bytes(containers.raw(header))
    with pytest.raises(UserError, match="more than 20000 tensors"):
        reader.read(tmp_path / "x.safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(containers.tensors())
    file = safetensors_reader.read(path)
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="was changed or removed"):
        reader.of_file(file)


def test_an_adapter_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(containers.tensors(lora_down__weight=np.ones((4, 6), "<i8")))
    with pytest.raises(UserError, match="whole numbers instead of fractions"):
        reader.read(path)
    assert "whole numbers" in compatibility.check(path).problems[0]
    path.write_bytes(containers.tensors(alpha=np.array(4, "<i8")))  # as some old programs write it
    assert reader.read(path).modules[NAME].alpha == 4
