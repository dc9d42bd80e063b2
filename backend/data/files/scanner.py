"""Scanner: JSON of any length from a stream, one value at a time, with lines and columns."""

import re
from typing import Any, NamedTuple, TextIO

from backend.data.files.decoder import BadJson, CutOff, Decoder
from backend.data.files.row import MAX_ROW, cut_off
from backend.data.findings import Ledger, fault
from backend.errors import SpecError

_MARGIN = 64  # characters; an error that near to the end of what is read may be due to the end
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_MOST = 16 * MAX_ROW  # characters that are read of one value, to say how long it is


class Value(NamedTuple):
    """A JSON value."""

    value: Any
    size: int  # characters


class Scanner:
    """Reads JSON of any length from a stream, one value at a time."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._decoder = Decoder()
        self._buffer, self._at = "", 0
        self._line, self._counted = 1, 0  # the line of the character at _counted
        self._column = 1  # of the first character in the buffer
        self._ended = False
        self.cut = False
        """Whether the text ended within a row."""

    @property
    def line(self) -> int:
        """The line of the next character."""
        self._line += self._buffer.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _more(self, count: int = _CHUNK) -> bool:
        """Read on, forgetting what is done."""
        text = self._stream.read(count)
        if not text:
            self._ended = True
            return False
        done = self._buffer[: self._at]
        self._line, self._counted = self.line, 0
        self._column = len(done) - done.rfind("\n") if "\n" in done else self._column + len(done)
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        return True

    def peek(self) -> str:
        """Return the next character that is no space; '' at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def second(self) -> str:
        """Return the character after the next one, spaces left out."""
        at = self._at + 1
        while True:
            at = _SPACE.match(self._buffer, at).end()  # type: ignore[union-attr]  # it matches nothing too
            if at < len(self._buffer):
                return self._buffer[at]
            done = self._at
            if not self._more(max(_CHUNK, len(self._buffer) - done)):
                return ""
            at -= done

    def take(self, mark: str, otherwise: str = "") -> None:
        """Go past a character that must come next."""
        if self.peek() != mark:
            raise self._missing(otherwise or f"'{mark}' is missing")
        self._at += 1

    def value(self) -> Any:
        """Read a value.

        Raises:
            SpecError: It is broken.
        """
        try:
            return self._value().value
        except BadJson as e:
            raise self.fault(e.text, e.remedy, e.pos) from e

    def _value(self) -> Value:
        self.peek()
        while True:
            try:
                value, end = self._decoder.value(self._buffer, self._at)
            except BadJson as e:
                in_doubt = isinstance(e, CutOff) or e.pos > len(self._buffer) - _MARGIN
                size = len(self._buffer) - self._at
                if in_doubt and size < _MOST and self._more(max(_CHUNK, size)):
                    continue
                raise
            size = len(self._buffer) - self._at
            if end == len(self._buffer) and size < _MOST and self._more(max(_CHUNK, size)):
                continue  # a number may go on
            size, self._at = end - self._at, end
            return Value(value, size)

    def row(self, number: int, ledger: Ledger) -> Value | None:
        """Read a row; None for one that is counted as faulty.

        Raises:
            SpecError: It is broken in a way that hides where the next one begins.
        """
        try:
            return self._value()
        except BadJson as e:
            if e.end:
                line, column = self._place(e.pos)
                text = f"row {number}, line {line}, column {column}: {e.text}"
                ledger.faulty(e.kind, number, text, e.remedy, each=True)
                self._at = e.end
                return None
            if isinstance(e, CutOff) and self._ended:
                self.cut = True
                cut_off(ledger, number, self.line + self._buffer.rstrip().count("\n", self._at))
                return None
            raise self.fault(e.text, e.remedy, e.pos, number) from e

    def _place(self, pos: int) -> tuple[int, int]:
        before = self._buffer[:pos]
        line = self.line + before.count("\n", self._at)
        return line, pos - before.rfind("\n") if "\n" in before else self._column + pos

    def _missing(self, text: str) -> SpecError:
        return self.fault(text) if self.peek() else self.fault("it is cut off", "upload the whole file")

    def fault(self, text: str, remedy: str = "repair it", pos: int | None = None, row: int = 0) -> SpecError:
        """Return the error for what stands at a position, by default at the next character."""
        line, column = self._place(self._at if pos is None else pos)
        at = f"Row {row}, line" if row else "Line"
        return fault(self._name, f"{at} {line}, column {column}: {text}: {remedy}.")
