"""What fuzz.py does with each hostile input, and the counts of forbidden results."""

import json
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from hostile import (
    GRID,
    PLANTED,
    PROFILE,
    TOKEN,
)

from furnace_hpc.config.cluster import load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import load_grid, with_settings
from furnace_hpc.config.manifest import check_files, read_manifest
from furnace_hpc.config.parsing.text_safety import masked
from furnace_hpc.launch.arrays import Limits, next_wave
from furnace_hpc.launch.planning.plan import Choices
from furnace_hpc.launch.planning.planner import make_plan
from furnace_hpc.launch.slurm_array import batch_text
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.checkpoint_files import (
    MANIFEST,
    is_complete,
    is_visible,
    read_digests,
)
from furnace_hpc.runs.records.metrics import last_record, read_metrics
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.state import read_status


@dataclass
class Tally:
    """Counts of the results."""

    place: Path
    cases: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    bad_scripts: list[str] = field(default_factory=list)
    scripts: int = 0

    @property
    def canary(self) -> Path:
        """The file that any planted command would create."""
        return self.place / "canary"

    def attempt(self, kind: str, work: Callable[[], Any]) -> Any:
        """Call the function as a command would.

        A ConfigError is right. Any other exception counts as a traceback.
        """
        said = StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                result = work()
            self.accepted[kind] += 1
            return result
        except ConfigError as error:
            said.write(masked(str(error)))  # as cli.run_command prints it
        except OSError as error:
            if error.errno is None:
                self.tracebacks.append(traceback.format_exc(limit=-3))
        except Exception:
            self.tracebacks.append(traceback.format_exc(limit=-3))
        finally:
            self.look_for_tokens(kind, said.getvalue())
        return None

    def counted(self, kind: str, function: Callable[..., None]) -> Callable[..., None]:
        """Wrap the function to count its calls."""

        def count(*inputs: Any) -> None:
            self.cases[kind] += 1
            function(*inputs)

        return count

    def look_for_tokens(self, kind: str, text: str) -> None:
        """Count a leak if a shown or written text contains a planted token."""
        self.leaks += [f"{kind}: {text[:300]!r}" for token in (TOKEN, PLANTED) if token in text]


