"""Untrusted text in every output has no effect: CSV, Markdown, HTML, JSON, figures, terminal."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tables_study import fail, finish, result_of, study

from furnace_hpc.host.lifecycle import read_attempt
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.output.escape import csv_cell, html, json_value, markdown, one_line
from furnace_hpc.tables.output.figures import draw_figures
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_runs_csv, to_terminal
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import Ablation

ANY = st.text(st.characters(exclude_categories=[])) | st.text(
    "=+-@;|!'\"[]()<>\\`*_~&#:/.w \t\r\n\x1b\x07x1,"
)
ESC, BELL, OVERRIDE, LONE = "\x1b", "\x07", "\u202e", "\ud800"
HOSTILE = (
    f"=cmd|' /C calc'!A0 {ESC}[31m{BELL}\r{OVERRIDE}{LONE}</script> "
    "![x](http://evil.example/x.png) $\\x$ %"
)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\uff1dSUM(A1)", "'\uff1dSUM(A1)"),
        (" =1", " '=1"),
        ("a;=1", "a;'=1"),
        ("a\n=1", "a\n'=1"),
        ("\t=1", r"\t=1"),
        ("\r=1", r"\r=1"),
        (f"{ESC}[31m{BELL}", r"\x1b[31m\x07"),
        (f"a{LONE}b{OVERRIDE}", r"a\ud800b\u202e"),
        ("-0.5", "-0.5"),
        ("+1e-05", "+1e-05"),
        ("loss.alpha: 0 -> 0.5", "loss.alpha: 0 -> 0.5"),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_csv_cell(value, cell):
    assert csv_cell(value) == cell


@pytest.mark.fuzz
@given(ANY)
def test_no_csv_cell_is_a_formula(text):
    writer = csv.writer(buffer := io.StringIO(), lineterminator="\n")
    writer.writerow([csv_cell(text), "last"])
    rows = list(csv.reader(io.StringIO(buffer.getvalue())))
    assert len(rows) == 1
    assert len(rows[0]) == 2
    cell = rows[0][0]
    assert all(char.isprintable() or char == "\n" for char in cell)
    cell.encode("utf-8")
    for part in re.split("[;\n]", cell):
        assert not re.match(r"\s*[=+\-@]", part) or re.fullmatch(
            r"\s*[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\s*", part
        )


@pytest.mark.fuzz
@given(ANY)
def test_markdown_shows_the_plain_text(text):
    line = markdown(text)
    assert line.isprintable()
    for document in (f"**{line}**", f"- <sup>a</sup> note {line}", f"a {line}\n\n{line} b"):
        tokens = MarkdownIt("commonmark", {"html": False}).enable("table").parse(document)
        inside = [child for token in tokens for child in token.children or ()]
        assert not {child.type for child in inside} & {
            "image",
            "link_open",
            "html_inline",
            "code_inline",
        }
    table = MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n| - | - |\n| x{line} | y |")
    cells = [token.content for token in table if token.type == "inline"]
    assert cells[-1] == "y"
    assert len(cells) == 4
    rendered = MarkdownIt("commonmark", {"html": False}).renderInline(f"x{line}x")
    assert _text_of(rendered).split() == f"x{one_line(text)}x".split()
    assert not re.search(r"(?i)https?://|www\.", line)


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def _text_of(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    parser.close()
    return parser.text


@pytest.mark.fuzz
@given(ANY)
def test_html_shows_the_plain_text(text):
    parser = _Text()
    parser.feed(f'<p title="{html(text)}">{html(text)}</p>')
    parser.close()
    assert parser.tags == ["p"]
    assert parser.text == one_line(text)
    assert parser.text.isprintable()


LEAVES = ANY | st.floats() | st.integers() | st.booleans() | st.none()


@pytest.mark.fuzz
@given(
    st.recursive(
        LEAVES,
        lambda x: st.lists(x, max_size=3) | st.dictionaries(ANY, x, max_size=3),
        max_leaves=6,
    )
)
def test_json_of_a_report_is_json(value):
    text = json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)
    assert json.loads(text.encode("utf-8")) == json_value(value)
    assert text.isprintable()


def hostile(path) -> Ablation:
    """A study with hostile text in every field that a file or a user sets."""
    grid, runs = study(description=HOSTILE, seeds=[0, 1])
    folder = GridFolder(path / "study")
    for number, spec in enumerate(runs):
        if number == 3:
            fail(spec, folder, HOSTILE.replace(LONE, ""))
            continue
        text = HOSTILE.replace(LONE, "")
        run = finish(
            spec,
            folder,
            device=text,
            commit=text,
            code_hash=text,
            data_fingerprint=text,
            wall_s=float("inf"),
        )
        content = result_of(spec).model_dump() | {
            "device": text,
            "commit": text,
            "samples_per_s": float("nan"),
        }
        content["metrics"] |= {
            text: 0.5,
            f"test/digit/accuracy@{text}": 0.5,
            f"test/consistency/auc@{text}": 0.5,
        }
        content["metrics"] |= {"state": 7.0, "seed": 7.0}
        write_json(run.result, content)
        record = read_attempt(str(run.path), 1)
        write_json(
            run.attempt(1),
            record | {"job_id": text, "nodelist": text, "error": text, "reason": text},
        )
    (folder.path / "\x1b[2J").mkdir()
    return collect(grid, runs, folder)


def test_every_output_escapes_hostile_text(tmp_path):
    from rich.console import Console

    ablation = hostile(tmp_path)
    Console(file=(terminal := io.StringIO()), width=200).print(to_terminal(ablation))
    texts = {"md": to_markdown(ablation), "tex": to_latex(ablation), "html": to_html(ablation)}
    texts |= {
        "table.csv": to_csv(ablation),
        "runs.csv": to_runs_csv(ablation),
        "terminal": terminal.getvalue(),
    }
    figures = draw_figures(ablation)
    texts |= {name: content.decode() for name, content in figures.items() if name.endswith(".svg")}
    for name, text in texts.items():
        bad = {char for char in text if not char.isprintable()} - {"\n"}
        assert not bad, name
        text.encode("utf-8")
    assert "![x]" not in texts["md"]
    assert texts["html"].count("</script>") == 2
    for name in ("table.csv", "runs.csv"):
        for line in csv.reader(io.StringIO(texts[name])):
            assert not any(re.match(r"[=@+]", cell) for cell in line), name
    first = next(csv.DictReader(io.StringIO(texts["runs.csv"])))
    # a foreign metric of that name hides no column
    assert (first["state"], first["seed"]) == ("done", "0")


def test_json_of_a_report_has_finite_numbers(tmp_path):
    page = to_html(hostile(tmp_path))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["rows"][0]["costs"]["samples_per_s"] is None
    assert data["views"][0]["values"][0]["mean"] == 0.8


def test_a_name_with_dollar_signs_is_no_formula(tmp_path):
    grid, runs = study(seeds=[0])
    folder = GridFolder(tmp_path)
    for spec in runs:
        run = finish(spec, folder)
        content = result_of(spec).model_dump()
        content["metrics"]["test/digit/accuracy@$\\frac$"] = 0.5
        write_json(run.result, content)
    assert "modalities.png" in draw_figures(collect(grid, runs, folder))
