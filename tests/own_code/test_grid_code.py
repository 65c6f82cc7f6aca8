"""The key `code`: what a grid may name, its hash in run ids, and errors before torch is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
from own_code_study import NETWORK, PACKAGE, write_grid, write_package

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.config.own_code import static_check
from furnace_hpc.runs.snapshot import forget_code, source

BUILT_IN = {"model.fusion": "concat"}


def ids(path: Path) -> dict[str, str]:
    """Row -> run id."""
    grid = read_grid(path)
    return {run.variant: run.run_id for run in expand(grid, {"tridigits": "f" * 16})}


def problem(folder: Path, row: dict, **changes: object) -> str:
    if not (folder / PACKAGE).exists():
        write_package(folder)
    with pytest.raises(ConfigError) as error:
        expand_rows(read_grid(write_grid(folder, {"base": BUILT_IN, "own": row}, **changes)))
    return str(error.value)


def test_a_change_of_code_changes_its_rows(tmp_path):
    """Rows that use the code get another run id. Rows without it keep theirs."""
    package = write_package(tmp_path)
    path = write_grid(tmp_path, {"own": NETWORK, "concat": BUILT_IN})
    before = ids(path)
    with (package / "net.py").open("a") as file:
        file.write("# another line\n")
    after = ids(path)
    assert before["own"] != after["own"]
    assert before["concat"] == after["concat"]


def test_a_grid_without_own_code_keeps_its_ids(tmp_path):
    """`code` alone changes no run id: no row uses it."""
    write_package(tmp_path)
    with_code = ids(write_grid(tmp_path, {"concat": BUILT_IN}))
    without = ids(write_grid(tmp_path, {"concat": BUILT_IN}, code=[]))
    assert with_code == without


def test_the_place_of_the_code_changes_nothing(tmp_path):
    for name in ("a", "b"):
        write_package(tmp_path / name)
    first, second = (ids(write_grid(tmp_path / n, {"own": NETWORK})) for n in ("a", "b"))
    assert first == second


def test_the_copy_of_a_grid_needs_no_files(tmp_path):
    """The grid that submit writes has the hash, so tables of old runs need no code."""
    package = write_package(tmp_path)
    grid = read_grid(write_grid(tmp_path, {"own": NETWORK}))
    config = expand_rows(grid)[0].config
    assert config.own_code == grid.code_sha256
    copy = Grid.model_validate(grid.model_dump(mode="json"))
    (package / "net.py").unlink()
    assert expand_rows(copy)[0].config == config


@pytest.mark.parametrize("change", [lambda net: net.write_text("X = 1\n"), Path.unlink])
def test_code_that_changed_since_the_grid_was_read(tmp_path, change):
    """As in a notebook: the runs would have the old hash, and the snapshot the new code."""
    package = write_package(tmp_path)
    grid = read_grid(write_grid(tmp_path, {"own": NETWORK}))
    assert "own_code/study_code/net.py" in source(grid.own_code).files
    change(package / "net.py")
    forget_code()
    with pytest.raises(
        ConfigError, match=r"own code \(study_code\) was changed after the grid was"
    ):
        source(grid.own_code)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"model.network": f"{PACKAGE}.net:MyNett"}, ["no 'MyNett'", "did you mean 'MyNet'?"]),
        ({"model.network": f"{PACKAGE}.nets:MyNet"}, ["no module", f"{PACKAGE}.net'?"]),
        ({"model.network": "other.net:MyNet"}, ["no package 'other'", "Add it to code"]),
        ({"model.network": f"{PACKAGE}.losses:shrink"}, ["a function", "wanted a class"]),
        (
            NETWORK | {"model.network_args": {"hidden_size": 3}},
            ["no parameter 'hidden_size'", "did you mean 'hidden'?", "net.py:"],
        ),
        (NETWORK | {"model.network_args": {"hidden": 1.5}}, ["got 1.5", "wanted int"]),
        (NETWORK | {"model.network_args": {"hidden": True}}, ["got True", "wanted int"]),
        (
            {"model.fusion": f"{PACKAGE}.fusion:Scaled", "model.fusion_args": {"scal": 2.0}},
            ["no parameter 'scal'", "'scale'"],
        ),
        ({"model.fusion": "concatt"}, ["did you mean 'concat'?", "package.module:Name"]),
        ({"model.fusion": "concat", "model.fusion_args": {"a": 1}}, ["fusion_args"]),
        ({"loss.extra": {f"{PACKAGE}.losses:norm": 0.1}}, ["norm is the name of a built-in term"]),
        (
            {"loss.extra": {f"{PACKAGE}.losses:shrink": float("inf")}},
            ["a parameter is inf", "finite number"],
        ),
        (NETWORK | {"model.network_args": {"hidden": [1, float("nan")]}}, ["a parameter is nan"]),
        (
            {"evaluation.extra": {f"{PACKAGE}.losses:error_rate": {"percent": float("inf")}}},
            ["a parameter is inf"],
        ),
        (
            NETWORK | {"model.fusion": f"{PACKAGE}.fusion:Scaled"},
            ["are both your own", "Remove one of them"],
        ),
        ({"loss.extra": {f"{PACKAGE}.losses:shrnk": 0.1}}, ["no 'shrnk'"]),
        ({"loss.extra": {f"{PACKAGE}.losses:shrink": 0}}, ["wanted a weight above 0"]),
        (
            {"loss.extra": {f"{PACKAGE}.losses:shrink": {"weight": 1, "powr": 2}}},
            ["no parameter 'powr'"],
        ),
        (
            {"evaluation.extra": {f"{PACKAGE}.losses:error_rate": {"percent": 1}}},
            ["wanted bool"],
        ),
        (
            {"model.image": {"encoder": f"{PACKAGE}.enc:Rows", "encoder_args": {"scal": 1.0}}},
            ["model.image.encoder", "no parameter 'scal'"],
        ),
        ({"own_code": "abc"}, ["'own_code' does not belong in a row"]),
    ],
)
def test_a_mistake_in_a_row_is_named(tmp_path, row, words):
    text = problem(tmp_path, row)
    assert all(word in text for word in words), text
    assert "row 'own'" in text


def test_own_code_without_the_key_code(tmp_path):
    assert f"Add code: [./{PACKAGE}]" in problem(tmp_path, NETWORK, code=[])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "does not exist"),
        ("json", "taken or reserved"),
        ("furnace_hpc", "taken or reserved"),
        ("torch", "taken or reserved"),
        ("loss", "taken or reserved"),
        ("not-a-name", "cannot import"),
        ("empty", "no Python file"),
    ],
)
def test_a_path_of_code_is_checked(tmp_path, name, words):
    if name != "missing":
        folder = tmp_path / name
        folder.mkdir()
        if name != "empty":
            (folder / "__init__.py").touch()
    assert words in problem(tmp_path, BUILT_IN, code=[f"./{name}"])


def test_a_syntax_error_is_named_with_its_line(tmp_path):
    package = write_package(tmp_path)
    (package / "net.py").write_text("import torch\nclass MyNet(:\n")
    assert f"{package / 'net.py'}:2: not valid Python" in problem(tmp_path, NETWORK)


def test_code_that_others_can_write_is_refused(tmp_path):
    package = write_package(tmp_path)
    (package / "net.py").chmod(0o666)
    text = problem(tmp_path, NETWORK)
    assert "other users could change it" in text
    assert f"chmod -R go-w {package}" in text


def test_a_file_is_checked_once_for_all_rows(tmp_path, monkeypatch):
    """The source is read for the first row. The values of each row are compared with it."""
    found = []
    find = static_check.find
    monkeypatch.setattr(static_check, "find", lambda *what: found.append(what) or find(*what))
    write_package(tmp_path)
    rows = {f"r{n}": NETWORK | {"model.network_args": {"hidden": 8 + n}} for n in range(20)}
    grid = read_grid(write_grid(tmp_path, rows))
    assert len(expand_rows(grid)) == 20
    assert len(found) == 1
    expand_rows(read_grid(write_grid(tmp_path, rows)))
    assert len(found) == 2  # another grid may have other files
    rows["last"] = NETWORK | {"model.network_args": {"hidden": "wide"}}
    with pytest.raises(ConfigError, match=r"row 'last': .* got 'wide', wanted int"):
        expand_rows(read_grid(write_grid(tmp_path, rows)))


def test_a_dry_run_of_many_rows_loads_no_torch(tmp_path, small_root):
    """1,000 rows with own code are planned, and neither torch nor the code is imported."""
    write_package(tmp_path)
    rows = {f"r{n}": NETWORK | {"model.network_args": {"hidden": 8 + n}} for n in range(1000)}
    grid = write_grid(tmp_path, rows)
    code = (
        "import sys\nfrom pathlib import Path\nfrom furnace_hpc.submit import main\n"
        "main(grid=sys.argv[1], cluster='local', dry_run=True, data_dir=Path(sys.argv[2]))\n"
        "print('heavy:', sorted({'torch', 'numpy', 'study_code'} & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code, str(grid), str(small_root)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert "1000" in done.stdout.replace(",", "")
