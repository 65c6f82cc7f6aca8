"""Train one run folder: under torchrun, or alone.

torchrun --nproc-per-node 2 -m furnace_hpc.train runs/ablation/base-s0-1a2b3c4d
"""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import data_root, pack_in
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.host.attempt_spec import AttemptSpec
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.verdict import Verdict
from furnace_hpc.runs.trust import GROUP_ACCESS, check_place, keep_private


def main(
    run_dir: Annotated[Path, typer.Argument(help="a run folder that submit has made")],
    data_root_: Annotated[
        Path | None,
        typer.Option(
            "--data-root", help="where data lie [as in the run's last attempt, or ./data]"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(hidden=True, help="older name of --data-root")
    ] = None,
) -> None:
    """Train one run to its end; a run that was begun goes on from its newest checkpoint."""
    folder = RunFolder(run_dir)
    if not folder.spec.exists():
        raise ConfigError(
            f"{run_dir} is no run folder: it has no spec.json; `furnace submit` makes run folders"
        )
    if folder.result.is_file():
        print(f"{folder.run_id} is done: {folder.result}")
        return
    keep_private(os.environ.get(GROUP_ACCESS) == "1")
    check_place(folder.path, folder.path.parent.parent)  # its checkpoints are programs
    from furnace_hpc.engine.distributed import RankInfo
    from furnace_hpc.engine.loop import train

    place = RankInfo.of_environment()
    attempt = (
        _begin(folder, place.world_size, data_root_ or data_dir)
        if place.rank == 0
        else _begun(folder)
    )
    code = 1
    try:
        with Verdict(folder, attempt, place.rank) as verdict:
            code = train(folder, attempt, place, verdict)
    finally:
        if place.rank == 0:
            print(f"attempt {attempt} ended: {lifecycle.decide(str(folder.path), attempt, code)}")
    raise typer.Exit(code)


def _begin(folder: RunFolder, world_size: int, given: Path | None) -> int:
    """Rank 0 begins the attempt, as the host does for a submitted run."""
    attempts = read_attempts(folder)
    if attempts and attempts[0].code_hash not in ("", code_hash()):
        raise ConfigError(
            f"{folder.run_id} was begun by other code ({attempts[0].code_hash}, this is {code_hash()}), "
            f"and a run never changes code half-way: go back to that code, or submit its grid with --code new"
        )
    spec = RunSpec.model_validate_json(read_regular(folder.spec))
    before, name = attempts[-1].data_dir if attempts else "", spec.config.data.name
    data_dir = Path(before or data_root(None) / name)
    if given:
        data_dir = pack_in(given, name)
    attempt = AttemptSpec(
        code_hash=code_hash(),
        world_size=world_size,
        data_dir=str(data_dir.resolve()),
        overrides=attempts[-1].overrides if attempts else {},
    )
    try:
        return lifecycle.begin(str(folder.path), attempt.record(launch=_launch()))
    except lifecycle.Busy as busy:
        raise ConfigError(f"{folder.run_id} is running already: {busy}") from None


def _begun(folder: RunFolder) -> int:
    """The other ranks wait for the attempt that rank 0 of this very launch begins."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        number = lifecycle.newest_attempt(str(folder.path))
        record = lifecycle.read_attempt(str(folder.path), number) if number else {}
        ours = record.get("launch") == _launch() and record.get("end_unix_s") is None
        if ours and lifecycle.is_alive(record.get("holder")) is not False:
            return number
        time.sleep(0.05)
    raise ConfigError(
        f"rank 0 of this launch did not begin an attempt in {folder.attempts} within 60 s: look at its output"
    )


def _launch() -> str:
    """What tells this torchrun launch from others."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return ":".join(os.environ.get(name, "") for name in names)


if __name__ == "__main__":
    run_command(main)
