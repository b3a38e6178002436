"""Pictures that are odd but right, and files that are none: each under a name, with what must become of it."""

import io
import pickle
import random
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from tests.hostile import Refused, Taken

pillow_heif.register_heif_opener()
RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
NONE, DAMAGED, LARGE = Refused("not an image"), Refused("damaged"), Refused("megapixels")


def two(mode: str = "RGB", size: tuple[int, int] = (80, 60)) -> Image.Image:
    """Red on the left, blue on the right; in modes without colour white and black."""
    image = Image.new(mode, size, {"RGB": RED, "RGBA": (*RED, 255), "CMYK": (0, 255, 255, 0)}.get(mode, 255))
    right = {"RGB": BLUE, "RGBA": (*BLUE, 255), "CMYK": (255, 255, 0, 0)}.get(mode, 0)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def saved(image: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - any options
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010F] = "SECRET CAMERA"
    made.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 14.0)})
    return made


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG as it is on paper, with any numbers in its header."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def with_box_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


class _Payload:
    """Leaves a marker when somebody unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        from tests.hostile import MARK

        return os.system, (f"touch /tmp/{MARK}",)


def pickled() -> bytes:
    return pickle.dumps({"a": _Payload()}, protocol=2)


def good() -> dict[str, tuple[str, bytes, Taken]]:
    """Odd, but a picture: (file name, bytes, what must come of it) by what is odd about it."""
    jpeg = {"quality": 95, "subsampling": 0}
    upright = Taken(first=RED, last=BLUE)
    plain = Taken(first=WHITE, last=BLACK)
    clear = two("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    half = Image.new("LA", (80, 60), (0, 0))
    palette = two().quantize(4)
    clear_red = saved(palette, "PNG", transparency=palette.getpixel((0, 0)))
    deep = np.zeros((60, 80), np.uint16)
    deep[:, :40] = 65535
    rows16 = b"".join(b"\0" + b"\xff\xff\0\0\0\0" * 40 + b"\0\0\0\0\xff\xff" * 40 for _ in range(60))
    rows16a = b"".join(b"\0" + b"\xff\xff\0\0\0\0\xff\xff" * 40 + b"\0\0\0\0\xff\xff\0\0" * 40 for _ in range(60))
    rows4 = b"".join(b"\0" + bytes([255] * 20) + bytes(20) for _ in range(60))
    animated = {"save_all": True, "append_images": [Image.new("RGB", (80, 60), "green")]}
    jpg = saved(two(), "JPEG", **jpeg)
    good: dict[str, tuple[str, bytes, Taken]] = {
        "png": ("a.png", saved(two(), "PNG"), upright),
        "png grey of 4 bits": ("a.png", png(80, 60, 4, 0, rows4), plain),
        "png grey of 16 bits": ("a.png", saved(Image.fromarray(deep), "PNG"), plain),
        "png colour of 16 bits": ("a.png", png(80, 60, 16, 2, rows16), upright),
        "png of 16 bits with alpha": ("a.png", png(80, 60, 16, 6, rows16a), Taken(first=RED, last=WHITE)),
        "png with palette": ("a.png", saved(palette, "PNG"), upright),
        "png with a clear colour in its palette": ("a.png", clear_red, Taken(first=WHITE, last=BLUE)),
        "png with alpha": ("a.png", saved(two("RGBA"), "PNG"), upright),
        "png of hidden colours": ("a.png", saved(clear, "PNG"), Taken(first=WHITE, last=WHITE)),
        "png grey with alpha": ("a.png", saved(half, "PNG"), Taken(first=WHITE, last=WHITE)),
        "png animated": ("a.png", saved(two(), "PNG", **animated), upright),
        "png with a profile that is none": ("a.png", saved(two(), "PNG", icc_profile=b"no profile"), upright),
        "jpeg": ("a.jpg", jpg, upright),
        "jpeg grey": ("a.jpg", saved(two("L"), "JPEG", quality=95), plain),
        "jpeg for print": ("a.jpg", saved(two("CMYK"), "JPEG", **jpeg), upright),
        "jpeg with exif that is none": ("a.jpg", saved(two(), "JPEG", exif=b"Exif\0\0junk", **jpeg), upright),
        "jpeg of two pictures": ("a.jpg", saved(two(), "MPO", **animated, **jpeg), upright),
        "webp lossless": ("a.webp", saved(two(), "WEBP", lossless=True), upright),
        "webp with alpha": ("a.webp", saved(clear, "WEBP", lossless=True), Taken(first=WHITE, last=WHITE)),
        "bmp": ("a.bmp", saved(two(), "BMP"), upright),
        "png named jpg": ("a.jpg", saved(two(), "PNG"), upright),
        "jpeg named gif": ("a.gif", jpg, upright),
        "one pixel": ("a.png", saved(two(size=(1, 1)), "PNG"), Taken(size=(1, 1))),
        "a strip": ("a.png", saved(two(size=(3000, 1)), "PNG"), Taken((3000, 1), RED, BLUE)),
    }
    corners = {turn: (BLUE, RED) if turn in (2, 3, 7, 8) else (RED, BLUE) for turn in range(1, 9)}
    for turn, (first, last) in corners.items():
        data = saved(two(), "JPEG", exif=exif(turn), **jpeg)
        good[f"jpeg turned {turn}"] = ("a.jpg", data, Taken((60, 80) if turn > 4 else (80, 60), first, last))
    good["jpeg turned 99"] = ("a.jpg", saved(two(), "JPEG", exif=exif(99), **jpeg), upright)
    good["png turned"] = ("a.png", saved(two(), "PNG", exif=exif(6)), Taken((60, 80), RED, BLUE))
    for form, name in (("HEIF", "a.heic"), ("AVIF", "a.avif")):
        exact = {"quality": -1} if form == "HEIF" else {"quality": 100, "subsampling": "4:4:4"}
        for turn in (1, 2, 3, 6, 8):
            first, last = corners[turn]
            data = saved(two(), form, exif=exif(turn).tobytes(), **exact)
            good[f"{form} turned {turn}"] = (name, data, Taken((60, 80) if turn > 4 else (80, 60), first, last))
        good[f"{form} with alpha"] = (name, saved(clear, form, **exact), Taken(first=WHITE, last=WHITE))
        good[f"{form} named jpg"] = ("a.jpg", saved(two(), form, **exact), upright)
    good["webp turned"] = ("a.webp", saved(two(), "WEBP", lossless=True, exif=exif(8)), Taken((60, 80), BLUE, RED))
    return good


def bad() -> dict[str, tuple[str, bytes, Refused]]:
    """No pictures, or broken ones, or ones that would fill the memory."""
    whole, jpg, webp, bmp = (saved(two(), form) for form in ("PNG", "JPEG", "WEBP", "BMP"))
    heic, avif = saved(two(), "HEIF"), saved(two(), "AVIF")
    noisy = saved(Image.frombytes("RGB", (100, 100), random.Random(1).randbytes(30000)), "PNG")
    zeros = zlib.compress(bytes(60 * 2**20), 9)
    long_bmp = bmp[:18] + struct.pack("<ii", 30000, 30000) + bmp[26:]
    bad_headers = {
        "heif": ("a.heif", b"\0\0\0\x18ftypmif1" + bytes(80), DAMAGED),
        "svg": ("a.svg", b"<svg onload='alert(1)'/>", Refused("SVG")),
        "jxl": ("a.jxl", b"\xff\x0a" + bytes(80), Refused("JPEG XL")),
        "avif": ("a.avif", b"\0\0\0\x1cftypavif" + bytes(80), DAMAGED),
        "a video": ("a.heic", b"\0\0\0\x18ftypmp42" + bytes(80), NONE),
        "gif": ("a.gif", saved(two(), "GIF"), Refused("GIF")),
        "tiff": ("a.tif", saved(two(), "TIFF"), Refused("TIFF")),
        "psd": ("a.psd", b"8BPS\0\1" + bytes(80), Refused("Photoshop")),
    }
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n"
    other_formats = {
        "eps": eps,
        "eps with a binary head": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps)) + bytes(20) + eps,
        "pdf": b"%PDF-1.7\n1 0 obj\n",
        "psd, renamed": b"8BPS\0\1" + bytes(80),
        "tiff, renamed": saved(two(), "TIFF"),
        "gif, renamed": saved(two(), "GIF"),
        "ico": saved(two(size=(16, 16)), "ICO"),
        "ppm": saved(two(), "PPM"),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(80),
    }
    no_pictures = {
        "nothing": b"",
        "html": b"<html><script>alert(1)</script>",
        "xml that refers to a file": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "a pickle": pickled(),
        "a zip": b"PK\3\4" + bytes(80),
    }
    broken = {
        "png, its name alone": whole[:8],
        "png with a wrong byte in its data": flipped(noisy, 9000),
        "png without end": noisy[:-5000],
        "png 0 wide": png(0, 9, 8, 2, b""),
        "png of an impossible depth": png(9, 9, 13, 2, bytes(300)),
        "png with too little": png(80, 60, 8, 2, b"\0" * 90),
        "jpeg, half": jpg[: len(jpg) // 2],
        "webp, half": webp[: len(webp) // 2],
        "bmp, half": bmp[: len(bmp) // 2],
        "bmp of no bits": bmp[:28] + b"\0\0" + bmp[30:],
        "jpeg that tells 7900 x 7900": with_jpeg_size(jpg, 7900, 7900),
        "heic, half": heic[: len(heic) // 2],
        "heic of zeros": heic[: heic.index(b"mdat") + 4] + bytes(len(heic)),
        "heic that tells 12000 x 12000": with_box_size(heic, 12000, 12000),
        "png with a profile of 60 MB": png(80, 60, 8, 2, b"\0" * 60, chunk(b"iCCP", b"a\0\0" + zeros)),
        "png with a text of 60 MB": png(80, 60, 8, 2, b"\0" * 60, chunk(b"zTXt", b"a\0\0" + zeros)),
        "avif, its head alone": avif[:40],
        "avif of zeros": avif[: avif.index(b"mdat") + 4] + bytes(len(avif)),
    }
    bombs = {
        "png that tells 40000 x 40000": png(40000, 40000, 8, 2, b""),
        "png of 13000 x 13000 in one bit": png(13000, 13000, 1, 0, bytes(13000 * 1626)),
        "png 2 billion wide": png(2**31 - 1, 1, 1, 0, b"\0" * 11),
        "jpeg that tells 65500 x 65500": with_jpeg_size(jpg, 65500, 65500),
        "bmp that tells 30000 x 30000": long_bmp,
        "avif that tells 12000 x 12000": with_box_size(avif, 12000, 12000),
    }
    return {
        **bad_headers,
        **{name: (f"{number}.png", data, NONE) for number, (name, data) in enumerate(other_formats.items())},
        **{name: (f"{number}.jpg", data, Refused("")) for number, (name, data) in enumerate(no_pictures.items())},
        **{name: (f"{number}.png", data, Refused("")) for number, (name, data) in enumerate(broken.items())},
        **{name: (f"{number}.png", data, LARGE) for number, (name, data) in enumerate(bombs.items())},
    }
