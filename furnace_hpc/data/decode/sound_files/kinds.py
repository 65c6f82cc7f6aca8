"""Recognise the format of a sound file by its first bytes, not by its name."""

from furnace_hpc.data.decode.sound_files import flac, ogg, wav
from furnace_hpc.data.decode.sound_files.aiff_and_au import check_aiff, check_au
from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound, skip_id3
from furnace_hpc.data.decode.sound_files.mp3 import check_mp3
from furnace_hpc.data.packing.rejects import Unusable

# Offset, bytes at this offset, and name of a format that is not decoded.
_OTHERS = (
    (4, b"ftyp", "MPEG-4 (.m4a, .mp4)"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"\x30\x26\xb2\x75", "Windows Media (.wma)"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"ADIF", "AAC"),
    (0, b"#!AMR", "AMR"),
    (0, b"caff", "Core Audio"),
    (0, b"riff", "Wave64"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (8, b"AVI ", "AVI"),
    (0, b"<", "HTML or XML"),
    (0, b"{", "JSON"),
)


def check_sound(content: bytes) -> CheckedSound:
    """Compare a file's header with its content, and return the content to decode.

    Raises:
        Unusable: samples are missing, or the format is not WAV, FLAC, Ogg, MP3, AIFF or AU.
    """
    whole, content = content, content[skip_id3(content) :]
    if content.startswith(wav.MAGIC) and content[8:12] == b"WAVE":
        return wav.check_wav(content)
    if content.startswith(flac.MAGIC):
        return flac.check_flac(content)
    if content.startswith(ogg.MAGIC):
        return ogg.check_ogg(content)
    if content.startswith(b"FORM") and content[8:12] in (b"AIFF", b"AIFC"):
        return check_aiff(content)
    if content.startswith(b".snd"):
        return check_au(content)
    for place, magic, name in _OTHERS:
        if content.startswith(magic, place):
            raise _not_decoded(f"{name} is not decoded here")
    found = check_mp3(whole)
    if found is None:
        raise _not_decoded("neither WAV, FLAC, Ogg nor MP3")
    return found


def _not_decoded(problem: str) -> Unusable:
    return Unusable("unreadable", f"{problem}: convert it to FLAC, e.g. ffmpeg -i FILE out.flac")
