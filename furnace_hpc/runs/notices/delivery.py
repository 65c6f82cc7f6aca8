"""Post a JSON object to a webhook, with a time limit, and retries after transient failures."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from furnace_hpc.config.parsing.text_safety import masked, printable, short
from furnace_hpc.config.parsing.webhook_file import masked_url

MAY_PASS = (408, 425, 429)  # and all answers from 500


class _NotSent(Exception):
    """The server has not accepted it."""

    def __init__(self, problem: str, may_pass: bool = True) -> None:
        super().__init__(problem)
        self.may_pass = may_pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the text to another address than the user's."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def deliver(url: str, content: bytes, pauses_s: Sequence[float], timeout_s: float) -> str:
    """Post JSON to a webhook. Return the problem, without the secret URL. Empty if it was accepted.

    If the connection breaks after the server has accepted the text, a retry sends it again. HTTP
    cannot prevent this. So the text has an id, by which a receiver finds duplicates.

    Args:
        url: of the webhook.
        content: the JSON text.
        pauses_s: seconds before each retry.
        timeout_s: of one try.
    """
    problem = ""
    for pause_s in (0.0, *pauses_s):
        time.sleep(pause_s)
        try:
            _try_in_time(url, content, timeout_s)
        except _NotSent as error:
            reason = short(printable(masked(str(error).replace(url, masked_url(url)))), 200)
            problem = f"{masked_url(url)} {reason}"
            if not error.may_pass:
                break
        else:
            return ""
    return problem


def _try_in_time(url: str, content: bytes, timeout_s: float) -> None:
    """Post once. A thread does it, because the look-up of a name has no time limit of its own."""
    outcome: list[_NotSent | None] = []

    def work() -> None:
        try:
            _post(url, content, timeout_s)
            outcome.append(None)
        except _NotSent as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name="webhook")
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise _NotSent(f"did not answer within {timeout_s:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _post(url: str, content: bytes, timeout_s: float) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "furnace-hpc"}
    request = urllib.request.Request(url, content, headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        with error:
            may_pass = error.code >= 500 or error.code in MAY_PASS
            raise _NotSent(f"answered {error.code} {error.reason}", may_pass) from None
    except urllib.error.URLError as error:
        raise _NotSent(f"cannot be reached: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _NotSent(f"broke the connection: {error or type(error).__name__}") from None
