"""The paths of grids and runs, and how their files are written.

    runs/<grid>/grid.yaml                    the newest submitted grid, without --set
    runs/<grid>/declared.json                the declared plans of the grid's tables
    runs/<grid>/code/<hash>/                 read-only snapshots of the code, named by their content
    runs/<grid>/cache/<digest>.parquet       caches of aggregate, also .rows; may be deleted at any
                                             time
    runs/<grid>/cache/weights-<digest>.json  hash of a file of weights; may be deleted at any time
    runs/<grid>/features/<digest>/           outputs of a frozen encoder; may be deleted while no
                                             run of the grid trains
    runs/<grid>/tuning/<row>-<digest>.json   values chosen for a tuned row; written once
    runs/<grid>/trackers/                    what was sent to trackers, and files for them
    runs/<grid>/logs/<run_id>.log            link to the log of the run's newest attempt
    runs/<grid>/submissions/<n>/             one submission: grid.yaml with --set, profile.json,
                                             rows.jsonl, journal.jsonl, batch scripts and their logs
    runs/<grid>/<run_id>/spec.json           the resolved config; never changed
                         attempts/<n>.json   made by the host before ranks start; the end is added
                         verdicts/<n>-<node>.jsonl  reports of a node's ranks on their ends
                         metrics/<n>.jsonl   metrics of one attempt; the highest attempt counts
                         checkpoints/step-<n>/   complete if it exists;
                                                 aside-step-<n>.<k>: damaged or replaced
                         checkpoints.jsonl   a line for every checkpoint that was ever saved
                         predictions/<split>.npz
                         micro_batch.json    the size that micro_batch_size: auto has chosen
                         canary.json         times of an evaluation, written by a canary
                         result.json         written once, last: if it exists, the run is done
                         logs/<n>-<node>.log   output of a node's ranks

`RunFolder` and `GridFolder` have every path. A file that another process reads is written under a
temporary name, synced and renamed.
"""

import errno
import json
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.durable_files import replace_file
from furnace_hpc.runs.file_cache import is_looking, once_per_look

# Errors of a network file system, a quota or a full disk. They may pass, so the run is retried.
TRANSIENT_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ETIMEDOUT}
)


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return RunFolder, (self.path,)  # without the hash, which another process would not have

    @cached_property
    def _hash(self) -> int:
        """Computed once, because status looks runs up many times."""
        return hash(self.path)

    @cached_property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def spec(self) -> Path:
        """RunSpec as JSON."""
        return self.path / "spec.json"

    @property
    def result(self) -> Path:
        """RunResult as JSON. If it exists, the run is done."""
        return self.path / "result.json"

    @property
    def attempts(self) -> Path:
        """Folder of attempt records."""
        return self.path / "attempts"

    @property
    def checkpoints(self) -> Path:
        """Folder of complete checkpoints."""
        return self.path / "checkpoints"

    @property
    def saved(self) -> Path:
        """A line for every checkpoint that was ever saved."""
        return self.path / "checkpoints.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of log files."""
        return self.path / "logs"

    def attempt(self, number: int) -> Path:
        """Record of one attempt."""
        return self.path / f"attempts/{number}.json"  # joined once, because status reads thousands

    @property
    def verdicts(self) -> Path:
        """Folder of the ranks' verdicts."""
        return self.path / "verdicts"

    def verdict(self, attempt: int, node: int) -> Path:
        """Verdicts of the ranks of one node on an attempt, JSON lines. Nodes count from 0."""
        return self.verdicts / f"{attempt}-{node}.jsonl"

    def rendezvous(self, attempt: int) -> Path:
        """File in which rank 0 publishes the address at which the ranks meet."""
        return self.path / "attempts" / f"{attempt}.rendezvous"

    def metrics(self, attempt: int) -> Path:
        """Metrics of one attempt, JSON lines."""
        return self.path / f"metrics/{attempt}.jsonl"

    def checkpoint(self, step: int) -> Path:
        """A complete checkpoint."""
        return self.checkpoints / f"step-{step}"

    @property
    def micro_batch(self) -> Path:
        """The micro-batch size that `auto` has chosen. Written once."""
        return self.path / "micro_batch.json"

    @property
    def canary(self) -> Path:
        """Times of an evaluation, from the newest canary of the run."""
        return self.path / "canary.json"

    def collectives(self, attempt: int) -> Path:
        """Beginning of the paths of a hung attempt's last collectives. The rank follows."""
        return self.logs / f"{attempt}-collectives-"

    def predictions(self, split: str) -> Path:
        """Logits, labels, presence and sample ids of one split."""
        return self.path / f"predictions/{split}.npz"

    def log(self, attempt: int, node: int) -> Path:
        """Log of the ranks of one node. Node 0 has rank 0."""
        return self.path / self.log_name(attempt, node)

    @staticmethod
    def log_name(attempt: int, node: int) -> str:
        """Path of the log inside the run folder."""
        return f"logs/{attempt}-{node}.log"


