"""Check that the rows of a grid keep the contracts of own code: `furnace check --grid G`."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, select_names, with_settings
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.identity import identity_hash
from furnace_hpc.config.own_code.loading import use_folder
from furnace_hpc.config.own_code.references import references
from furnace_hpc.config.own_code.sources import OWN_CODE, OwnCode
from furnace_hpc.config.parsing.lookup import data_root
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.console.options import DataRoot, GridFile, Variants
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.runs.own_code import own_code_to_copy
from furnace_hpc.runs.trust import keep_private

if TYPE_CHECKING:
    from furnace_hpc.checks.modules import Finding


def main(
    grid: GridFile,
    variant: Variants = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for every row; repeatable")
    ] = None,
    train: Annotated[
        bool, typer.Option(help="also train each row for a few steps, on 1 and 2 processes")
    ] = True,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="new folder for the runs of the check [removed]"),
    ] = None,
    data_dir: DataRoot = None,
) -> None:
    """Build each row on this machine's CPU with a few real samples, and check its contracts.

    They are: shapes, a gradient in every trainable parameter, absent modalities without effect,
    samples that do not affect each other, the same calls for every batch (ZeRO stage 3 needs
    them), the same fp32 loss on 1 and 2 processes, and a resumed run that is equal bit for bit.
    Rows that differ only in what a check replaces, such as steps, are checked once.

    A failure names the contract, your file and the line. The exit code is 1 if a contract is
    broken, and 2 if the grid or the data cannot be used.
    """
    study = with_settings(load_grid(grid), set_ or [])
    rows = expand_rows(study)
    names = select_names([row.name for row in rows], variant or [], "variant")
    rows = [row for row in rows if row.name in names]
    root = data_root(data_dir)
    fingerprints(rows, root, dry_run=False)
    keep_private()
    place = _make_place(keep)
    try:
        is_good = _check_packs(study, rows, root, place, train)
    finally:
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)
    raise typer.Exit(int(not is_good))


def _make_place(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="furnace-check-")).resolve()
    if keep.exists():
        raise ConfigError(f"--keep {keep} exists. Give a new folder")
    keep.mkdir(parents=True)
    return keep.resolve()


def _check_packs(study: Grid, rows: list[GridRow], root: Path, place: Path, train: bool) -> bool:
    """Check the rows on their first pack. Return whether all contracts are kept."""
    own = own_code_to_copy(study)
    if own is not None:
        _copy(own, place / OWN_CODE)
        use_folder(place / OWN_CODE)
    is_good = True
    for pack in dict.fromkeys(row.packs[0] for row in rows):
        of_pack = [row for row in rows if row.packs[0] == pack]
        folder = place / pack
        folder.mkdir()
        is_good &= _check_rows(study, of_pack, root / pack, folder, own, train)
    return is_good


def _copy(own: OwnCode, target: Path) -> None:
    for name, path in own.entries:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _check_rows(
    study: Grid, rows: list[GridRow], pack: Path, place: Path, own: OwnCode | None, train: bool
) -> bool:
    """Check the distinct rows of one pack."""
    print("importing torch ...", flush=True)
    from furnace_hpc.checks.modules import NetworkCheck
    from furnace_hpc.checks.places import Places
    from furnace_hpc.checks.small_pack import cut_pack
    from furnace_hpc.checks.trained import PACK, CheckedRow, TrainedCheck, checked_config

    columns = cut_pack(pack, place / PACK)
    distinct: dict[str, tuple[str, GridRow]] = {}
    for row in rows:
        distinct.setdefault(identity_hash(checked_config(row.config), ""), (row.name, row))
    sizes = ", ".join(f"{count} {split}" for split, count in columns.manifest.splits.items())
    print(
        f"checking {counted(len(distinct), 'row')} of grid {study.name!r} with samples of "
        f"{pack.name} ({sizes}), in fp32 on the CPU",
        flush=True,
    )
    passed: list[CheckedRow] = []
    is_good = True
    for name, row in distinct.values():
        config = checked_config(row.config)
        places = Places(own, references(config))
        check = NetworkCheck(config, columns, places)
        if _print_findings(name, check.run()):
            passed.append(CheckedRow(name, config, study.metric, places, check.is_random))
        else:
            is_good = False
    if not (train and passed):
        return is_good
    print(f"training {counted(len(passed), 'row')} for a few steps ...", flush=True)
    for name, findings in TrainedCheck(place, passed, study.code).run().items():
        is_good &= _print_findings(name, findings)
    return is_good


def _print_findings(row: str, findings: Iterable["Finding"]) -> bool:
    """Print a line per contract, as soon as its result is known. Return whether all are kept."""
    is_good = True
    for finding in findings:
        if not finding.problem:
            print(f"{row}: ok: {finding.contract}", flush=True)
            continue
        is_good = False
        place = f" ({finding.place})" if finding.place else ""
        print(f"{row}: BROKEN: {finding.contract}: {finding.problem}{place}", flush=True)
    return is_good


if __name__ == "__main__":
    run_command(main)
