"""The table of the factors' effects, for each format. Empty if there are none."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from furnace_hpc.tables.output.captions import marks_sentence
from furnace_hpc.tables.output.cells import MARKS, text_of_difference
from furnace_hpc.tables.output.escape import html, markdown, one_line
from furnace_hpc.tables.output.latex_letters import letters_of
from furnace_hpc.tables.output.verdict import equivalent_sentence
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.factorial import MAX_CONTRASTS, Effect, FactorEffects
from furnace_hpc.tables.statistics.interactions import Omnibus
from furnace_hpc.tables.statistics.significance import ALPHA, format_exact_p, format_p
from furnace_hpc.tables.statistics.verdicts import Verdict, pairs_to_resolve
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import DASH, count, list_names

if TYPE_CHECKING:
    from rich.console import RenderableType

TITLE = "Effects of the factors"
UNTESTED = "Packs that share samples have no exact test."
WORDS = ("effect", "verdict")  # columns of text


def effects_markdown(ablation: Ablation) -> list[str]:
    """The lines of a second table, below the notes of the first."""
    if ablation.effects is None:
        return []
    titles = _titles(ablation)
    alignment = dict.fromkeys(titles, "--:") | dict.fromkeys(WORDS, ":--")
    lines = [list(map(markdown, titles.values())), [alignment[name] for name in titles]]
    lines += _texts(ablation, ablation.effects, markdown)
    table = [f"| {' | '.join(line)} |" for line in lines]
    sentences = _caption(ablation, ablation.effects)
    return ["", f"**{TITLE}**", "", *table, "", " ".join(map(markdown, sentences))]


def effects_latex(
    ablation: Ablation, escaped: Callable[[str], str], label: str, small: str
) -> list[str]:
    """The lines of a second floating table.

    Args:
        ablation: the table.
        escaped: escapes a text, and lets long names be broken.
        label: label of the first table.
        small: LaTeX that sets the size of the text.
    """
    if ablation.effects is None:
        return []
    first, second = list(_titles(ablation).values())[:2]  # the difference has the verdict's mark
    cells = [line[:2] for line in _texts(ablation, ablation.effects, escaped)]
    body = [" & ".join(line) + r" \\" for line in cells]
    head = f"{escaped(first)} & {escaped(second)} " + r"\\"
    above = escaped(f"{ablation.grid.name}: effects of the factors on {ablation.metric.name}.")
    below = list(map(escaped, _caption(ablation, ablation.effects)))
    letters = letters_of([*body, head, above, *below])
    short = ""
    if letters.comments:  # the list of tables does not define these letters
        short = f"[{escaped(ablation.grid.name)}]"
    return [
        r"% the second table needs \usepackage{booktabs} and \usepackage{tabularx}",
        *letters.comments,
        *[r"\begin{table}[t]", rf"\centering{small}", *letters.begin],
        rf"\caption{short}{{{above}}}",
        rf"\label{{{label}-effects}}",
        r"\begin{tabularx}{\linewidth}{>{\raggedright\arraybackslash}Xr}",
        *[r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabularx}"],
        *[r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"],
        *[*below, r"\end{minipage}", *letters.end, r"\end{table}", ""],
    ]


def effects_terminal(ablation: Ablation, width: int) -> "Iterator[RenderableType]":
    """A title, the table in blocks of at most `width` characters, and its caption."""
    if ablation.effects is None:
        return
    from rich.text import Text

    from furnace_hpc.tables.output.terminal import blocks

    titles = {name: one_line(title) for name, title in _titles(ablation).items()}
    texts = _texts(ablation, ablation.effects, one_line)
    rows = [dict(zip(titles, line, strict=True)) for line in texts]
    yield Text(f"\n{TITLE}")
    yield from blocks(titles, rows, [False] * len(rows), WORDS, width)
    yield from (Text(one_line(line)) for line in _caption(ablation, ablation.effects))


def effects_html(ablation: Ablation) -> Iterator[str]:
    """The section of the report."""
    if ablation.effects is None:
        return
    titles, rows = _titles(ablation), []
    head = "".join(
        f'<th scope="col" data-column="{name}">{html(title)}</th>' for name, title in titles.items()
    )
    for first, *others in _texts(ablation, ablation.effects, html):
        cells = f'<th scope="row" class="text">{first}</th>'
        for name, text in zip(list(titles)[1:], others, strict=True):
            cells += f'<td class="text word">{text}</td>' if name in WORDS else f"<td>{text}</td>"
        rows.append(f"<tr>{cells}</tr>")
    about = html(" ".join(_caption(ablation, ablation.effects)))
    yield "\n".join(
        [
            '<section class="of-grid" aria-labelledby="effects-title">',
            f'<h2 id="effects-title">{TITLE}</h2>',
            '<div class="wide" tabindex="0" role="region" aria-labelledby="effects-title">',
            f'<table class="effects"><thead><tr>{head}</tr></thead>',
            *["<tbody>", *rows, "</tbody></table></div>"],
            f'<p class="about">{about}</p>',
            "</section>",
        ]
    )


def _titles(ablation: Ablation) -> dict[str, str]:
    """Column -> its title."""
    titles = {
        "effect": "effect",
        "difference": f"difference{ablation.metric.scale.difference_unit}",
    }
    if ablation.effects and ablation.effects.are_judged:
        titles |= {"verdict": "verdict", "holm_p": "p (Holm)"}
    return titles


def _texts(
    ablation: Ablation, found: FactorEffects, escape: Callable[[str], str]
) -> Iterator[list[str]]:
    """The cells of each effect, escaped."""
    for effect in found.effects:
        cells = [effect.name, _difference(ablation, effect)]
        if found.are_judged:
            p = DASH
            if effect.difference is not None:
                p = format_p(effect.difference.holm_p) or DASH
            cells += [effect.verdict or DASH, p]
        yield list(map(escape, cells))
    for test in found.tests:
        cells = [f"{test.name}: any interaction", _f_test(test)]
        if found.are_judged:
            cells += [DASH, format_p(test.holm_p) or DASH]
        yield list(map(escape, cells))


def _f_test(test: Omnibus) -> str:
    """Statistic and degrees of freedom: `F(2.1, 8.5) = 3.20`, and p if it is not corrected."""
    if test.f is None:
        return DASH
    of_factors, of_error = test.degrees
    text = f"F({of_factors:.1f}, {of_error:.1f}) = {test.f:.2f}"
    if test.holm_p is None:
        p = format_p(test.p)
        text += f", p {p}" if p.startswith("<") else f", p = {p}"
    return text


def _difference(ablation: Ablation, effect: Effect) -> str:
    """Mean, interval and the verdict's mark."""
    if effect.difference is None:
        return DASH
    mark = MARKS.get(effect.verdict, "") if effect.verdict else ""
    return text_of_difference(ablation.metric.scale, effect.difference) + mark


