"""What a model card's front matter, or the Hub's copy of it, says of license and language; nothing is guessed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from backend.hub.files import Files
from backend.strict_yaml import load_yaml

MAX_CARD = 200_000
"""Bytes of a card that are read: front matter comes first."""

_BLOCK = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class License(NamedTuple):
    """What a derivative has to carry on."""

    id: str | None
    name: str | None
    link: str | None


def read_card(files: Files) -> dict[str, Any]:
    """Return the front matter of a model's README.md, of which the beginning is read; empty where there is none."""
    readme = next((entry for entry in files.entries() if entry.name.lower() == "readme.md"), None)
    return read_front_matter(files.read(readme.name, 0, MAX_CARD).decode("utf-8", "replace")) if readme else {}


def read_front_matter(text: str) -> dict[str, Any]:
    """Return a card's front matter; an empty one where there is none, or it is no YAML mapping."""
    found = _BLOCK.match(text)
    try:
        data = load_yaml(found[1]) if found else None
    except (yaml.YAMLError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def license_of(card: Mapping[str, Any], tags: Sequence[str] = ()) -> License:
    """Return the license that a card names, or else the repo's tag `license:…`."""
    listed = _texts(card.get("license")) or tuple(t.removeprefix("license:") for t in tags if t.startswith("license:"))
    name, link = (_texts(card.get(key)) for key in ("license_name", "license_link"))
    return License(listed[0] if listed else None, name[0] if name else None, link[0] if link else None)


def languages_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the languages that a card names.

    YAML reads a bare `no`, Norwegian, as false.
    """
    found = card.get("language")
    listed = found if isinstance(found, list) else [found]
    return _texts(["no" if item is False else item for item in listed])


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(v[:200] for v in values if isinstance(v, str) and v.strip())
