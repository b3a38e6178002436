"""Zips and adapter files that are odd or mean harm, each with what must become of it."""

import functools
import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.pictures import pickled, saved, two

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def picture(number: int = 0) -> bytes:
    return saved(two(size=(60 + number, 60)), "PNG")


def _zip(entries: dict[Any, bytes | str], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _special(name: str, mode: int, content: str) -> bytes:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return _zip({info: content, "good.png": picture()})


def _changed(data: bytes, at: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    where = (data.rindex(at) if last else data.index(at)) + offset
    return data[:where] + value + data[where + len(value) :]


def _bomb(names: list[str], mebibytes: int, good: dict[str, bytes]) -> Callable[[], bytes]:
    """Files of so many zeros each, which take long to compress: only when they are needed."""
    return lambda: _zip({**good, **dict.fromkeys(names, bytes(mebibytes * 2**20))}, zipfile.ZIP_DEFLATED)


@functools.cache
def zip_data(name: str) -> bytes:
    data = zips()[name][0]
    return data if isinstance(data, bytes) else data()


@functools.cache
def zips() -> dict[str, tuple[bytes | Callable[[], bytes], int, str]]:
    """(bytes, or what makes them; pictures that are kept, words of what is refused) by what is odd."""
    sound = _zip({"a.png": picture()})
    three = _zip({"a.png": picture(1), "A.png": picture(2), "b/a.png": picture(3)})
    lying = _changed(_zip({"a.png": bytes(9 * 2**20)}, zipfile.ZIP_DEFLATED), b"PK\1\2", 24, struct.pack("<I", 9))
    return {
        "one picture": (sound, 1, ""),
        "one bad beside a good one": (_zip({"a.png": picture(), "b.png": b"no"}), 1, "not an image"),
        "nothing in it": (_zip({}), 0, ""),
        "climbing names": (_zip({"../../../a.png": picture(1), "x/../../b.png": picture(2)}), 2, ""),
        "absolute names": (_zip({"/etc/a.png": picture(1), "C:\\b.png": picture(2)}), 2, ""),
        "a link": (_special("link.png", stat.S_IFLNK | 0o777, "/etc/passwd"), 1, "not an image"),
        "a pipe": (_special("pipe.png", stat.S_IFIFO | 0o666, ""), 1, "not an image"),
        "names twice": (three.replace(b"A.png", b"a.png"), 3, ""),
        "a bomb": (_bomb(["a.png"], 300, {}), 0, "too large when unpacked"),
        "a bomb that lies about its size": (lying, 0, "a.png"),
        "a zip in a zip": (lambda: _zip({"in.zip": _bomb(["a.png"], 5, {})(), "a.png": picture()}), 1, "in.zip"),
        "encrypted": (_changed(_changed(sound, b"PK\1\2", 8, b"\1\0"), b"PK\3\4", 6, b"\1\0"), 0, "encrypted"),
        "a method nobody knows": (
            _changed(_changed(sound, b"PK\1\2", 10, b"\x63\0"), b"PK\3\4", 8, b"\x63\0"),
            0,
            "damaged in the zip",
        ),
        "a wrong sum": (_changed(sound, b"PK\1\2", 16, b"\0\0\0\0"), 0, "damaged in the zip"),
        "damaged data": (
            _changed(_zip({"a.png": b"a" * 999}, zipfile.ZIP_DEFLATED), b"a.png", 6, b"\xff\xff"),
            0,
            "a.png",
        ),
        "cut off": (sound[:-30], 0, "not a zip"),
        "a rar": (b"Rar!\x1a\x07\x01\0" + bytes(99), 0, "not a zip"),
        "an offset beyond the end": (_changed(sound, b"PK\5\6", 16, b"\xff\xff\xff\x7f"), 0, "damaged"),
        "a long name": (_zip({"x" * 60000 + ".png": picture()}), 1, ""),
        "a zero in a name": (_changed(_zip({"aZb.png": picture()}), b"aZb.png", 1, b"\0", last=True), 0, ""),
        "foreign caches": (
            _zip({"a.npz": b"PK", "a.pt": pickled(), "a.safetensors": b"x", "a.png": picture()}),
            1,
            "a.pt",
        ),
        "caches as our own": (
            _zip(
                {
                    ".cache/a.safetensors": pickled(),
                    ".cache/measurements.json": "{",
                    ".cache/thumbnails/a.webp": "x",
                    "a.mask.png": pickled(),
                    "a.png": picture(),
                }
            ),
            1,
            "a.safetensors",
        ),
        "a caption bomb": (_bomb(["a.txt"], 30, {"a.png": picture()}), 1, "a.txt"),
        "bytes before it": (b"#!/bin/sh\n" + sound, 1, ""),
    }


def raw(header: Any, body: bytes = b"") -> bytes:  # noqa: ANN401 - any JSON
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensors(**changes: Any) -> bytes:  # noqa: ANN401 - arrays, or None to leave one out
    """A file in the form of kohya, with changes by what follows the module's name."""
    parts = {
        "lora_down.weight": np.ones((4, 6), "<f4"),
        "lora_up.weight": np.ones((5, 4), "<f4"),
        "alpha": np.array(2, "<f4"),
    }
    parts |= {key.replace("__", "."): value for key, value in changes.items()}
    header, body = {}, b""
    for key, value in ((key, value) for key, value in parts.items() if value is not None):
        dtype = {"f4": "F32", "f2": "F16", "i8": "I64"}[value.dtype.str[1:]]
        header[f"{NAME}.{key}"] = _at(len(body), len(body) + value.nbytes, value.shape, dtype)
        body += value.tobytes()
    return raw(header, body)


def _layer(**parts: Any) -> bytes:  # noqa: ANN401 - arrays
    return tensors(lora_down__weight=None, lora_up__weight=None, **parts)


def _rotations(values: Any, terms: float = 5.0) -> bytes:  # noqa: ANN401 - an array
    return _layer(alpha=None, oft_R__weight=values, oft_R__terms=np.array(terms, "<f4"))


def peft() -> bytes:
    """A file in the form of PEFT, whose settings lie beside it."""
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    header = {f"{path}.lora_A.weight": _at(0, 96, (4, 6)), f"{path}.lora_B.weight": _at(96, 176, (5, 4))}
    return raw(header, np.ones(44, "<f4").tobytes())


def _at(begin: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def adapters() -> dict[str, tuple[bytes, str]]:
    """(bytes, words of the refusal) by what is wrong."""
    sound, four = tensors(), bytes(4)
    return {
        "a pickle": (pickled(), "not a safetensors file"),
        "nothing": (b"", "too short"),
        "a file of torch": (_zip({"archive/data.pkl": pickled()}), "not a safetensors file"),
        "eight zeros": (bytes(8), "damaged"),
        "a picture": (saved(two(), "PNG"), "not a safetensors file"),
        "a header larger than the file": (struct.pack("<Q", 500) + b"{}", "not a safetensors file"),
        "a header of 9 MB": (raw(b"{" + b" " * (9 * 2**20) + b"}"), "header is larger"),
        "no JSON": (raw(b"{no"), "damaged"),
        "a list": (raw(b"[]"), "damaged"),
        "deep JSON": (raw(b"[" * 100_000), "damaged"),
        "deep objects": (raw(b'{"a":' * 50_000), "damaged"),
        "a tensor twice": (raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', four), "twice"),
        "an unknown type": (raw({"a": _at(0, 4, dtype="P4")}, four), "of type P4"),
        "a type that is a list": (raw({"a": _at(0, 4, dtype=["F32"])}, four), "damaged"),
        "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, four), "damaged"),
        "three offsets": (raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, four), "damaged"),
        "a negative shape": (raw({"a": _at(0, 4, [-1])}, four), "damaged"),
        "a truth for a shape": (raw({"a": _at(0, 4, [True])}, four), "damaged"),
        "offsets backwards": (raw({"a": _at(4, 0)}, four), "does not fit"),
        "offsets beyond the end": (raw({"a": _at(0, 2**40, [2**38])}, four), "cut off"),
        "a shape beyond all numbers": (raw({"a": _at(0, 4, [2**62, 2**62])}, four), "does not fit"),
        "two in one place": (raw({"a": _at(0, 4), "b": _at(0, 4)}, four), "does not fit"),
        "a gap": (raw({"a": _at(0, 4), "b": _at(8, 12)}, bytes(12)), "does not fit"),
        "bytes of nobody": (raw({"a": _at(0, 4)}, bytes(8)), "belong to no tensor"),
        "cut off": (sound[:-3], "cut off"),
        "one byte more": (sound + b"x", "belong to no tensor"),
        "metadata that is no text": (raw({"__metadata__": {"a": 1}}), "damaged"),
        "no tensor": (raw({}), "empty"),
        "values that are no numbers": (tensors(lora_up__weight=np.full((5, 4), np.nan, "<f4")), "not finite"),
        "infinite in half precision": (tensors(lora_down__weight=np.full((4, 6), -np.inf, "<f2")), "not finite"),
        "an alpha that is no number": (tensors(alpha=np.array(np.nan, "<f4")), "not finite"),
        "a negative alpha": (tensors(alpha=np.array(-1, "<f4")), "not positive"),
        "no alpha": (tensors(alpha=None), "has no alpha"),
        "no up": (tensors(lora_up__weight=None), "lacks its up"),
        "ranks that differ": (tensors(lora_up__weight=np.ones((5, 3), "<f4")), "do not fit together"),
        "rank 0": (
            tensors(lora_down__weight=np.ones((0, 6), "<f4"), lora_up__weight=np.ones((5, 0), "<f4")),
            "do not fit",
        ),
        "OFT of rank 0": (_layer(oft_blocks=np.ones((1, 0, 0), "<f4")), "do not fit together"),
        "BOFT of an odd number of blocks": (_layer(oft_blocks=np.ones((4, 3, 2, 2), "<f4")), "do not fit together"),
        "BOFT of rank 0": (_layer(oft_blocks=np.ones((2**30, 0, 4, 4), "<f4")), "do not fit together"),
        "three dimensions": (tensors(lora_down__weight=np.ones((4, 3, 2), "<f4")), "do not fit together"),
        "two alphas in one": (tensors(alpha=np.ones(2, "<f4")), "do not fit together"),
        "parts of another kind": (tensors(hada_w1_a=np.ones((1, 1), "<f4")), "unknown kind"),
        "a name that is a script": (raw({"<script>alert(1)</script>": _at(0, 4)}, four), "unknown kind"),
        "an embedding": (raw({"bundle_emb.rin.string_to_param.*": _at(0, 4)}, four), "an embedding, which Limner"),
        "IA3 of PEFT": (raw({"base_model.model.mid_block.ia3_l": _at(0, 4)}, four), "IA3 of PEFT, which Limner"),
        "biases of PEFT": (raw({"base_model.model.to_q.base_layer.bias": _at(0, 4)}, four), "trained biases of PEFT"),
        "OFT in parts": (raw({"oft_unet_double_blocks_0_img_mlp_0.oft_blocks.0": _at(0, 4)}, four), "OFT in parts"),
        "norms of FLUX.1": (raw({"lora_unet_double_blocks_0_img_norm1.b_norm": _at(0, 4)}, four), "norms of a"),
        "OFTv2 beside a LoRA": (tensors(oft_R__weight=np.ones(1, "<f4")), "unknown kind"),
        "OFTv2 of no triangle": (_rotations(np.ones((2, 4), "<f4")), "do not fit together"),
        "OFTv2 of rank 0": (_rotations(np.ones((1, 0), "<f4")), "do not fit together"),
        "OFTv2 of a billion terms": (_rotations(np.ones((2, 3), "<f4"), 1e9), "oft_R.terms is damaged"),
        "OFTv2 of half a term": (_rotations(np.ones((2, 3), "<f4"), 0.5), "oft_R.terms is damaged"),
    }


def offer(home: Path, *files: tuple[str, bytes]) -> list[tuple[str, Path]]:
    """Files as the page passes them on: the name that the user knows, the bytes under another one."""
    folder = home / "uploads"
    folder.mkdir(exist_ok=True)
    return [(name, write(folder, f"u{number}", data)) for number, (name, data) in enumerate(files)]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
