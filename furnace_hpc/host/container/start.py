"""Start one run's ranks in a container: the folders and variables that they need inside.

`begin` writes the words of a rank's command into the batch script's shell, as `FURNACE_RANK`.
Standard library only, syntax of Python 3.6.
"""

import os
import shlex
import sys
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from furnace_hpc.host.container.command import Container, container_of, find_odd_character, words
from furnace_hpc.host.container.image import image_facts, in_words
from furnace_hpc.host.json_lines import read_json

BATCH = "furnace_hpc/host/batch.py"  # in a code snapshot
# Images set some of these themselves. Names with a secret's word pass as the runtime likes: the
# words of a command are visible to all users of a node.
PASSED = ("FURNACE_", "GLOO_", "NCCL_", "TORCH_NCCL_", "DS_", "OMP_", "MKL_", "ATEN_", "ONEDNN_")
SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY")
IMAGE = "FURNACE_IMAGE"  # the image in words, for the result's versions

Record = Dict[str, Any]


def read_container(submission: str) -> Optional[Container]:
    """The container of a submission's profile. None if ranks start on the host."""
    try:
        return container_of(read_json(os.path.join(submission, "profile.json")))
    except FileNotFoundError:  # a submission whose profile was never written
        return None


def find_problem(container: Container) -> str:
    """Why this node cannot start the container. Empty if it can, as far as files tell."""
    for path in [container.image] + [mount.partition(":")[0] for mount in container.mounts]:
        if not os.path.exists(path):
            what = "image" if path == container.image else "mount"
            return f"the container's {what} {path} is missing on {os.uname().nodename}"
    return ""


class RunInContainer:
    """One run's ranks in a container on this node."""

    def __init__(self, container: Container, row: Record, spec: Record) -> None:
        self.container, self._row, self._spec = container, row, spec
        self.image = image_facts(container.image)

    def shell(self, number: int, fixed: Mapping[str, str]) -> str:
        """The line of shell that sets FURNACE_RANK to the words before `-m MODULE`."""
        return f"FURNACE_RANK=({' '.join(map(shlex.quote, self.rank_words(number, fixed)))})\n"

    def rank_words(self, number: int, fixed: Mapping[str, str]) -> List[str]:
        """The words of a rank's command before `-m MODULE`.

        Args:
            number: of the attempt.
            fixed: variables that the run needs with these values.
        """
        variables = {
            "FURNACE_RUN_DIR": self._row["run_dir"],
            "FURNACE_ATTEMPT": str(number),
            "FURNACE_CODE": self._row["code"],
            "SUBMITIT_EXECUTOR": "slurm",
        }
        variables.update(fixed)
        batch = os.path.join(self._row["code"], BATCH)
        launcher = ["python3", "-S", batch, "launch"]
        inside = ["-S", batch, "launch", self.container.python]
        return self._words(variables, launcher) + inside

    def gpu_check(self) -> List[str]:
        """The command of the image's Python, for a check of the GPUs. Empty under pyxis.

        Pyxis starts containers in steps of srun alone, and the check runs in the batch script.
        """
        if self.container.runtime == "pyxis":
            return []
        return self._words({"FURNACE_CODE": self._row["code"]}, [])

    def _words(self, variables: Dict[str, str], launcher: Sequence[str]) -> List[str]:
        place, given = os.getcwd(), self._mounted_as_they_are()
        folders = list(self._folders(place, given))
        inside = folders + given
        if not is_in_any(place, inside):
            place = os.path.dirname(os.path.dirname(self._row["run_dir"]))
        passed = dict(passed_variables(os.environ), **variables)
        passed["PYTHONPATH"], passed["PYTHONSAFEPATH"] = self._row["code"], "1"
        passed["PYTHONNOUSERSITE"] = "1"  # packages in the home folder are the host's
        passed[IMAGE] = in_words(self.image)
        cache = hub_cache(os.environ)
        if is_in_any(cache, inside):
            passed["HF_HUB_CACHE"] = cache
        return words(self.container, without_nested(folders), passed, place, launcher)

    def _mounted_as_they_are(self) -> List[str]:
        """The profile's mounts that can be written, and have the same path inside."""
        return [mount for mount in self.container.mounts if ":" not in mount]

    def _folders(self, place: str, given: Sequence[str]) -> Iterator[str]:
        """Folders of the host that the ranks read or write, if they exist."""
        runs = os.path.dirname(os.path.dirname(self._row["run_dir"]))
        found = [runs, self._row["code"], self._row["facts"].get("data_dir") or ""]
        found += [os.path.expandvars(os.environ.get("FURNACE_SCRATCH", ""))]
        found += [place, hub_cache(os.environ)]
        found += list(paths_in(self._spec.get("config")))
        for path in found:
            is_odd = not path.startswith("/") or path == "/" or find_odd_character(path)
            if not is_odd and os.path.exists(path) and not is_in_any(path, given):
                yield path


def passed_variables(environment: Mapping[str, str]) -> Dict[str, str]:
    """The variables of the job that an image must not replace."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PASSED) and not any(word in name for word in SECRETS)
    }


def hub_cache(environment: Mapping[str, str]) -> str:
    """The cache of Hugging Face's hub on the host."""
    home = environment.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    return environment.get("HF_HUB_CACHE") or os.path.join(home, "hub")


def paths_in(content: Any) -> Iterator[str]:
    """All texts in a config that are absolute paths, such as a folder with pretrained weights."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from paths_in(part)
    elif isinstance(content, str) and content.startswith("/"):
        yield content


def is_in_any(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is one of these folders, or in one of them."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def without_nested(folders: Sequence[str]) -> List[str]:
    """The folders without duplicates, and without those in another one."""
    kept = []  # type: List[str]
    for folder in sorted(set(folders), key=len):
        if not is_in_any(folder, kept):
            kept.append(folder)
    return sorted(kept)


def python_of_check(submission: str, row: Record, python: str) -> List[str]:
    """The words that start the ranks' Python for a check in the batch script. Empty: no check."""
    if not python:
        return []
    found = find_container(submission, row, {})
    return found.gpu_check() if found else [python]


def find_container(submission: str, row: Record, spec: Record) -> Optional[RunInContainer]:
    """The run in its container. None if it starts on the host.

    The process ends with a message if this node lacks the image or a folder.
    """
    container = read_container(submission)
    if container is None:
        return None
    problem = find_problem(container)
    if problem:
        sys.exit(f"batch.py: run {row['run_id']} is not started: {problem}")
    try:
        return RunInContainer(container, row, spec)
    except OSError as error:
        sys.exit(
            f"batch.py: run {row['run_id']} is not started: image {container.image} cannot be "
            f"read on {os.uname().nodename}: {error.strerror}"
        )
