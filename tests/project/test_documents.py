"""Check every command line of README and the other documents. Its level says how far it runs.

RUN       a shell runs it as printed, in a small study that is prepared below
ELSEWHERE another test runs it
PARSED    the command's parser accepts it: every option exists and every value has its type
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import forked_commands
import pytest
import typer
import yaml
from documents import DOCUMENTS, PROGRAMS, ROOT, Printed, blocks, commands, options

from furnace_hpc.cli import COMMANDS, module_of
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, with_settings
from furnace_hpc.config.parsing.lookup import read_yaml
from furnace_hpc.runs.submitted import set_options

ALL = [command for document in DOCUMENTS for command in commands(document)]
TEMPLATES = "test_slurm_templates.py::test_templates_train_an_array_and_single_runs"
STUDIES = "test_studies.py::test_a_study_trains_on_a_few_raw_files"
ON_SLURM = "test_documents_slurm.py::test_commands_on_the_devcluster"
OWN_TABLE = "test_own_table.py::test_three_commands_make_a_table"
COPY = "test_new_grid.py::test_a_shipped_grid_is_copied_with_its_comments"
# beginning of a command -> the test that runs it, or runs it with other names
ELSEWHERE = {
    "furnace aggregate --from": "test_foreign.py::test_the_command_writes_all_files",
    "furnace track": "test_track_command.py::test_it_says_what_was_sent",
    "furnace demo --quick": "test_packaging.py::test_the_wheel_trains_without_numba",
    "furnace devcluster": "test_packaging.py::test_devcluster_comes_with_the_wheel",
    "furnace drill": "test_drill.py::test_a_real_drill",
    "furnace export RUN_DIR": "test_onnx.py::test_the_program_of_the_demo_network",
    "furnace publish": "test_publish.py::test_the_folder_is_complete_and_predicts",
    "furnace serve": "test_serve.py::test_ctrl_c_ends_the_server",
    "furnace pack mmimdb": STUDIES,
    "furnace pack avmnist": STUDIES,
    "furnace pack audioset": STUDIES,
    "furnace pack table": "test_pack_table_files.py::test_commands_of_the_page",
    "furnace new mine --from": COPY,
    "furnace new NAME --from": COPY,
    "furnace new": OWN_TABLE,
    "furnace submit --grid reviews": OWN_TABLE,
    "furnace submit --grid mmimdb": STUDIES,
    "furnace submit --grid avmnist": STUDIES,
    "furnace submit --grid audioset": STUDIES,
    "furnace submit --grid smoke --cluster devcluster --prepare": TEMPLATES,
    "sbatch slurm/train": TEMPLATES,
    "sbatch --array": TEMPLATES,
    "sbatch --dependency": TEMPLATES,
}
PARSED = {  # beginning of a command -> why it is only parsed
    "furnace submit --grid ablation --set deepspeed=zero1": "needs Slurm: test_documents_slurm.py",
    "furnace submit --grid smoke": "needs Slurm: test_documents_slurm.py",
    "furnace status --grid smoke": "needs Slurm: test_documents_slurm.py",
    "furnace aggregate --grid smoke": "needs Slurm: test_documents_slurm.py",
    "furnace submit --grid ablation --cluster NAME": "needs a profile of a cluster",
    "furnace submit --grid ablation --cluster mine": "needs a profile of a cluster",
    "furnace submit --grid ablation --cluster local": "trains all 40 runs: benchmarks/demo.py",
    "furnace submit --grid ablation --set resources.sbatch": "needs Slurm: test_slurm_flags.py",
    "furnace submit --grid ablation --set steps": "trains four runs; README has the same options",
    "furnace submit --grid ablation --retry": "needs failed runs: test_local.py",
    "furnace logs": "needs started runs: test_logs_command.py",
    "furnace open": "opens a browser: test_open.py",
    "furnace diff": "needs two runs: test_diff.py",
    "furnace clean": "needs checkpoints: test_clean.py",
    "mkdir": "changes the home folder",
    "install": "changes the home folder",
    "furnace aggregate --grid NAME": "a placeholder; --where needs several packs: test_packs.py",
    "furnace submit --grid NAME": "a placeholder",
    "furnace pack SET": "a placeholder",
    "furnace X": "a placeholder",
    "furnace COMMAND": "a placeholder",
    "furnace --install-completion": "changes the home folder: test_completion.py",
    "furnace --show-completion": "test_completion.py",
    "furnace --version": "prints one line",
    "source": "the same as `. .venv/bin/activate`, which README's lines run",
    "pip uninstall": "changes the environment: test_packaging.py trains without these packages",
    "pip install": "`make demo` installs the same way",
    "scontrol": "an option of Slurm",
    "python": "a placeholder",
    "furnace doctor": "test_doctor_machine.py runs it",
    "furnace schema": "test_schema.py runs it",
    "make": "installs, or runs all tests: `make -n`",
    "slurm/devcluster": "the fixture `cluster` runs it",
    "slurm/roots": "downloads a Debian release: test_roots.py checks its usage",
    "sbatch": "the file is there: test_slurm_templates.py",
    "hf": "needs a network",
    "curl": "needs a server: test_serve.py sends such requests",
    "tar": "needs 8 GB",
    "pre-commit": "needs a network",
    "export": "a variable",
}
FIRST_RUN = (  # the commands that README builds on, in its order
    ". .venv/bin/activate",
    "furnace --help",
    "furnace submit --grid my_study.yaml",
    "furnace aggregate --grid my_study.yaml",
    "furnace export",
    "furnace pack tridigits",
    "furnace predict",
    "furnace submit --grid ablation --dry-run",
    "furnace status --grid ablation",
    "furnace cancel --grid ablation",
    "furnace aggregate --grid ablation",
)
PLACEHOLDERS = {
    "SET": "tridigits",
    "NAME": "ablation",
    "X": "status",
    "COMMAND": "status",
    "N": "1",
    "GRID": "modalities",
    "MNIST_DIR": "mnist",
}


def level(command: Printed) -> str:
    line = command.line
    if any(line.startswith(known) for known in ELSEWHERE):
        return "ELSEWHERE"
    is_parsed = any(line.startswith(known) for known in PARSED) or line.split()[0] in COMMANDS
    if is_parsed or line.removeprefix("furnace ") in COMMANDS:
        return "PARSED"
    if line.startswith(FIRST_RUN):
        return "RUN"
    return ""


def ids(command: Printed) -> str:
    return f"{command.document}: {command.line[:60]}"


def parser(name: str):
    """The click command of `furnace NAME`, made like in furnace_hpc/cli.py."""
    main = import_module(module_of(name)).main
    if isinstance(main, typer.Typer):
        return typer.main.get_command(main)
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(main)
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parse the words after `furnace` without running them. A name alone only mentions a command.

    Raises:
        UsageError: an option or a value that the command does not accept, or a missing one.
    """
    words = [PLACEHOLDERS.get(word, word) for word in words]
    command = parser(words[0])
    if words[0] == "pack":
        command, words = command.commands[words[1]], words[1:]
    if not words[1:]:
        return
    try:
        command.make_context(words[0], words[1:])
    except typer.Exit:
        assert "--help" in words


