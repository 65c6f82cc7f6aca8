"""The diagram of critical differences (Demsar 2006) in the figures and in the report."""

import csv
import io
import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from foreign_runs import table_of, write_csv
from hypothesis import given
from hypothesis import strategies as st
from report_study import open_browser, overlap

from furnace_hpc.tables.output.figures import draw_figures
from furnace_hpc.tables.output.ranks.layout import describe, has_diagram, lay_out, sentences
from furnace_hpc.tables.output.render import to_ranks_csv
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.results import write_results
from furnace_hpc.tables.statistics.ranks import joined_groups, rank_methods
from furnace_hpc.tables.table import Ablation

DEMSAR = {"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
LONG = "wider_encoder_with_a_long_name-and-more-of-it_and_no_end"


def table(path: Path, names=("base", "mid", "top"), gap=0.05, num_sets=6, **options) -> Ablation:
    """Each method is better than the one before by `gap` and noise."""
    generator = random.Random(0)
    lines = [
        {
            "variant": name,
            "pack": f"set{number}",
            "seed": seed,
            "acc": round(0.3 + gap * place + 0.02 * number + generator.gauss(0, 0.005), 5),
        }
        for place, name in enumerate(names)
        for number in range(num_sets)
        for seed in (0, 1)
    ]
    path.mkdir(exist_ok=True)
    return table_of(write_csv(path / "runs.csv", lines), **({"data_set": "pack"} | options))


# Groups


@pytest.mark.parametrize(
    ("mean_ranks", "difference", "expected"),
    [
        # a differs from c, b from neither
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 1.5, [("a", "b"), ("b", "c")]),
        # the order is that of the ranks, not of the names
        ({"c": 3.0, "a": 1.0, "b": 2.0}, 1.5, [("a", "b"), ("b", "c")]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 2.5, [("a", "b", "c")]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 0.5, []),
        # ties are joined, and b is alone
        ({"a": 1.5, "t": 1.5, "b": 3.0}, 1.0, [("a", "t")]),
        ({"a": 2.0, "b": 2.0, "c": 2.0}, 0.1, [("a", "b", "c")]),
        # b and c are in the group of a, so they are no group of their own
        ({"a": 1.0, "b": 1.2, "c": 1.4, "d": 4.0}, 1.0, [("a", "b", "c")]),
        # figure 1 of Demsar (2006): CD 1.25 at 5 % shows nothing, CD 1.12 at 10 % has two groups
        (DEMSAR, 1.25, [("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")]),
        (DEMSAR, 1.12, [("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5")]),
        # differences of exactly the critical one are not exceeded
        ({"a": 1.0, "b": 2.0}, 1.0, [("a", "b")]),
        ({}, 1.0, []),
    ],
)
def test_groups_worked_by_hand(mean_ranks, difference, expected):
    assert joined_groups(mean_ranks, difference) == expected


@given(
    st.lists(st.integers(10, 100), min_size=2, max_size=9),
    st.integers(1, 60),
)
def test_groups_join_what_does_not_differ(ranks, difference):
    """Two methods share a bar if and only if they do not differ. No bar is part of another."""
    mean_ranks = {f"m{number}": rank / 10 for number, rank in enumerate(ranks)}
    groups = joined_groups(mean_ranks, difference / 10)
    for one, other in combinations(mean_ranks, 2):
        differ = abs(mean_ranks[one] - mean_ranks[other]) > difference / 10
        assert differ != any(one in group and other in group for group in groups)
    assert not any(set(one) <= set(other) for one, other in combinations(groups, 2))


# Whether there is a diagram


def test_no_diagram_without_a_difference(tmp_path):
    """Demsar makes no post-hoc test if the Friedman test shows nothing."""
    generator = np.random.default_rng(3)
    scores = dict(zip("abcd", generator.normal(size=(4, 6)).tolist(), strict=True))
    ranks = rank_methods(scores, list("uvwxyz"), True)
    assert ranks.friedman_p > 0.05
    assert ranks.critical_difference is not None
    assert (ranks.shown_difference, ranks.groups, has_diagram(ranks)) == (None, [], False)
    ablation = table(tmp_path, gap=0.0, num_sets=5)
    assert ablation.ranks.friedman_p > 0.05
    note = next(n.text for n in ablation.notes if n.text.startswith("mean ranks"))
    assert note.endswith("It shows no difference between them, so no pairs are compared")
    lines = list(csv.DictReader(io.StringIO(to_ranks_csv(ablation))))
    assert {line["critical_difference"] for line in lines} == {""}
    assert "ranks-title" not in to_html(ablation)
    assert "ranks.svg" not in draw_figures(ablation)


def test_no_diagram_without_a_test(tmp_path):
    few_sets = table(tmp_path, num_sets=4)
    draws = table(tmp_path / "b", data_set=None, pack="pack")
    for ablation in (few_sets, draws):
        assert not has_diagram(ablation.ranks)
        assert "ranks-title" not in to_html(ablation)
    assert not has_diagram(None)