@dataclass(frozen=True)
class GridFolder:
    """The paths of one grid."""

    path: Path

    @property
    def grid(self) -> Path:
        """The grid file as last submitted."""
        return self.path / "grid.yaml"

    @property
    def declared(self) -> Path:
        """The declared plans of the grid's tables."""
        return self.path / "declared.json"

    @property
    def lock(self) -> Path:
        """Lock that is held during a submission, and while a local queue runs."""
        return self.path / "submit.lock"

    @property
    def submissions(self) -> Path:
        """Folder of submissions, numbered from 1."""
        return self.path / "submissions"

    @property
    def code(self) -> Path:
        """Folder of code snapshots."""
        return self.path / "code"

    @property
    def slurm_cache(self) -> Path:
        """Slurm's last answer, shared by all commands."""
        return self.path / "slurm.json"

    @property
    def tuning(self) -> Path:
        """Folder of the values that were chosen for tuned rows."""
        return self.path / "tuning"

    @property
    def tables_cache(self) -> Path:
        """Folder of aggregate's cache."""
        return self.path / "cache"

    @property
    def features(self) -> Path:
        """Folder of stored outputs of frozen encoders."""
        return self.path / "features"

    @property
    def trackers(self) -> Path:
        """Folder of what was sent to trackers, and of files for them."""
        return self.path / "trackers"

    @property
    def replaced(self) -> Path:
        """Folder to which `--code new` moves runs of older code or other weights."""
        return self.path / "replaced"

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run."""
        return _run(str(self.path), run_id)

    def all_submissions(self) -> list[Path]:
        """Folders of all submissions, oldest first."""
        names = [entry.name for entry in self.submissions.glob("*")]
        numbers = sorted(int(name) for name in names if name.isdigit())
        return [self.submissions / str(number) for number in numbers]

    def new_submission(self) -> Path:
        """Make and return the next submission's folder."""
        number = max((int(path.name) for path in self.all_submissions()), default=0) + 1
        while True:
            folder = self.submissions / str(number)
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:  # another process took this number
                number += 1


@cache
def _run(grid: str, run_id: str) -> RunFolder:
    """The same object for each call: status compares thousands of them."""
    return RunFolder(Path(grid, run_id))


def may_exist(run: RunFolder) -> bool:
    """Whether the run may have a folder, or a link in its place.

    Within `one_look` the grid's folder is listed once. So thousands of runs that have not begun
    cost one call of the file system.
    """
    if not is_looking():
        return True
    names = _names_in(run.path.parent)
    return names is None or run.run_id in names


@once_per_look
def _names_in(folder: Path) -> frozenset[str] | None:
    """The names in a folder. None if it cannot be listed."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return frozenset()
    except OSError:
        return None


@once_per_look
def has_result(run: RunFolder) -> bool:
    """Whether result.json exists, so that the run is done."""
    if not may_exist(run):
        return False
    try:
        return S_ISREG(os.stat(f"{run.path}/result.json").st_mode)  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write `text` durably. A reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode("utf-8", "surrogateescape"))  # paths may hold any bytes


def write_json(path: Path, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write `content` as indented JSON, as `write_atomically` does."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


REMEDIES = {
    errno.ENOSPC: "free some space there, or choose another place with --runs-root or --data-root",
    errno.EDQUOT: "your quota there is exhausted: free some space, or choose another place",
    errno.EACCES: "you may not write there: choose another place with --runs-root or --data-root",
    errno.EPERM: "you may not write there: choose another place with --runs-root or --data-root",
    errno.EROFS: "that file system is read-only: choose another place",
}


def explain(error: OSError, doing: str) -> ConfigError:
    """An error with one sentence: the operating system's reason, and how to fix it.

    Args:
        error: the operating system's error.
        doing: what could not be done.
    """
    remedy = REMEDIES.get(error.errno or 0, "check the path and try again")
    place = f" {error.filename}:" if error.filename else ""
    return ConfigError(f"{doing}:{place} {error.strerror or error}: {remedy}")
