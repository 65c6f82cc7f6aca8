"""The command lines in the project's documents: blocks of shell, and inline code."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from furnace_hpc.cli import COMMANDS

ROOT = Path(__file__).parents[2]
NAMES = (
    "README",
    "README.zh",
    "CONTRIBUTING",
    "SECURITY",
    "experiments/README",
    "slurm/README",
    "ds_configs/README",
)
DOCUMENTS = sorted([ROOT / f"{name}.md" for name in NAMES] + list((ROOT / "docs").glob("*.md")))
PROGRAMS = {
    "furnace",
    "make",
    "slurm/devcluster",
    "sbatch",
    "hf",
    "tar",
    "python",
    "pre-commit",
    "scontrol",
    ".",
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Printed:
    """One command as it stands in a document, without its comment."""

    document: str
    line: str

    @property
    def words(self) -> list[str]:
        """Its words, as the shell splits them."""
        return shlex.split(self.line, comments=True)


def blocks(document: Path, language: str) -> list[str]:
    return [
        text
        for kind, text in FENCED.findall(document.read_text(encoding="utf-8"))
        if kind == language
    ]


def commands(document: Path) -> list[Printed]:
    """All commands, those of one line apart."""
    name = str(document.relative_to(ROOT))
    lines = [
        line for block in blocks(document, "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [text for text in inline(document) if _begins_with_a_program(text)]
    parts = [
        part.strip()
        for line in lines
        for part in re.split(r"&&|(?<!\S)>\s*\S+", line.partition(" #")[0])
    ]
    return [
        Printed(name, " ".join(part.split()))
        for part in dict.fromkeys(parts)
        if part and not part.startswith("#")
    ]


def options(document: Path) -> list[Printed]:
    """Inline code that is options alone, such as `--set`."""
    name = str(document.relative_to(ROOT))
    return [
        Printed(name, text) for text in dict.fromkeys(inline(document)) if text.startswith("--")
    ]


def inline(document: Path) -> list[str]:
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in INLINE.findall(text)]


def _begins_with_a_program(text: str) -> bool:
    first, _, rest = text.partition(" ")
    return (first in PROGRAMS - {"."} and bool(rest)) or (
        first in COMMANDS and rest.startswith("--")
    )
