r"""Define letters beyond ASCII for each LaTeX engine. The text of a table keeps them.

XeLaTeX and LuaLaTeX print each letter that the font has. pdfLaTeX prints Latin letters, and
Chinese, Japanese and Korean with the package CJKutf8. For other letters it prints a substitute:
`\alpha` for a Greek letter, else `?`.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from furnace_hpc.config.parsing.text_safety import printable

# Inline, for a letter with more than four hexadecimal digits: CJKutf8 would need another font.
WIDE = r"\ifdefined\Umathcode\iffontchar\font {0} {1}\else ?\fi\else ?\fi{{}}"
# combining mark -> its accent in text, and in mathematics if there is one
ACCENTS = {
    "\u0300": ("`", "grave"),
    "\u0301": ("'", "acute"),
    "\u0302": ("^", "hat"),
    "\u0303": ("~", "tilde"),
    "\u0304": ("=", "bar"),
    "\u0306": ("u", "breve"),
    "\u0307": (".", "dot"),
    "\u0308": ('"', "ddot"),
    "\u030a": ("r", ""),
    "\u030b": ("H", ""),
    "\u030c": ("v", "check"),
    "\u0323": ("d", ""),
    "\u0327": ("c", ""),
    "\u0328": ("k", ""),
    "\u0331": ("b", ""),
}
_SMALL = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma "
    "sigma tau upsilon varphi chi psi omega"
)
_CAPITAL = "A B Gamma Delta E Z H Theta I K Lambda M N Xi O Pi P - Sigma T Upsilon Phi X Psi Omega"
_VARIANTS = {"ϑ": "vartheta", "ϕ": "phi", "ϖ": "varpi", "ϱ": "varrho", "ϵ": "epsilon"}
_NAMES = {chr(0x3B1 + at): name for at, name in enumerate(_SMALL.split())}
_NAMES |= {chr(0x391 + at): name for at, name in enumerate(_CAPITAL.split())} | _VARIANTS
GREEK = {letter: f"\\{name}" for letter, name in _NAMES.items() if len(name) > 1}
# letters that look like Latin ones have no name in TeX
GREEK |= {letter: rf"\mathrm{{{name}}}" for letter, name in _NAMES.items() if len(name) == 1}
_SYMBOLS = """
≤ leq ≥ geq ≠ neq ≈ approx ≡ equiv ≪ ll ≫ gg ∼ sim ∝ propto ∞ infty ∑ sum ∏ prod ∂ partial
∇ nabla ∫ int → to ← leftarrow ↔ leftrightarrow ⇒ Rightarrow ↑ uparrow ↓ downarrow
⋅ cdot ∘ circ ★ star ℓ ell ∅ emptyset
∈ in ⊂ subset ⊆ subseteq ∪ cup ∩ cap ∀ forall ∃ exists ∧ wedge ∨ vee ⊕ oplus ⊗ otimes
"""
_PAIRS = re.findall(r"(\S) (\w+)", _SYMBOLS)
SYMBOLS = {symbol: rf"\ensuremath{{\{name}}}" for symbol, name in _PAIRS}
SYMBOLS |= {"\u2212": "$-$", "\u2209": r"\ensuremath{\not\in}"}
# Letters and marks that pdfLaTeX has in the font encoding T1. In its default encoding OT1 they are
# errors, or two overlaid characters that a search does not find.
ONLY_T1 = {
    **{letter: f"\\k {unicodedata.normalize('NFD', letter)[0]}" for letter in "ĄąĘęĮįŲų"},
    **{"«": r"\guillemotleft", "»": r"\guillemotright"},
    **{"‹": r"\guilsinglleft", "›": r"\guilsinglright"},
    **{"„": r"\quotedblbase", "‚": r"\quotesinglbase"},
    **{"Đ": r"\DJ", "đ": r"\dj", "Ð": r"\DH", "ð": r"\dh"},
    **{"Þ": r"\TH", "þ": r"\th", "Ŋ": r"\NG", "ŋ": r"\ng", "Ł": r"\L", "ł": r"\l"},
}
BY_ITSELF = set("ÆæŒœØøßıȷÅå¡¿.¶©®™°×÷±¬µ¹²³¼½¾–—‘’“”†‡•…‰€")
_CJK = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uff01-\uffee]")
_FONTS = (
    ("mj", re.compile("[\uac00-\ud7a3]")),
    ("min", re.compile("[\u3040-\u30ff]")),
    ("gbsn", _CJK),
)

# Definitions at the beginning of the table's group. Letter #2 has the code #1 and the substitute
# #3. XeLaTeX and LuaLaTeX have \Umathcode. Codes are decimal, because babel redefines the quotation
# mark of hexadecimal ones.
_STANDS_IN = (
    r"\def\furnaceletter#1#2#3{\ifdefined\Umathcode"
    "\n"
    r"\iffontchar\font #1 \else\catcode#1=13 \begingroup\lccode`\~=#1 "
    r"\lowercase{\endgroup\def~}{#3}\fi"
    "\n"
    r"\else\ifcsname u8:\detokenize{#2}\endcsname\else"
    r"\expandafter\def\csname u8:\detokenize{#2}\endcsname{#3}\fi\fi}"
)
_IS_LOST = (
    r"\def\furnacelost#1#2{\furnaceletter{#1}{#2}"
    r"{?\GenericWarning{}{LaTeX Warning: \detokenize{#2} becomes ?}}}"
)
_IN_CJK = (
    r"\def\furnacecjk#1#2{\ifdefined\xeCJKsetup\else\ifdefined\ltjsetparameter\else"
    "\n"
    r"\ifdefined\Umathcode\furnacelost{#1}{#2}\else\ifcsname CJK*\endcsname\else"
    r"\furnacelost{#1}{#2}\fi\fi\fi\fi}"
)
_FROM_T1 = (
    r"\def\furnacetone#1#2{\ifdefined\Umathcode\else\ifnum\pdfstrcmp{\encodingdefault}{OT1}=0"
    "\n"
    r"\expandafter\def\csname u8:\detokenize{#1}\endcsname{{\fontencoding{T1}\IfFileExists"
    "\n"
    r"{t1lmr.fd}{\fontfamily{lmr}}{}\selectfont#2}}\fi\fi}"
)


class Letters(NamedTuple):
    """Lines around a table whose text has letters beyond ASCII."""

    comments: list[str]
    begin: list[str]
    end: list[str]
    lost: str = ""  # description of the letters that pdfLaTeX does not print


class _Kinds(NamedTuple):
    """Letters by the way in which pdfLaTeX prints them."""

    cjk: str  # Chinese, Japanese, Korean
    t1: list[str]  # with the encoding T1
    substitutes: dict[str, str | None]  # other letter -> its substitute; None if there is none


def letters_of(texts: Iterable[str]) -> Letters:
    """The lines that a table of these escaped texts needs."""
    found = sorted(
        {char for text in texts for char in text if not char.isascii() and not _is_native(char)}
    )
    if not found:
        return Letters([], [], [])
    cjk = "".join(char for char in found if _CJK.match(char))
    others = [char for char in found if char not in ONLY_T1 and char not in cjk]
    kinds = _Kinds(
        cjk,
        [char for char in found if char in ONLY_T1],
        {char: _substitute(char) for char in others},
    )
    lost = _lost(kinds)
    comments = _comments(kinds, lost)
    end = []
    if cjk:
        end.append(r"\ifdefined\Umathcode\else\ifcsname CJK*\endcsname\end{CJK}\fi\fi")
        lost.append(f"? for {cjk} without the package CJKutf8")
    return Letters(comments, _definitions(kinds), end, printable(" and ".join(lost)))


def _definitions(kinds: _Kinds) -> list[str]:
    """The TeX macros and their calls, before the table."""
    narrow = {char: text for char, text in kinds.substitutes.items() if not is_wide(char)}
    lines = []
    if kinds.cjk or narrow:
        lines += [_STANDS_IN, _IS_LOST]
    if kinds.cjk:
        lines += [_IN_CJK, *(rf"\furnacecjk{{{ord(char)}}}{{{char}}}" for char in kinds.cjk)]
    if kinds.t1:
        lines += [_FROM_T1, *(rf"\furnacetone{{{char}}}{{{ONLY_T1[char]}}}" for char in kinds.t1)]
    for char, substitute in narrow.items():
        if substitute:
            lines.append(rf"\furnaceletter{{{ord(char)}}}{{{char}}}{{{substitute}}}")
        else:
            lines.append(rf"\furnacelost{{{ord(char)}}}{{{char}}}")
    if kinds.cjk:
        font = next(font for font, letters in _FONTS if letters.search(kinds.cjk))
        lines.append(
            r"\ifdefined\Umathcode\else\ifcsname CJK*\endcsname"
            rf"\begin{{CJK}}{{UTF8}}{{{font}}}\fi\fi"
        )
    return lines


def _lost(kinds: _Kinds) -> list[str]:
    """Descriptions of the letters that pdfLaTeX does not print, or prints without all accents."""
    lost = "".join(char for char, text in kinds.substitutes.items() if text is None)
    partly = "".join(
        char for char, text in kinds.substitutes.items() if text and _loses_accents(char)
    )
    descriptions = []
    if lost:
        descriptions.append(f"? for {lost}")
    if partly:
        descriptions.append(f"not all accents of {partly}")
    return descriptions


def _comments(kinds: _Kinds, lost: list[str]) -> list[str]:
    """Comments that name the packages and fonts for the letters."""
    lines = [
        "% XeLaTeX and LuaLaTeX print each letter that the font has: choose one with fontspec."
    ]
    if kinds.cjk:
        lines.append(
            f"% Chinese, Japanese, Korean: CJKutf8 with pdfLaTeX, xeCJK with XeLaTeX; "
            f"else ? for {kinds.cjk}"
        )
    if kinds.t1:
        letters = "".join(kinds.t1)
        lines.append(rf"% pdfLaTeX: \usepackage[T1]{{fontenc}} and lmodern are best for {letters}")
    if lost:
        lines.append(f"% pdfLaTeX prints {' and '.join(lost)}")
    return lines


def is_wide(text: str) -> bool:
    """Whether the text is one letter whose code has more than four hexadecimal digits."""
    return len(text) == 1 and ord(text) > 0xFFFF


def _split_accents(char: str) -> tuple[str, str]:
    """The letter without its accents, and the accents."""
    parts = unicodedata.normalize("NFD", char)
    return parts[0], parts[1:]


def _loses_accents(char: str) -> bool:
    _, marks = _split_accents(char)
    return len(marks) > 1 or any(mark not in ACCENTS for mark in marks)


def _is_native(char: str) -> bool:
    """Whether every LaTeX prints the letter: a usual mark, or Latin with a usual accent."""
    base, marks = _split_accents(char)
    is_accented = (
        base.isascii() and ord(char) < 0x180 and "\u0328" not in marks and char not in ONLY_T1
    )
    return char in BY_ITSELF or (bool(marks) and is_accented)


def _substitute(char: str) -> str | None:
    """The text that an old engine, or a font without the letter, prints. None if there is none."""
    if is_wide(char):
        return None
    if char in SYMBOLS:
        return SYMBOLS[char]
    base, marks = _split_accents(char)
    _, accent = ACCENTS.get(marks[:1], ("", ""))
    if base in GREEK:
        math = GREEK[base]
        if accent:
            math = rf"\{accent}{{{math}}}"
        return rf"\ensuremath{{{math}}}"
    if base.isascii() and base.isalpha() and marks and marks[0] in ACCENTS:
        return rf"\{ACCENTS[marks[0]][0]}{{{base}}}"
    plain = unicodedata.normalize("NFKD", char)
    if plain.isascii() and plain.isalnum():
        return plain
    return None
