"""Train one run folder with torchrun, or with one process.

torchrun --nproc-per-node 2 -m furnace_hpc.train runs/ablation/base-s0-1a2b3c4d
"""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import data_root, pack_in
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.host.attempt_spec import AttemptSpec
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.launch.rank_main import prepare_portable
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.records.verdict import RankVerdict
from furnace_hpc.runs.trust import GROUP_ACCESS, check_place, keep_private


def main(
    run_dir: Annotated[Path, typer.Argument(help="run folder that `furnace submit` has made")],
    data_root_: Annotated[
        Path | None,
        typer.Option(
            "--data-root", help="folder of packed data sets [of the last attempt, or ./data]"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(hidden=True, help="older name of --data-root")
    ] = None,
) -> None:
    """Train one run to its end. A started run resumes from its newest checkpoint."""
    folder = RunFolder(run_dir)
    if not folder.spec.exists():
        raise ConfigError(
            f"{run_dir} is not a run folder: it has no spec.json. "
            "Make run folders with `furnace submit`."
        )
    if folder.result.is_file():
        print(f"{folder.run_id} is done: {folder.result}")
        return
    keep_private(os.environ.get(GROUP_ACCESS) == "1")
    # Checkpoints are pickles, which can run code.
    check_place(folder.path, folder.path.parent.parent)
    prepare_portable(folder)
    from furnace_hpc.engine.loop import train
    from furnace_hpc.engine.ranks.distributed import RankInfo

    rank_info = RankInfo.from_environment()
    if rank_info.rank == 0:
        attempt = _begin_attempt(folder, rank_info.world_size, data_root_ or data_dir)
    else:
        attempt = _wait_for_attempt(folder)
    code, node = 1, int(os.environ.get("GROUP_RANK", "0"))  # torchrun's
    try:
        with RankVerdict(folder, attempt, rank_info.rank, node) as verdict:
            code = train(folder, attempt, rank_info, verdict)
    finally:
        if rank_info.rank == 0:
            decision = lifecycle.decide(str(folder.path), attempt, code)
            print(f"attempt {attempt} ended: {decision}")
    raise typer.Exit(code)


def _begin_attempt(folder: RunFolder, world_size: int, data_root_: Path | None) -> int:
    """Begin an attempt on rank 0, as the batch script does for a submitted run."""
    attempts = read_attempts(folder)
    if attempts and attempts[0].code_hash not in ("", code_hash()):
        raise ConfigError(
            f"{folder.run_id} was started with other code: then {attempts[0].code_hash}, "
            f"now {code_hash()}. A run never changes its code. "
            "Restore that code, or run `furnace submit --code new` with its grid."
        )
    attempt = AttemptSpec(
        code_hash=code_hash(),
        world_size=world_size,
        data_dir=str(_data_dir(folder, attempts, data_root_).resolve()),
        overrides=attempts[-1].overrides if attempts else {},
        known_attempts=attempts[-1].attempt - 1 if attempts else 0,
    )
    try:
        return lifecycle.begin(str(folder.path), attempt.record(launch=_launch_id()))
    except lifecycle.Busy as busy:
        raise ConfigError(f"{folder.run_id} is already running: {busy}") from None


def _data_dir(folder: RunFolder, attempts: list[Attempt], data_root_: Path | None) -> Path:
    """The packed data set: below the given root, as in the last attempt, or below ./data."""
    spec = RunSpec.model_validate_json(read_regular(folder.spec))
    if data_root_:
        return pack_in(data_root_, spec.config.data.name)
    if attempts and attempts[-1].data_dir:
        return Path(attempts[-1].data_dir)
    return data_root(None) / spec.config.data.name


def _wait_for_attempt(folder: RunFolder) -> int:
    """Wait until rank 0 of this launch has begun an attempt. Return its number."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        number = lifecycle.newest_attempt(str(folder.path))
        if number and _belongs_to_this_launch(lifecycle.read_attempt(str(folder.path), number)):
            return number
        time.sleep(0.05)
    raise ConfigError(
        f"rank 0 of this launch did not begin an attempt in {folder.attempts} within 60 s. Check "
        "its output."
    )


def _belongs_to_this_launch(record: dict[str, Any]) -> bool:
    if record.get("launch") != _launch_id() or record.get("end_unix_s") is not None:
        return False
    return lifecycle.is_alive(record.get("holder")) is not False


def _launch_id() -> str:
    """A name that differs between launches of torchrun."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return ":".join(os.environ.get(name, "") for name in names)


if __name__ == "__main__":
    run_command(main)
