"""The table as LaTeX: letters, long tables, and real engines."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_study import complete, finish, study, troubled

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.latex import escaped, lost_letters, to_latex
from furnace_hpc.tables.output.latex_letters import letters_of
from furnace_hpc.tables.table import Ablation

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


def lettered(path: Path) -> Ablation:
    return complete(path, description=LETTERS)


def with_rows(path: Path, number: int, seeds=(0,), **changes) -> Ablation:
    variants = {"base": {}} | {f"row_{n:03d}": {"loss.alpha": 0.001 * n} for n in range(1, number)}
    grid, runs = study(variants=variants, seeds=list(seeds), **changes)
    folder = GridFolder(path / "study")
    for spec in runs:
        finish(spec, folder, accuracy=0.8 + sum(spec.run_id.encode()) % 97 / 1000)
    return collect(grid, runs, folder)


def compile_latex(folder: Path, engine: str, texts: list[str], preamble: str = "") -> str:
    """The text of a PDF with these tables, made by a real engine. Its log is in `folder`."""
    if not shutil.which(engine):
        pytest.skip(
            f"{engine} is not installed: apt-get install texlive-latex-base, -xetex, -luatex"
        )
    for number, text in enumerate(texts):
        (folder / f"table{number}.tex").write_text(text, encoding="utf-8")
    inputs = "\n".join(rf"Words. \input{{table{number}}}" for number in range(len(texts)))
    packages = rf"{preamble}\usepackage{{booktabs}}\usepackage{{longtable}}"
    body = rf"\begin{{document}}\listoftables {inputs} The end.\end{{document}}"
    paper = rf"\documentclass{{article}}{packages}{body}"
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
    found = shutil.which("kpsewhich") and subprocess.run(
        ["kpsewhich", "xeCJK.sty"], capture_output=True, check=False
    )
    if not fonts.strip() or not found or not found.stdout:
        pytest.skip(
            "no Chinese font or no xeCJK: "
            "apt-get install texlive-lang-chinese fonts-arphic-gbsn00lp"
        )
    font = fonts.splitlines()[0].split(",")[0]
    preamble = rf"\usepackage{{xeCJK}}\setCJKmainfont{{{font}}}"
    words = compile_latex(tmp_path, "xelatex", [to_latex(lettered(tmp_path))], preamble)
    assert CHINESE in words or not words


def test_pdflatex_with_cjkutf8_prints_chinese(tmp_path):
    found = shutil.which("kpsewhich") and subprocess.run(
        ["kpsewhich", "CJKutf8.sty"], capture_output=True, check=False
    )
    if not found or not found.stdout:
        pytest.skip("no CJKutf8: apt-get install latex-cjk-chinese")
    words = compile_latex(
        tmp_path, "pdflatex", [to_latex(lettered(tmp_path))], r"\usepackage{CJKutf8}"
    )
    assert CHINESE in words or not words


def test_a_table_of_41_rows_is_a_longtable(tmp_path):
    text = to_latex(with_rows(tmp_path / "few", 10))
    assert (r"\begin{tabular}" in text, r"\begin{longtable}" in text) == (True, False)
    text = to_latex(with_rows(tmp_path / "many", 41))
    assert (r"\begin{tabular}" in text, r"\begin{longtable}" in text) == (False, True)
    assert text.startswith(r"% needs \usepackage{booktabs} and \usepackage{longtable}")
    assert text.count(r"\endhead") == text.count(r"\endfirsthead") == 1


def test_a_table_with_many_notes_is_a_longtable(tmp_path):
    text = to_latex(with_rows(tmp_path, 40, seeds=(0, 1, 2)))
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
