"""The versions that stand in a manifest; they are no part of a fingerprint."""

from importlib.metadata import PackageNotFoundError, version
from platform import python_version


def versions() -> dict[str, str]:
    """The versions of what computes columns, where installed."""
    found = {"python": python_version()}
    for package in (
        "numpy",
        "librosa",
        "scikit-learn",
        "soundfile",
        "soxr",
        "pillow",
        "tokenizers",
        "h5py",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
