"""Plain text: a row is a paragraph, a line, or the whole file."""

from collections.abc import Iterator

from backend.data.files.content import DataFile
from backend.data.files.row import MAX_ROW, Lines, Row, no_rows, too_large
from backend.data.findings import Ledger
from backend.data.options import DatasetOptions
from backend.data.synonyms import TEXT


class PlainText:
    """A text file, as rows with one column, `text`."""

    columns = (TEXT,)

    def __init__(self, file: DataFile, options: DatasetOptions) -> None:
        self._file, self._by = file, options.sample_by

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """Read all rows."""
        number = 0
        with self._file.text("\n") as stream:
            lines = Lines(stream)
            for start, size, text in self._parts(lines):
                number += 1
                if size > MAX_ROW:
                    too_large(ledger, number, start, size)
                yield Row(number, start, {TEXT: text} if size <= MAX_ROW else None)
            if not number:
                raise no_rows(self._file.name, lines.number)

    def _parts(self, lines: Lines) -> Iterator[tuple[int, int, str]]:
        """Yield the first line, the characters and the text of each part; of one that is too long only its size."""
        part: list[str] = []
        start = size = 0
        while (line := lines.next()) != "":
            blank = line is not None and not line.strip()
            if part and (self._by == "line" or (blank and self._by == "paragraph")):
                yield start, size, "".join(part).strip("\r\n")
                part, size = [], 0
            if blank and (self._by != "document" or not part):
                continue
            start = start if part else lines.number
            size += lines.size
            part.append(line if line is not None and size <= MAX_ROW else "")
        if part:
            yield start, size, "".join(part).strip("\r\n")