def all_options() -> set[str]:
    """Every option of every command that --help shows."""
    found = set()
    for name in COMMANDS:
        command = parser(name)
        for one in [command, *getattr(command, "commands", {}).values()]:
            found |= {
                option
                for parameter in one.params
                if not getattr(parameter, "hidden", False)
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
    return found


@pytest.mark.parametrize("command", ALL, ids=ids)
def test_each_command_has_a_level(command):
    assert level(command), (
        f"{command.document} prints {command.line!r}, and no test here executes it"
    )


def test_the_tests_elsewhere_exist():
    for name in {*ELSEWHERE.values(), ON_SLURM}:
        file, _, test = name.partition("::")
        [path] = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command", [c for c in ALL if c.words[0] == "furnace" and c.words[1][0] != "-"], ids=ids
)
def test_furnace_takes_every_option(command):
    assert PLACEHOLDERS.get(command.words[1], command.words[1]) in COMMANDS
    parse(command.words[1:])


@pytest.mark.parametrize("command", [c for c in ALL if c.words[0] in COMMANDS], ids=ids)
def test_options_of_partial_commands_exist(command):
    own = {option for parameter in parser(command.words[0]).params for option in parameter.opts} | {
        "--help"
    }
    assert {word for word in command.words[1:] if word.startswith("--")} <= own


@pytest.mark.parametrize(
    "command", [o for document in DOCUMENTS for o in options(document)], ids=ids
)
def test_options_alone_exist(command):
    slurms = {"--dependency=afterany"}
    assert {word for word in command.words if word.startswith("--")} <= all_options() | slurms


@pytest.mark.parametrize(
    "command", [c for c in ALL if c.line.startswith("furnace submit --grid")], ids=ids
)
def test_grids_rows_and_settings_exist(command):
    words = command.words
    name, given = words[words.index("--grid") + 1], {"--set": [], "--variant": []}
    for option, value in pairwise(words):
        given.get(option, []).append(value)
    if name in ("NAME", "my_study.yaml", "reviews"):
        return
    rows = expand_rows(with_settings(load_grid(name), given["--set"]))
    assert set(given["--variant"]) <= {row.name for row in rows}


