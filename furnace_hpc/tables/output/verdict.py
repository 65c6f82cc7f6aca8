"""Verdict, report and next command: the last lines of `furnace aggregate`."""

from collections.abc import Iterator
from pathlib import Path

from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.config.parsing.plural import is_are
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.runs.submitted import grid_command, resubmit_command
from furnace_hpc.tables.output.cells import UNDERTRAINED, text_of_difference
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.statistics.significance import ALPHA, format_p
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation, Row
from furnace_hpc.tables.text import list_names

TITLES = {
    Verdict.BETTER: "better than {}",
    Verdict.WORSE: "worse than {}",
    Verdict.EQUIVALENT: "equivalent to {}",
    Verdict.UNDECIDED: "undecided",
}
SENTENCES = {
    Verdict.BETTER: "{} is better than {}",
    Verdict.WORSE: "{} is worse than {}",
    Verdict.EQUIVALENT: "{} is equivalent to {}",
    Verdict.UNDECIDED: "{} against {} is undecided",
}
LIVE = (RunState.QUEUED, RunState.RUNNING)


def last_lines(ablation: Ablation, folder: GridFolder, place: Path, files: int) -> list[str]:
    """Verdict, report and next command. `place`: folder with the `files` results."""
    lines = [
        f"verdict: {verdict(ablation)}",
        f"wrote {files} files to {place}; open {place / 'report.html'}",
    ]
    if command := next_command(ablation, folder):
        lines.append(f"next: {command}")
    return lines


def verdict(ablation: Ablation) -> str:
    """The rows by their verdict, in one line."""
    of_effects = [text.removesuffix(".") for _, text in effect_sentences(ablation)]
    if ablation.why_no_verdict:
        return "; ".join([*of_effects, ablation.why_no_verdict.removesuffix(".")])
    reference, sentences = ablation.grid.reference, []
    for word, title in TITLES.items():
        names = [
            f"{row.variant} ({amount(ablation, row)})".replace(" ()", "")
            for row in ablation.compared
            if row.verdict is word
        ]
        if names:
            sentences.append(f"{title.format(reference)}: {list_names(names)}")
    sentences += [f"effect of {text}" for text in of_effects]
    if ablation.missing:
        missing, runs = f"{len(ablation.missing):,}", f"{len(ablation.runs):,}"
        sentences.append(f"{missing} of {runs} runs {is_are(len(ablation.missing))} missing")
    if without := sum(run.result is not None and not run.counts for run in ablation.runs):
        sentences.append(f"{without:,} of {len(ablation.runs):,} runs without a finite value")
    if ablation.stronger_sanity:
        stronger = list_names(ablation.stronger_sanity)
        verb = is_are(len(ablation.stronger_sanity))
        sentences.append(f"{UNDERTRAINED}: {stronger} {verb} better than {reference}")
    return "; ".join(sentences) or "one row, nothing to compare"


def equivalent_sentence(ablation: Ablation) -> Iterator[str]:
    """What the verdict equivalent means. Nothing without a smallest effect of interest."""
    if ablation.grid.sesoi is not None:
        effect = ablation.metric.scale.show_amount(ablation.grid.sesoi)
        yield (
            f"Equivalent: two one-sided t tests (5 %, Bonferroni) show a difference of less than "
            f"{effect} (sesoi)."
        )


def undertrained(ablation: Ablation) -> Iterator[str]:
    """Sanity rows that are better than the reference, as a sentence."""
    if names := ablation.stronger_sanity:
        rows = f"sanity row{'s' * (len(names) > 1)} {' and '.join(names)} {is_are(len(names))}"
        yield (
            f"{UNDERTRAINED.capitalize()}: the {rows} better than {ablation.grid.reference}. "
            f"Longer training may give the same differences."
        )


def verdict_sentences(ablation: Ablation) -> list[tuple[str, str]]:
    """(verdict, sentence) of each row that is compared. The numbers are those of the table."""
    return [
        (row.verdict, _sentence(ablation, row, row.verdict))
        for row in ablation.compared
        if row.verdict
    ]


def effect_sentences(ablation: Ablation) -> list[tuple[str, str]]:
    """(verdict, sentence) of each effect. If rows have verdicts too, of decided effects alone."""
    effects = ablation.effects
    if effects is None:
        return []
    shown = set(Verdict)
    if not ablation.why_no_verdict:
        shown -= {Verdict.UNDECIDED}
    return [
        (effect.verdict, f"{effect.name}: {effect.verdict}, {_size(ablation, effect.difference)}.")
        for effect in effects.effects
        if effect.verdict in shown and effect.difference
    ]


def _sentence(ablation: Ablation, row: Row, word: Verdict) -> str:
    start = SENTENCES[word].format(row.variant, ablation.grid.reference)
    parts = [amount(ablation, row)]
    if word is Verdict.UNDECIDED:
        parts.append(_why_undecided(ablation, row))
    elif row.difference and ablation.grid.sesoi is not None:
        p = row.difference.equivalence_p
        if p is not None and p < ALPHA:
            effect = ablation.metric.scale.show_amount(ablation.grid.sesoi)
            parts.append(f"less than {effect} (p {format_p(p)})")
    return f"{start}: {', '.join(filter(None, parts))}."


def _why_undecided(ablation: Ablation, row: Row) -> str:
    reference = ablation.reference
    if row.gaps:
        return f"{row.gaps}{_about_the_rest(row)}"
    if reference is not None and reference.gaps:
        return f"{reference.gaps} in {reference.variant}{_about_the_rest(reference)}"
    if row.difference is None or row.difference.shown is None:
        return "there is no interval"
    return "the interval contains zero"


def _about_the_rest(row: Row) -> str:
    """What the remaining runs of a row with gaps may be. Empty if none remains."""
    return ", and the rest may be the better runs" * any(run.counts for run in row.runs)


def next_command(ablation: Ablation, folder: GridFolder) -> str:
    """The next command: watch active runs, submit missing runs, or export a finished run.

    Empty if none.
    """
    states = {run.status.state for run in ablation.missing}
    if states & set(LIVE):
        return grid_command("status", folder, "--watch")
    if RunState.FAILED in states:
        return resubmit_command(folder, ablation.grid.settings, "--retry", "failed")
    if states:
        return resubmit_command(folder, ablation.grid.settings)
    run = (ablation.reference or ablation.rows[0]).runs[0]
    out = Path("exported") / run.run_id
    if out.exists():
        return ""
    return furnace("export", str(run.folder.path), "--out", str(out))


def amount(ablation: Ablation, row: Row) -> str:
    """Difference, unit and interval: `+2.0 points [0.4, 3.6]`. Empty if there is no difference."""
    if row.difference is None:
        return ""
    return _size(ablation, row.difference)


def _size(ablation: Ablation, difference: Difference) -> str:
    text = text_of_difference(ablation.metric.scale, difference)
    number, _, interval = text.partition(" ")
    unit = ablation.metric.scale.difference_unit.strip(" ()")
    return " ".join(filter(None, [number, unit, interval]))