def _caption(ablation: Ablation, found: FactorEffects) -> list[str]:
    """The sentences that explain the effects."""
    sentences = [*(_main_effects if found.factors else _parts)(ablation, found)]
    sentences += _verdicts(ablation, found)
    sentences += _tests(ablation, found)
    if found.left_out:
        sentences.append(f"Rows outside the combinations: {list_names(found.left_out)}.")
    if found.gaps:
        sentences.append(
            f"Runs: {found.gaps}. The rest may be the better runs, so all effects are undecided."
        )
    return sentences


def _main_effects(ablation: Ablation, found: FactorEffects) -> Iterator[str]:
    """What the effects of a full product are."""
    unit, interactions = ablation.unit, _interactions(found)
    yield (
        f"Each effect uses the runs of all combinations, unlike the differences of single rows "
        f"above. {found.effects[0].name}: mean of all rows with the new value minus mean of all "
        f"rows with the value of {ablation.grid.reference}, inside each {unit}, "
        f"{_interval(ablation, found)}. It counts the {unit}s that all rows have: "
        f"{found.num_units}."
    )
    if interactions:
        yield (
            f"{interactions[0].name} is an interaction: the effect of the first factor with the "
            f"second one changed, minus its effect with the second one unchanged. It is zero if "
            f"the effects add up. If it is not, a factor's effect is an average of different ones."
        )


def _parts(ablation: Ablation, found: FactorEffects) -> Iterator[str]:
    """What the interactions of 2 x 2 parts are."""
    unit, reference = ablation.unit, ablation.grid.reference
    name, _, pair = found.effects[0].name.partition(": ")
    yield (
        f"These rows with {reference} are all combinations of two changes. {name}: the interaction "
        f"of {pair}, which is {name} plus {reference} minus the two single changes, inside each "
        f"{unit}, {_interval(ablation, found)}. It is zero if the two changes add up. It counts "
        f"the {unit}s that all these rows have: {found.num_units}."
    )


def _tests(ablation: Ablation, found: FactorEffects) -> Iterator[str]:
    """The tests of whole interactions, and which of them have no intervals."""
    if not found.tests:
        return
    yield (
        f"Any interaction: F test of a repeated-measures analysis of variance over "
        f"{ablation.unit}s, corrected for unequal variances (Greenhouse and Geisser). It asks "
        f"whether any contrast of the interaction differs from zero."
    )
    if found.without_contrasts:
        yield (
            f"No intervals for {list_names(found.without_contrasts)}: more than {MAX_CONTRASTS} "
            f"contrasts would widen all other intervals."
        )


