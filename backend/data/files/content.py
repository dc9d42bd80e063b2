"""Content: what a file is, by its bytes as well as by its name, and its text, unpacked within limits."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from backend.data.files.encoding import MARKS, Guess, find_encoding
from backend.data.files.unpacking import MAX_BYTES, open_bytes
from backend.data.findings import Ledger, fault
from backend.data.options import DatasetOptions
from backend.data.synonyms import SUFFIXES, Format
from backend.strict_json import quoted

HEAD = 1 << 16

READ = "CSV, TSV, JSON, JSON lines, Parquet or plain text"

_MAGIC = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word document"),
    (b"ARROW1", "an Arrow file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"RIFF", "a sound or film"),
    (b"ID3", "a sound"),
    (b"\x80\x04\x95", "a Python pickle, which is never opened"),
    (b"\x80\x05\x95", "a Python pickle, which is never opened"),
)
_PACKED = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"Rar!", "a RAR archive"),
)
_CONTROL = frozenset((*range(1, 9), *range(14, 27), *range(28, 32)))
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(frozen=True)
class DataFile:
    """A file whose type and encoding are known."""

    path: Path
    name: str
    format: Format
    encoding: str = "utf-8"
    certain: bool = True  # a file whose encoding is asked is only shown
    packed: bool = False

    def open(self) -> BinaryIO:
        """Open its bytes, unpacked."""
        return open_bytes(self.path, self.name, self.packed)

    def text(self, newline: str) -> TextIO:
        """Open its text; `newline` says what ends a line, as for io.open()."""
        errors = "strict" if self.certain else "replace"
        return io.TextIOWrapper(self.open(), encoding=self.encoding, errors=errors, newline=newline)


def open_data(path: Path, options: DatasetOptions, ledger: Ledger, name: str | None = None) -> DataFile:
    """Find out what a file is.

    Args:
        path: The file.
        options: What is known of its encoding.
        ledger: Receives what is not as the name says, and asked.
        name: What it is called in sentences; its own name if not given.

    Raises:
        SpecError: It is empty, too large, no table, or not what its name says.
    """
    name = name or path.name
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(HEAD)
    except OSError as e:
        raise fault(name, f"It cannot be read. {e.strerror}: check the path.") from e
    if size == 0:
        raise fault(name, "The file is empty. Give one with rows.")
    if size > MAX_BYTES:
        raise fault(name, f"It has {size / 1e6:.0f} MB, {MAX_BYTES // 10**6} at most: give a part of it.")
    packed = name.lower().endswith(".gz")
    if packed:
        head = _unpacked_head(path, name, head)
    _refuse_foreign(head, name, path)
    kind = _format(name, head, packed, ledger)
    if kind == "parquet":
        return DataFile(path, name, kind)
    encoding, certain = _encoding(path, name, packed, options, ledger)
    return DataFile(path, name, kind, encoding, certain, packed)


def _unpacked_head(path: Path, name: str, head: bytes) -> bytes:
    if not head.startswith(_GZIP):
        raise fault(name, "It is named .gz but is not packed with gzip: take .gz off its name, or pack it.")
    with open_bytes(path, name, True) as f:
        head = f.read(HEAD)
    if not head:
        raise fault(name, "The file is empty. Give one with rows.")
    if head.startswith((_GZIP, _PARQUET)):
        raise fault(name, "It is packed twice: unpack it once.")
    return head


def _refuse_foreign(head: bytes, name: str, path: Path) -> None:
    """Refuse what is no table, whatever it is called."""
    if head.startswith(_GZIP):
        raise fault(name, f"It is packed with gzip and not named so: call it {quoted(name + '.gz')}, or unpack it.")
    for magic, what in _PACKED:
        if head.startswith(magic):
            if b"xl/" in head or b"word/" in head:
                raise fault(name, "This is an Excel or Word document, not a table of text: save it as CSV.")
            raise fault(name, f"This is {what}: unpack it and give the table inside.")
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise fault(name, f"This is {what}, not a table: give {READ}.")
    start = head.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        raise fault(name, "This is a web page, not a table. Download the file itself, not the page that shows it.")
    if start.startswith((b"<?xml", b"<svg")):
        raise fault(name, f"This is XML, not a table: give {READ}.")
    if start.startswith(b"version https://git-lfs"):
        raise fault(name, "This is a Git LFS pointer, not the file: run `git lfs pull`, or download it from its page.")
    if head[257:262] == b"ustar":
        raise fault(name, "This is a tar archive: unpack it and give the table inside.")
    if _is_binary(head):
        raise fault(name, f"This is binary data, not a table: give {READ}.")
    if head.startswith(_PARQUET) and not _ends_as_parquet(path):
        raise fault(name, "This Parquet file is cut off: no footer; upload again.")


def _is_binary(head: bytes) -> bool:
    """Return whether it has control characters as no text has them; UTF-16 has, and says so or is recognized later."""
    if head.startswith((_PARQUET, *(mark for mark, _ in MARKS))):
        return False
    return sum(byte in _CONTROL for byte in head[:4000]) > 0.05 * len(head[:4000])


def _ends_as_parquet(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(-min(4, path.stat().st_size), io.SEEK_END)
        return path.stat().st_size >= 12 and f.read() == _PARQUET


def _format(name: str, head: bytes, packed: bool, ledger: Ledger) -> Format:
    """Take the type from the name, and from the content where that is certain."""
    inner = name[: -len(".gz")] if packed else name
    suffix = Path(inner).suffix.lower()
    named = SUFFIXES.get(suffix)
    found = None
    if head.startswith(_PARQUET):
        found = "parquet"
    elif named != "txt":  # prose may begin with a bracket
        found = _json_kind(head, named)
    if named == "parquet" and found != "parquet":
        raise fault(name, "It is named as Parquet but is not: upload again, or give its format's own name.")
    if named in ("json", "jsonl") and not found:
        raise fault(name, "It is named as JSON, but no line of it begins as JSON: give it its format's own name.")
    if found and found != named:
        ledger.say("format", f"It is {_WORDS[found]} by its content, and read as that.")
    if not found and not named:
        raise fault(name, f"Its name does not say what it is: end it in one of {', '.join(SUFFIXES)}.")
    return cast(Format, found or named)


_WORDS = {"json": "JSON", "jsonl": "JSON lines", "parquet": "Parquet"}


def _json_kind(head: bytes, named: Format | None) -> Format | None:
    """Tell JSON from JSON lines, of which each line is a whole row."""
    mark = next((name for mark, name in MARKS if head.startswith(mark)), "utf-8")
    text = head.decode(mark, "replace").lstrip()
    if re.match(r"\[\s*[{\]]", text):
        return "json"
    if not re.match(r'\{\s*["}]', text):
        # the first rows may be faulty; that there are none is said when they are read
        perhaps = not text or any(line.lstrip().startswith(("[", "{")) for line in text.splitlines())
        return named if named in ("json", "jsonl") and perhaps else None
    line, _, rest = text.partition("\n")
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return named if named in ("jsonl", "csv", "tsv") else "json"
    lists = [value for value in first.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    # beside a conversation, which is a list of turns, others are of the same row: its tools
    holds_rows = bool(lists) and not any(TURN & value[0].keys() for value in lists)
    return "json" if holds_rows and not rest.strip() else "jsonl"


TURN = frozenset({"role", "from"})


def _encoding(path: Path, name: str, packed: bool, options: DatasetOptions, ledger: Ledger) -> tuple[str, bool]:
    """Return the encoding, and whether it is certain; a guess is asked about."""
    guess = Guess(options.encoding) if options.encoding else find_encoding(_chunks(path, name, packed))
    if guess.line:
        ledger.say("encoding", _question(guess), "encoding", asks=True)
        return guess.encoding, False
    if guess.encoding != "utf-8" or options.encoding:
        _check_decodes(path, name, packed, guess.encoding)
    if guess.encoding not in ("utf-8", "utf-8-sig") and not options.encoding:
        ledger.say("encoding", f"It is {guess.encoding.upper()}, as its first bytes say.")
    return guess.encoding, True


def _question(guess: Guess) -> str:
    return (
        f"Its letters are not UTF-8 (line {guess.line}); it looks like {guess.words}, which reads that line as"
        f" {quoted(guess.preview)}. If that is right, set encoding to {guess.encoding}, else to the one it has."
    )


def _check_decodes(path: Path, name: str, packed: bool, encoding: str) -> None:
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    for chunk in chain(_chunks(path, name, packed), (b"",)):
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeError as e:
            line += chunk[: e.start].count(b"\n") if isinstance(e, UnicodeDecodeError) else 0
            raise fault(name, f"Line {line} is not {encoding}: choose another encoding.", "encoding") from e
        line += chunk.count(b"\n")


def _chunks(path: Path, name: str, packed: bool) -> Iterator[bytes]:
    with open_bytes(path, name, packed) as f:
        while chunk := f.read(1 << 20):
            yield chunk