@pytest.mark.parametrize("command", [c for c in ALL if c.words[0] == "make"], ids=ids)
def test_make_has_the_target(command):
    make = shutil.which("make") or pytest.skip("no make here")
    done = subprocess.run(
        [make, "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [c for c in ALL if c.words[0] in ("sbatch", "slurm/devcluster")], ids=ids
)
def test_scripts_of_slurm_exist(command):
    help_ = subprocess.run(
        [ROOT / "slurm/devcluster", "help"], capture_output=True, text=True, timeout=60
    ).stdout
    for word in command.words:
        assert not word.startswith("slurm/") or (ROOT / word).is_file()
        assert command.words[0] == "sbatch" or word in help_ or word == "help"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_printed_grids_are_valid(document, tmp_path):
    for text in blocks(document, "yaml"):
        if text.startswith("name:"):
            (tmp_path / "grid.yaml").write_text(text)
            assert expand_rows(Grid.model_validate(read_yaml(tmp_path / "grid.yaml")))


@pytest.fixture(scope="module")
def first_day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory for README: its grid with few steps, a small demo, no Slurm."""
    place = tmp_path_factory.mktemp("first_day")
    (text,) = (
        block for block in blocks(ROOT / "README.md", "yaml") if block.startswith("name: my_study")
    )
    study = yaml.safe_load(text) | {"seeds": [0]}
    del study["variants"]["slow"]  # a row less to train
    study["base"] |= {
        "steps": 12,
        "evaluation": {"every": 6},
        "model": {"width": 16, "num_heads": 2, "feedforward": 32},
    }
    (place / "my_study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (place / "experiments").mkdir()
    demo = {"name": "ablation", "variants": {"base": {}, "full": {"loss.alpha": 0.5}}}
    demo["base"] = study["base"] | {"deepspeed": "zero1_fp32"}
    (place / "experiments" / "ablation.yaml").write_text(
        yaml.safe_dump(study | demo, sort_keys=False)
    )
    (place / ".venv").symlink_to(sys.prefix)
    (place / "bin").mkdir()
    for name in ("bash", "sh", "git", "env", "cat", "uname"):
        if found := shutil.which(name):
            (place / "bin" / name).symlink_to(found)
    return place


def shell(place: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line in a new shell whose environment is activated."""
    words = ["bash", "-c", f". .venv/bin/activate && {line}"]
    return subprocess.run(
        words, cwd=place, env=without_slurm(place), capture_output=True, text=True, timeout=600
    )


def without_slurm(place: Path) -> dict[str, str]:
    """The environment of a user whose PATH has no Slurm."""
    roots = ("FURNACE_", "SLURM_", "VIRTUAL_ENV", "PATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(roots)}
    return environment | {"PATH": str(place / "bin"), "HOME": str(place), "COLUMNS": "120"}


def test_readme_names_the_test_command():
    """CI runs it, then the slow tests, as `make test-all` does."""
    assert "`make test`" in (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^tests (\S+)", ci, re.MULTILINE) == ["test", "test-slow"]
    assert "\ntest-all: test test-slow\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_readme_in_chinese_has_the_same_table():
    """Its figures, its pictures with a text of their own, and what a table declares."""
    english, chinese = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")
    )
    intervals = re.findall(r"[+-][0-9.]+ \[[-0-9., ]+\]", english.replace("\n", " "))
    assert len(intervals) >= 5
    assert [found for found in intervals if found not in chinese.replace("\n", " ")] == []
    pictures = re.compile(r"!\[(.*?)\]\((.*?)\)")
    assert [path for _, path in pictures.findall(chinese)] == [
        path for _, path in pictures.findall(english)
    ]
    assert {"declared.json", "tune"} <= {*re.findall(r"`([a-z.]+)`", chinese)}


PAGES = ("docs/grids.md", "docs/tables.md", "docs/export.md")
DEMO = "furnace submit --grid ablation"  # as `furnace demo` runs it


def printed_in(*pages: str) -> list[str]:
    """The commands of these pages that run, in their order."""
    found = [c.line for page in pages for c in ALL if c.document == page and level(c) == "RUN"]
    return list(dict.fromkeys(found))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_of_readme_work_in_order(first_day):
    """Each command of README runs in a shell as printed, and each of three pages with its words.

    The other pages show more options of the same commands. So processes forked from one that has
    imported them run those.
    """
    lines = printed_in("README.md")
    others = [line for line in printed_in(*PAGES) if line not in lines]
    assert len(lines) > 7
    assert len(others) > 9
    lines.insert(next(n for n, line in enumerate(lines) if line.startswith("furnace export")), DEMO)
    for line in lines:
        check(line, shell(first_day, line))
    for line in others:
        check(line, forked(first_day, line))
    assert len(list((first_day / "results").glob("my_study*/report.html"))) == 5
    [code] = [
        block for block in blocks(ROOT / "docs" / "export.md", "python") if "Predictor" in block
    ]
    done = shell(first_day, f"python -c '{code}'")
    assert done.returncode == 0, done.stderr


def check(line: str, done: subprocess.CompletedProcess[str]) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{line}\n{said}"
    assert "Traceback" not in said, line


def forked(place: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line without characters of the shell, as a forked process."""
    program, name, *words = shlex.split(line, comments=True)
    assert program == "furnace"
    assert not set("*$|&;<>") & set(line), line
    command = [sys.executable, "-m", module_of(name), *words]
    return forked_commands.run(command, cwd=place, env=without_slurm(place), timeout=600)


def test_setting_words_can_be_read_back():
    settings = {
        "a": 1e-5,
        "b": None,
        "c": True,
        "d": "010",
        "e": [1, "x"],
        "f": {"k": 0.5},
        "g": "zero1",
        "h": "null",
    }
    grid = load_grid("smoke")
    assert with_settings(grid, set_options(settings)[1::2]).settings == settings
    assert re.fullmatch(r"(--set \S.*)", " ".join(set_options({"steps": 20})))
    assert PROGRAMS
