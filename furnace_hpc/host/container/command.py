"""The words that start a rank in a container, after `srun` and its own options.

    apptainer   python3 -S batch.py launch apptainer exec --bind ... IMAGE env NAME=VALUE ... PYTHON
    pyxis       --container-image=IMAGE --container-mounts=... env NAME=VALUE ... PYTHON

`env` sets what an image could replace by values of its own. Everything else of the job's
environment gets inside by itself. Standard library only, syntax of Python 3.6.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence

# Both runtimes separate mounts by commas, and their parts by colons. Quotes, backslashes and line
# ends are read differently by bash, srun and the runtimes.
_ODD = " ,:\"'\\`$%#"


class Container(NamedTuple):
    """An image, and how ranks start in it."""

    image: str
    runtime: str  # apptainer or pyxis
    mounts: Sequence[str] = ()
    args: Sequence[str] = ()
    uses_gpus: bool = False
    python: str = "python3"  # of the image


def container_of(profile: Dict[str, Any]) -> Optional[Container]:
    """The container of a cluster profile in its JSON form. None if ranks start on the host."""
    content = profile.get("container")
    if not content:
        return None
    return Container(
        content["image"],
        content["runtime"],
        content.get("mounts") or (),
        content.get("args") or (),
        bool(profile.get("gpu_flag")) and profile.get("gpus_per_node") != 0,
        profile.get("python") or "python3",
    )


def find_odd_character(path: str) -> str:
    """The first character of a path that containers' arguments cannot have. Empty if none has."""
    for character in path:
        if character in _ODD or ord(character) < 32 or ord(character) == 127:
            return character
    return ""


def words(
    container: Container,
    folders: Sequence[str],
    variables: Dict[str, str],
    place: str,
    launcher: Sequence[str] = (),
) -> List[str]:
    """The words up to the container's Python. Its arguments follow.

    Args:
        container: the image.
        folders: folders of the host, which have the same path inside.
        variables: environment variables that the image must not replace.
        place: working directory inside. It is one of the folders, or below one.
        launcher: words before `apptainer`. Pyxis has none, since srun itself starts the container.
    """
    mounts = [_in_full(mount) for mount in container.mounts]
    mounts += [f"{folder}:{folder}" for folder in folders]
    start = {"apptainer": _apptainer, "pyxis": _pyxis}[container.runtime]
    inside = ["env"] + [f"{name}={value}" for name, value in sorted(variables.items())]
    return start(container, mounts, place, launcher) + inside + [container.python]


def _in_full(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"


def _apptainer(
    container: Container, mounts: List[str], place: str, launcher: Sequence[str]
) -> List[str]:
    command = list(launcher) + ["apptainer", "exec"]
    for mount in mounts:
        command += ["--bind", mount]
    command += ["--pwd", place]
    if container.uses_gpus:
        command.append("--nv")
    return command + list(container.args) + [container.image]


def _pyxis(
    container: Container, mounts: List[str], place: str, launcher: Sequence[str]
) -> List[str]:
    options = [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={place}",
    ]
    return options + list(container.args)
