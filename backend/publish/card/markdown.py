"""Markdown: values that a user or the Hub wrote, as text that shows them and does nothing else."""

import html
import json
import re
from typing import Any

_SPECIAL = re.compile(r"([\\`*\[\]|#~$]|(?<!\w)_|_(?!\w))")  # an underscore inside a word means nothing
_MAX_TEXT = 2000  # characters of one value


def literal(value: Any) -> str:
    """Return a value as one line of Markdown that shows its exact text: no HTML, link, emphasis, math or table cell."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return _SPECIAL.sub(r"\\\1", html.escape(text, quote=False))


def size(count: int) -> str:
    """Return bytes as a person reads them, in powers of ten as the Hub does."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def fenced(text: str, language: str) -> str:
    """Put text into a fence that no run of backticks in it can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
