"""Rows: one reader for every kind of file, in front of whatever else might read it and lose some.

The files of one data set are read one after the other; rows are counted through all of them.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from backend.data.files.content import DataFile, open_data
from backend.data.files.parquet import ParquetRows
from backend.data.files.records import JsonArray, JsonLines
from backend.data.files.row import MAX_ROWS, Row
from backend.data.files.tables import Delimited
from backend.data.files.text import PlainText
from backend.data.findings import Ledger, fault
from backend.data.options import DatasetOptions
from backend.data.slices import parse_split
from backend.options import Frozen

MAX_TEXT = 2_000_000_000  # characters of all rows; Parquet can unpack to a thousand times its size

Table = Delimited | ParquetRows | PlainText | JsonLines | JsonArray


class Source(Frozen):
    """Files that lie on this machine and make one data set."""

    name: str = Field(description="What it is called in the card: a file's name, or the id with its commit.")
    files: tuple[Path, ...] = Field(min_length=1, description="Read in this order.")
    split: str | None = Field(None, description="The part that is taken, as train[:200]; the split itself is chosen.")
    repo_id: str | None = Field(None, description="The Hub data set that they are of, for the card.")
    revision: str | None = Field(None, description="Its commit.")


class Rows:
    """The rows of a source, which can be read again and again.

    Args:
        source: The files.
        options: How they are read.
        ledger: Receives what was recognized, and asked.

    Raises:
        SpecError: A file cannot be read at all.
    """

    def __init__(self, source: Source, options: DatasetOptions, ledger: Ledger) -> None:
        self.name = source.name
        self.files = [open_data(path, options, ledger) for path in source.files]
        self._tables = [_table(file, options, ledger) for file in self.files]
        self._slice = parse_split(source.split)[1]
        self._total: int | None = None
        columns: dict[str, None] = {}
        for table in self._tables:
            columns |= dict.fromkeys(table.columns or ())
        self.columns = tuple(columns)
        """The names that the files list before their rows; JSON has none."""
        self.delimiter = next((t.delimiter for t in self._tables if isinstance(t, Delimited)), None)
        self.header = next((t.header for t in self._tables if isinstance(t, Delimited)), None)
        self.left_out: dict[str, str] = {}
        """Parquet columns that are not read, and their types."""
        for table in self._tables:
            self.left_out |= table.left_out if isinstance(table, ParquetRows) else {}

    def read(self, ledger: Ledger) -> Iterator[Row]:
        """Read the rows that the split's slice names; the ledger is told of the faulty ones.

        Raises:
            SpecError: A file is broken in a way that hides where its rows begin, or there are too many.
        """
        if self._slice.needs_total and self._total is None:
            self._total = sum(1 for _ in self._all(Ledger(self.name)))
        start, stop = self._slice.bounds(self._total)
        ledger.window = (start, stop)
        size = taken = 0
        for row in self._all(ledger):
            if stop is not None and row.number > stop:
                break
            if row.number <= start:
                continue
            taken += 1
            size += sum(len(v) for v in row.values.values() if isinstance(v, str | bytes)) if row.values else 0
            if size > MAX_TEXT:
                raise fault(self.name, f"Its rows have more than {MAX_TEXT // 10**9} GB of text: take a slice of it.")
            yield row
        if not taken:
            raise fault(self.name, "The slice holds no rows: give another in split.", "split")

    def _all(self, ledger: Ledger) -> Iterator[Row]:
        before = 0
        for table, file in zip(self._tables, self.files, strict=True):
            last = 0
            part = ledger.part(before, file.name if len(self.files) > 1 else "")
            for row in table.rows(part):
                last = row.number
                if before + last > MAX_ROWS:
                    raise fault(self.name, f"It has more than {MAX_ROWS} rows: take a slice of it, as train[:1000000].")
                yield Row(before + last, row.line, row.values) if before else row
            before += last


def _table(file: DataFile, options: DatasetOptions, ledger: Ledger) -> Table:
    if file.format in ("csv", "tsv"):
        return Delimited(file, options, ledger)
    if file.format == "parquet":
        return ParquetRows(file, options, ledger)
    if file.format == "txt":
        return PlainText(file, options)
    return JsonLines(file) if file.format == "jsonl" else JsonArray(file)
