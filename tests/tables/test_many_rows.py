"""Work that must not grow with the square of the number of rows, or with settings not needed."""

import random
from itertools import combinations
from types import SimpleNamespace

from report_study import noisy

from furnace_hpc.tables.data_sets import rank_over_data_sets
from furnace_hpc.tables.factors import _pairs_without_common_keys
from furnace_hpc.tables.output import cells, latex
from furnace_hpc.tables.output.results import write_results


def test_pairs_of_rows_that_change_different_keys():
    chance = random.Random(1)
    for _ in range(50):
        rows = [SimpleNamespace(variant=f"row{number}") for number in range(chance.randint(0, 12))]
        changes = {
            row.variant: dict.fromkeys(chance.sample("abcd", chance.randint(1, 3)), "1")
            for row in rows
        }
        expected = [
            (one, other)
            for one, other in combinations(rows, 2)
            if not changes[one.variant].keys() & changes[other.variant].keys()
        ]
        assert list(_pairs_without_common_keys(rows, changes)) == expected


def test_settings_are_not_read_for_one_data_set():
    spec = SimpleNamespace(
        variant="base", config=SimpleNamespace(data=SimpleNamespace(name="tridigits"))
    )
    run = SimpleNamespace(
        draw=SimpleNamespace(pack=""), own_spec=spec, own_result=None, spec=spec, value=1.0
    )
    rows = [SimpleNamespace(variant="base", runs=[run])]

    def settings_of(runs):
        raise AssertionError("the config of each of thousands of runs would be flattened")

    assert rank_over_data_sets(SimpleNamespace(sanity=()), rows, settings_of) == (None, "")


def test_files_of_a_table_share_their_cells(tmp_path, monkeypatch):
    """The cells of a row are made once per metric, and the LaTeX table once."""
    ablation = noisy(tmp_path)
    calls = {"_cells": 0, "_compact": 0}

    def count(module, name):
        original = getattr(module, name)

        def counted(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(module, name, counted)

    count(cells, "_cells")
    count(latex, "_compact")
    write_results(ablation, tmp_path / "out", figures=False)
    tables = 2  # the accuracy, and the loss as another metric of the report
    assert calls["_cells"] == tables * len(ablation.rows)
    assert calls["_compact"] == len(ablation.rows)
