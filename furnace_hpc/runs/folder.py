"""The run folder: the contract between everything that runs and everything that reads.

    runs/<grid>/grid.yaml                    the grid as last submitted, without what --set changed
    runs/<grid>/code/<hash>/                 snapshots of the code that runs, read-only, named by their content
    runs/<grid>/cache/<digest>.parquet       what aggregate has read of the runs; may be deleted at any time
    runs/<grid>/logs/<run_id>.log            a link to the log of the run's newest attempt
    runs/<grid>/submissions/<n>/             what each submission asked: grid.yaml with settings, profile.json,
                                             rows.jsonl, journal.jsonl; batch scripts and their logs
    runs/<grid>/<run_id>/spec.json           the resolved config; never changed
                         attempts/<n>.json   made by the host before ranks start; how it ended is added at its end
                         verdicts/<n>-<rank>.json   each rank's own word on how it ended
                         metrics/<n>.jsonl   one file per attempt; for a step the highest attempt wins
                         checkpoints/step-<n>/      complete, or not there; aside-step-<n>.<k>: damaged, or replaced
                         checkpoints.jsonl   a line for every checkpoint that was ever saved
                         predictions/<split>.npz
                         result.json         written once, last: its presence is "done"
                         logs/

Two classes own every path. What another process reads is written aside, fsynced and renamed.
"""

import errno
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError

# A network file system, a quota or a full disk may get over it, and nothing is wrong with the run.
TRANSIENT_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ETIMEDOUT}
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def spec(self) -> Path:
        """RunSpec as JSON."""
        return self.path / "spec.json"

    @property
    def result(self) -> Path:
        """RunResult as JSON; its presence means done."""
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
        return self.path / f"attempts/{number}.json"  # joined once: status asks for thousands

    @property
    def verdicts(self) -> Path:
        """Folder of the ranks' words."""
        return self.path / "verdicts"

    def verdict(self, attempt: int, rank: int) -> Path:
        """One rank's word on how the attempt ended for it."""
        return self.verdicts / f"{attempt}-{rank}.json"

    def rendezvous(self, attempt: int) -> Path:
        """Where rank 0 publishes the address at which the attempt's ranks meet."""
        return self.path / "attempts" / f"{attempt}.rendezvous"

    def metrics(self, attempt: int) -> Path:
        """Metric records of one attempt, JSON lines."""
        return self.path / f"metrics/{attempt}.jsonl"

    def checkpoint(self, step: int) -> Path:
        """A complete checkpoint."""
        return self.checkpoints / f"step-{step}"

    def predictions(self, split: str) -> Path:
        """Logits, labels, presence and sample ids of a split."""
        return self.path / "predictions" / f"{split}.npz"

    def log(self, attempt: int, rank: int) -> Path:
        """Log of one rank."""
        return self.path / self.log_name(attempt, rank)

    @staticmethod
    def log_name(attempt: int, rank: int) -> str:
        """Where the log lies in the folder."""
        return f"logs/{attempt}-{rank}.log"


@dataclass(frozen=True)
class GridFolder:
    """Paths of one grid."""

    path: Path

    @property
    def grid(self) -> Path:
        """The grid file as last submitted."""
        return self.path / "grid.yaml"

    @property
    def lock(self) -> Path:
        """Held while a submission is being made, or while a local one runs."""
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
        """What Slurm last answered, for all commands."""
        return self.path / "slurm.json"

    @property
    def tables_cache(self) -> Path:
        """Folder of what aggregate has read of the runs."""
        return self.path / "cache"

    @property
    def replaced(self) -> Path:
        """Where runs of older code are put aside by `--code new`."""
        return self.path / "replaced"

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / run_id)

    def all_submissions(self) -> list[Path]:
        """Folders of all submissions, oldest first."""
        numbers = sorted(
            int(entry.name) for entry in self.submissions.glob("*") if entry.name.isdigit()
        )
        return [self.submissions / str(number) for number in numbers]

    def new_submission(self) -> Path:
        """Make and return the next submission's folder."""
        while True:
            before = self.all_submissions()
            folder = self.submissions / str(int(before[-1].name) + 1 if before else 1)
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue  # another submitter took this number


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one, and a power cut leaves one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        # bytes of paths as they are
        with aside.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write `content` as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def explain(error: OSError, doing: str) -> ConfigError:
    """An operating-system error as one sentence that says what to do."""
    remedies = {
        errno.ENOSPC: "free some space there, or choose another place with --runs-root or --data-root",
        errno.EDQUOT: "your quota there is used up: free some, or choose another place",
        errno.EACCES: "you may not write there: choose another place with --runs-root or --data-root",
        errno.EPERM: "you may not write there: choose another place with --runs-root or --data-root",
        errno.EROFS: "that file system is read-only: choose another place",
    }
    remedy = remedies.get(error.errno or 0, "look at the path and try again")
    place = f" {error.filename}:" if error.filename else ""
    return ConfigError(f"{doing}:{place} {error.strerror or error}: {remedy}")
