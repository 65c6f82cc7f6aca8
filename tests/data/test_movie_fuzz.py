"""Any content of a movie's JSON gives a sample, or one refusal of the file."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_sets import MOVIES, marked, write_mmimdb, write_vocab

from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.sets.mmimdb import GENRES, MovieKnobs, plan_raw

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "plot": VALUES,
        "plot outline": VALUES,
        "genres": VALUES | st.lists(st.sampled_from([*GENRES, "News"]), max_size=3),
        "title": VALUES,
    },
)


@pytest.fixture(scope="module", params=["longest", "first", "joined"])
def plan(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz")
    raw = write_mmimdb(place / "raw")
    plan = plan_raw(
        raw, MovieKnobs(ImageKnobs(size=8), str(write_vocab(place / "vocab")), 8, request.param)
    )
    return plan, raw / "dataset" / f"{MOVIES[0]}.json"


def check(plan, path) -> None:
    sample = plan.render("train", MOVIES[0])
    for refusal in sample.refusals:
        line = json.loads(refusal.line())
        assert line["file"] == f"dataset/{MOVIES[0]}.json"
        assert line["kept"] == (sample.values is not None)
    if sample.values is None:
        assert [refusal.modality for refusal in sample.refusals].count(None) == 1
    else:
        assert sample.values["present"].tolist() == [int(not sample.refusals), 1]
        assert sample.values["text"].dtype == plan.blank["text"].dtype


@pytest.mark.fuzz
@given(ENTRIES)
def test_any_entry_gives_a_sample_or_a_refusal(plan, entry):
    plan, path = plan
    path.write_text(json.dumps(entry))
    check(plan, path)


@pytest.mark.fuzz
@given(st.integers(0, 2**32), st.binary(max_size=12), st.sampled_from([0, 1, 5, 1000]))
def test_any_damage_gives_a_sample_or_a_refusal(plan, seed, new, drop):
    plan, path = plan
    content = json.dumps(
        {"plot": ["a letter é \u4e00"], "genres": ["Drama"]}, ensure_ascii=seed % 2 == 0
    ).encode()
    at = random.Random(seed).randrange(len(content) + 1)
    path.write_bytes(content[:at] + new + content[at + drop :])
    if path.stat().st_size:
        check(plan, path)


@pytest.mark.parametrize("depth", [900, 3000, 100_000])
@pytest.mark.parametrize("ends", ["[]", ('{"a":', "}")])
def test_any_depth_gives_a_sample_or_a_refusal(plan, depth, ends):
    plan, path = plan
    path.write_text(
        '{"genres": ["Drama"], "plot": ' + ends[0] * depth + "1" + ends[1] * depth + "}"
    )
    check(plan, path)


def test_a_lone_surrogate_loses_the_plot(plan):
    """The example of a public bug report."""
    plan, path = plan
    path.write_text('{"plot": ["x \\ud83d y"], "genres": ["Drama"]}')
    sample = plan.render("train", MOVIES[0])
    [refusal] = sample.refusals
    assert (refusal.modality, refusal.reason, refusal.kept) == ("text", "unreadable", True)
    assert refusal.detail == "character 2 is half of a surrogate pair"
    # a whole pair is a character
    path.write_text('{"plot": ["x \\ud83d\\ude00 y"], "genres": ["Drama"]}')
    assert plan.render("train", MOVIES[0]).refusals == ()
    assert np.array_equal(
        sample.values["image"], np.full_like(sample.values["image"], marked(0).getpixel((0, 0))[0])
    )
