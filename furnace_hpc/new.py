"""Write a first grid for a packed data set, or copy a shipped grid: `furnace new NAME`."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.base import NAME_PATTERN
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.first_grid import FirstGrid, modality_rows
from furnace_hpc.config.grids.grid import Grid, pin_code
from furnace_hpc.config.grids.network_template import package_files, package_name
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.manifest import Manifest, check_files, read_manifest
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.parsing.lookup import FOLDERS, data_root, find_file, names_of, read_yaml
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.console.options import complete_grids
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.launch.planning.dataset_checks import count_lacking, fingerprints
from furnace_hpc.runs.folder import write_atomically

Data = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="packed data set [data/NAME]. Repeatable: folds become the grid's `packs`",
    ),
]
OwnNetwork = Annotated[
    bool,
    typer.Option(
        "--network", help="also write a network of your own as a template: experiments/NAME_code"
    ),
]


def main(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="name of the grid: letters, digits, ., _ and -")
    ],
    data: Data = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="GRID",
            help="copy this grid under the new name",
            autocompletion=complete_grids,
        ),
    ] = None,
    network: OwnNetwork = False,
    force: Annotated[bool, typer.Option("--force", help="replace experiments/NAME.yaml")] = False,
) -> None:
    """Write experiments/NAME.yaml, a study that is ready to submit.

    Tasks and modalities come from the data set, and sizes from its number of samples. The rows
    train each modality alone, leave each one out, and compare fusion with concatenation. One row
    checks that more training does not help. You may change all values. Comments explain them.

    From your own table to results in three commands:

    furnace pack table --source reviews.csv --yes

    furnace new reviews --data data/reviews

    furnace submit --grid reviews

    Or begin with a copy of a shipped grid: furnace new mine --from modalities
    """
    _check_name(name)
    if from_:
        _check_copy(data, network)
    path = Path(FOLDERS["grid"]) / f"{name}.yaml"
    _check_free(path, name, force)
    package = path.parent / package_name(name) if network else None
    _check_no_package(package)
    if from_:
        text, options = _copied(from_, name), []
        grid, rows = _parsed(text, path)
    else:
        folders = _folders(name, data or [])
        first = _first_grid(name, folders)
        options = _data_root_option(folders[0].parent)
        if package is not None:
            first = replace(first, package=package.name)
            _write_package(package, name)
        text = first.text()
        grid, rows = _parsed(text, path)
        fingerprints(rows, folders[0].parent, dry_run=True)
    write_atomically(path, text)
    print(f"wrote {' and '.join(str(made) for made in (path, package) if made)}")
    for line in _summary(grid, rows):
        print(line)
    for line in _next_commands(name, package, options):
        print(line)


def _check_copy(data: list[Path] | None, network: bool) -> None:
    """Raise ConfigError if an option does not go with --from."""
    if data:
        raise ConfigError(
            "--data and --from are both given. Give --data DIR for a first study of a data set, or "
            "--from GRID for a copy"
        )
    if network:
        raise ConfigError(
            "--network and --from are both given. Leave one out: --network needs a first study"
        )


def _next_commands(name: str, package: Path | None, options: list[str]) -> Iterator[str]:
    """Lines with the commands to give next."""
    if package is not None:
        yield f"first: {furnace('check', '--grid', name, '--variant', 'own', *options)}"
    yield f"then: {furnace('submit', '--grid', name, *options)}"


def _check_no_package(package: Path | None) -> None:
    """Raise ConfigError if the folder exists. Code of a user is never replaced."""
    if package is not None and package.exists():
        raise ConfigError(
            f"{package} exists, and your code is never replaced. Choose another name, or move it"
        )


def _write_package(package: Path, name: str) -> None:
    for file, text in package_files(name).items():
        write_atomically(package / file, text)


def _summary(grid: Grid, rows: list[GridRow]) -> Iterator[str]:
    """Lines on what the grid trains."""
    yield f"rows: {', '.join(row.name for row in rows)}"
    num_packs = max(1, len(grid.packs))
    packs = f" x {num_packs} packs" if num_packs > 1 else ""
    num_runs = len(rows) * num_packs * len(grid.seeds)
    size = rows[0].config
    length = f"{size.steps:,} steps" if size.epochs is None else f"{size.epochs:g} epochs"
    yield (
        f"{len(rows)} rows{packs} x {len(grid.seeds)} seeds = {num_runs} runs, {length} in batches "
        f"of {size.global_batch_size} samples each"
    )


def _check_name(name: str) -> None:
    """Raise ConfigError unless it can be the name of a grid."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError(
            f"NAME is {name!r}, which is a path. Give a name without folder and suffix, such as "
            f"{Path(name).stem or 'mine'}"
        )
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"NAME is {name!r}, wanted 1 to 64 letters, digits, ., _ and -, beginning with a "
            f"letter or digit. Choose another name"
        )


