"""Text from a data set on the Hub, for evaluation; Parquet, JSON lines or plain text.

Rows are joined by blank lines, the convention of the GPTQ paper's code for WikiText-2.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from backend.errors import SpecError
from backend.hub.datasets import SPLITS, Wanted, check_room, choose, download, open_dataset, within_limit
from backend.processes.parquet import read_batches, read_schema
from backend.progress import Report
from backend.strict_json import quoted

MAX_DOWNLOAD = 200_000_000
MAX_TEXT = 1_000_000_000  # bytes of UTF-8; Parquet can unpack to a thousand times its size
MAX_ROW = 100_000_000  # bytes of one text
SUFFIXES = (".parquet", ".jsonl", ".txt")
_HOW = "give id:config:split, with one of"


def fetch_text(dataset: str, target: Path, token: str | None, report: Report) -> str:
    """Write the text of a Hub data set's split to a file.

    Args:
        dataset: `id`, `id:config` or `id:config:split`.
        target: The file to write, UTF-8.
        token: The caller's Hub token.
        report: Receives the bytes.

    Returns:
        Its name for a card: `id (config, split, commit abc1234)`.

    Raises:
        SpecError: There is no such config, split or text column; what there is instead.
        HubError: The Hub refused or could not be reached.
    """
    name, _, rest = (dataset, "", "") if "://" in dataset else dataset.strip().partition(":")
    config, _, split = rest.partition(":")
    found = open_dataset(Wanted(name, config or None, split or None), SUFFIXES, token)
    config = choose(found.layout, found.wanted.config, "config", ("default",), found.words(_HOW))
    split = choose(found.layout[config], found.wanted.split, "split", SPLITS, found.words(_HOW))
    repo_id = found.files.repo_id
    wanted, note = within_limit(found.entries_of(config, split), repo_id, MAX_DOWNLOAD)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target.parent, wanted, repo_id)
    with TemporaryDirectory(dir=target.parent) as folder:
        paths = download(found.files, wanted, Path(folder), report)
        _write(target, repo_id, (row for path in paths for row in _rows(path)))
    return f"{repo_id} ({config}, {split}{note}, commit {found.files.commit[:7]})"


def _rows(path: Path) -> Iterator[str]:
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix.lower() == ".jsonl":
        yield from _json_rows(path)
    else:
        yield path.read_text(encoding="utf-8-sig", errors="replace")


def _parquet_rows(path: Path) -> Iterator[str]:
    import pyarrow as pa

    try:
        schema, _ = read_schema(path)
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        column = _text_column(texts, schema.names, path.name)
        for batch in read_batches(path, [column], 1024, MAX_ROW):
            if batch.too_large:
                raise MemoryError
            yield from (value or "" for value in batch.rows.column(0).to_pylist())
    except MemoryError as e:
        words = f"{quoted(path.name)} holds a text of more than {MAX_ROW // 10**6} MB, or unpacks to too much"
        raise SpecError(f"{words}: choose another data set.") from e
    except (pa.ArrowException, OSError, ValueError) as e:
        raise SpecError(f"{quoted(path.name)} cannot be read as Parquet: choose another data set.") from e


def _json_rows(path: Path) -> Iterator[str]:
    column = None
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise SpecError(f"{quoted(path.name)}, line {number}, is not JSON: choose another data set.") from e
            if not isinstance(row, dict):
                raise SpecError(f"{quoted(path.name)}, line {number}, is no JSON object: choose another data set.")
            column = column or _text_column([k for k, v in row.items() if isinstance(v, str)], list(row), path.name)
            value = row.get(column)
            yield value if isinstance(value, str) else ""


def _text_column(texts: list[str], columns: list[str], name: str) -> str:
    """Take `text`, or the only column of text there is."""
    if "text" in texts or len(texts) == 1:
        return "text" if "text" in texts else texts[0]
    shown = ", ".join(quoted(column) for column in columns[:20])
    raise SpecError(f"{quoted(name)} has no column 'text', only {shown}: choose a data set of plain text.")


def _write(target: Path, repo_id: str, rows: Iterator[str]) -> None:
    size = 0
    with target.open("w", encoding="utf-8", errors="replace", newline="") as out:
        for i, row in enumerate(rows):
            size += out.write(row if i == 0 else "\n\n" + row)
            if size > MAX_TEXT:
                raise SpecError(f"'{repo_id}' unpacks to more than {MAX_TEXT} characters: choose a smaller split.")
