"""JSON lines, and JSON arrays of rows, read element by element."""

from collections.abc import Iterator
from typing import Any

from backend.data.files.content import TURN, DataFile
from backend.data.files.decoder import BadJson, CutOff, Decoder
from backend.data.files.row import MAX_COLUMNS, MAX_ROW, Lines, Row, clean_name, cut_off, no_rows, place, too_large
from backend.data.files.scanner import Scanner
from backend.data.findings import Ledger, fault
from backend.strict_json import quoted

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class _Keys:
    """Cleans the keys of rows, each distinct one once."""

    def __init__(self) -> None:
        self._clean: dict[str, str] = {}

    def clean(self, row: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
        """Return the row with clean keys."""
        known = self._clean
        if max(len(known), len(row)) > MAX_COLUMNS:
            raise fault(ledger.name, f"Its rows have more than {MAX_COLUMNS} different columns: put them into a list.")
        for key in row:
            if key not in known:
                known[key] = clean_name(key) or "unnamed"
                if known[key] != key:
                    text = f"Column names hold what cannot be seen: {quoted(key)} is read as {quoted(known[key])}."
                    ledger.say("column_names", text)
        if all(known[key] is key or known[key] == key for key in row):
            return row
        cleaned = {known[key]: value for key, value in row.items()}
        if len(cleaned) < len(row):
            twice = next(name for name in cleaned if sum(known[key] == name for key in row) > 1)
            raise fault(ledger.name, f"Two columns are called {quoted(twice)}: rename one of them.")
        return cleaned


def _checked(value: Any, number: int, line: int, keys: _Keys, ledger: Ledger) -> Row:
    if isinstance(value, dict):
        return Row(number, line, keys.clean(value, ledger))
    what = _KINDS.get(type(value), "a number")
    text = f"{place(number, line)} is {what}, not an object with a name for each value"
    ledger.faulty("shape", number, text, "write each row as an object", each=True)
    return Row(number, line, None)


class JsonLines:
    """A row a line."""

    columns = None

    def __init__(self, file: DataFile) -> None:
        self._file = file

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """Read all rows."""
        decoder = Decoder()
        keys = _Keys()
        number = 0
        blank = 0
        broken: tuple[int, int, BadJson] | None = None
        with self._file.text("\n") as stream:
            lines = Lines(stream)
            while (line := lines.next()) != "":
                if line is not None and not line.strip():
                    blank += 1
                    continue
                if broken:
                    _count(ledger, *broken)
                    broken = None
                number += 1
                if line is None:
                    too_large(ledger, number, lines.number, lines.size)
                    yield Row(number, lines.number, None)
                    continue
                try:
                    value = decoder.decode(line)
                except BadJson as e:
                    broken = number, lines.number, e
                    yield Row(number, lines.number, None)
                else:
                    yield _checked(value, number, lines.number, keys, ledger)
        if broken:
            _count(ledger, *broken, last=True)
        if not number:
            raise no_rows(self._file.name, blank)


def _count(ledger: Ledger, number: int, line: int, error: BadJson, last: bool = False) -> None:
    """Count a row that is not JSON; the last one may only be cut off."""
    if last and isinstance(error, CutOff):
        return cut_off(ledger, number, line)
    if isinstance(error, CutOff):
        text = f"row {number}, line {line}: the row does not end on its line, or lacks a closing quote or bracket"
        ledger.faulty("json", number, text, "write each row on one line, or name an array of rows .json", each=True)
        return
    text = f"row {number}, line {line}, column {error.pos + 1}: {error.text}"
    ledger.faulty(error.kind, number, text, error.remedy, each=True)


class JsonArray:
    """An array of rows, or an object in which one list holds them."""

    columns = None

    def __init__(self, file: DataFile) -> None:
        self._file = file

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """Read all rows."""
        with self._file.text("\n") as stream:
            scanner = Scanner(stream, self._file.name)
            if scanner.peek() == "{":
                yield from self._in_object(scanner, ledger)
            else:
                yield from self._array(scanner, ledger)
            if not scanner.cut and scanner.peek():
                raise scanner.fault(
                    "something stands behind the end",
                    "if each line is a row, make it an object and name the file .jsonl",
                )

    def _array(self, scanner: Scanner, ledger: Ledger) -> Iterator[Row]:
        keys, number = _Keys(), 0
        scanner.take("[")
        while (mark := scanner.peek()) != "]":
            if number and not mark:
                scanner.cut = True
                cut_off(ledger, number + 1, scanner.line)
                yield Row(number + 1, scanner.line, None)
                return
            if number:
                scanner.take(",", "a comma is missing between two rows")
                if scanner.peek() == "]":
                    raise scanner.fault("a comma stands before the closing bracket", "take it away")
            number += 1
            scanner.peek()
            line = scanner.line
            read = scanner.row(number, ledger)
            if read and read.size <= MAX_ROW:
                yield _checked(read.value, number, line, keys, ledger)
                continue
            if read:
                too_large(ledger, number, line, read.size)
            yield Row(number, line, None)
            if scanner.cut:
                return
        if not number:
            raise no_rows(self._file.name, what=" (an empty list)")
        scanner.take("]")

    def _in_object(self, scanner: Scanner, ledger: Ledger) -> Iterator[Row]:
        """Find the list of rows among the values of an object."""
        found: list[str] = []
        scanner.take("{")
        while scanner.peek() != "}":
            key = scanner.value()
            scanner.take(":", "a colon is missing behind a key")
            if scanner.peek() == "[" and scanner.second() == "{":
                found.append(str(key))
                if len(found) > 1:
                    names = " and ".join(map(quoted, found))
                    raise fault(ledger.name, f"It holds several lists of rows, {names}: give each as a file.")
                ledger.say("format", f"The rows are the list {quoted(key)} in an object.")
                for row in self._array(scanner, ledger):
                    if row.number == 1 and row.values and TURN & row.values.keys():
                        raise fault(ledger.name, "It is one conversation, not a list of them: put it into a list.")
                    yield row
                if scanner.cut:
                    return
            else:
                scanner.value()
            if scanner.peek() != "}":
                scanner.take(",", "a comma or the closing bracket is missing")
        scanner.take("}")
        if not found:
            raise fault(ledger.name, "It is one object without a list of rows: give an array of objects.")
