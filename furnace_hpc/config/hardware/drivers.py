"""The oldest driver that a CUDA build of torch works with, and the build that an old driver needs.

Source: NVIDIA, "CUDA Compatibility", table 1 of "Minor Version Compatibility", and the release
notes of the CUDA Toolkit, table "Minimum Required Driver Version for CUDA Minor Version
Compatibility" (Linux). A build for a minor version, such as 12.8, works with any driver of its
major version. The driver's own files may be older than the toolkit.
"""

from typing import NamedTuple


class CudaBuild(NamedTuple):
    """A major version of CUDA."""

    major: int
    driver: tuple[int, ...]  # the oldest, on Linux
    wheels: str  # index of torch's wheels at download.pytorch.org; empty: none of this torch


BUILDS = (  # newest first
    CudaBuild(13, (580,), "cu130"),
    CudaBuild(12, (525, 60, 13), "cu126"),
    CudaBuild(11, (450, 80, 2), ""),
)


def numbers(version: str) -> tuple[int, ...]:
    """`535.183.01` as (535, 183, 1). Empty if the text is no version."""
    parts = version.split(".")
    if not all(part.isdigit() for part in parts):
        return ()
    return tuple(int(part) for part in parts)


def oldest_driver(cuda: str) -> str:
    """The oldest driver for a torch that was built for this CUDA. Empty if unknown."""
    major = numbers(cuda)[:1]
    for build in BUILDS:
        if major == (build.major,):
            return ".".join(map(str, build.driver))
    return ""


def is_too_old(driver: str, cuda: str) -> bool:
    """Whether the driver is older than this CUDA needs. False if one of them is unknown."""
    oldest = numbers(oldest_driver(cuda))
    return bool(oldest) and bool(numbers(driver)) and numbers(driver) < oldest


def install_command(driver: str, torch_version: str) -> str:
    """The pip command for a torch that works with this driver. Empty if no build does.

    Args:
        driver: version of the installed driver.
        torch_version: the wanted version of torch, with or without `+cu130`.
    """
    found = numbers(driver)
    if not found:
        return ""
    for build in BUILDS:
        if found >= build.driver and build.wheels:
            version = torch_version.partition("+")[0]
            index = f"https://download.pytorch.org/whl/{build.wheels}"
            return f"pip install torch=={version} --index-url {index}"
    return ""
