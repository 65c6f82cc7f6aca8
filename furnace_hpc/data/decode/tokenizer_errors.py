"""Errors of the library `tokenizers`: its Rust code panics on some input, and prints each panic to stderr by itself."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2
_LOCK = threading.Lock()  # stderr is the whole process's


class TokenizerError(Exception):
    """The library failed; the text is one line."""


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Turn every failure of the library into a TokenizerError. A panic prints nothing.

    A panic is a BaseException of a class that cannot be imported. What else goes to stderr meanwhile, of other threads
    say, is written to it afterwards.
    """
    try:
        with _stderr_aside():
            yield
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(_line(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(_line(error)) from None


@contextmanager
def _stderr_aside() -> Iterator[None]:
    """Keep what is written to stderr until the end, and drop it where the block fails."""
    with _LOCK:
        try:
            stderr = os.dup(STDERR)
        except OSError:  # it is closed: nothing can be printed
            yield
            return
        aside = os.memfd_create("stderr")
        try:
            try:
                os.dup2(aside, STDERR)
                yield
            finally:
                os.dup2(stderr, STDERR)
            if length := os.fstat(aside).st_size:
                with suppress(OSError):  # nobody reads it any more
                    os.write(stderr, os.pread(aside, length, 0))
        finally:
            os.close(aside)
            os.close(stderr)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