class Fuzz:
    """All kinds of inputs and what is done with them."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._place = tally, tally.place
        self._stand_ins = _stand_ins(tally.place / "commands")

    def names(self, text: str, key: str) -> None:
        """Use a name or flag value in a grid or profile, and in the batch script made from it."""
        if key in ("grid", "variant"):
            grid = GRID | (
                {"name": text}
                if key == "grid"
                else {"variants": {"base": {}, text: {"loss.alpha": 0.1}}}
            )
            profile = PROFILE
        else:
            grid, profile = GRID, PROFILE | {key: [text] if key == "srun_args" else text}
        self._submit("names", _dumped(grid), _dumped(profile))

    def yaml(self, text: str) -> None:
        """Read a file as a grid, and a value of --set."""
        self._submit("yaml", text, _dumped(PROFILE))
        value = text[:200]
        self._tally.attempt(
            "yaml",
            lambda: with_settings(
                load_grid(str(self._written("g.yaml", _dumped(GRID)))), [f"steps={value}"]
            ),
        )

    def profiles(self, content: dict[str, Any]) -> None:
        """Read a profile with hostile values.

        Lines of `setup` are not executed, because they are the user's own shell commands.
        """
        self._submit("profiles", _dumped(GRID), _dumped(content))

    def manifests(self, content: Any, names: list[str]) -> None:
        """Read the manifest of a data set and of a checkpoint."""
        folder = self._place / "data"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text(
            json.dumps(content), encoding="utf-8", errors="surrogatepass"
        )
        self._tally.attempt("manifests", lambda: check_files(folder, read_manifest(folder)))
        checkpoint = self._place / "step-1"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / MANIFEST).write_text(
            json.dumps({"files": {name: [1, "0"] for name in names}})
        )
        if self._tally.attempt(
            "manifests",
            lambda: (is_complete(checkpoint), is_visible(checkpoint, read_digests(checkpoint))),
        ) == (True, True):
            self._tally.leaks.append(f"a checkpoint of {names} counts as complete")

    def records(self, lines: list[str]) -> None:
        """Read every JSON or line-based file of a run."""
        run = RunFolder(self._place / "runs" / "study" / "base-s0-00000000")
        text = "\n".join(lines) + "\n"
        for path in (run.metrics(1), run.attempt(1), run.verdict(1, 0), run.saved, run.result):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        submission = self._place / "runs" / "study" / "submissions" / "1"
        submission.mkdir(parents=True, exist_ok=True)
        (submission / "journal.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
        for read in (read_status, read_attempts, read_metrics, read_result):
            self._tally.attempt("records", lambda read=read: read(run))
        self._tally.attempt("records", lambda: last_record(run.metrics(1)))
        self._tally.attempt(
            "records",
            lambda: (Submission(submission).sbatch_calls(), Submission(submission).cancelled()),
        )

    def _written(self, name: str, text: str) -> Path:
        path = self._place / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return path

    def _submit(self, kind: str, grid_text: str, profile_text: str) -> None:
        grid_file, profile_file = (
            self._written("grid.yaml", grid_text),
            self._written("profile.yaml", profile_text),
        )

        def work() -> str | None:
            grid, profile = load_grid(str(grid_file)), load_profile(str(profile_file))
            rows = expand_rows(grid)
            prints = {row.config.data.name: "feedfeedfeedfeed" for row in rows}
            folder = GridFolder(self._place / "runs-of-scripts" / grid.name)
            if not folder.path.resolve().is_relative_to(self._place / "runs-of-scripts"):
                self._tally.leaks.append(f"a grid's folder is outside of its root: {folder.path}")
            plan = make_plan(
                grid,
                expand(grid, prints, rows),
                profile,
                folder,
                Choices("c0de", "abc", Path("data")),
            )
            if profile.executor != "slurm":
                return None
            array = next_wave(plan.shapes, Limits())[0]
            return batch_text(plan, array, folder.path / "submissions" / "1")

        if script := self._tally.attempt(kind, work):
            self._script(kind, script, yaml.safe_load(profile_text))

    def _script(self, kind: str, script: str, profile: dict[str, Any]) -> None:
        """Check a script with bash, and execute it."""
        tally = self._tally
        tally.scripts += 1
        tally.look_for_tokens(kind, script)
        data = script.encode("utf-8", "surrogatepass")
        if not profile.get("setup"):  # setup is the user's own shell code
            checked = subprocess.run(["bash", "-n"], input=data, capture_output=True, check=False)
            if checked.returncode:
                tally.bad_scripts.append(checked.stderr.decode(errors="replace")[:200])
            environment = {
                "PATH": str(self._stand_ins),
                "SLURM_ARRAY_JOB_ID": "1",
                "SLURM_ARRAY_TASK_ID": "0",
            }
            subprocess.run(
                ["/bin/bash"],
                input=data,
                env=environment,
                cwd=self._place,
                capture_output=True,
                timeout=20,
                check=False,
            )
        if tally.canary.exists():
            tally.canary.unlink()
            tally.leaks.append(f"{kind}: the canary was run by\n{script}")


def _dumped(content: Any) -> str:
    return yaml.safe_dump(content)


def _stand_ins(folder: Path) -> Path:
    """Replace every command of a batch script by one that does nothing.

    `python3` answers as batch.py does.
    """
    folder.mkdir()
    begun = "FURNACE_RUN_DIR=x FURNACE_ATTEMPT=1 FURNACE_CODE=y"
    answer = f'case "$*" in *begin-row*) echo "{begun}";; *decide*) echo done;; esac'
    for name in ("find", "cp", "srun", "sleep", "python3"):
        (folder / name).write_text(
            "#!/bin/bash\n" + (answer if name == "python3" else "exit 0") + "\n"
        )
        (folder / name).chmod(0o755)
    return folder
