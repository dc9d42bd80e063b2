"""Where the answers lie in a rendered conversation: what the model would write there, as far as the token that ends it.

An answer begins where the template's own beginning of an answer ends, and ends behind the first token that stops
generation. Both are read off the text that the template has written between the words of two messages.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, takewhile
from operator import eq
from typing import NamedTuple

from backend.finetune.marks import Place
from backend.finetune.samples import Message
from backend.models.tokens import THOUGHT

Span = tuple[int, int]


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
        self._text, self._places, self._messages, self._ends = text, places, messages, ends
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

    def spans(self, answers: Iterable[int], header: Callable[[int], str | None]) -> list[Span]:
        """Return where answers lie.

        Args:
            answers: The numbers of their messages.
            header: Gives the template's beginning of an answer, behind the message before it; None: not known.
        """
        return [span for i in answers if (span := self._span(i, header(i)))[1] > span[0]]

    def _span(self, i: int, header: str | None) -> Span:
        before, after = self.gap(i)
        marked = i in self._first
        words = self._places[self._first[i]].at if marked else after
        shared = sum(takewhile(bool, map(eq, header or "", self._text[before:words])))
        start = before + shared if shared or header == "" else words
        calls = "tool_calls" in self._messages[i].more
        if not marked and not calls:
            return start, start
        return start, self._end(self._places[self._last[i]].at if marked else start, after, calls)

    def _end(self, at: int, after: int, calls: bool) -> int:
        """Return where an answer ends whose last words end at a character."""
        stop = self._ends.stops.search(self._text, at, after)
        if stop:
            return stop.end()
        # such as gpt-oss ends earlier answers: not what begins a message
        closing = self._ends.control.search(self._text, at, after)
        if closing and closing[0] != self._opener and (calls or closing.start() <= at + 1):
            follows = after == len(self._text) or self._ends.control.search(self._text, closing.end(), after)
            return closing.end() if follows else at
        if calls and after == len(self._text):
            return len(self._text.rstrip())
        return at
