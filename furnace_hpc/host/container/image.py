"""What is known of an image without starting it: its kind, its size, its age and a hash.

Standard library only, syntax of Python 3.6.
"""

import hashlib
import os
from typing import Any, Dict

from furnace_hpc.host.regular_file import open_regular

HASHED_BYTES = 1 << 20  # at each end: images have gigabytes, and every job reads this
SQUASHFS, SIF = "squashfs", "sif"
_SIF_MAGIC_AT, _SIF_MAGIC = 32, b"SIF_MAGIC"


def image_facts(path: str) -> Dict[str, Any]:
    """The record of an image in an attempt: path, size, time of change, and a hash of its ends.

    The ends have the image's own identifier and time (SIF), or its superblock and tables
    (squashfs). A folder (a sandbox of Apptainer) has no size and no hash.

    Raises:
        OSError: it is missing, or this user may not read it.
    """
    facts = os.stat(path)
    record = {"image": path, "mtime": round(facts.st_mtime, 3)}  # type: Dict[str, Any]
    if os.path.isdir(path):
        os.listdir(path)
        return record
    with open_regular(path) as file:
        digest = hashlib.sha256(file.read(HASHED_BYTES))
        file.seek(max(HASHED_BYTES, facts.st_size - HASHED_BYTES))
        digest.update(file.read(HASHED_BYTES))
    record.update({"bytes": facts.st_size, "sha256_of_ends": digest.hexdigest()})
    return record


def in_words(record: Dict[str, Any]) -> str:
    """One line on an image, for the versions that a result names."""
    if "bytes" not in record:
        return f"{record['image']} (a folder)"
    return f"{record['image']} ({record['bytes']} bytes, ends {record['sha256_of_ends'][:16]})"


def image_kind(path: str) -> str:
    """`sif`, `squashfs`, `folder`, or empty if it is none of them.

    Raises:
        OSError: as `image_facts`.
    """
    if os.path.isdir(path):
        return "folder"
    with open_regular(path) as file:
        head = file.read(64)
    if head[_SIF_MAGIC_AT:].startswith(_SIF_MAGIC):
        return SIF
    return SQUASHFS if head.startswith(b"hsqs") else ""
