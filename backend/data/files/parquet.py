"""Parquet: read in small batches; types that are no text are said, and never turned into bytes in silence."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backend.data.files.content import DataFile
from backend.data.files.row import MAX_ROW, Row, clean_names, no_rows, too_large
from backend.data.findings import Ledger, fault
from backend.data.options import DatasetOptions
from backend.processes.parquet import MEMORY, read_batches, read_schema
from backend.strict_json import quoted

_LARGEST = 4 * MAX_ROW  # bytes; a character has four at most
_BATCH = 64  # rows; a dictionary can make a row a thousand times as large as the file
_UNREADABLE = ("map<", "union", "extension<", "interval", "run_end_encoded")


class ParquetRows:
    """A Parquet file.

    Args:
        file: The file.
        options: Whether binary columns are read.
        ledger: Receives columns that are left out.
    """

    columns: tuple[str, ...]
    left_out: dict[str, str]
    """Columns that are not read, and their types."""

    def __init__(self, file: DataFile, options: DatasetOptions, ledger: Ledger) -> None:
        self._file = file
        with _in_words(file.name):
            schema, self.total = read_schema(file.path)
        self._names = list(schema.names)
        self.columns = clean_names(self._names, ledger)
        kinds = {name: str(field.type) for name, field in zip(self.columns, schema, strict=True)}
        binary = {} if options.decode_binary else {name: kind for name, kind in kinds.items() if "binary" in kind}
        other = {name: kind for name, kind in kinds.items() if any(word in kind for word in _UNREADABLE)}
        for name, kind in other.items():
            ledger.say("types", f"The column {quoted(name)} is {kind[:80]}, which is not read: it is left out.")
        for name in binary.keys() - other.keys():
            text = f"The column {quoted(name)} is binary and left out; set decode_binary to true to read it as UTF-8."
            ledger.say("binary", text, "decode_binary")
        self.left_out = binary | other
        if self.total and len(self.left_out) == len(self.columns):
            hint = " Set decode_binary to true if bytes are text." if binary else ""
            shown = ", ".join(f"{quoted(name)} is {kind[:80]}" for name, kind in list(self.left_out.items())[:10])
            raise fault(file.name, f"None of its columns is text: {shown}.{hint}", "decode_binary" if binary else None)
        if not self.total:
            shown = ", ".join(map(quoted, self.columns[:10]))
            raise no_rows(file.name, what=f" in the columns {shown}" if shown else "")

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """Read all rows."""
        read = [old for old, new in zip(self._names, self.columns, strict=True) if new not in self.left_out]
        names = [new for new in self.columns if new not in self.left_out]
        numbers = itertools.count(1)
        with _in_words(self._file.name):
            for batch in read_batches(self._file.path, read, _BATCH, _LARGEST):
                if batch.too_large:
                    number = next(numbers)
                    too_large(ledger, number, 0, batch.too_large)
                    yield Row(number, 0, None)
                yield from self._batch(batch.rows, names, numbers, ledger)

    def _batch(self, batch: Any, names: list[str], numbers: Iterator[int], ledger: Ledger) -> Iterator[Row]:
        if batch.nbytes <= MAX_ROW:  # none of its rows can be larger
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Row(next(numbers), 0, dict(zip(names, row, strict=True)))
            return
        for i in range(batch.num_rows):
            number = next(numbers)
            values = {name: column[i].as_py() for name, column in zip(names, batch.columns, strict=True)}
            size = _weight(values)
            if size > MAX_ROW:
                too_large(ledger, number, 0, size)
            yield Row(number, 0, values if size <= MAX_ROW else None)


def _weight(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 8


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """Put pyarrow's errors into words."""
    import pyarrow as pa

    try:
        yield
    except MemoryError as e:
        much = f"It unpacks to more than {MEMORY / 1e9:.0f} GB at a time"
        raise fault(name, f"{much}: take out its largest rows, or write smaller pages.") from e
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as e:  # dates and zones Python has not
        raise fault(name, "This Parquet file is damaged, encrypted or too new to be read: upload it again.") from e
