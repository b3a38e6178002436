"""The strict reader: each way a file can be wrong is refused in words, before anything of it is used."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save
from torch import Tensor

from trainer import foreign_text
from trainer.adapter_files import compatibility, reader, safetensors_reader, summary
from trainer.adapter_files.writer import with_hashes
from trainer.errors import UserError

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def good(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {
        f"{NAME}.alpha": torch.tensor(8.0),
        f"{NAME}.lora_down.weight": torch.ones(4, 6),
        f"{NAME}.lora_up.weight": torch.ones(5, 4),
    }
    tensors |= {f"{NAME}.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {key: value for key, value in tensors.items() if value is not None}


def raw(header: Any, body: bytes = b"") -> bytes:  # noqa: ANN401 - any JSON
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_hashes(save(good(), {"ss_network_dim": "4"})))
    file = reader.read(path)
    assert file.metadata["ss_network_dim"] == "4"
    assert file.modules[NAME].rank == 4
    assert torch.equal(file.modules[NAME].delta(), torch.full((5, 6), 8.0))  # alpha / rank * sum over the rank
    assert summary.describe(safetensors_reader.read(path))["ranks"] == [4]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
        (struct.pack("<Q", 2**40) + bytes(50), "not a safetensors file"),
        (raw(b"{broken"), "header is damaged"),
        (raw(b"[]"), "header is damaged"),
        (raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', bytes(4)), "twice"),
        (raw({"a": entry(0, 8)}, bytes(8)), "does not fit"),
        (raw({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "does not fit"),
        (raw({"a": entry(0, 4)}, bytes(8)), "belong to no tensor"),
        (raw({"a": entry(0, 4)}, bytes(2)), "cut off"),
        (raw({"a": entry(0, 4, dtype="P4")}, bytes(4)), "tensors of type P4"),
        (raw({"a": {"dtype": "F32"}}), "header is damaged"),
        (raw({"a": entry(0, -4, [-1])}), "header is damaged"),
        (raw({"a": entry(0, 4, [True])}, bytes(4)), "header is damaged"),
        (raw({"__metadata__": {"a": 1}}), "header is damaged"),
        (raw({}), "empty"),
        (save(good(lora_up__weight=None)), "lacks its up"),
        (save(good(alpha=None)), "has no alpha"),
        (save(good(alpha=torch.tensor(-1.0))), "not positive"),
        (save(good(lora_up__weight=torch.ones(5, 3))), "do not fit together"),
        (save(good(lora_up__weight=torch.full((5, 4), float("nan")))), "not finite"),
        (save(good(lora_down__weight=torch.full((4, 6), float("inf")))), "not finite"),
        (save(good(hada_w1_a=torch.ones(1))), "unknown kind"),
        (save({"model.diffusion_model.x": torch.ones(1)}), "unknown kind"),
        (save(good() | {f"{NAME}.oft_R.weight": torch.ones(1)}), "OFT of OneTrainer"),
        (save(good() | {"bundle_emb.rin.string_to_param.*": torch.ones(1)}), "an embedding, which Limner"),
    ],
)
def test_a_wrong_file(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        reader.read(path)
    assert words in caught.value.message
    assert str(tmp_path) not in str(caught.value)


@settings(max_examples=60)
@given(st.data())
def test_a_mutated_file_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(save(good(), {"a": "b"}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):  # any other exception is a failure
        safetensors_reader.parse(bytes(content), "x")
        deserialize(bytes(content))  # what is accepted, the library of the format accepts


def test_hashes_do_not_depend_on_the_metadata() -> None:
    one, two = (with_hashes(save(good(), {"a": text})) for text in ("short", "a much longer text" * 9))
    found = [safetensors_reader.parse(data, "x").metadata["sshs_model_hash"] for data in (one, two)]
    assert found[0] == found[1]
    assert one[8:10] == b'{"'


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        reader.read(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="folder"):
        reader.read(tmp_path)


EMPTY = {
    "LoRA": {"alpha": torch.tensor(1.0), "lora_down.weight": torch.ones(0, 6), "lora_up.weight": torch.ones(5, 0)},
    "OFT": {"alpha": torch.tensor(1.0), "oft_blocks": torch.ones(1, 0, 0)},
    "BOFT": {"alpha": torch.tensor(1.0), "oft_blocks": torch.ones(2**30, 0, 4, 4)},
}


@pytest.mark.parametrize("parts", EMPTY.values(), ids=EMPTY)
def test_an_adapter_of_rank_0_is_refused(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({f"{NAME}.{ending}": tensor for ending, tensor in parts.items()}))
    with pytest.raises(UserError, match="do not fit together"):
        reader.read(path)
    report = compatibility.check(path)
    assert not any(verdict.loads for verdict in report.verdicts)
    assert "do not fit together" in report.problems[0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_an_adapter_of_whole_numbers_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(good(lora_down__weight=torch.ones(4, 6).to(dtype))))
    with pytest.raises(UserError, match="whole numbers instead of fractions"):
        reader.read(path)
    assert "whole numbers" in compatibility.check(path).problems[0]
    path.write_bytes(save(good(alpha=torch.tensor(4))))  # as some old programs write it
    assert reader.read(path).modules[NAME].alpha == 4


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    """Looking into an adapter of 900 MB took 2.7 GB."""
    path, rows = tmp_path / "x.safetensors", 2**20
    sizes = {"lora_down.weight": [4, rows], "lora_up.weight": [rows, 4]}
    header, end = {f"{NAME}.alpha": entry(0, 4, [])}, 4
    for ending, shape in sizes.items():
        header[f"{NAME}.{ending}"] = entry(end, end + 16 * rows, shape)
        end += 16 * rows
    start = raw(header)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + end)  # a hole, which takes no disk
    tracemalloc.start()
    try:
        report = compatibility.check(path)
        assert summary.describe(safetensors_reader.read(path))["bytes"] == path.stat().st_size > 2**25
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.keys == 3
    assert peak < 2**23


def test_a_file_of_very_many_tensors_is_refused_and_one_of_many_is_read_soon(tmp_path: Path) -> None:
    """60,000 tensors kept the page from answering for a minute."""
    path = tmp_path / "x.safetensors"

    def write(count: int) -> None:
        header = {f"lora_unet_down_blocks_{number}_resnets_0_conv1.alpha": entry(0, 0, [0]) for number in range(count)}
        path.write_bytes(raw(header))

    write(foreign_text.MAX_TENSORS + 1)
    with pytest.raises(UserError, match="more than 20000 tensors"):
        reader.read(path)
    write(foreign_text.MAX_TENSORS)
    compatibility.check(path)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(good()))
    file = safetensors_reader.read(path)
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="was changed or removed"):
        reader.of_file(file)
