"""JSON rows: decoded strictly, with the place and the words for what is wrong."""

import json
import re
from typing import Any

from backend.data.files.row import Number
from backend.strict_json import quoted


class BadJson(Exception):
    """What is wrong with a JSON text.

    Args:
        text: In words.
        pos: The character, from 0.
        remedy: What to do.
        kind: Of the finding: "json", "twice" or "number".
        end: Where the value ends, if it is JSON but for this; 0 otherwise.
    """

    def __init__(self, text: str, pos: int, remedy: str = "repair it", kind: str = "json", end: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.pos = pos
        self.remedy = remedy
        self.kind = kind
        self.end = end


class CutOff(BadJson):
    """The text may only end too early."""


class Decoder:
    """Decodes one value at a time; numbers stay as they are written, duplicate keys and NaN are refused."""

    def __init__(self) -> None:
        self._odd = False
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=Number, parse_int=Number
        )

    def decode(self, text: str) -> Any:
        """Decode a text that is one value.

        Raises:
            BadJson: What is wrong and where.
        """
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = self.value(text, start)
        rest = text[end:].lstrip(" \t\r\n")
        if rest:
            at = len(text) - len(rest)
            if rest.startswith(","):
                raise BadJson("a comma stands behind the row", at, "take it away")
            raise BadJson("something stands behind the row", at)
        return value

    def value(self, text: str, start: int) -> tuple[Any, int]:
        """Decode the value that begins at `start`; give it and where it ends.

        Raises:
            BadJson: What is wrong and where.
        """
        self._odd = False
        try:
            value, end = self._json.raw_decode(text, start)
        except json.JSONDecodeError as e:
            raise _translated(e, text) from e
        except RecursionError as e:
            raise BadJson("it is nested too deep", start) from e
        if self._odd:
            raise _odd(text, start, end)
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            self._odd = True
        return data

    def _constant(self, name: str) -> None:
        self._odd = True


def _translated(error: json.JSONDecodeError, text: str) -> BadJson:
    pos, end = error.pos, len(text.rstrip())
    before, at = text[:pos].rstrip(), text[pos:].lstrip()[:1]
    if (before.endswith(",") and at in ("}", "]")) or (at == "," and re.match(r",\s*[}\]]", text[pos:].lstrip())):
        return BadJson("a comma stands before the closing bracket", pos, "take it away")
    if error.msg.startswith("Unterminated string"):
        return CutOff("a quote is not closed", pos, "close it")
    if error.msg.startswith("Invalid control"):
        what = "a NUL byte" if text[pos] == "\0" else "a line break or another control character"
        return BadJson(f"{what} stands inside a text", pos, "write it with a backslash")
    if error.msg.startswith("Invalid \\"):
        return (CutOff if pos >= end - 6 else BadJson)("a backslash stands alone", pos, "double it")
    if pos >= end - 1 or text[pos:end] in ("t", "tr", "tru", "f", "fa", "fal", "fals", "n", "nu", "nul", "-"):
        return CutOff("it ends too early", pos)
    if at == "'" or text[pos:].startswith(("True", "False", "None")):
        return BadJson("it is Python, not JSON", pos, "use double quotes, true, false and null")
    return BadJson(_MESSAGES.get(error.msg, "it is not JSON"), pos)


_MESSAGES = {
    "Expecting value": "a value is missing or not in quotes",
    "Expecting ',' delimiter": "a comma is missing, or a quote inside a text lacks its backslash",
    "Expecting ':' delimiter": "a colon is missing behind a key",
    "Expecting property name enclosed in double quotes": "a key is missing or not in double quotes",
}

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}:]|-?\b(?:NaN|Infinity)\b', re.DOTALL)


def _odd(text: str, start: int, end: int) -> BadJson:
    """Find the first duplicate key, or number that is none, in a text that is JSON otherwise."""
    keys: list[set[str]] = []
    last = None
    for token in _TOKEN.finditer(text, start, end):
        word = token[0]
        if word == "{":
            keys.append(set())
        elif word == "}":
            keys.pop()
        elif word == ":" and last is not None:
            key = json.loads(last[0], strict=False)
            if key in keys[-1]:
                return BadJson(f"the key {quoted(key)} stands there twice", last.start(), "take one away", "twice", end)
            keys[-1].add(key)
        elif word.lstrip("-") in ("NaN", "Infinity"):
            return BadJson(f"{word} is no JSON number", token.start(), "write null or a number", "number", end)
        last = token
    raise AssertionError("what the decoder saw is not there")
