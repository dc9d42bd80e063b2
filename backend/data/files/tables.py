"""CSV and TSV: the delimiter and the header are found and said, a row that does not fit is never shifted into place."""

import csv
import re
from collections.abc import Iterator
from typing import TextIO

from backend.data.files.content import HEAD, DataFile
from backend.data.files.row import MAX_ROW, Row, clean_name, clean_names, no_rows, place
from backend.data.findings import Ledger, fault
from backend.data.options import DELIMITERS, DatasetOptions
from backend.data.synonyms import KNOWN
from backend.errors import SpecError
from backend.strict_json import quoted

_SAMPLE = 50  # records that the delimiter and the header are judged by
_SAID = re.compile(r'"?sep=([,;\t|])"?(?:\r\n?|\n)', re.IGNORECASE)
"""A first line by which Excel is told the delimiter."""

_SENTENCE = re.compile(r"[.?!:;]$|\d{4}-\d\d|^\W*[\d.,]+\W*$")


class Delimited:
    """A CSV or TSV file.

    Args:
        file: The file.
        options: Delimiter, header and quoting, where they are given.
        ledger: Receives what was recognized, and asked.
    """

    columns: tuple[str, ...]

    def __init__(self, file: DataFile, options: DatasetOptions, ledger: Ledger) -> None:
        self._file, self._quoting = file, options.quoting
        with file.text("") as stream:
            text = stream.read(HEAD)
        said = _SAID.match(text)
        self._said = bool(said)
        text = text[said.end() :] if said else text
        if not text.strip():
            raise no_rows(file.name, text.count("\n"))
        usual = "tab" if file.format == "tsv" else "comma"
        named = next((name for name, mark in DELIMITERS.items() if said and mark == said[1]), None)
        self.delimiter = options.delimiter or named or self._sniff(text, usual)
        if self.delimiter != usual and not options.delimiter:
            ledger.say("delimiter", f"Its fields are separated by a {self.delimiter}.", "delimiter")
        records = self._sample(text, self.delimiter)
        if not records:
            raise no_rows(file.name)
        self.header = _is_header(records) if options.header is None else options.header
        if options.header is None and not self.header:
            ledger.say("header", _question(records[0]), "header", asks=True)
        width = len(records[0])
        names = records[0] if self.header else [f"column_{i}" for i in range(1, width + 1)]
        self.columns = clean_names(names, ledger)

    def _reader(self, lines: Iterator[str], delimiter: str, strict: bool) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_ROW)  # the module's own limit, 131,072 characters, is too low for long answers
        mark = DELIMITERS[delimiter]
        if self._quoting:
            return csv.reader(lines, delimiter=mark, strict=strict)
        return csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE, strict=strict)

    def _sample(self, text: str, delimiter: str) -> list[list[str]]:
        lines = text.splitlines(keepends=True)
        whole = lines if len(text) < HEAD or len(lines) == 1 else lines[:-1]
        found: list[list[str]] = []
        try:
            for record in self._reader(iter(whole), delimiter, strict=False):
                if any(field.strip() for field in record):
                    found.append(record)
                if len(found) == _SAMPLE:
                    break
        except csv.Error:  # said with its row when the rows are read
            pass
        return found

    def _sniff(self, text: str, usual: str) -> str:
        """Take what the first row is separated by and most others have as often."""
        best, score = usual, 0.0
        for delimiter in (usual, *(name for name in DELIMITERS if name != usual)):
            records = self._sample(text, delimiter)
            width = len(records[0]) if records else 1
            if width > 1:
                alike = sum(len(record) == width for record in records) / len(records)
                if alike > score:
                    best, score = delimiter, alike
        return best

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """Read all rows."""
        number, width = 0, len(self.columns)
        with self._file.text("") as stream:
            lines = _Lines(stream, self._file.name)
            if self._said:
                next(lines)
            reader, header = self._reader(lines, self.delimiter, strict=True), self.header
            while (fields := self._record(reader, lines, number + (not header))) is not None:
                if not any(fields) and (width > 1 or not fields) and len(fields) <= 1:
                    continue  # a blank line
                if header:
                    header = False
                    continue
                number += 1
                if lines.nul:
                    where = place(number, lines.start)
                    ledger.faulty("nul", number, f"{where} holds NUL bytes", "take them out", each=True)
                elif len(fields) != width:
                    text = _ragged(number, len(fields), width, lines.start, self.header)
                    ledger.faulty("ragged", number, text, "put quotes around fields that hold a delimiter", each=True)
                else:
                    yield Row(number, lines.start, dict(zip(self.columns, fields, strict=True)))
                    continue
                yield Row(number, lines.start, None)
        if not number:
            shown = ", ".join(map(quoted, self.columns[:10]))
            raise no_rows(self._file.name, what=f" below the header ({shown})" if self.header else "")

    def _record(self, reader: Iterator[list[str]], lines: "_Lines", row: int) -> list[str] | None:
        lines.begin(row)
        try:
            return next(reader, None)
        except csv.Error as e:
            at = place(row, lines.start) if row else f"the header (line {lines.start})"
            if "unexpected end" in str(e):
                raise fault(self._file.name, f"A quote that begins in {at} is never closed: {_QUOTES}") from e
            if "expected after" in str(e):
                raise fault(self._file.name, f"In {at} text stands behind a closing quote: {_QUOTES}") from e
            raise fault(self._file.name, f"In {at} the fields cannot be told apart ({e}): {_QUOTES}") from e


_QUOTES = 'close it, write quotes inside a field twice (""), or set quoting to false if quotes are plain text.'


def _ragged(row: int, count: int, width: int, line: int, header: bool) -> str:
    fields = "1 field" if count == 1 else f"{count} fields"
    return f"row {row} has {fields}, {'header' if header else 'row 1'} has {width} (line {line})"


class _Lines:
    """Gives the csv module physical lines, and keeps count of them."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._number = 0
        self._size = 0
        self._row = 0
        self.start, self.nul = 1, False

    def begin(self, row: int) -> None:
        """Note that a new record begins with the next line."""
        self._row, self._size = row, 0
        self.start, self.nul = self._number + 1, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._size += len(line)
        if self._size > MAX_ROW:
            raise self._too_large(line)
        self.nul = self.nul or "\0" in line
        return line

    def _too_large(self, line: str) -> SpecError:
        size = self._size
        while line and not line.endswith(("\n", "\r")):
            line = self._stream.readline(MAX_ROW)
            size += len(line)
        several = " so far; perhaps a quote in it is never closed" if self.start != self._number else ""
        at = place(self._row, self.start)
        return fault(
            self._name,
            f"{at[0].upper()}{at[1:]} has {size / 1e6:.1f} MB{several}, {MAX_ROW // 10**6} MB at most: shorten it"
            " or take it out.",
        )


def _is_header(records: list[list[str]]) -> bool:
    """Return whether the first row names columns: known names, or short words that are not found below them."""
    first = [clean_name(cell) for cell in records[0]]
    if any(cell.lower() in KNOWN for cell in first):
        return True
    # Its length first: what looks for a sentence takes the square of it.
    if any(len(cell) > 40 or len(cell.split()) > 4 or _SENTENCE.search(cell) for cell in first):
        return False
    if not any(first) or any(not cell for cell in first[1:]):
        return False
    return not any(cell and cell in {row[i] for row in records[1:] if i < len(row)} for i, cell in enumerate(first))


def _question(first: list[str]) -> str:
    shown = ", ".join(quoted(cell, 40) for cell in first[:5])
    return (
        f"Is the first row a header? It has {shown}, which does not look like column names: set header to true, or to"
        " false if it is a row like the others."
    )