def test_an_old_diagram_is_removed(tmp_path):
    out = tmp_path / "out"
    write_results(table(tmp_path), out)
    assert (out / "figures" / "ranks.svg").stat().st_size > 1000
    write_results(table(tmp_path, num_sets=4), out)
    assert not (out / "figures" / "ranks.svg").exists()


# What it shows


def test_layout_of_three_methods(tmp_path):
    ranks = table(tmp_path).ranks
    assert ranks.groups == [("top", "mid"), ("mid", "base")]
    found = lay_out(ranks, 400, 5, 10)
    assert [name.lines for name in found.names] == [
        ["top (1.00)"],
        ["mid (2.00)"],
        ["base (3.00)"],
    ]
    assert [name.is_left for name in found.names] == [True, True, False]
    unit = (found.axis.x1 - found.axis.x0) / 2
    places = [(name.rank_x - found.axis.x0) / unit for name in found.names]
    assert places == pytest.approx([0, 1, 2])
    length = found.difference.x1 - found.difference.x0
    assert length / unit == pytest.approx(ranks.critical_difference)
    assert [text for _, text in found.ticks] == ["1", "2", "3"]
    assert found.bars[0].y < found.bars[1].y
    assert "Joined by a bar: top and mid; mid and base" in describe(ranks)


@pytest.mark.parametrize("count", [3, 10, 50])
def test_texts_stay_inside_and_apart(tmp_path, count):
    names = ["base", LONG, *(f"method_{number}_gated" for number in range(count - 2))]
    ranks = table(tmp_path, names=names, gap=0.01).ranks
    found = lay_out(ranks, 330, 7, 15)
    assert found.axis.x1 - found.axis.x0 > 330 / 4
    for is_left in (True, False):
        side = [name for name in found.names if name.is_left is is_left]
        assert all(len(line) * 7 < 0.35 * 330 for name in side for line in name.lines)
        for one, other in pairwise(side):
            assert other.y - one.y >= (len(one.lines) + len(other.lines)) / 2 * 15
    assert max(bar.y for bar in found.bars) < min(name.y for name in found.names)
    assert max(name.y for name in found.names) < found.height
    long = next(name for name in found.names if "encoder" in "".join(name.lines))
    assert long.lines[-1].endswith(f"({ranks.mean_ranks[LONG]:.2f})")


def test_too_many_methods_have_no_diagram(tmp_path):
    names = ["base", *(f"m{number}" for number in range(50))]
    ranks = table(tmp_path, names=names, gap=0.01).ranks
    assert ranks.shown_difference is not None
    assert not has_diagram(ranks)


def test_sentences_claim_what_the_test_shows():
    some = rank_methods({"a": [5.0] * 5, "b": [3.0] * 5, "c": [1.0] * 5}, list("vwxyz"), True)
    assert some.groups == [("a", "b"), ("b", "c")]
    assert "Methods that share no bar differ." in sentences(some)[-1]
    # mean ranks 2.4, 1.1 and 2.5, and CD 1.48
    scores = {"a": [1.0, 2, 3, 3, 3], "b": [3.0, 3, 4, 4, 4], "c": [2.0, 1, 2, 1, 4]}
    all_joined = rank_methods(scores, list("vwxyz"), True)
    assert all_joined.friedman_p < 0.05
    assert all_joined.groups == [("b", "a", "c")]
    assert "does not show which of them differ" in sentences(all_joined)[-1]
    apart = rank_methods(
        {name: [float(place)] * 40 for place, name in enumerate("abc")},
        [f"set{number}" for number in range(40)],
        True,
    )
    assert apart.groups == []
    assert sentences(apart)[-1].startswith("No bar joins methods")
    assert describe(apart).endswith("No bar joins methods")


# In the report


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize(("width", "kind"), [(400, "on-phone"), (1200, "on-desk")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_a_readable_diagram(browser, tmp_path, width, kind, scheme):
    """One picture, inside the page, with letters of the page's size that do not overlap."""
    ablation = table(tmp_path, names=("base", "a<b", "mid", LONG, "ResNet 50"), gap=0.02)
    path = tmp_path / "report.html"
    path.write_text(to_html(ablation), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(path.as_uri())
    pictures = page.locator("svg.ranks:visible")
    assert pictures.count() == 1
    assert kind in pictures.get_attribute("class")
    assert pictures.get_attribute("aria-label") == describe(ablation.ranks)
    texts = [text.bounding_box() for text in pictures.locator("text").all()]
    assert len(texts) > 8
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in texts)
    assert all(box["height"] >= 12 for box in texts)
    assert not any(overlap(one, other) for one, other in combinations(texts, 2))
    ink = pictures.locator(".joins").first.evaluate("node => getComputedStyle(node).stroke")
    assert ink == {"light": "rgb(27, 26, 24)", "dark": "rgb(239, 236, 230)"}[scheme]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
