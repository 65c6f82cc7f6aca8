"""Finding and reading the YAML and JSON files that users write: grids, cluster profiles, DeepSpeed files.

A name is looked up in the working directory first, then in the package's own copy.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.source_text import Written
from furnace_hpc.config.parsing.text_safety import find_secret, masked, short
from furnace_hpc.host.access import find_faults
from furnace_hpc.host.regular_file import read_regular

Kind = Literal["grid", "cluster", "DeepSpeed file"]
FOLDERS: dict[Kind, str] = {
    "grid": "experiments",
    "cluster": "slurm/clusters",
    "DeepSpeed file": "ds_configs",
}
MAX_FILE_BYTES = 1_000_000  # no hand-written file is larger; stops a data file given by mistake

PACKAGE = Path(__file__).resolve().parents[2]


def shipped_roots() -> list[Path]:
    """Folders that may hold experiments/, ds_configs/ and slurm/: here, the wheel's copy, the checkout's."""
    return [Path.cwd(), PACKAGE / "_shipped", PACKAGE.parent]


def is_path(name: str) -> bool:
    """Whether a word that may be a name or a path of a file is a path."""
    return Path(name).suffix in {".yaml", ".yml", ".json"} or "/" in name


def find_file(kind: Kind, name: str) -> Path:
    """Return the file that `name` (a name, or a path with a suffix) means.

    Raises:
        ConfigError: there is none; the message lists the names that exist.
    """
    if is_path(name):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(
            f"{kind} {name!r}: there is no such file; give a path to a file, or a name without suffix"
        )
    suffix = ".json" if kind == "DeepSpeed file" else ".yaml"
    folders = [root / FOLDERS[kind] for root in shipped_roots()]
    for folder in folders:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    names = {path.stem for folder in folders for path in folder.glob(f"*{suffix}")}
    raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, names)}")


def check_is_own(path: Path) -> None:
    """Raise ConfigError if others could have put this file into the working directory: it holds lines of shell.

    Files that come with the package are as good as the package itself.
    """
    if path.resolve().is_relative_to(PACKAGE.parent):
        return
    if fault := next(find_faults(str(path), str(Path.cwd())), None):
        raise ConfigError(
            f"{path} was found in the working directory, and is not used: {fault.problem}. {fault.fix}"
        )


def find_shipped(name: str) -> Path:
    """A file that comes with the package, such as slurm/array.sbatch: as it is called from the working directory.

    Raises:
        ConfigError: as `check_is_own`.
    """
    found = next(path for root in shipped_roots() if (path := root / name).is_file())
    check_is_own(found)
    return Path(name) if found == Path.cwd() / name else found


def read_yaml(path: Path) -> Any:
    """Parse a YAML file, refusing duplicate keys.

    Raises:
        ConfigError: it cannot be read or parsed; the message gives line and column.
    """
    return read_written(path)[0]


def read_written(path: Path) -> tuple[Any, Written]:
    """As `read_yaml`, and where each value stands.

    Raises:
        ConfigError: as `read_yaml`.
    """
    text = _read_text(path)
    try:
        return strict_yaml.load(text), Written(str(path), text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = error.problem or "not valid YAML"
        line = "".join(text.splitlines()[mark.line : mark.line + 1]) if mark else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            problem = "a tab cannot indent YAML: use spaces"
        raise ConfigError(f"{place}: {short(problem, 300)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}: not valid YAML: {short(' '.join(str(error).split()), 300)}"
        ) from None


def read_json(path: Path) -> Any:
    """Parse a JSON file, refusing duplicate keys.

    Raises:
        ConfigError: it cannot be read or parsed; the message gives line and column.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict[str, Any]()
        for key, value in items:
            if key in seen:
                raise ConfigError(f"{path}: key {short(key)!r} stands twice: keep one")
            seen[key] = value
        return seen

    def whole(text: str) -> int:
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise ConfigError(f"{path}: {short(text, 24)} is beyond 64 bits: give a smaller number")
        return int(text)

    def constant(word: str) -> Any:
        raise ConfigError(f"{path}: {word} is not valid JSON: give a number")

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
    return ConfigError(f"{path}: nested too deep: at most {strict_yaml.MAX_DEPTH} levels are read")


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(strict_yaml.MAX_DEPTH + 1):
        inner = [
            list(one.values()) if isinstance(one, dict) else one
            for one in level
            if isinstance(one, (dict, list))
        ]
        level = [item for items in inner for item in items]
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
        raise ConfigError(f"value {short(masked(text))!r} is not YAML: quote it ({why})") from None


def data_root(given: Path | None) -> Path:
    """Where packed data sets lie: `--data-root`, else $FURNACE_DATA, else ./data."""
    return given or Path(os.environ.get("FURNACE_DATA") or "data")


def pack_in(root: Path, name: str) -> Path:
    """Folder of the pack `name` below a data root; a root that is a pack itself is taken for it."""
    return root if (root / "manifest.json").is_file() else root / name


def runs_root(given: Path | None) -> Path:
    """Where runs lie: `--runs-root`, else $FURNACE_RUNS, else ./runs."""
    return given or Path(os.environ.get("FURNACE_RUNS") or "runs")


def _read_text(path: Path) -> str:
    try:
        content = read_regular(path, at_most=MAX_FILE_BYTES)
        text = content.decode("utf-8-sig")  # Windows editors begin a file with a byte-order mark
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ConfigError(
                f"{path}: larger than {MAX_FILE_BYTES:,} bytes: this is not a hand-written file"
            ) from None
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if (at := find_secret(text)) is not None:
        raise ConfigError(
            f"{path}:{text.count(chr(10), 0, at) + 1}: holds what looks like a secret, and would be copied to scripts "
            f"and reports: keep it in a file of mode 0600, and read it from there (`setup: ['. ~/.my-secrets']`)"
        )
    return text
