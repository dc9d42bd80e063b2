"""What a browser sends as an event, read in few steps: its session, its number, and the files that it names."""

import re
from typing import Any, NamedTuple, TypeGuard

from backend.errors import SpecError
from backend.strict_json import parse_object

MAX_VALUES = 100_000
"""Of one event. Gradio copies them one by one in the event loop; a form has hundreds, a long chat has thousands."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(Exception):
    """A request that goes no further.

    Args:
        status: Of the answer.
        words: Say why.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class Said(NamedTuple):
    """What an event says that decides who may say it."""

    session: object  # as it came; see is_name()
    event: str | None  # of the queue, where one is canceled
    number: int | None  # of what happens in the page
    paths: tuple[str, ...]


def is_name(given: object) -> TypeGuard[str]:
    """Return whether a name is valid for a session or an upload: browsers draw a dozen letters, and names are kept."""
    return isinstance(given, str) and bool(_NAME.fullmatch(given))


def read_event(body: bytes) -> Said:
    """Read an event.

    Args:
        body: JSON, of which the bytes are bounded.

    Raises:
        Refused: It is not a valid one.
    """
    try:
        said = parse_object(body, "The event", len(body))
    except SpecError as e:
        raise Refused(400, "Not a valid event.") from e
    event = said.get("event_id")
    index = said.get("fn_index")
    if not (event is None or is_name(event)) or not (index is None or type(index) is int):
        raise Refused(400, "Not a valid event.")
    return Said(said.get("session_hash"), event, index, tuple(_paths(said)))


def _paths(said: Any) -> list[str]:
    """Return every path that Gradio would take for a file, anywhere in an event."""
    found = list[str]()
    left = [said]
    count = 0
    while left:
        part = left.pop()
        children = part.values() if isinstance(part, dict) else part
        count += len(children)
        if count > MAX_VALUES:
            raise Refused(413, f"This event holds more than {MAX_VALUES} values: send less.")
        if isinstance(part, dict) and isinstance(part.get("path"), str):
            found.append(part["path"])
        left += [child for child in children if isinstance(child, dict | list)]
    return found
