"""Words from elsewhere, as they may be shown: what would move a terminal's cursor, or is no character, as an escape."""


def printable(text: str) -> str:
    r"""The text on one line: control characters, lone surrogates and marks that turn the writing round as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, length: int = 80) -> str:
    """The text, or its beginning and its end where it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 4 :]}"
