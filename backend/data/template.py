"""Templates: text with `{column}` in it, filled in by name alone; nothing in braces is ever evaluated."""

import re
from collections.abc import Iterable, Mapping

from backend.strict_json import quoted

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
MAX_LENGTH = 20_000  # characters


def placeholders(template: str) -> tuple[str, ...]:
    """Name the columns that a template asks for.

    Raises:
        ValueError: It names none, or has a brace that belongs to nothing.
    """
    if len(template) > MAX_LENGTH:
        raise ValueError(f"has {len(template)} characters, of which {MAX_LENGTH} are allowed")
    names = []
    for piece in _PIECE.finditer(template):
        if piece[0] in ("{", "}"):
            raise ValueError(
                f"has a lone {piece[0]!r} at character {piece.start() + 1}: write {piece[0] * 2} for a brace, or"
                " {column} for a column"
            )
        if piece[1] is not None:
            names.append(piece[1].strip())
    if not names:
        raise ValueError("names no column: write each as {column}, else all rows would be the same")
    return tuple(dict.fromkeys(names))


def check_columns(template: str, columns: Iterable[str]) -> None:
    """Refuse placeholders that are no columns.

    Raises:
        ValueError: Which, and the columns there are.
    """
    there = list(columns)
    wrong = [name for name in placeholders(template) if name not in there]
    if wrong:
        are = "is no column" if len(wrong) == 1 else "are no columns"
        shown = ", ".join(quoted(name) for name in there[:20])
        raise ValueError(f"{', '.join(map(quoted, wrong))} {are}: the columns are {shown}")


def filled_size(template: str, values: Mapping[str, str]) -> int:
    """Return how many characters fill() gives at most: a template can name a long column a thousand times."""
    return len(template) + sum(len(values[piece[1].strip()]) for piece in _PIECE.finditer(template) if piece[1])


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the place of their placeholders, in one pass: braces in a value stay as they are."""

    def put(piece: re.Match[str]) -> str:
        return values[piece[1].strip()] if piece[1] is not None else piece[0][0]

    return _PIECE.sub(put, template)
