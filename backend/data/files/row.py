"""Row: one record of a file, and what all readers know: the limits, clean column names, places in words."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, TextIO

from backend.data.findings import Ledger, fault
from backend.strict_json import quoted

MAX_ROW = 4_000_000  # characters of one row; a million tokens, more than any model here reads
MAX_ROWS = 5_000_000
MAX_COLUMNS = 1_000


class Number(str):
    """A number as the file writes it, so that nothing is rounded."""

    __slots__ = ()


class Row(NamedTuple):
    """One record."""

    number: int  # from 1, faulty rows counted, the header and blank lines not
    line: int  # of the file, where it begins; 0 where there are no lines
    values: dict[str, Any] | None  # None where the row cannot be read; the ledger says why


def place(row: int, line: int) -> str:
    """Say where a row is: `row 3 (line 4)`."""
    return f"row {row} (line {line})" if line else f"row {row}"


def too_large(ledger: Ledger, row: int, line: int, size: int) -> None:
    """Count a row above the limit."""
    ledger.faulty(
        "size",
        row,
        f"{place(row, line)} has {size / 1e6:.1f} MB, {MAX_ROW // 10**6} MB at most",
        "shorten it or take it out",
        each=True,
    )


def cut_off(ledger: Ledger, row: int, line: int) -> None:
    """Count the last row of a file that ends too early."""
    text = f"line {line}, the last, is cut off (row {row})"
    ledger.faulty("cut_off", row, text, "upload the whole file", each=True)


def no_rows(name: str, blank: int = 0, what: str = "") -> Exception:
    """Return the error for a file without rows."""
    if blank:
        what = " (1 blank line)" if blank == 1 else f" ({blank} blank lines)"
    return fault(name, f"No rows found{what}. Give a file with rows.")


def clean_names(names: Iterable[str], ledger: Ledger) -> tuple[str, ...]:
    """Take what cannot be seen out of column names, name the unnamed, and refuse names that stand there twice.

    Raises:
        SpecError: Two columns have one name.
    """
    given = list(names)
    cleaned = [clean_name(name) or f"unnamed_{i}" for i, name in enumerate(given, 1)]
    pairs = [(old, new) for old, new in zip(given, cleaned, strict=True) if old != new]
    changed = [f"{quoted(old)} is read as {quoted(new)}" for old, new in pairs if clean_name(old)]
    if unnamed := [quoted(new) for old, new in pairs if not clean_name(old)]:
        ledger.say("column_names", f"Columns without a name are called {', '.join(unnamed[:10])}.")
    if changed:
        ledger.say("column_names", f"Column names hold what cannot be seen: {', '.join(changed[:10])}.")
    if len(given) > MAX_COLUMNS:
        raise fault(ledger.name, f"It has {len(given)} columns, {MAX_COLUMNS} at most: check its delimiter.")
    for name, count in Counter(cleaned).items():
        if count > 1:
            first, second = [i for i, other in enumerate(cleaned, 1) if other == name][:2]
            raise fault(
                ledger.name,
                f"The column name {quoted(name)} stands there twice (columns {first} and {second}): rename one.",
            )
    return tuple(cleaned)


def clean_name(name: str) -> str:
    """Take control and invisible characters out of a name; odd spaces become plain ones."""
    if name.isascii() and name.isprintable():
        return name.strip()
    kept = (" " if c.isspace() else c for c in name if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return " ".join("".join(kept).split())


class Lines:
    """Physical lines with their numbers, none kept that is longer than a row may be."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.number = 0
        self.size = 0
        """Characters of the last line, also where it was too long to be kept."""

    def next(self) -> str | None:
        """Return the next line with its end; '' at the end of the file, None for one that is too long."""
        line = self._stream.readline(MAX_ROW + 1)
        self.size = len(line)
        if line:
            self.number += 1
        if len(line) <= MAX_ROW or line.endswith("\n"):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._stream.readline(MAX_ROW)
            self.size += len(line)
        return None
