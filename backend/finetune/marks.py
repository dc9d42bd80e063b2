"""Marks: characters of private use by which the words of a message are found again in a rendered conversation.

A template trims contents, splits them at the tags of thoughts, drops some and rewrites others. Marks stand inside the
blanks of a text and outside those tags, so that a template does with a marked text what it does with a plain one.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from backend.models.tokens import THINKS, THOUGHT

_PLANES = (0xF0000, 0x100000)
_LAST = 0xFFFD
_TAGS = re.compile(f"({re.escape(THINKS)}|{re.escape(THOUGHT)})")


class Place(NamedTuple):
    """Where a mark stood."""

    at: int  # character of the text without marks
    message: int
    thought: bool


class Marks:
    """Marks that stand in none of some texts.

    Args:
        texts: What is marked.

    Raises:
        ValueError: There are none: the texts use both planes of private characters.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        whole = "\n".join(texts)
        free = (plane for plane in _PLANES if not re.search(f"[{chr(plane)}-{chr(plane + _LAST)}]", whole))
        self._plane = next(free, 0)
        if not self._plane:
            raise ValueError("it has characters of both private planes of Unicode")
        self.breaker = chr(self._plane + _LAST)
        """Stands inside what would be read as a token; see spelled()."""
        self._any = re.compile(f"[{chr(self._plane)}-{chr(self._plane + _LAST - 1)}]")

    def spelled(self, text: str, tokens: re.Pattern[str]) -> str:
        """Return a text in which some tokens are no tokens, but the letters that they are written with."""
        return tokens.sub(lambda found: found[0][:1] + self.breaker + found[0][1:], text)

    def mark(self, text: str, message: int) -> str:
        """Return a text with marks around its words, and around its thoughts others.

        Args:
            text: A part of a message.
            message: Its number.
        """
        pieces = _TAGS.split(text)
        tags = [piece for piece in pieces if piece in (THINKS, THOUGHT)]
        thought = tags[:1] == [THOUGHT]  # one that the prompt has opened
        marked = []
        for piece in pieces:
            words = "" if piece in (THINKS, THOUGHT) else piece.strip()
            thought = thought if words or not piece.strip() else piece == THINKS
            edge = chr(self._plane + 2 * message + thought)
            before, _, after = piece.partition(words) if words else (piece, "", "")
            marked.append(f"{before}{edge}{words}{edge}{after}" if words else piece)
        return "".join(marked)

    def has_thought(self, text: str, message: int) -> bool:
        """Return whether a marked text has a thought of a message."""
        return chr(self._plane + 2 * message + 1) in text

    def plain(self, text: str) -> str:
        """Return a text without marks."""
        return self._any.sub("", text)

    def find(self, text: str) -> tuple[str, list[Place]]:
        """Return a rendered text without marks, and where they stood."""
        parts = []
        places = []
        length = 0
        at = 0
        for mark in self._any.finditer(text):
            parts.append(text[at : mark.start()])
            length += mark.start() - at
            at = mark.end()
            number = ord(mark[0]) - self._plane
            places.append(Place(length, number // 2, bool(number % 2)))
        return "".join([*parts, text[at:]]), places

    def after(self, text: str, message: int) -> str:
        """Return what stands in a marked text behind the last mark of a message; nothing where it has none."""
        last = max(text.rfind(chr(self._plane + 2 * message + thought)) for thought in (0, 1))
        return text[last + 1 :] if last >= 0 else ""
