"""The table as LaTeX: letters, long tables, and real engines."""

import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_study import GRID, accuracy_of, complete, fail, finish, study, troubled

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.latex import escaped, lost_letters, to_latex
from furnace_hpc.tables.output.latex_letters import letters_of
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View

POLISH, GREEK, QUOTES, CHINESE = (
    "Zażółć gęślą jaźń ŁÓDŹ",
    "αβγ λ=0.5 Ω",
    "“curly” ‘q’ „low“ «g»",
    "中文测试",
)
LETTERS = f"{POLISH} {GREEK} {QUOTES} {CHINESE} ≤ → ☃ Жук 😀 x\u0302 Größe"
ENGINES = ("pdflatex", "xelatex", "lualatex")
ANY = st.text(st.characters(exclude_categories=[]), max_size=60) | st.text(
    "\\{}$%&#_^~<>|-+\"'`[]\n αąę中😀", max_size=60
)


# Columns of 7.7 cm and letters of 11 points, as in the template of ACL. Other templates have wider
# columns and smaller letters.
TWO_COLUMNS = (
    r"\documentclass[11pt,twocolumn]{article}"
    r"\setlength{\textwidth}{16cm}\setlength{\columnsep}{0.6cm}"
)


def lettered(path: Path) -> Ablation:
    return complete(path, description=LETTERS)


