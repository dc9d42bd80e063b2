"""Patience: how long the Hub is waited for when it is overloaded or away, and what is no use waiting for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often and how long something is tried again.

    Args:
        pauses: Seconds before the second try, the third, …; after the last the fault is raised.
        limit: Seconds from the first fault on, after which no new try is begun.
        longest: Seconds of one pause; who is told to wait longer is told so.
        say: Receives what is waited for, and how long.
        reply: Seconds without a byte after which a request is given up; None is as long as any other is waited for.
    """

    pauses: tuple[float, ...]
    limit: float = float("inf")
    longest: float = float("inf")
    say: Callable[[str], None] = lambda text: None
    reply: float | None = None


HASTY = Patience((), reply=4.0)
"""For what somebody would like to know and can do without."""


def long_patience(seconds: float, say: Callable[[str], None]) -> Patience:
    """Return the patience of what has taken hours to make: pauses that double from a 300th to a tenth of it.

    Args:
        seconds: In all, for one request.
        say: Receives what is waited for, and how long.
    """
    pauses, pause = list[float](), seconds / 300
    while sum(pauses) < seconds:
        pauses.append(pause)
        pause = min(2 * pause, seconds / 10)
    return Patience(tuple(pauses), seconds, seconds, say)


def patiently(question: Callable[[], T], patience: Patience) -> T:
    """Call the Hub, again and again while what stops it may pass by itself.

    Raises:
        Exception: One of transport.FAULTS, as huggingface_hub raised it.
    """
    from backend.hub.transport import FAULTS, reply_within

    end = None
    for pause in (*patience.pauses, None):
        try:
            with reply_within(patience.reply):
                return question()
        except FAULTS as e:
            end = end or time.monotonic() + patience.limit
            wait = _wait(e, pause)
            if wait is None or wait > min(patience.longest, end - time.monotonic()):
                raise
            patience.say(f"{_what(e)} Trying again in {wait:.3g} s.")
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def cause(error: Exception) -> Exception:
    """Return what the Hub said, where the library has wrapped it in an error of its own."""

    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    below: BaseException | None = error
    while below is not None and not isinstance(below, HfHubHTTPError | httpx2.TransportError | OfflineModeIsEnabled):
        below = below.__cause__
    return below if isinstance(below, Exception) else error


def status(error: Exception) -> int | None:
    """Return the HTTP status of what the Hub said, if it said something."""

    from huggingface_hub.errors import HfHubHTTPError

    found = cause(error)
    return found.response.status_code if isinstance(found, HfHubHTTPError) else None


def retry_after(error: "HfHubHTTPError") -> float | None:
    """Return the seconds that the Hub wants to be left alone for, if it says so."""

    from huggingface_hub.utils._http import parse_ratelimit_headers

    headers = error.response.headers
    limited = parse_ratelimit_headers(headers)
    if limited and limited.remaining == 0:
        return float(limited.reset_in_seconds)
    after = headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None


def _wait(error: Exception, pause: float | None) -> float | None:
    """Return the seconds to wait before the next try, or None to give up."""

    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    from backend.hub.transport import TRANSIENT

    found = cause(error)
    if pause is None or not isinstance(found, HfHubHTTPError | httpx2.TransportError):
        return None
    if isinstance(found, HfHubHTTPError):
        if found.response.status_code not in TRANSIENT:
            return None
        return max(pause, retry_after(found) or 0.0)
    return pause


def _what(error: Exception) -> str:
    answered = status(error)
    if answered == 429:
        return "The Hub is asked too often."
    return f"The Hub answered {answered}." if answered else "The Hub cannot be reached."
