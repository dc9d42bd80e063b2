"""JSON of strangers: within a size, without duplicate keys, NaN, numbers too large to be any, or deep nesting."""

import json
import re
from typing import Any

from backend.errors import SpecError

MAX_DEPTH = 32

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a letter, of which only a pair is text: nothing that was told to be UTF-8 can hold or send one."""


def parse_json(raw: bytes, name: str, max_bytes: int) -> Any:
    """Parse JSON that its author may have made to do harm.

    Args:
        raw: UTF-8.
        name: The file's name, for the error.
        max_bytes: The largest size that is parsed.

    Raises:
        SpecError: What is wrong with the file, and what to do.
    """
    if len(raw) > max_bytes:
        raise SpecError(
            f"{quoted(name)} has {len(raw)} bytes, of which {max_bytes} are read at most: choose another model."
        )
    try:
        data = json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
    except RecursionError as e:
        raise _too_deep(name) from e
    except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise SpecError(f"{quoted(name)} is not valid JSON ({_why(e)}): choose another model or repair it.") from e
    _check_depth(data, name)
    if _SURROGATE.search(raw):
        _check_text(data, name)
    return data


def parse_object(raw: bytes, name: str, max_bytes: int) -> dict[str, Any]:
    """Parse a JSON object; see parse_json()."""
    data = parse_json(raw, name, max_bytes)
    if not isinstance(data, dict):
        raise SpecError(f"{quoted(name)} holds no JSON object: choose another model or repair it.")
    return data


def quoted(value: object, length: int = 80) -> str:
    """Quote a stranger's value for a sentence: short, and with everything that does not print escaped."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= length else text[:length] + "…")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} stands there twice")
    return data


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError(f"{name} is no JSON number")
    return float(name)  # Mamba's configs bound a time by infinity, as Python writes it


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:  # 1e999 is infinite
        raise ValueError(f"{quoted(text, 20)} is too large a number")
    return value


def _check_depth(data: Any, name: str) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [child for node in level if isinstance(node, dict | list) for child in _children(node)]
        if not level:
            return
    raise _too_deep(name)


def _check_text(data: Any, name: str) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise SpecError(
            f"{quoted(name)} holds half of a letter that takes two: choose another model or repair it."
        ) from e


def _children(node: dict[str, Any] | list[Any]) -> list[Any]:
    nodes = node.values() if isinstance(node, dict) else node
    return [child for child in nodes if isinstance(child, dict | list)]


def _too_deep(name: str) -> SpecError:
    return SpecError(f"{quoted(name)} nests deeper than {MAX_DEPTH} levels: choose another model or repair it.")


def _why(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)[:160]
