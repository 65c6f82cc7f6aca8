"""The example notebook, executed by Jupyter's own kernel with small data."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "notebooks" / "ablation.ipynb"


def read():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def output(notebook, cell_id: str) -> dict[str, str]:
    """The data of a cell's last output: media type -> content."""
    [cell] = [cell for cell in notebook.cells if cell.id == cell_id]
    return cell.outputs[-1].data


def test_the_notebook_is_committed_without_outputs():
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", [])] == [
        "choices"
    ]


def test_the_notebook_works_in_the_folder_of_the_clone(tmp_path: Path, monkeypatch):
    """Jupyter starts in the notebook's folder, where no runs are. Other folders stay."""
    [cell] = [cell for cell in read().cells if cell.id == "folder"]
    notebooks = tmp_path / "experiments" / "notebooks"
    notebooks.mkdir(parents=True)
    for start, wanted in ((notebooks, tmp_path), (tmp_path, tmp_path)):
        monkeypatch.chdir(start)
        exec(cell.source, {})
        assert Path.cwd() == wanted


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs_in_a_kernel(tmp_path: Path, small_root: Path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, folder in (("FURNACE_DATA", small_root), ("FURNACE_RUNS", tmp_path / "runs")):
        monkeypatch.setenv(name, str(folder))
    notebook = read()
    _use_small_data(notebook)
    # the kernel of this Python, whatever is registered on this machine
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv = words
    client.execute(env=dict(os.environ))
    assert "<grid smoke: 3 rows x 1 seed" in output(notebook, "load")["text/plain"]
    plan = output(notebook, "plan")
    assert plan["text/plain"] == "<plan of smoke on local: 3 runs (3 start)>"
    assert plan["text/html"].count("<td") == 3 * 4
    _check_submission(notebook)
    table = output(notebook, "results")["text/html"]
    assert table.count("<tr>") == 4
    assert "base_stage-1" in table
    assert "How to read this table" in table
    frame = output(notebook, "frames")["text/plain"]
    for row, accuracy in _accuracies(tmp_path / "runs" / "smoke").items():
        of_row = table.split(f">{row}<")[1].partition("</tr>")[0]
        assert f">{100 * accuracy:.1f}<" in of_row
        [printed] = [line for line in frame.splitlines() if f" {row} " in line]
        numbers = [float(number) for number in re.findall(r"\d+\.\d+", printed)]
        assert any(abs(number - accuracy) < 1e-6 for number in numbers), printed
    curves = output(notebook, "curves")["text/plain"]
    assert "shape: (6, 3)" in curves  # three rows, evaluated at steps 6 and 12


def _use_small_data(notebook) -> None:
    [cell] = [cell for cell in notebook.cells if cell.id == "choices"]
    assert 'GRID = "ablation"' in cell.source
    cell.source = 'GRID, SETTINGS, CLUSTER = "smoke", {"log_every": 3}, "local"'


def _accuracies(folder: Path) -> dict[str, float]:
    """Row -> accuracy, as its run has written it."""
    results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    assert len(results) == 3
    return {one["variant"]: one["metrics"]["test/digit/accuracy"] for one in results}


def _check_submission(notebook) -> None:
    """The cell has one table of progress that was updated, and no text on stdout or stderr."""
    [cell] = [cell for cell in notebook.cells if cell.id == "submit"]
    kinds = [one.output_type for one in cell.outputs]
    assert kinds == ["display_data", "execute_result"]
    assert "3 runs: 3 done" in cell.outputs[0].data["text/html"]
    status = output(notebook, "status")["text/html"]
    assert status.count(">12/12<") == 3