def _check_free(path: Path, name: str, force: bool) -> None:
    """Raise ConfigError if a grid has this name, unless `force` is given."""
    if force:
        return
    if path.exists():
        raise ConfigError(f"{path} exists. Choose another name, or replace it with --force")
    if name in names_of("grid"):
        raise ConfigError(
            f"{name!r} is the name of a shipped grid, which {path} would hide. Choose another "
            f"name, or add --force"
        )


def _folders(name: str, given: list[Path]) -> list[Path]:
    """The folders of the packs. They have one parent, since a grid has one data root.

    Raises:
        ConfigError: a folder does not exist, or a grid cannot name it.
    """
    root = data_root(None)
    if not given and not (root / name).exists():
        raise ConfigError(
            f"there is no data set {root / name}. Give --data DIR of a pack, make one with "
            f"`furnace pack table --source FILE`, or copy a grid with --from GRID"
        )
    folders = []
    for folder in given or [root / name]:
        below_root = root / folder
        is_name = len(folder.parts) == 1 and not folder.exists() and below_root.exists()
        folders.append((below_root if is_name else folder).absolute())
    for folder in folders:
        if folder.is_file():
            pack = furnace("pack", "table", "--source", str(folder))
            raise ConfigError(f"--data {folder} is a file. Pack it first: {pack}")
        if not folder.is_dir():
            raise ConfigError(f"--data {folder} is not a folder. Give the folder of a pack")
        if not re.fullmatch(NAME_PATTERN, folder.name):
            raise ConfigError(
                f"--data {str(folder)!r}: a grid cannot name this folder. Rename it, with letters, "
                f"digits, ., _ and - only"
            )
        if folder.parent != folders[0].parent:
            raise ConfigError(
                f"--data {folder} and {folders[0]} are in two folders. Move them into one, which "
                f"is the data root"
            )
    twice = [folder for number, folder in enumerate(folders) if folder in folders[:number]]
    if twice:
        raise ConfigError(f"--data {twice[0]} is given twice. Give each pack once")
    return folders


def _data_root_option(root: Path) -> list[str]:
    """The option of `furnace submit` for this data root. Empty if it is the usual one."""
    if root == data_root(None).absolute():
        return []
    return ["--data-root", str(root)]


def _first_grid(name: str, folders: list[Path]) -> FirstGrid:
    """Read the manifests, and count samples that lack modalities."""
    manifests = {folder: _manifest(folder) for folder in folders}
    first = manifests[folders[0]]
    lacking = {
        part: sum(
            sum(count_lacking(manifest, folder, part).values())
            for folder, manifest in manifests.items()
        )
        for part in modality_rows(first.modalities)
    }
    return FirstGrid(name, tuple(folder.name for folder in folders), first, lacking)


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.labels:
        raise ConfigError(f"data set {folder} has no label. Pack it with --label NAME=COLUMN")
    check_files(folder, manifest)
    return manifest


def _parsed(text: str, path: Path) -> tuple[Grid, list[GridRow]]:
    """Check the text of a grid as `submit` does."""
    grid = validate(Grid, strict_yaml.load(text), str(path))
    if grid.code:
        grid = pin_code(grid, path)
    return grid, expand_rows(grid)


def _copied(source: str, name: str) -> str:
    """The text of a grid with another name, also in the commands of its comments.

    Raises:
        ConfigError: the grid is unknown, is not valid, or has its name in an unusual place.
    """
    path = find_file("grid", source)
    content = read_yaml(path)
    old = content.get("name") if isinstance(content, dict) else None
    text = read_regular_text(path)
    line = f"name: {name}"
    if strict_yaml.load(line) != {"name": name}:  # such as 010
        line = f"name: '{name}'"
    text = re.sub(r"^name:[^#\n]*?(?=\s*(#|$))", line, text, count=1, flags=re.MULTILINE)
    text = re.sub(rf"(?<=--grid ){re.escape(str(old))}(?![\w.-])", name, text)
    if not isinstance(content, dict) or strict_yaml.load(text) != content | {"name": name}:
        raise ConfigError(
            f"{path} has no line that begins with `name:`, so its copy cannot be renamed. Copy the "
            f"file, and change its name"
        )
    return text


if __name__ == "__main__":
    run_command(main)
