"""Bringing parts of a model to its device and back, on a device that this machine need not have."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import diffusers
import pytest
import torch
from torch import nn

from trainer import families
from trainer.base_models import registry
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.families.files import classes, loading, weights
from trainer.families.files.weights import fingerprint
from trainer.families.hardware import offload, quantize


class Part(nn.Linear):
    """A module that notes where it is sent, and that does not fit on the device if it is `large`."""

    def __init__(self, *, large: bool = False) -> None:
        super().__init__(1, 1)
        self.large, self.places = large, ["cpu"]

    def to(self, device: Any) -> "Part":  # noqa: ANN401 - whatever names a device
        self.places.append(torch.device(device).type)
        if self.large and self.places[-1] != "cpu":
            raise torch.OutOfMemoryError("no room")
        return self


FAMILY: Any = SimpleNamespace(device=torch.device("cuda"), denoiser=None, large_blocks=lambda _module: [])


def test_parts_that_were_moved_before_memory_ran_out_go_back() -> None:
    parts = [Part(), Part(large=True), Part()]
    with pytest.raises(torch.OutOfMemoryError), families.on_device(FAMILY, *parts):
        raise AssertionError("the last part is never there")
    assert [part.places for part in parts] == [["cpu", "cuda", "cpu"], ["cpu", "cuda", "cpu"], ["cpu"]]
    with families.on_device(FAMILY, parts[0], parts[2]):
        assert [parts[0].places[-1], parts[2].places[-1]] == ["cuda", "cuda"], "the next ones are not lost"
    assert {part.places[-1] for part in parts} == {"cpu"}
    with pytest.raises(ValueError, match="x"), families.on_device(FAMILY, parts[0]):
        raise ValueError("x")
    assert parts[0].places[-2:] == ["cuda", "cpu"], "after an error inside, too"


def test_a_family_that_diffusers_does_not_know_yet_says_so() -> None:
    spec = registry.FAMILIES["krea2"]
    for older in (replace(spec, pipeline="OfTomorrow"), replace(spec, own_pipeline="of_tomorrow.Pipeline")):
        with pytest.raises(UserError, match=rf"Krea 2 needs a newer version of diffusers than {diffusers.__version__}"):
            classes.pipeline(older)


def test_a_fingerprint_is_of_values_and_not_of_their_order() -> None:
    """The encoder of a VAE that was used in bf16 had another order, of which no second fingerprint could be taken."""
    module = nn.Sequential(nn.Conv2d(16, 4, 1), nn.Conv2d(4, 4, 3))
    before = fingerprint(module)
    assert fingerprint(module.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        module[0].weight[0, 0] += 1
    assert fingerprint(module) != before


def test_large_parts_of_the_same_files_are_hashed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "model.safetensors"
    file.write_bytes(b"as it was")
    (home / "outputs").rmdir()  # a run may be in a folder elsewhere
    model, parts = ModelConfig(base=str(file)), {"denoiser": nn.Linear(2, 2), "vae": nn.Linear(3, 3)}
    expected = {name: fingerprint(part) for name, part in parts.items()}
    hashing = Mock(wraps=fingerprint)
    monkeypatch.setattr(weights, "fingerprint", hashing)
    for large, count in ((weights.LARGE, 4), (0, 6)):  # small ones are hashed each time
        monkeypatch.setattr(weights, "LARGE", large)
        assert [families.fingerprints(model, parts) for _ in range(2)] == [expected] * 2
        assert hashing.call_count == count
    for change in (lambda: os.utime(file, ns=(1, 1)), lambda: (home / "clip_l.safetensors").write_bytes(b"is new")):
        change()
        families.fingerprints(model, parts)
    families.fingerprints(model.model_copy(update={"weights": "int8"}), parts)
    families.fingerprints(model, {"denoiser": parts["denoiser"].to(torch.float16), "vae": parts["vae"]})
    assert hashing.call_count == 6 + 2 + 2 + 2 + 1


def test_lists_of_blocks_may_be_named_with_the_part_that_has_them() -> None:
    parts = {
        name: nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(64, 32, bias=False)])}) for name in ("text", "image")
    }
    model = nn.ModuleDict(parts)
    assert offload.items(model, ("text.blocks",)).keys() == {"text.blocks.0"}
    assert offload.items(model, ("blocks",)).keys() == {"text.blocks.0", "image.blocks.0"}
    assert [path for path, _layer in quantize._layers(model, ("image.blocks",))] == ["image.blocks.0"]
    pytest.importorskip("bitsandbytes")
    quantize.quantize(model, "nf4", ("image.blocks",), "x")
    assert [type(parts[name]["blocks"][0]).__name__ for name in parts] == ["Linear", "Linear4bit"]


def test_what_diffusers_keeps_in_fp32_stays_so() -> None:
    """Of this one the norms, to whose weights 1 is added."""
    sizes = {"num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "attention_head_dim": 8}
    texts = {"text_hidden_dim": 8, "text_num_attention_heads": 1, "text_num_key_value_heads": 1}
    model = diffusers.Krea2Transformer2DModel(axes_dims_rope=(4, 2, 2), intermediate_size=16, **sizes, **texts)
    parameters = dict(loading.convert(model, torch.bfloat16).named_parameters())
    in_full = {name.split(".")[-2] for name, weight in parameters.items() if weight.dtype == torch.float32}
    assert in_full == {"norm", "norm1", "norm2", "norm_q", "norm_k"}
    assert model.dtype == torch.bfloat16
    assert loading.convert(nn.Sequential(nn.Linear(2, 2)), torch.bfloat16)[0].weight.dtype == torch.bfloat16


def test_texts_are_filled_up_to_the_longest() -> None:
    rows = {"text": [torch.ones(3, 2, 4), torch.ones(1, 2, 4)], "lengths": [torch.tensor(3), torch.tensor(1)]}
    columns = families.stacked(rows)
    assert columns["lengths"].tolist() == [3, 1]
    assert columns["text"].shape == (2, 3, 2, 4)
    assert columns["text"].sum((1, 2, 3)).tolist() == [24, 8]