def _interval(ablation: Ablation, found: FactorEffects) -> str:
    if not any(effect.difference and effect.difference.shown for effect in found.effects):
        return "without intervals"
    if not found.are_judged:
        return "with a t interval (95 %, not corrected for the number of effects)"
    return f"with a simultaneous t interval (95 % for all together, Bonferroni, {ablation.family})"


def _verdicts(ablation: Ablation, found: FactorEffects) -> Iterator[str]:
    """What the verdicts count, and on what they rest."""
    if not found.are_judged:
        if not ablation.why_no_verdict:
            yield "Effects have no verdicts, because the grid gives verdicts to its rows."
        return
    if not any(effect.difference and effect.difference.shown for effect in found.effects):
        yield "No effect has an interval, so all effects are undecided."
        return
    if ablation.why_no_verdict:
        yield "The grid gives verdicts to the effects of its factors, and not to its rows."
        if sanity := [name for name in found.left_out if name in ablation.grid.sanity]:
            yield (
                f"So the table does not check whether {ablation.grid.reference} is under-trained "
                f"(sanity: {list_names(sanity)})."
            )
        yield marks_sentence()
        yield from equivalent_sentence(ablation)
        yield from _units_to_resolve(ablation, found)
    else:
        yield (
            f"Rows and effects are corrected together ({ablation.family}). So without any "
            f"difference, at most about 5 % of studies have a mark in either table."
        )
    if _interactions(found):
        yield (
            "A better (worse) interaction: both changes together are better (worse) than the sum "
            "of their effects."
        )
    yield from _normality(ablation, found)


def _units_to_resolve(ablation: Ablation, found: FactorEffects) -> Iterator[str]:
    """Seeds that resolve the smallest effect of interest. A note has those of rows."""
    sesoi, scale = ablation.grid.sesoi, ablation.metric.scale
    main = [effect.difference for effect in found.effects if not effect.is_interaction]
    if sesoi is None or not main:
        return
    resolved = pairs_to_resolve(main, found.num_comparisons, sesoi / scale.factor)
    if resolved is None:
        return
    number, deviation = resolved
    needed = f"More than {estimates.MAX_PAIRS:,} {ablation.unit}s"
    if number is not None:
        needed = f"About {count(number, ablation.unit)}"
    yield (
        f"{needed} resolve a main effect of "
        f"{scale.show_amount(sesoi)}: paired t test at 5 %, corrected for "
        f"{count(found.num_comparisons, 'comparison')}, power {100 * estimates.POWER:.0f} %, "
        f"pooled standard deviation of the effects inside a {ablation.unit} "
        f"{scale.factor * deviation:.2g}."
    )


def _normality(ablation: Ablation, found: FactorEffects) -> Iterator[str]:
    """The decided effects that the exact sign-flip test does not confirm."""
    families = [effect.difference.family for effect in found.effects if effect.difference]
    level, floor = ALPHA / max([1, *families]), estimates.sign_flip_floor(max(found.num_units, 1))
    if untested := [effect.name for effect in found.effects if _has_no_exact_test(effect)]:
        yield f"These verdicts rest on normal differences: {list_names(untested)}. {UNTESTED}"
    tests = {
        "sign-flip test": ({Verdict.BETTER, Verdict.WORSE}, floor),
        "sign-flip test of equivalence": ({Verdict.EQUIVALENT}, floor / 2),
    }
    for test, (verdicts, least) in tests.items():
        decided = [effect for effect in found.effects if effect.verdict in verdicts]
        exact = {effect.name: _exact_p(ablation, effect) for effect in decided}
        rest = [name for name, p in exact.items() if p is not None and p >= level]
        if not rest:
            continue
        needed = f"p below {format_exact_p(level)} is needed"
        them = "them" if len(rest) > 1 else "it"
        text = f"does not confirm {them}: {needed}"
        if least >= level:
            text = f"cannot go below p {format_exact_p(least)} here, and {needed}"
        start = "These verdicts rest" if len(rest) > 1 else "This verdict rests"
        yield f"{start} on normal differences: {list_names(rest)}. The exact {test} {text}."


def _has_no_exact_test(effect: Effect) -> bool:
    """Whether the effect has a verdict from packs that share samples, which have no exact test."""
    is_decided = effect.verdict not in (None, Verdict.UNDECIDED)
    return is_decided and effect.difference is not None and effect.difference.shares_samples


def _exact_p(ablation: Ablation, effect: Effect) -> float | None:
    """P of the exact test of an effect's verdict. None if units share samples."""
    if effect.difference is None or effect.difference.sign_flip_p is None:
        return None
    if effect.verdict is not Verdict.EQUIVALENT or ablation.grid.sesoi is None:
        return effect.difference.sign_flip_p
    bound = ablation.grid.sesoi / ablation.metric.scale.factor
    return estimates.sign_flip_equivalence(effect.of_units, bound)


def _interactions(found: FactorEffects) -> list[Effect]:
    return [effect for effect in found.effects if effect.is_interaction]
