"""Small valid images of every accepted format and mode, and parts of PNG and EXIF."""

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, features

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture() -> Image.Image:
    """Red above, blue below, 60 wide, 40 high."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :, 0] = pixels[20:, :, 2] = 200
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + zlib.crc32(name + content).to_bytes(4)


def png(width: int, bits: int, colour: int, rows: list[bytes], *others: bytes) -> bytes:
    """A PNG of these rows of packed samples. The chunks `others` are before the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    end = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return PNG_SIGNATURE + chunk(b"IHDR", header) + b"".join(others) + end


@cache
def bomb() -> bytes:
    """A picture of 400 million pixels, one bit each, in 230 kB."""
    packer, row = zlib.compressobj(1), bytes(1 + 20_000 // 8)
    pixels = b"".join(packer.compress(row * 1000) for _ in range(20)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return PNG_SIGNATURE + chunks


def with_chunk(content: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return content[:33] + chunk(name, body) + content[33:]


def exif_of(*tags: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """EXIF of tags (tag, type, count, value of at most 4 bytes)."""
    entries = b"".join(
        struct.pack(f"{order}HHI", *tag[:3]) + tag[3].ljust(4, b"\0")[:4] for tag in sorted(tags)
    )
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def turned(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    """The tag Orientation."""
    return 0x0112, 3, 1, struct.pack(f"{order}H", value)


def all_kinds() -> dict[str, bytes]:
    """Name -> content."""
    image, grey = picture(), picture().convert("L")
    clear = picture().convert("RGBA")
    clear.putalpha(100)
    deep = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)
    real = Image.fromarray(np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60))
    wide = Image.fromarray(np.arange(2400, dtype=np.int32).reshape(40, 60))
    exif = exif_of(turned(6), (0x011A, 2, 4, b"300\0"))
    kinds = {
        "jpeg": encoded(image, "JPEG", exif=exif, comment=b"a comment"),
        "jpeg grey": encoded(grey, "JPEG"),
        "jpeg cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg progressive": encoded(
            image, "JPEG", progressive=True, dpi=(72, 72), icc_profile=b"profile"
        ),
        "png": encoded(image, "PNG", exif=exif),
        "png palette": encoded(image.quantize(4), "PNG", transparency=1),
        "png text": with_chunk(
            encoded(grey, "PNG"), b"zTXt", b"Comment\0\0" + zlib.compress(b"text")
        ),
        "png deep": encoded(deep, "PNG", transparency=27),
        "png clear": encoded(clear, "PNG"),
        "png moving": encoded(image, "PNG", save_all=True, append_images=[grey.convert("RGB")]),
        "png bit": encoded(image.convert("1"), "PNG"),
        "webp": encoded(image, "WEBP", exif=exif),
        "webp lossless": encoded(clear, "WEBP", lossless=True),
        "webp moving": encoded(image, "WEBP", save_all=True, append_images=[clear]),
        "gif": encoded(image.quantize(4), "GIF", transparency=0),
        "gif moving": encoded(image, "GIF", save_all=True, append_images=[grey]),
        "bmp": encoded(image, "BMP"),
        "bmp palette": encoded(image.quantize(4), "BMP"),
        "jpeg2000": encoded(image, "JPEG2000"),
        "jpeg2000 deep": encoded(deep, "JPEG2000"),
        "ppm": encoded(image, "PPM"),
        "ppm text": b"P3 2 2 255\n" + b"255 0 0 " * 4,
        "pfm": encoded(real, "PPM"),
    }
    if features.check("avif"):
        kinds["avif"] = encoded(image, "AVIF", exif=exif_of(turned(6)))
    return kinds | tiff_kinds(image, {"F": real, "I": wide, "I;16": deep})


def tiff_kinds(image: Image.Image, others: dict[str, Image.Image]) -> dict[str, bytes]:
    """TIFF files of several modes and compressions."""
    kinds = {f"tiff {mode}": encoded(other, "TIFF") for mode, other in others.items()}
    kinds["tiff P"] = encoded(image.quantize(4), "TIFF")
    kinds["tiff CMYK"] = encoded(image.convert("CMYK"), "TIFF")
    for name in ("raw", "tiff_lzw", "jpeg", "packbits", "tiff_deflate", "tiff_adobe_deflate"):
        info = {274: 6, 282: 3.0}
        kinds[f"tiff {name}"] = encoded(image, "TIFF", compression=name, tiffinfo=info)
    kinds["tiff group4"] = encoded(image.convert("1"), "TIFF", compression="group4")
    return kinds
