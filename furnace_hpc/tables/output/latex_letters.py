r"""Letters beyond ASCII in LaTeX: they stay as they are, and each format of TeX is told what to do with them.

XeLaTeX and LuaLaTeX print each letter that the font has. pdfLaTeX prints Latin letters by itself, Chinese, Japanese and
Korean with the package CJKutf8, and for other letters what stands in for them: `\alpha` for a Greek one, else `?`.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from furnace_hpc.config.parsing.text_safety import printable

# Inline, for a letter beyond four hexadecimal digits: CJKutf8 would look for a font of its own.
WIDE = r"\ifdefined\Umathcode\iffontchar\font {0} {1}\else ?\fi\else ?\fi{{}}"
# Combining mark -> the accent of text, and of mathematics where there is one.
ACCENTS = {
    **{
        "\u0300": ("`", "grave"),
        "\u0301": ("'", "acute"),
        "\u0302": ("^", "hat"),
        "\u0303": ("~", "tilde"),
    },
    **{
        "\u0304": ("=", "bar"),
        "\u0306": ("u", "breve"),
        "\u0307": (".", "dot"),
        "\u0308": ('"', "ddot"),
    },
    **{
        "\u030a": ("r", ""),
        "\u030b": ("H", ""),
        "\u030c": ("v", "check"),
        "\u0323": ("d", ""),
        "\u0327": ("c", ""),
    },
    **{"\u0328": ("k", ""), "\u0331": ("b", "")},
}
_SMALL = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma sigma tau "
    "upsilon varphi chi psi omega"
)
_CAPITAL = "A B Gamma Delta E Z H Theta I K Lambda M N Xi O Pi P - Sigma T Upsilon Phi X Psi Omega"
_VARIANTS = {"ϑ": "vartheta", "ϕ": "phi", "ϖ": "varpi", "ϱ": "varrho", "ϵ": "epsilon"}
_NAMES = {chr(0x3B1 + at): name for at, name in enumerate(_SMALL.split())}
_NAMES |= {chr(0x391 + at): name for at, name in enumerate(_CAPITAL.split())} | _VARIANTS
GREEK = {
    letter: f"\\{name}" if len(name) > 1 else rf"\mathrm{{{name}}}"
    for letter, name in _NAMES.items()
}
_SYMBOLS = """
≤ leq ≥ geq ≠ neq ≈ approx ≡ equiv ≪ ll ≫ gg ∼ sim ∝ propto ∞ infty ∑ sum ∏ prod ∂ partial ∇ nabla ∫ int
→ to ← leftarrow ↔ leftrightarrow ⇒ Rightarrow ↑ uparrow ↓ downarrow ⋅ cdot ∘ circ ★ star ℓ ell ∅ emptyset
∈ in ⊂ subset ⊆ subseteq ∪ cup ∩ cap ∀ forall ∃ exists ∧ wedge ∨ vee ⊕ oplus ⊗ otimes
"""
_PAIRS = re.findall(r"(\S) (\w+)", _SYMBOLS)
SYMBOLS = {symbol: rf"\ensuremath{{\{name}}}" for symbol, name in _PAIRS}
SYMBOLS |= {"\u2212": "$-$", "\u2209": r"\ensuremath{\not\in}"}
# Letters and marks that pdfLaTeX has in the font encoding T1. In OT1, which it uses unless told
# otherwise, they are errors, or two characters over each other that no search finds.
ONLY_T1 = {
    **{letter: f"\\k {unicodedata.normalize('NFD', letter)[0]}" for letter in "ĄąĘęĮįŲų"},
    **{
        "«": r"\guillemotleft",
        "»": r"\guillemotright",
        "‹": r"\guilsinglleft",
        "›": r"\guilsinglright",
    },
    **{
        "„": r"\quotedblbase",
        "‚": r"\quotesinglbase",
        "Đ": r"\DJ",
        "đ": r"\dj",
        "Ð": r"\DH",
        "ð": r"\dh",
    },
    **{"Þ": r"\TH", "þ": r"\th", "Ŋ": r"\NG", "ŋ": r"\ng", "Ł": r"\L", "ł": r"\l"},
}
BY_ITSELF = set("ÆæŒœØøßıȷÅå¡¿.¶©®™°×÷±¬µ¹²³¼½¾–—‘’“”†‡•…‰€")
_CJK = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uff01-\uffee]")
_FONTS = (
    ("mj", re.compile("[\uac00-\ud7a3]")),
    ("min", re.compile("[\u3040-\u30ff]")),
    ("gbsn", _CJK),
)

# What the group of the table defines first. Letter #2 has the code #1, and #3 stands in for it.
# XeLaTeX and LuaLaTeX have \Umathcode. Codes are decimal: babel makes a macro of the quotation mark
# that hexadecimal ones need.
_STANDS_IN = r"""\def\furnaceletter#1#2#3{\ifdefined\Umathcode
\iffontchar\font #1 \else\catcode#1=13 \begingroup\lccode`\~=#1 \lowercase{\endgroup\def~}{#3}\fi
\else\ifcsname u8:\detokenize{#2}\endcsname\else\expandafter\def\csname u8:\detokenize{#2}\endcsname{#3}\fi\fi}"""
_IS_LOST = r"""\def\furnacelost#1#2{\furnaceletter{#1}{#2}{?\GenericWarning{}{LaTeX Warning: \detokenize{#2} becomes ?}}}"""
_IN_CJK = r"""\def\furnacecjk#1#2{\ifdefined\xeCJKsetup\else\ifdefined\ltjsetparameter\else
\ifdefined\Umathcode\furnacelost{#1}{#2}\else\ifcsname CJK*\endcsname\else\furnacelost{#1}{#2}\fi\fi\fi\fi}"""
_FROM_T1 = r"""\def\furnacetone#1#2{\ifdefined\Umathcode\else\ifnum\pdfstrcmp{\encodingdefault}{OT1}=0
\expandafter\def\csname u8:\detokenize{#1}\endcsname{{\fontencoding{T1}\IfFileExists
{t1lmr.fd}{\fontfamily{lmr}}{}\selectfont#2}}\fi\fi}"""


class Letters(NamedTuple):
    """What stands around a table whose text has letters beyond ASCII; nothing where it has none."""

    comments: list[str]
    begin: list[str]
    end: list[str]
    lost: str = ""  # what pdfLaTeX does not print, in words


def letters_of(texts: Iterable[str]) -> Letters:
    """What a table of these texts needs, each of them already escaped."""
    found = sorted(
        {char for text in texts for char in text if not char.isascii() and not _is_native(char)}
    )
    if not found:
        return Letters([], [], [])
    cjk = "".join(char for char in found if _CJK.match(char))
    t1 = [char for char in found if char in ONLY_T1]
    others = [char for char in found if char not in ONLY_T1 and char not in cjk]
    stands = {char: _stand_in(char) for char in others}
    lost = [char for char in others if stands[char] is None]
    near = [char for char in others if stands[char] and _loses_accents(char)]
    begin = [_STANDS_IN, _IS_LOST] if cjk or any(not is_wide(char) for char in others) else []
    begin += [_IN_CJK, *(rf"\furnacecjk{{{ord(char)}}}{{{char}}}" for char in cjk)] if cjk else []
    begin += (
        [_FROM_T1, *(rf"\furnacetone{{{char}}}{{{ONLY_T1[char]}}}" for char in t1)] if t1 else []
    )
    for char, stand in stands.items():
        if is_wide(char):
            continue
        name = rf"\furnaceletter{{{ord(char)}}}{{{char}}}{{{stand}}}"
        begin.append(name if stand else rf"\furnacelost{{{ord(char)}}}{{{char}}}")
    comments = [
        "% XeLaTeX and LuaLaTeX print each letter that the font has: choose one with fontspec."
    ]
    end = []
    if cjk:
        font = next(font for font, letters in _FONTS if letters.search(cjk))
        begin.append(
            rf"\ifdefined\Umathcode\else\ifcsname CJK*\endcsname\begin{{CJK}}{{UTF8}}{{{font}}}\fi\fi"
        )
        end.append(r"\ifdefined\Umathcode\else\ifcsname CJK*\endcsname\end{CJK}\fi\fi")
        comments.append(
            f"% Chinese, Japanese, Korean: CJKutf8 with pdfLaTeX, xeCJK with XeLaTeX; else ? for {cjk}"
        )
    if t1:
        comments.append(
            rf"% pdfLaTeX: \usepackage[T1]{{fontenc}} and lmodern are best for {''.join(t1)}"
        )
    words = [f"? for {''.join(lost)}"] * bool(lost) + [
        f"not all accents of {''.join(near)}"
    ] * bool(near)
    if words:
        comments.append(f"% pdfLaTeX prints {' and '.join(words)}")
    if cjk:
        words.append(f"? for {cjk} without the package CJKutf8")
    return Letters(comments, begin, end, printable(" and ".join(words)))


def is_wide(char: str) -> bool:
    """Whether the letter's code has more than four hexadecimal digits."""
    return ord(char) > 0xFFFF


def _taken_apart(char: str) -> tuple[str, str]:
    """The letter without its accents, and they."""
    parts = unicodedata.normalize("NFD", char)
    return parts[0], parts[1:]


def _loses_accents(char: str) -> bool:
    _, marks = _taken_apart(char)
    return len(marks) > 1 or any(mark not in ACCENTS for mark in marks)


def _is_native(char: str) -> bool:
    """Whether every LaTeX prints the letter: a Latin one with one accent that all encodings have, or a usual mark."""
    base, marks = _taken_apart(char)
    is_accented = (
        base.isascii() and ord(char) < 0x180 and "\u0328" not in marks and char not in ONLY_T1
    )
    return char in BY_ITSELF or (bool(marks) and is_accented)


def _stand_in(char: str) -> str | None:
    """What an old engine, or a font without the letter, prints for it; None if nothing would do."""
    if is_wide(char):
        return None
    if char in SYMBOLS:
        return SYMBOLS[char]
    base, marks = _taken_apart(char)
    if base in GREEK:
        math = GREEK[base]
        for _, accent in (ACCENTS.get(mark, ("", "")) for mark in marks[:1]):
            math = rf"\{accent}{{{math}}}" if accent else math
        return rf"\ensuremath{{{math}}}"
    if base.isascii() and base.isalpha() and marks and marks[0] in ACCENTS:
        return rf"\{ACCENTS[marks[0]][0]}{{{base}}}"
    plain = unicodedata.normalize("NFKD", char)
    return plain if plain.isascii() and plain.isalnum() else None
