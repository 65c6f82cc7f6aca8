"""Make the folder: the exported model, card, tables, report and checksums."""

import hashlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import settings_of_numbers
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.publishing.card import card, files_table
from furnace_hpc.publishing.choice import Chosen, choose
from furnace_hpc.publishing.private import Private, check_folder, clean_config
from furnace_hpc.tables.output.report import PAGE, SCRIPTS
from furnace_hpc.tables.output.results import OPTIONAL_WRITERS, WRITERS
from furnace_hpc.tables.table import Ablation

if TYPE_CHECKING:
    from furnace_hpc.inference import Exported

CARD, SUMS, GRID, RESULTS = "README.md", "SHA256SUMS", "grid.yaml", "results"
TEMPLATES = ("report.html", "report.css", *SCRIPTS)
Report = Callable[[str], None]


class Wanted(NamedTuple):
    """What to publish."""

    out: Path
    variant: str | None = None
    data_root: Path | None = None
    with_program: bool = False
    with_onnx: bool = False
    license: str | None = None
    force: bool = False


def publish(ablation: Ablation, grid_file: Path, wanted: Wanted, report: Report) -> Chosen:
    """Write the folder. It appears only when it is complete.

    Raises:
        ConfigError: no run can be chosen or exported, the folder exists, or a file would contain
            something private.
    """
    from furnace_hpc.data.columns import rename_into_place
    from furnace_hpc.inference.export import export

    out = wanted.out.resolve()
    check_out(out, wanted.force)
    chosen = choose(ablation, wanted.variant)
    report(f"{chosen.run.run_id}: {chosen.rule}")
    nonce = secrets.token_hex(4)
    temporary = out.with_name(f"{out.name}.tmp-{nonce}")
    out.parent.mkdir(parents=True, exist_ok=True)
    source = chosen.run.folder.path
    options = (None, wanted.data_root, None, wanted.with_program, False, report, wanted.with_onnx)
    try:
        exported = export(source, temporary, *options)
        private = _private(ablation, grid_file, wanted.data_root)
        clean_config(temporary / "config.json", private)
        _check_same_answers(temporary, exported)
        _write_texts(temporary, ablation, chosen, exported, grid_file, private, wanted.license)
        check_folder(temporary, private)
        write_sums(temporary)
        rename_into_place(temporary, out, nonce)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return chosen


def check_out(out: Path, force: bool) -> None:
    """Raise ConfigError if something at `out` must not be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Choose another folder")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    if not found:
        return
    if foreign := found - {*listed(out), SUMS}:
        raise ConfigError(
            f"--out {out} contains {min(foreign)!r}, which `furnace publish` did not write. "
            "Choose an empty or new folder"
        )
    if not force:
        raise ConfigError(
            f"--out {out} contains a published model. Choose another folder, or replace it with "
            "--force"
        )


def listed(folder: Path) -> list[str]:
    """Return the files that the folder's checksums name."""
    sums = folder / SUMS
    if not sums.is_file():
        return []
    return [line[66:] for line in sums.read_text(encoding="utf-8").splitlines()]


def _private(ablation: Ablation, grid_file: Path, data_root: Path | None) -> Private:
    """Collect what must not be published."""
    root = ablation.runs[0].folder.path.parent
    folders = [root, root.parent]
    if data_root is not None:
        folders.append(data_root)
    nodes = {
        attempt.nodelist
        for run in ablation.runs
        for attempt in run.record.ledger()
        if attempt.nodelist
    }
    words = [ablation.grid.name, *((PAGE / name).read_text(encoding="utf-8") for name in TEMPLATES)]
    words.append(_grid_text(ablation, grid_file))
    return Private.of_this_user(folders, nodes, " ".join(words))


def _grid_text(ablation: Ablation, grid_file: Path) -> str:
    """Return the text of the grid, with the settings of the study. Empty if there is no file."""
    if not grid_file.is_file():
        return ""
    text = grid_file.read_text(encoding="utf-8")
    settings = settings_of_numbers(ablation.grid)
    return strict_yaml.dump(strict_yaml.load(text) | {"settings": settings}) if settings else text


def _write_texts(
    folder: Path,
    ablation: Ablation,
    chosen: Chosen,
    exported: "Exported",
    grid_file: Path,
    private: Private,
    license_: str | None,
) -> None:
    """Write card, tables and report. The report has no links to logs."""
    (folder / RESULTS).mkdir()
    for name, write in {**WRITERS, **OPTIONAL_WRITERS}.items():
        if text := write(ablation):
            (folder / RESULTS / name).write_text(private.clean(text), encoding="utf-8")
    if text := _grid_text(ablation, grid_file):
        (folder / GRID).write_text(private.clean(text), encoding="utf-8")
    names = [path.name for path in folder.iterdir()] + [SUMS]
    text = card(ablation, chosen, exported, license_) + files_table(names)
    (folder / CARD).write_text(private.clean(text), encoding="utf-8")


def _check_same_answers(folder: Path, exported: "Exported") -> None:
    """Raise ConfigError unless the model without private names loads, with the same content."""
    from furnace_hpc.inference import Predictor
    from furnace_hpc.inference.model_folder import read_exported

    before, after = _fixed(exported), _fixed(read_exported(folder))
    for name, content in before.items():
        if content != after[name]:
            raise ConfigError(
                f"{name} of config.json contains a private name (user, host or folder), which "
                "cannot be removed. Rename the class, row or run"
            )
    Predictor.load(folder, "cpu", trust_code=True)


def _fixed(exported: "Exported") -> dict[str, str]:
    """Return the parts of `config.json` that must not change. NaN has a text, so it is equal."""
    content = exported.model_dump(mode="json", exclude={"config": True, "architectures": True})
    del content["data"]["preprocessing"]
    tasks = [task.model_dump() for task in exported.config.tasks]
    return {name: repr(part) for name, part in {**content, "tasks": tasks}.items()}


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file, for `sha256sum -c`."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
