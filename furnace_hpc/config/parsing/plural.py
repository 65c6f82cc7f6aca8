"""Write numbers of things: 1 run, 2 runs."""


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, with `s` for more than one: `1 run`, `1,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_are(number: int) -> str:
    """Return `is` for one thing, else `are`."""
    return "is" if number == 1 else "are"


def has_have(number: int) -> str:
    """Return `has` for one thing, else `have`."""
    return "has" if number == 1 else "have"
