"""Encodings: found by a byte order mark, by UTF-8 being valid, or guessed, shown and asked."""

import codecs
from collections.abc import Iterable
from typing import NamedTuple

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ASIAN = ("shift_jis", "gb18030", "euc_kr", "big5")
_NAMES = {"cp1252": "Windows-1252 (Latin-1)", "cp1251": "Windows-1251 (Cyrillic)"}


class Guess(NamedTuple):
    """What a file's encoding looks like."""

    encoding: str
    line: int = 0  # the first that is not UTF-8; 0 where nothing is guessed
    preview: str = ""  # that line, read so

    @property
    def words(self) -> str:
        """Name it as people know it."""
        return _NAMES.get(self.encoding, self.encoding)


def find_encoding(chunks: Iterable[bytes]) -> Guess:
    """Read a file through and say how it writes letters; certain unless a line is named."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    before = b""
    first = True
    for chunk in chunks:
        if first:
            first = False
            for mark, name in MARKS:
                if chunk.startswith(mark):
                    return Guess(name)
            if (guess := _unmarked_utf16(chunk)) is not None:
                return guess
        if not _decodes(decoder, chunk):
            return _guess(before + chunk, line)
        # what follows the last line break is looked at again with the next chunk
        start = chunk.rfind(b"\n") + 1
        line += chunk.count(b"\n")
        before = chunk[start:] if start else (before + chunk)[-10_000:]
    return Guess("utf-8") if _decodes(decoder, b"", final=True) else _guess(before, line)


def _decodes(decoder: codecs.IncrementalDecoder, chunk: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError:
        return False
    return True


def _unmarked_utf16(head: bytes) -> Guess | None:
    """Text of western letters in UTF-16 has a NUL in every second byte."""
    part = head[:2000]
    for encoding, zeros in (("utf-16-le", part[1::2]), ("utf-16-be", part[::2])):
        if len(zeros) > 3 and zeros.count(0) > 0.6 * len(zeros) and part.count(0) < 0.6 * len(part):
            text = part[: len(part) // 2 * 2].decode(encoding, "replace")
            return Guess(encoding, 1, text.splitlines()[0][:80])
    return None


def _guess(data: bytes, line: int) -> Guess:
    """Guess from the first line that is not UTF-8; `line` is the number of the first in `data`."""
    for offset, part in enumerate(data.split(b"\n")):
        try:
            part.decode("utf-8")
        except UnicodeDecodeError as e:
            encoding = _likely(data)
            shown = part[max(0, e.start - 40) :].decode(encoding, "replace").strip()
            return Guess(encoding, line + offset, shown[:80])
    return Guess(_likely(data), line, data[-80:].decode("cp1252", "replace").strip())


def _likely(data: bytes) -> str:
    """Western text has few letters beyond ASCII; the others are tried in turn."""
    sample = data[:100_000]
    high = sum(byte >= 0x80 for byte in sample)
    letters = sum(chr(byte).isalpha() for byte in sample if byte < 0x80) + high
    if high < 0.4 * letters:
        return "cp1252" if _fits(sample, "cp1252") else "latin-1"
    pairs = sum(byte >= 0xC0 for byte in sample)
    if pairs > 0.9 * high and high - pairs < 0.05 * high and _fits(sample, "cp1251") and _runs(sample):
        return "cp1251"
    return next((name for name in _ASIAN if _fits(sample, name)), "cp1252")


def _runs(data: bytes) -> bool:
    """Cyrillic words have odd lengths as often as even ones; in the Asian encodings letters come in pairs."""
    runs = [len(word) for word in bytes(b if b >= 0x80 else 32 for b in data).split()]
    return sum(n % 2 for n in runs) > 0.2 * len(runs)


def _fits(data: bytes, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    return _decodes(decoder, data)
