"""How the page writes sizes, counts and times, and how it makes foreign text harmless."""

import html
import time

_BYTES = ("B", "kB", "MB", "GB", "TB")
_COUNTS = ("", "k", "M", "B", "T")


def escape(text: object) -> str:
    """Return any text as HTML shows it literally; line breaks stay line breaks."""
    return html.escape(str(text)).replace("\n", "<br>")


def escape_code(text: str) -> str:
    """Return a text as HTML shows it literally where white space is kept."""
    return html.escape(text)


def lead(title: str, text: str) -> str:
    """Write the head of a tab."""
    return f'<header class="lead"><h1>{escape(title)}</h1><p>{escape(text)}</p></header>'


def part(title: str, text: str) -> str:
    """Write the head of a part of a tab."""
    return f'<header class="part"><h2>{escape(title)}</h2><p>{escape(text)}</p></header>'


def size(count: float | None) -> str:
    """Write bytes in decimal units, as the Hub does: 91 MB."""
    return "unknown" if count is None else _scaled(count, _BYTES)


def count(number: float) -> str:
    """Write a large number short: 135 M, 8.03 B."""
    return _scaled(number, _COUNTS).strip()


def duration(seconds: float | None) -> str:
    """Write a time as a person says it: 20 s, 3 min, 2 h 5 min."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def ago(moment: float) -> str:
    """Write how long ago a moment was, in seconds since 1970."""
    passed = time.time() - moment
    if passed < 60:
        return "just now"
    return f"{duration(passed)} ago" if passed < 86_400 else f"{round(passed / 86_400)} d ago"


def percent(share: float) -> str:
    """Write a share of 1: 74.6%."""
    return f"{100 * share:.1f}%".replace(".0%", "%")


def plural(count: int, noun: str) -> str:
    """Write a number of things: 1 window, 8 windows."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def times(factor: float) -> str:
    """Write a ratio: 3.0 ×."""
    return f"{factor:.1f} ×"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = 2
    if number >= 100 or power == 0:
        digits = 0
    elif number >= 10:
        digits = 1
    return f"{number:.{digits}f} {units[power]}"
