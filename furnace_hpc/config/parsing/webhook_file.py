"""Read the URL of a webhook from a private file. Everyone who knows the URL can post there."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import MASK
from furnace_hpc.host.regular_file import read_regular

MAX_BYTES = 4096


def read_webhook(file: str) -> str:
    """Return the URL in a file that only its owner can read.

    Args:
        file: absolute path of the file, or one that begins with `~`.

    Raises:
        ConfigError: the file is missing, other users can read it, or it contains no URL.
    """
    path = Path(file).expanduser()
    try:
        facts = path.stat()
        text = read_regular(path, at_most=MAX_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(
            f"notify: {path} cannot be read ({reason}). Write the webhook's URL into that file"
        ) from None
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ConfigError(
            f"notify: other users can read or change {path}, and its URL is a secret. "
            f"Run chmod 600 {path}"
        )
    url = text.strip()
    parts = _parts(url)
    if parts is None:
        raise ConfigError(
            f"notify: {path} has no URL, wanted one line that begins with https:// or http://. "
            f"Correct the file"
        )
    return url


def masked_url(url: str) -> str:
    """Return the host of a URL, without its path, query, user and password."""
    parts = _parts(url)
    if parts is None:
        return MASK
    port = f":{parts[1]}" if parts[1] else ""
    return f"{urlsplit(url).scheme}://{parts[0]}{port}/{MASK}"


def _parts(url: str) -> tuple[str, int | None] | None:
    """Return host and port. None if it is not a URL of a web server."""
    is_clean = url.isascii() and url.isprintable() and " " not in url
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError:  # not a number of a port
        return None
    if not is_clean or split.scheme not in ("http", "https") or not host:
        return None
    return host, port
