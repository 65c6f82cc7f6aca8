"""Read arrays from an untrusted .npz file: each size is checked before memory is allocated."""

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.regular_file import IrregularFile, open_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ARRAY_BYTES = 2 << 30
MAX_INDEX_BYTES = 1 << 20  # of the list of members in the zip file; predictions have about ten
END = struct.Struct("<4s4x4xI4xH")  # signature, bytes of the list of members, bytes of a comment
LOCATOR_BYTES = 20


def read_arrays(path: Path, names: Sequence[str]) -> "list[NDArray[Any]]":
    """Read arrays of integers or floats from an uncompressed .npz file, as `numpy.savez` writes it.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: it is not such a file, or lacks an array. The message does not contain the
            path.
    """
    try:
        with open_regular(path) as file:
            most = min(MAX_ARRAY_BYTES, _check_end(file))
            with zipfile.ZipFile(file) as members:
                return [_read_array(members, name, most) for name in names]
    except (FileNotFoundError, ConfigError):
        raise
    except IrregularFile as error:
        raise ConfigError(str(error.strerror)) from None
    except Exception as error:  # zipfile and numpy raise many kinds for damaged files
        raise ConfigError(f"{type(error).__name__} {error}".strip()) from None


def _check_end(file: IO[bytes]) -> int:
    """Return the file's size in bytes. Refuse a long list of members before zipfile reads it."""
    size = file.seek(0, os.SEEK_END)
    if size < END.size:
        raise ConfigError("not an .npz file")
    file.seek(size - END.size)
    signature, index_bytes, comment_bytes = END.unpack(file.read())
    file.seek(max(0, size - END.size - LOCATOR_BYTES))
    # such a file's list of members may be longer than the end record says
    has_zip64_locator = file.read(4) == b"PK\x06\x07"
    if signature != b"PK\x05\x06" or comment_bytes:
        raise ConfigError("not an .npz file, or cut short")
    if index_bytes > MAX_INDEX_BYTES or has_zip64_locator:
        raise ConfigError("too many members for predictions")
    return size


def _read_array(members: zipfile.ZipFile, name: str, most_bytes: int) -> "NDArray[Any]":
    import numpy as np
    from numpy.lib import format as npy

    try:
        info = members.getinfo(f"{name}.npy")
    except KeyError:
        raise ConfigError(f"no array {name!r}") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise ConfigError(f"{name} is compressed, so its size is unknown")
    with members.open(info) as member:
        version = npy.read_magic(member)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(
            version
        )
        if read_header is None:
            raise ConfigError(f"{name} has an unknown version of .npy")
        shape, fortran_order, dtype = read_header(member)
        num_bytes, stored = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if dtype.kind not in "iuf" or any(length < 0 for length in shape):
            raise ConfigError(f"{name} is not an array of numbers")
        if num_bytes != stored or num_bytes > most_bytes:
            raise ConfigError(
                f"{name} claims {num_bytes:,} bytes, and {min(stored, most_bytes):,} can be read"
            )
        # reads to the end, where zipfile checks the CRC
        array = np.frombuffer(bytearray(member.read()), dtype)
    array = array.reshape(shape, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
