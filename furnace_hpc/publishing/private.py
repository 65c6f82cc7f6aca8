"""Remove private names from what is published, and check that none is left."""

import getpass
import json
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import find_secret, masked

# Names that are words, or are the same on every machine.
COMMON = frozenset({"root", "user", "admin", "ubuntu", "debian", "localhost", "test", "data"})
SHORTEST_NAME = 4
MAX_LIST = 64  # longer lists are vocabularies, whose words may begin with a slash
TEXTS = frozenset({".md", ".csv", ".tex", ".html", ".json", ".yaml", ".py", ".txt", ".svg"})


@dataclass(frozen=True)
class Private:
    """Paths and names of this user, machine and site."""

    paths: tuple[str, ...]
    """The longest first."""
    names: tuple[str, ...]

    @classmethod
    def of_this_user(cls, paths: Iterable[Path], nodes: Iterable[str], words: str) -> "Private":
        """Collect the home and working directory, user, host, and the given paths and nodes.

        Args:
            paths: folders of runs and data.
            nodes: names of nodes.
            words: text of the study and of the report. Names that it contains are kept.
        """
        folders = [Path.home(), Path.cwd(), *paths]
        known = {str(form) for path in folders for form in (path.absolute(), path.resolve())}
        names = {getpass.getuser(), socket.gethostname(), *nodes}
        public = set(re.findall(r"\w+", words)) | COMMON
        return cls(
            tuple(sorted((path for path in known if path != "/"), key=len, reverse=True)),
            tuple(
                name
                for name in sorted(names, key=len, reverse=True)
                if len(name) >= SHORTEST_NAME and name not in public
            ),
        )

    def clean(self, text: str) -> str:
        """Return the text without secrets, with short forms of private paths and names."""
        text = masked(text)
        for path in self.paths:
            text = re.sub(rf"{re.escape(path)}(?=[/\W]|$)", _short(path), text)
        for name in self.names:
            text = _word(name).sub("user", text)
        return text

    def found_in(self, content: bytes, is_text: bool) -> str:
        """Return the first private path or name in a file. Empty if there is none."""
        for path in self.paths:
            if path.encode() + b"/" in content:
                return path
        if not is_text:
            return ""
        text = content.decode("utf-8", "replace")
        for name in self.names:
            if _word(name).search(text):
                return name
        return "a text that looks like a secret" if find_secret(text) is not None else ""


def _short(path: str) -> str:
    if path == str(Path.home()):
        return "~"
    return Path(path).name


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")


def without_paths(content: Any) -> Any:
    """Return JSON whose absolute paths are replaced by their last part."""
    match content:
        case dict():
            return {key: without_paths(value) for key, value in content.items()}
        case list() if len(content) <= MAX_LIST:
            return [without_paths(value) for value in content]
        case str() if _is_path(content):
            return Path(content).name
        case _:
            return content


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.count("/") > 1 and "\n" not in text


def clean_config(path: Path, private: Private) -> None:
    """Remove absolute paths from `config.json`: of encoders, tokenizers and sources of the data.

    Names of classes stay, because they may begin with a slash.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    content["config"] = without_paths(content["config"])
    data = content["data"]
    data["preprocessing"] = without_paths(data["preprocessing"])
    content["architectures"] = without_paths(content["architectures"])
    path.write_text(private.clean(json.dumps(content, indent=1)), encoding="utf-8")


def check_folder(folder: Path, private: Private) -> None:
    """Raise ConfigError if a file of the folder has a private path, a name or a secret."""
    for path, content in _files(folder):
        is_text = path.suffix in TEXTS
        if found := private.found_in(content, is_text):
            name = path.relative_to(folder)
            raise ConfigError(
                f"{name} would contain {found!r}, which is private. Remove it from the grid, the "
                "code or the data that it comes from"
            )


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
