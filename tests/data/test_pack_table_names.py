"""Names that would collide, and options that a named set does not have: one clear error each."""

from types import SimpleNamespace

import pytest

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.table.options import parse_labels
from furnace_hpc.inference.answer_columns import AnswerColumns


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["mood=kind", "Mood=other"], "'mood' and 'Mood' differ only in case, so their files"),
        (["consistency=kind"], "has the name 'consistency', which metrics already use"),
        (["Consistency"], "such as Consistency_label=Consistency"),
        (["m=a b,a_b:regression"], "of 'a b' and 'a_b' would both be named 'a_b'"),
        (["m=a/b,a@b:regression"], "of 'a/b' and 'a@b' would both be named 'a_b'"),
        (["m=x", "m=y"], "--label names 'm' twice"),
    ],
)
def test_labels_whose_names_collide(labels, message):
    with pytest.raises(ConfigError) as raised:
        parse_labels(labels)
    assert message in str(raised.value)


def test_targets_with_other_names_are_accepted():
    (label,) = parse_labels(["m=a b,ab,a-b:regression"])
    assert label.columns == ("a b", "ab", "a-b")


def test_answers_whose_columns_collide(tmp_path):
    """Class `predicted` of the task `mood`, and the answer of the task `mood_p`."""
    tasks = [SimpleNamespace(name=name, kind="single_label") for name in ("mood", "mood_p")]
    labels = {
        "mood": SimpleNamespace(classes=("predicted", "other")),
        "mood_p": SimpleNamespace(classes=("a", "b")),
    }
    exported = SimpleNamespace(
        config=SimpleNamespace(tasks=tasks), data=SimpleNamespace(labels=labels)
    )
    AnswerColumns(exported, with_probabilities=False).check(["text"], tmp_path)
    with pytest.raises(ConfigError, match="both be named 'mood_p_predicted'"):
        AnswerColumns(exported, with_probabilities=True).check(["text"], tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("mmimdb", "a row for a movie"), ("audioset", "a row for a clip")],
)
def test_named_sets_have_no_encoder(tmp_path, name, wanted):
    args = [name, "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError) as raised:
        pack.main(args=[*args, "--for", "image=dinov2"], standalone_mode=False)
    assert f"furnace pack {name} has no --for" in str(raised.value)
    assert wanted in str(raised.value)
    assert "`furnace pack table --for image=dinov2`" in str(raised.value)
