"""Find and read the YAML and JSON files that users write: grids, cluster profiles, DeepSpeed files.

A name is looked up in the working directory first, then in the package.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.source_text import SourceText
from furnace_hpc.config.parsing.text_safety import find_secret, masked, short
from furnace_hpc.host.access import find_faults
from furnace_hpc.host.regular_file import read_regular

Kind = Literal["grid", "cluster", "DeepSpeed file"]
FOLDERS: dict[Kind, str] = {
    "grid": "experiments",
    "cluster": "slurm/clusters",
    "DeepSpeed file": "ds_configs",
}
SUFFIXES: dict[Kind, str] = {"grid": ".yaml", "cluster": ".yaml", "DeepSpeed file": ".json"}
MAX_FILE_BYTES = 1_000_000  # a hand-written file is smaller, a data file given by mistake is not

PACKAGE = Path(__file__).resolve().parents[2]


def shipped_roots() -> list[Path]:
    """Folders with experiments/, ds_configs/ and slurm/: here, of the wheel, of the clone."""
    return [Path.cwd(), PACKAGE / "_shipped", PACKAGE.parent]


def is_path(name: str) -> bool:
    """Whether a word is the path of a file, and not a name."""
    return Path(name).suffix in {".yaml", ".yml", ".json"} or "/" in name


def names_of(kind: Kind) -> list[str]:
    """The names of all files of a kind, sorted."""
    folders = [root / FOLDERS[kind] for root in shipped_roots()]
    return sorted({path.stem for folder in folders for path in folder.glob(f"*{SUFFIXES[kind]}")})


def find_file(kind: Kind, name: str) -> Path:
    """Return the file that `name`, which may be a path, stands for.

    Raises:
        ConfigError: there is no such file. The message lists the names that exist.
    """
    if is_path(name):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(
            f"{kind} {name!r}: there is no such file. Give a path to a file, or a name without "
            f"suffix"
        )
    for root in shipped_roots():
        path = root / FOLDERS[kind] / f"{name}{SUFFIXES[kind]}"
        if path.is_file():
            return path
    raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, names_of(kind))}")


def check_is_own(path: Path) -> None:
    """Raise ConfigError if other users could have put this file into the working directory.

    It contains lines of shell. Files that come with the package are trusted like the package.
    """
    if path.resolve().is_relative_to(PACKAGE.parent):
        return
    if fault := next(find_faults(str(path), str(Path.cwd())), None):
        raise ConfigError(
            f"{path} is in the working directory and is not trusted: {fault.problem}. {fault.fix}"
        )


def find_shipped(name: str) -> Path:
    """The path of a file that comes with the package, such as slurm/array.sbatch.

    The path is relative if the file is in the working directory.

    Raises:
        ConfigError: as `check_is_own`.
    """
    paths = [root / name for root in shipped_roots()]
    found = next(path for path in paths if path.is_file())
    check_is_own(found)
    if found == Path.cwd() / name:
        return Path(name)
    return found


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Duplicate keys are errors.

    Raises:
        ConfigError: it cannot be read or parsed. The message has line and column.
    """
    return read_with_source(path)[0]


def read_with_source(path: Path) -> tuple[Any, SourceText]:
    """Like `read_yaml`, and return the text too, to find the place of a value.

    Raises:
        ConfigError: as `read_yaml`.
    """
    text = _read_text(path)
    try:
        return strict_yaml.load(text), SourceText(str(path), text)
    except yaml.YAMLError as error:
        raise _yaml_error(path, text, error) from None


def _yaml_error(path: Path, text: str, error: yaml.YAMLError) -> ConfigError:
    """The error with the place in the file, if PyYAML gives one."""
    problem = getattr(error, "problem", None)
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        reason = problem or " ".join(str(error).split())
        return ConfigError(f"{path}: not valid YAML: {short(reason, 300)}")
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        problem = "a tab cannot indent YAML. Use spaces"
    place = f"{path}:{mark.line + 1}:{mark.column + 1}"
    return ConfigError(f"{place}: {short(problem or 'not valid YAML', 300)}")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Duplicate keys are errors.

    Raises:
        ConfigError: it cannot be read or parsed. The message has line and column.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict[str, Any]()
        for key, value in items:
            if key in seen:
                raise ConfigError(f"{path}: key {short(key)!r} is a duplicate. Keep one")
            seen[key] = value
        return seen

    def whole(text: str) -> int:
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise ConfigError(
                f"{path}: {short(text, 24)} does not fit in 64 bits. Give a smaller number"
            )
        return int(text)

    def constant(word: str) -> Any:
        raise ConfigError(f"{path}: {word} is not valid JSON. Give a number")

    try:
        content = json.loads(
            _read_text(path), object_pairs_hook=pairs, parse_int=whole, parse_constant=constant
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise _too_deep(path) from None
    if _is_deep(content):
        raise _too_deep(path)
    return content


def _too_deep(path: Path) -> ConfigError:
    return ConfigError(f"{path}: nested more than {strict_yaml.MAX_DEPTH} deep. Use fewer levels")


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(strict_yaml.MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
    return bool(level)


def parse_value(text: str) -> Any:
    """Parse the value of a `--set key=value` as YAML: numbers, lists, null, true.

    Raises:
        ConfigError: the text is not one YAML value.
    """
    try:
        return strict_yaml.load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        why = short(masked(" ".join(str(problem).split())), 200)
        raise ConfigError(
            f"value {short(masked(text))!r} is not YAML ({why}). Put it in quotes"
        ) from None


def data_root(given: Path | None) -> Path:
    """Folder of the packed data sets: `--data-root`, else $FURNACE_DATA, else ./data."""
    return given or Path(os.environ.get("FURNACE_DATA") or "data")


def pack_in(root: Path, name: str) -> Path:
    """Folder of the pack `name` below a data root. A root that is itself a pack is returned."""
    if (root / "manifest.json").is_file():
        return root
    return root / name


def runs_root(given: Path | None) -> Path:
    """Folder of the runs: `--runs-root`, else $FURNACE_RUNS, else ./runs."""
    return given or Path(os.environ.get("FURNACE_RUNS") or "runs")


def _read_text(path: Path) -> str:
    try:
        content = read_regular(path, at_most=MAX_FILE_BYTES)
        text = content.decode("utf-8-sig")  # Windows editors begin a file with a byte-order mark
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text. Save it as UTF-8") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ConfigError(
                f"{path}: larger than {MAX_FILE_BYTES:,} bytes. Give a hand-written file"
            ) from None
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if (at := find_secret(text)) is not None:
        raise ConfigError(
            f"{path}:{text.count(chr(10), 0, at) + 1}: this line looks like a secret, and would be "
            f"copied to scripts and reports. Keep it in a file of mode 0600, and read it from "
            f"there (`setup: ['. ~/.my-secrets']`, `notify: ~/.my-webhook`)"
        )
    return text
