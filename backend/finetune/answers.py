"""Where the answers lie in a rendered conversation: what the model would write there, as far as the token that ends it.

An answer begins where the template's own beginning of an answer ends, and ends behind the first token that stops
generation. Both are read off the text that the template has written between the words of two messages.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, takewhile
from operator import eq
from typing import NamedTuple

from backend.data.samples import Message
from backend.finetune.marks import Place
from backend.models.tokens import THOUGHT

Span = tuple[int, int]

Ask = Callable[[int], str | None]
"""Gives something of a message by its number; None: it is not known."""


class Ends(NamedTuple):
    """What an answer may end with.

    Attributes:
        stops: Finds the tokens that stop generation.
        control: Finds all that steer the model.
    """

    stops: re.Pattern[str]
    control: re.Pattern[str]


class Talk:
    """A rendered conversation, its marks taken out.

    Args:
        text: It.
        places: Where the marks stood, in their order.
        messages: Of which it is made.
        ends: What an answer may end with.
    """

    def __init__(self, text: str, places: Sequence[Place], messages: Sequence[Message], ends: Ends) -> None:
        self._text = text
        self._places = places
        self._messages = messages
        self._ends = ends
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self.thoughts = {place.message for place in places if place.thought}
        lows, highs = [len(text)] * (len(messages) + 1), [0] * (len(messages) + 1)
        for number, place in enumerate(places):
            self._first.setdefault(place.message, number)
            self._last[place.message] = number
            highs[place.message + 1] = place.at
            lows[place.message] = min(lows[place.message], place.at)
        self._highest = list(accumulate(highs, max))  # the end of what comes before a message
        self._lowest = list(accumulate(reversed(lows), min))[::-1]  # the beginning of what comes from it on
        opening = ends.control.search(text, 0, places[0].at if places else 0)
        self._opener = opening[0] if opening else None

    def lost(self, roles: Iterable[str]) -> str | None:
        """Return what the template has not written of messages that were marked; thoughts may be missing.

        Args:
            roles: Whose messages were marked.
        """
        for i, message in enumerate(self._messages):
            if message.role in roles and i not in self._first and message.content.rpartition(THOUGHT)[2].strip():
                return f"it leaves out message {i + 1}, of {message.role}"
            first, after = self.gap(i)
            for call in message.fields.get("tool_calls", ()):
                if call["function"]["name"] not in self._text[first:after]:
                    return "it does not write tool calls"
        return None

    def gap(self, i: int) -> Span:
        """Return where a message lies, with what the template has written around it."""
        if i not in self._first:
            return self._highest[i], self._lowest[i + 1]
        first, last = self._first[i], self._last[i]
        after = self._places[last + 1].at if last + 1 < len(self._places) else len(self._text)
        return self._places[first - 1].at if first else 0, after

    def spans(self, answers: Iterable[int], header: Ask, alone: Ask) -> list[Span]:
        """Return where answers lie.

        Args:
            answers: The numbers of their messages.
            header: Gives the template's beginning of an answer, behind the message before it.
            alone: Gives what follows the last mark where the conversation ends with that message.
        """
        return [span for i in answers if (span := self._span(i, header(i), alone))[1] > span[0]]

    def _span(self, i: int, header: str | None, alone: Ask) -> Span:
        before, after = self.gap(i)
        marked = i in self._first
        words = self._places[self._first[i]].at if marked else after
        shared = _shared(header or "", self._text[before:words])
        start = before + shared if shared or header == "" else words
        last = self._places[self._last[i]].at if marked else start
        stop = self._ends.stops.search(self._text, last, after)
        if stop:
            while (further := self._ends.stops.match(self._text, stop.end(), after)) is not None:
                stop = further
            return start, stop.end()
        if "tool_calls" not in self._messages[i].more:
            return start, self._closed(last, after) if marked else start
        base = last if marked else before
        end = base + _shared(alone(i) or "", self._text[base:after])
        return start, start + len(self._text[start:end].rstrip())

    def _closed(self, at: int, after: int) -> int:
        """Return where an answer ends whose last words end at a character, and which no token stops.

        A token that steers the model and does not begin a message closes it: gpt-oss ends earlier answers so.
        """
        closing = self._ends.control.search(self._text, at, after)
        if closing is None or closing[0] == self._opener or closing.start() > at + 1:
            return at
        follows = after == len(self._text) or self._ends.control.search(self._text, closing.end(), after)
        return closing.end() if follows else at


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return sum(takewhile(bool, map(eq, one, other)))
