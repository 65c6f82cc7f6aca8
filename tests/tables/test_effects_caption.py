"""What the caption of the effects' table and the verdict say."""

from factor_study import noisy, table
from tables_study import GRID

from furnace_hpc.tables.output.render import to_markdown
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.output.verdict import verdict
from furnace_hpc.tables.statistics.verdicts import Verdict


def test_verdicts_of_effects_alone_explain_themselves(tmp_path):
    """The rows' caption does not explain marks, equivalence and seeds then."""
    variants = GRID["variants"] | {"longer": {"steps": 1000}}
    ablation = table(
        tmp_path, noisy, verdicts="effects", sesoi=20.0, variants=variants, sanity=["longer"]
    )
    text = to_markdown(ablation).partition("Effects of the factors")[2]
    assert "better, † worse: the interval excludes zero" in text
    assert "show a difference of less than 20 points (sesoi)" in text
    assert "seeds resolve a main effect of 20 points" in text
    assert "does not check whether base is under-trained (sanity: longer)" in text


def test_equivalent_effects_rest_on_normality(tmp_path):
    """With 5 seeds the exact test of equivalence cannot go below .03125."""
    ablation = table(tmp_path, noisy, sesoi=20.0)
    assert ablation.effects.effects[2].verdict is Verdict.EQUIVALENT
    text = to_markdown(ablation)
    assert (
        "This verdict rests on normal differences: loss.alpha x loss.beta. The exact sign-flip "
        "test of equivalence cannot"
    ) in text
    assert "These verdicts rest on normal differences: loss.alpha: 0 -> 0.5, loss.beta" in text
    assert "cannot go below p .03125 here, and p below .008333 is needed" in text


def test_decided_effects_are_in_the_verdict(tmp_path):
    """Rows may have no mark where an effect has one."""
    ablation = table(tmp_path, noisy)
    assert "effect of loss.alpha: 0 -> 0.5: better, +3" in verdict(ablation)
    assert "loss.alpha: 0 -&gt; 0.5: better" in to_html(ablation)


def test_effects_without_intervals_claim_nothing(tmp_path):
    text = to_markdown(table(tmp_path, noisy, seeds=[0]))
    assert "No effect has an interval, so all effects are undecided." in text
    assert "at most about 5 %" not in text
