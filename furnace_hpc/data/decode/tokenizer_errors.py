"""Catch errors of the library `tokenizers`.

Its Rust code panics on some input, and prints each panic to stderr.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2
_LOCK = threading.Lock()  # all threads share stderr


class TokenizerError(Exception):
    """The library failed. The text is one line."""


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Turn every failure of the library into a TokenizerError, without the panic's output.

    A panic is a BaseException of a class that cannot be imported. Text that other threads write to
    stderr meanwhile is written to it afterwards.
    """
    try:
        with _stderr_held():
            yield
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(_line(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(_line(error)) from None


@contextmanager
def _stderr_held() -> Iterator[None]:
    """Hold back text written to stderr until the block ends. Drop it if the block fails."""
    with _LOCK:
        try:
            stderr = os.dup(STDERR)
        except OSError:  # stderr is closed
            yield
            return
        held = os.memfd_create("stderr")
        try:
            try:
                os.dup2(held, STDERR)
                yield
            finally:
                os.dup2(stderr, STDERR)
            if length := os.fstat(held).st_size:
                with suppress(OSError):  # stderr has no reader any more
                    os.write(stderr, os.pread(held, length, 0))
        finally:
            os.close(held)
            os.close(stderr)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
