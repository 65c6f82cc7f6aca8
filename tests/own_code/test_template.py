"""`furnace new NAME --network`: the written network keeps its contracts, and is never replaced."""

import shlex

from login_study import command
from test_contracts import check_grid, columns  # noqa: F401  (a fixture)

from furnace_hpc.config.grids.grid import read_grid
from furnace_hpc.config.grids.network_template import package_files, package_name


def test_the_template_keeps_all_contracts(tmp_path, small_root, columns):  # noqa: F811
    done = command("new", tmp_path, "my-net", "--data", str(small_root / "tridigits"), "--network")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == (
        "wrote experiments/my-net.yaml and experiments/my_net_code"
    )
    first = shlex.split(done.stdout.splitlines()[-2])
    assert first[:1] == ["first:"]
    assert first[-5:-1] == ["my-net", "--variant", "own", "--data-root"]
    grid = read_grid(tmp_path / "experiments" / "my-net.yaml")
    findings = check_grid(grid, tmp_path / "copy", columns)
    assert [finding.problem for finding in findings] == [""] * 7


def test_the_template_has_at_most_60_lines():
    assert all(len(text.splitlines()) <= 60 for text in package_files("mine").values())


def test_the_package_has_a_name_for_python():
    names = ["mine", "my-net.v2", "2nd"]
    assert [package_name(name) for name in names] == ["mine_code", "my_net_v2_code", "_2nd_code"]


def test_a_package_is_never_replaced(tmp_path, small_root):
    (tmp_path / "experiments" / "mine_code").mkdir(parents=True)
    data = str(small_root / "tridigits")
    done = command("new", tmp_path, "mine", "--data", data, "--network", "--force")
    assert done.returncode == 2
    assert "your code is never replaced" in done.stderr
    assert not (tmp_path / "experiments" / "mine.yaml").exists()
