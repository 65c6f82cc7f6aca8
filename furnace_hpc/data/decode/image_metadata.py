"""Remove metadata from images, and name the kind of other files.

Pillow reads metadata before pixels, and fails if the metadata is broken or very large. The pixels
may be fine, so such a file is decoded again without metadata.
"""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # type of a tag -> format of struct
# Tags that pixels depend on: size, bits, compression, strips, tiles, colour map, extra samples,
# tables, subsampling.
_TIFF_TAGS = {
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324,
    325, 332, 333, 334, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529,
    530, 531, 532,
}  # fmt: skip
_WEBP_METADATA = 0x20 | 0x08 | 0x04  # flags of VP8X: colour profile, EXIF, XMP
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")  # codespell:ignore alph

_BEGINNINGS = (
    (b"\xff\xd8\xff", "a damaged JPEG image"),
    (PNG_SIGNATURE, "a damaged PNG image"),
    (b"GIF8", "a damaged GIF image"),
    (b"II*\0", "a damaged TIFF image"),
    (b"MM\0*", "a damaged TIFF image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"II\xbc", "a JPEG XR image"),
    (b"8BPS", "a Photoshop image"),
    (b"\0\0\1\0", "an icon"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"version https://git-lfs", "a pointer of Git LFS, the image was not fetched"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\3\4", "a zip archive"),
    (b"OggS", "an Ogg sound"),
    (b"fLaC", "a FLAC sound"),
    (b"ID3", "an MP3 sound"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
)
_BRANDS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC image"
    ),
}
_RIFF_KINDS = {b"WAVE": "a WAV sound", b"WEBP": "a damaged WebP image"}
_TEXTS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
)


def kind_of(head: bytes) -> str:
    """Name the kind of a file, by its first bytes."""
    if head[4:8] == b"ftyp":
        brands = (head[8:12], *(head[at : at + 4] for at in range(16, min(64, len(head)), 4)))
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "an MP4 video")
    if head[:4] == b"RIFF":
        return _RIFF_KINDS.get(head[8:12], "a RIFF file")
    for start, kind in _BEGINNINGS:
        if head.startswith(start):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, kind in _TEXTS:
        if text.startswith(start):
            return kind
    if text.startswith(b"<?xml"):
        return "an SVG drawing" if b"<svg" in text else "an XML document"
    if not head.strip(b"\0"):
        return "zeros"
    return "no known image"


def orientation_of(exif: bytes | None) -> int | None:
    """Return the tag Orientation of the first directory of EXIF. None if missing or no integer."""
    found, content = None, exif or b""
    while content.startswith(_EXIF):
        content = content[len(_EXIF) :]
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack(f"{order}I", content[4:8])
        (count,) = struct.unpack(f"{order}H", content[start : start + 2])
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack(f"{order}HHI", content[at : at + 8])
            if tag != _ORIENTATION or kind not in _INTEGERS:
                continue
            if 1 <= length <= 4 // struct.calcsize(_INTEGERS[kind]):
                (found,) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", content, at + 8)
    except struct.error:
        pass  # the content ends early
    return found


def without_metadata(content: bytes) -> tuple[bytes, bytes] | None:
    """Return a JPEG, PNG, WebP or TIFF without metadata, and its EXIF.

    None if the format is another, or the file cannot be parsed. A TIFF keeps its EXIF inside.
    """
    try:
        if content.startswith(b"\xff\xd8"):
            return _bare_jpeg(content)
        if content.startswith(PNG_SIGNATURE):
            return _bare_png(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _bare_webp(content)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _bare_tiff(content), b""
    except (struct.error, IndexError):
        pass
    return None


def _bare_jpeg(content: bytes) -> tuple[bytes, bytes]:
    """Drop application segments and comments. Keep JFIF and Adobe, which define the colours."""
    kept, exif, at = [content[:2]], b"", 2
    while content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA:  # the pixels begin
            break
        end = at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
        body = content[at + 4 : end]
        if marker == 0xE1 and body.startswith(_EXIF):
            # EXIF may be split into several segments
            exif = (exif or _EXIF) + body[len(_EXIF) :]
        colours = (marker, body[:4]) in ((0xE0, b"JFIF"), (0xEE, b"Adob")) and len(body) >= 12
        if colours or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[at:end])
        at = end
    return b"".join((*kept, content[at:])), exif


def _bare_png(content: bytes) -> tuple[bytes, bytes]:
    """Keep critical chunks and transparency only. Names of critical chunks begin with a capital."""
    kept, exif, at = [PNG_SIGNATURE], b"", len(PNG_SIGNATURE)
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        end = at + 12 + length
        checksum = content[end - 4 : end]
        if name[:1].isupper() or name == b"tRNS":
            kept.append(content[at:end])
        elif name == b"eXIf" and zlib.crc32(content[at + 4 : end - 4]).to_bytes(4) == checksum:
            exif = _EXIF + content[at + 8 : end - 4]
        at = end
    return b"".join(kept), exif


def _bare_webp(content: bytes) -> tuple[bytes, bytes]:
    """Keep chunks of pixels, and write the right size of the file into its header."""
    kept, exif, at = list[bytes](), b"", 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        body = content[at + 8 : at + 8 + size]
        if name == b"VP8X" and body:
            body = bytes([body[0] & ~_WEBP_METADATA]) + body[1:]
        if name in _WEBP_PIXELS and len(body) == size:
            kept.append(struct.pack("<4sI", name, size) + body + bytes(size % 2))
        elif name == b"EXIF":
            exif = body if body.startswith(_EXIF) else _EXIF + body
        at += 8 + size + size % 2
    pixels = b"".join(kept)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(pixels), b"WEBP") + pixels, exif


def _bare_tiff(content: bytes) -> bytes:
    """Keep the tags of the first image that its pixels depend on, at the same offset."""
    order = "<" if content[:1] == b"I" else ">"
    (start,) = struct.unpack(f"{order}I", content[4:8])
    (count,) = struct.unpack(f"{order}H", content[start : start + 2])
    entries = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if struct.unpack(f"{order}H", entry[:2])[0] in _TIFF_TAGS]
    table = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:start] + table + content[start + len(table) :]