def with_rows(path: Path, number: int, seeds=(0,), **changes) -> Ablation:
    variants = {"base": {}} | {f"row_{n:03d}": {"loss.alpha": 0.001 * n} for n in range(1, number)}
    grid, runs = study(variants=variants, seeds=list(seeds), **changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        finish(spec, folder, accuracy=0.8 + sum(spec.run_id.encode()) % 97 / 1000)
    return collect(grid, runs, folder)


def has_tex_file(name: str) -> bool:
    """Whether TeX finds this file."""
    command = ["kpsewhich", name]
    return (
        bool(shutil.which("kpsewhich"))
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


def compile_latex(
    folder: Path,
    engine: str,
    texts: list[str],
    preamble: str = "",
    start: str = r"\documentclass{article}",
) -> str:
    """The text of a PDF with these tables, made by a real engine. Its log is in `folder`."""
    if not shutil.which(engine):
        pytest.skip(
            f"{engine} is not installed: apt-get install texlive-latex-base, -xetex, -luatex"
        )
    if engine == "lualatex" and not has_tex_file("luaotfload.sty"):
        pytest.skip("lualatex has no fonts with all letters: apt-get install texlive-luatex")
    for number, text in enumerate(texts):
        (folder / f"table{number}.tex").write_text(text, encoding="utf-8")
    inputs = "\n".join(rf"Words. \input{{table{number}}}" for number in range(len(texts)))
    packages = rf"{preamble}\usepackage{{booktabs,longtable,tabularx}}"
    body = rf"\begin{{document}}\listoftables {inputs} The end.\end{{document}}"
    paper = f"{start}{packages}{body}"
    (folder / "paper.tex").write_text(paper, encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for _ in range(2):  # the second call reads the list of tables
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-3000:]
    if not shutil.which("pdftotext"):
        return ""
    words = subprocess.run(
        ["pdftotext", "paper.pdf", "-"], cwd=folder, capture_output=True, timeout=60, check=True
    )
    return unicodedata.normalize("NFC", " ".join(words.stdout.decode().split()))


def test_letters_stay_and_lost_ones_are_named(tmp_path):
    ablation = lettered(tmp_path)
    text = to_latex(ablation)
    for words in (POLISH, GREEK, QUOTES, CHINESE, "☃", "😀"):
        assert words in text
    comments = "\n".join(line for line in text.splitlines() if line.startswith("%"))
    assert (
        "% Chinese, Japanese, Korean: CJKutf8 with pdfLaTeX, xeCJK with XeLaTeX; "
        "else ? for 中文测试"
    ) in comments
    assert "% pdfLaTeX prints ? for Жку☃😀" in comments
    assert lost_letters(ablation) == "? for Жку☃😀 and ? for 中文测试 without the package CJKutf8"


def test_usual_letters_need_no_definition():
    letters = letters_of(["Größe é ñ ż “x” ‘y’ – — … × ± ° ß Ø œ"])
    assert letters == ([], [], [], "")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_prints_the_letters(tmp_path, engine):
    words = compile_latex(
        tmp_path, engine, [to_latex(lettered(tmp_path)), to_latex(troubled(tmp_path / "holes"))]
    )
    log = (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert "Missing character" not in log
    assert "becomes ?" in log
    if words:
        assert "Zażółć gęślą jaźń ŁÓDŹ" in words
        for letter in "αβγλ≤":
            assert letter in words
        assert "“curly” ‘q’ „low“ «g»" in words
        assert "The end." in words


def test_xelatex_with_a_chinese_font_prints_chinese(tmp_path):
    fonts = subprocess.run(
        ["fc-list", ":lang=zh", "family"], capture_output=True, text=True, check=False
    ).stdout
    if not fonts.strip() or not has_tex_file("xeCJK.sty"):
        pytest.skip(
            "no Chinese font or no xeCJK: "
            "apt-get install texlive-lang-chinese fonts-arphic-gbsn00lp"
        )
    font = fonts.splitlines()[0].split(",")[0]
    preamble = rf"\usepackage{{xeCJK}}\setCJKmainfont{{{font}}}"
    words = compile_latex(tmp_path, "xelatex", [to_latex(lettered(tmp_path))], preamble)
    assert CHINESE in words or not words


def test_pdflatex_with_cjkutf8_prints_chinese(tmp_path):
    if not has_tex_file("CJKutf8.sty"):
        pytest.skip("no CJKutf8: apt-get install latex-cjk-chinese")
    words = compile_latex(
        tmp_path, "pdflatex", [to_latex(lettered(tmp_path))], r"\usepackage{CJKutf8}"
    )
    assert CHINESE in words or not words


def test_usual_tables_fit_a_column_of_two(tmp_path):
    """Long numbers, long names, failed runs and packs. The log of TeX has no overfull box."""
    long_names = {"base": {}, "without_the_consistency_loss_and_audio": {"loss.alpha": 0.5}}
    packs = {"packs": ["a", "b", "c"], "seeds": [0, 1], "base": GRID["base"] | {"data": {}}}
    tables = {
        "plain": complete(tmp_path / "plain", sesoi=1.0, sanity=["full"]),
        "names": complete(tmp_path / "names", variants=long_names),
        "failures": with_failures(tmp_path / "failures"),
        "loss": with_losses(tmp_path / "loss"),
        "packs": with_packs(tmp_path / "packs", **packs),
    }
    texts = [to_latex(ablation) for ablation in tables.values()]
    for name, text in zip(tables, texts, strict=True):
        assert r"\begin{table}[t]" in text, name
    assert r"\begin{tabularx}" in texts[1]
    compile_latex(tmp_path, "pdflatex", texts, start=TWO_COLUMNS)
    log = (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert "Overfull" not in log
    assert "Float too large" not in log


def with_failures(path: Path) -> Ablation:
    grid, runs = study()
    folder = GridFolder(path / "study")
    for spec in runs:
        if spec.variant == "specific_only" and spec.config.seed > 2:
            fail(spec, folder, "RuntimeError: loss is NaN at a_very_long_place_in_some_module")
        else:
            finish(spec, folder)
    return collect(grid, runs, folder)


def with_losses(path: Path) -> Ablation:
    """A metric with four digits, and differences of different sizes."""
    grid, runs = study(metric="test/digit/loss")
    folder = GridFolder(path / "study")
    for spec in runs:
        loss = 0.2 - accuracy_of(spec) / 7
        finish(spec, folder, metrics={"test/digit/loss": loss})
    return collect(grid, runs, folder)


def with_packs(path: Path, **changes) -> Ablation:
    grid = Grid.model_validate(GRID | changes)
    runs = expand(grid, {"a": "a" * 16, "b": "b" * 16, "c": "c" * 16})
    folder = GridFolder(path / "study")
    for number, spec in enumerate(runs):
        finish(spec, folder, accuracy=accuracy_of(spec) + 0.003 * (number % 5))
    return collect(grid, runs, folder)


def test_a_wide_table_spans_both_columns(tmp_path):
    columns = ["n", "metric", "difference", "verdict", "holm_p", "effect", "train_s"]
    text = to_latex(complete(tmp_path / "study", columns=columns))
    assert r"\begin{table*}[t]" in text
    compile_latex(tmp_path, "pdflatex", [text], start=TWO_COLUMNS)
    log = (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert "Overfull" not in log


def test_each_view_has_its_own_label(tmp_path):
    ablation = complete(tmp_path)
    view = View("val/digit/accuracy", where=("variant=ba*",))
    assert r"\label{tab:study}" in to_latex(ablation)
    text = to_latex(replace(ablation, suffix=view.suffix))
    assert r"\label{tab:study--val-digit-accuracy-variant-ba}" in text


def test_the_caption_is_short_and_the_file_complete(tmp_path):
    """The caption has metric, spread, n, interval and equivalent rows. Comments have the rest."""
    small = {"base": 0.0, "full": 0.0001}
    grid, runs = study(variants={name: GRID["variants"][name] for name in small}, sesoi=1.0)
    folder = GridFolder(tmp_path / "study")
    for spec in runs:
        noise = 0.0004 * (-1) ** spec.config.seed * (spec.variant == "full")
        finish(spec, folder, accuracy=0.8 + small[spec.variant] + noise)
    text = to_latex(collect(grid, runs, folder))
    above = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    for words in ("sample standard deviation, n = 5 seeds", "simultaneous paired t interval"):
        assert words in above
    assert "Equivalent (difference below 1 point, two one-sided t tests): full." in above
    assert len(above) < 600
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert any("Measured at the step with the best" in line for line in comments)
    assert "% full: loss.alpha: 0 -> 0.5, loss.beta: 0 -> 0.3." in comments


def test_a_table_of_41_rows_is_a_longtable(tmp_path):
    text = to_latex(with_rows(tmp_path / "few", 10))
    assert (r"\begin{tabular}" in text, r"\begin{longtable}" in text) == (True, False)
    text = to_latex(with_rows(tmp_path / "many", 41))
    assert (r"\begin{tabular}" in text, r"\begin{longtable}" in text) == (False, True)
    assert text.startswith(r"% needs \usepackage{booktabs} and \usepackage{longtable}")
    assert text.count(r"\endhead") == text.count(r"\endfirsthead") == 1


def test_a_table_with_many_notes_is_a_longtable(tmp_path):
    text = to_latex(with_rows(tmp_path, 40, seeds=(0, 1, 2), description="Many words. " * 60))
    assert r"\begin{longtable}" in text


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_120_rows_fit_on_the_pages(tmp_path, engine):
    ablation = with_rows(tmp_path, 120, description=CHINESE)
    words = compile_latex(tmp_path, engine, [to_latex(ablation)])
    log = (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert "Float too large" not in log
    assert "Overfull \\vbox" not in log
    pages = int(re.search(r"Output written on paper\.pdf \((\d+) pages", log.replace("\n", ""))[1])
    assert pages >= 3
    if words:
        assert [
            f"row_{n:03d}" for n in range(1, 120) if f"row_{n:03d}" not in words.replace(" ", "_")
        ] == []


@pytest.mark.fuzz
@given(ANY)
def test_any_text_is_balanced_latex(text):
    """Braces are balanced, and characters that are special in TeX are escaped."""
    made = escaped(text)
    assert made.isprintable()
    plain = re.sub(r"\\ifdefined\\Umathcode.*?\\fi\\else \?\\fi\{\}", "", made)
    bare = re.sub(r"\\[&%$#_{}]", "", plain)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    commands = {
        r"\pm",
        r"\to",
        r"\textbackslash",
        r"\textasciitilde",
        r"\textasciicircum",
        r"\textless",
        r"\textgreater",
    }
    found = set(re.findall(r"\\(?:[A-Za-z]+|.)", bare))
    assert found <= commands | {r"\textbar"} | {f"\\{accent}" for accent in "`'^~=u.\"rHvdckb"}
    assert not re.search(r"[%#&]", bare)
    letters_of([made])


@pytest.mark.fuzz
@settings(max_examples=max(2, settings().max_examples // 250))
@given(st.lists(ANY, min_size=1, max_size=20))
def test_real_engines_compile_any_text(tmp_path_factory, texts):
    """One paper of many texts. pdflatex prints the fewest letters."""
    made = [escaped(text) for text in texts]
    letters = letters_of(made)
    body = "\n\n".join(["Words", *made])
    table = "\n".join(
        [
            r"\begingroup",
            *letters.comments,
            *letters.begin,
            body,
            r"\par",
            *letters.end,
            r"\endgroup",
        ]
    )
    for engine in ("pdflatex", "xelatex"):
        compile_latex(tmp_path_factory.mktemp("paper"), engine, [table])
