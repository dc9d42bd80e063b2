"""The first rows of a split without the rest: files in order until there are enough, of a large one its beginning."""

import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from backend.hub.files import Entry, HubFiles
from backend.hub.transfer import fetch_file
from backend.progress import Report

WHOLE = 10_000_000  # bytes; smaller files are fetched whole and compared with the hash that the Hub lists
LINE = 20_000_000  # bytes in which a first line ends where there are lines
_LINES = (".jsonl", ".ndjson", ".json")
_GZIP = 31  # zlib's word for it
_PIECE = 1 << 20  # bytes that are unpacked at a time


def fetch_rows(
    files: HubFiles, entries: list[Entry], rows: int, limit: int, folder: Path, report: Report
) -> tuple[list[Path], bool]:
    """Bring files until they hold so many rows; how many are in one is known of Parquet and of JSON lines.

    Args:
        files: The data set.
        entries: Of the split, in their order.
        rows: That will do.
        limit: Bytes that are fetched at most.
        folder: Where they are written.
        report: Receives the rows.

    Returns:
        What came, and whether nothing that is wanted lies in other files.
    """
    came: list[Path] = []
    there = spent = 0
    for entry in entries:
        begins = entry.size > WHOLE and _unpacked_name(entry.name).lower().endswith(_LINES)
        if not begins and spent + entry.size > limit:
            return came, False
        path = _beginning(files, entry, rows - there, limit, folder) if begins else None
        if path is None:
            fetch_file(files, entry, folder, lambda done: None)
            path = folder / entry.name
        came.append(path)
        spent += path.stat().st_size
        there += _count(path)
        report.progress("downloading", min(there, rows), rows, "rows")
        if there >= rows:
            return came, True
    return came, True


def _beginning(files: HubFiles, entry: Entry, rows: int, limit: int, folder: Path) -> Path | None:
    """Write the first lines of a file, unpacked; None where it is not made of JSON lines."""
    from backend.hub import client

    target = folder / _unpacked_name(entry.name)
    target.parent.mkdir(parents=True, exist_ok=True)

    def fetch() -> None:
        left, start = rows, b""
        with target.open("wb") as out:
            for piece in _unpacked(client.chunks(files, entry.name, 0, entry.size), entry.name):
                start = start if b"\n" in start else start + piece
                if len(start) > LINE and not _is_row(start):
                    return
                end = _after(piece, left)
                out.write(piece[:end])
                left -= piece.count(b"\n")
                if left <= 0 or out.tell() > limit:
                    return

    client.ask(fetch, files.repo_id, files.token)
    return target if _count(target) else None


def _after(piece: bytes, lines: int) -> int:
    """Return the place after so many lines, or the end."""
    end = 0
    while lines and (end := piece.find(b"\n", end) + 1):
        lines -= 1
    return end or len(piece)


def _unpacked_name(name: str) -> str:
    return name[: -len(".gz")] if name.lower().endswith(".gz") else name


def _count(path: Path) -> int:
    """Count the rows of a file; 0 where that takes more than its footer or its lines."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return _in_footer(path)
    if not _unpacked_name(path.name).lower().endswith(_LINES):
        return 0
    lines, start = 0, b""
    with path.open("rb") as file:
        for piece in _unpacked(iter(lambda: file.read(_PIECE), b""), path.name):
            start = start if b"\n" in start else start + piece
            lines += piece.count(b"\n")
    return lines if _is_row(start) else 0


def _is_row(start: bytes) -> bool:
    """Return whether the first line is a JSON object of its own."""
    try:
        return isinstance(json.loads(start.partition(b"\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _in_footer(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):  # what is wrong with it is said by who reads it
        return 0


def _unpacked(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield bytes as they come, unpacked a piece at a time; what is damaged ends early, and is told by who reads it."""
    if not name.lower().endswith(".gz"):
        yield from chunks
        return
    packed = zlib.decompressobj(_GZIP)
    for chunk in chunks:
        while chunk:
            try:
                yield packed.decompress(chunk, _PIECE)
            except zlib.error:
                return
            chunk = packed.unconsumed_tail
