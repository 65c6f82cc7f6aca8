"""Captions of tables on data that has the same files or groups in two splits."""

from tables_study import GRID, finish

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.captions import caption, main_sentences

SENTENCE = (
    "The data has 3 image files, 1 group in two splits (--allow-leak), so its scores are too good."
)


def table(path, leak):
    study = Grid.model_validate(GRID | {"variants": {"base": {}, "full": {"loss.alpha": 0.5}}})
    runs = expand(study, {"tridigits": "0" * 16})
    for spec in runs:
        origin = PackOrigin(pool="p", test_per_train=0.1, leak=leak)
        finish(spec, GridFolder(path / "study"), accuracy=0.5, data_origin=origin)
    return collect(study, runs, GridFolder(path / "study"))


def test_captions_name_a_leak(tmp_path):
    """Once, in the short and in the full caption."""
    ablation = table(tmp_path, "3 image files, 1 group")
    assert main_sentences(ablation).count(SENTENCE) == 1
    assert caption(ablation, ()).count(SENTENCE) == 1


def test_captions_without_a_leak_do_not(tmp_path):
    ablation = table(tmp_path, "")
    assert not any("two splits" in sentence for sentence in main_sentences(ablation))
