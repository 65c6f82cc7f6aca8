"""Forty kinds of broken files of a data set: posters and frames, JSON, sounds."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from image_files import bomb, chunk, encoded, picture, png
from PIL import Image

Way = Callable[[Path], None]


def writes(content: bytes) -> Way:
    return lambda path: _replaced(path).write_bytes(content) and None


def _replaced(path: Path) -> Path:
    path.unlink()
    return path


def cut(kind: str, part: float, **options: object) -> Way:
    content = encoded(picture().resize((90, 70)), kind, **options)
    return writes(content[: round(part * len(content))])


def folder(path: Path) -> None:
    _replaced(path).mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(_replaced(path))


def link_to(target: str) -> Way:
    return lambda path: _replaced(path).symlink_to(target)


def without_pixels() -> bytes:
    content = encoded(picture(), "PNG")
    at = content.index(b"IDAT") + 10
    return content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]


def not_finite() -> bytes:
    pixels = np.full((20, 20), 0.5, np.float32)
    pixels[3, 4] = np.nan
    return encoded(Image.fromarray(pixels), "TIFF")


def far_strips() -> bytes:
    content = encoded(picture(), "TIFF")
    (start,) = struct.unpack("<I", content[4:8])
    at = content.index(struct.pack("<HH", 273, 4), start)
    return content[: at + 8] + b"\xff\xff\xff\x7f" + content[at + 12 :]


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

IMAGES: dict[str, Way] = {
    "missing": lambda path: path.unlink(),
    "empty": writes(b""),
    "zeros": writes(bytes(5000)),
    "an HTML page": writes(b"<!DOCTYPE html><html><body>404</body></html>"),
    "a HEIC image": writes(HEIC),
    "PostScript": writes(POSTSCRIPT),
    "a PDF": writes(b"%PDF-1.7\n" + bytes(100)),
    "a pointer": writes(POINTER),
    "half a JPEG": cut("JPEG", 0.5),
    "a JPEG's header": writes(b"\xff\xd8\xff\xe0\0\x10JFIF\0"),
    "half a PNG": cut("PNG", 0.5),
    "half a WebP": cut("WEBP", 0.5),
    "a third of a GIF": cut("GIF", 0.3),
    "half a BMP": cut("BMP", 0.5),
    "half a JPEG 2000": cut("JPEG2000", 0.2),
    "half a PPM": cut("PPM", 0.5),
    "damaged pixels": writes(without_pixels()),
    "no pixels": writes(png(0, 8, 2, [])),
    "a bomb": lambda path: writes(bomb())(path),
    "not finite": writes(not_finite()),
    "strips beyond the end": writes(far_strips()),
    "a palette without pixels": writes(
        png(2, 8, 3, [b"\0\1"], chunk(b"tRNS", b"")).replace(b"IDAT", b"IDAX")
    ),
    "a folder": folder,
    "a pipe": pipe,
    "a loop": link_to("loop"),
    "a dead link": link_to("gone"),
}


def changed(**changes: object) -> Way:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


# Of a movie's JSON; what costs the plot alone.
PLOTS: dict[str, Way] = {
    "a lone surrogate": changed(plot=["x \ud83d y"]),
    "no plot": changed(plot=[], **{"plot outline": None}),
    "a plot of numbers": changed(plot=[1, 2, None], **{"plot outline": 3}),
}
# What costs the movie, which has no genres then.
ENTRIES: dict[str, Way] = {
    "nested too deep": writes(b'{"plot": ' + b"[" * 3000 + b"]" * 3000 + b"}"),
    "half a JSON": lambda path: path.write_bytes(path.read_bytes()[:40]) and None,
    "Latin-1": writes('{"plot": "x\xe9", "genres": ["Drama"]}'.encode("latin-1")),
    "a list": writes(b"[1, 2]"),
    "a long number": writes(b'{"genres": ["Drama"], "year": ' + b"9" * 5000 + b"}"),
    "an unknown genre": changed(genres=["Drama", "Cooking"]),
}


def sound(values: np.ndarray, kind: str = "WAV", subtype: str = "FLOAT") -> bytes:
    soundfile.write(file := io.BytesIO(), values, 16_000, format=kind, subtype=subtype)
    return file.getvalue()


NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000)
SOUNDS: dict[str, Way] = {
    "no sound": writes(b"no sound at all, not even a little of it"),
    "a sound of nothing": writes(sound(np.zeros(0))),
    "not finite": writes(sound(np.full(16_000, np.nan))),
    "half a FLAC": writes((flac := sound(NOISE, "FLAC", "PCM_16"))[: len(flac) // 2]),
    "compressed text": writes(zlib.compress(b"x" * 1000)),
}
NUM_WAYS = sum(map(len, (IMAGES, PLOTS, ENTRIES, SOUNDS)))
assert NUM_WAYS == 40, NUM_WAYS
