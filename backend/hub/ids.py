"""Model names: what a user may type, and what it means. Nothing is sent for a name that is refused."""

import re
import unicodedata
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo

DEMO = "demo"
MAX_LENGTH = 96  # the Hub's limit on a repo id

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_URL = re.compile(r"https://(?:www\.)?huggingface\.co/(?P<id>[^?#\s]+?)/?(?:[?#].*)?")
_NOT_MODELS = ("datasets/", "spaces/", "buckets/", "papers/", "docs/")


def parse_repo_id(text: str, namespaced: bool = False) -> str:
    """Return the repo id that a user meant: an id, or a model's address on huggingface.co.

    Args:
        text: What was typed.
        namespaced: Whether `name` alone is refused; repos that one creates have a namespace.

    Raises:
        ValueError: What is wrong with it and what to do.
    """
    text = text.strip()
    url = _URL.fullmatch(text)
    repo_id = "/".join(url["id"].split("/")[:2]) if url and not url["id"].startswith(_NOT_MODELS) else text
    strange = next((c for c in repo_id if not c.isascii() or not c.isprintable()), None)
    if strange:
        name = unicodedata.name(strange, "unnamed")
        raise ValueError(f"contains U+{ord(strange):04X} ({name}), which no repo id has: type the id by hand")
    if "://" in repo_id or "@" in repo_id:
        raise ValueError(f"{repo_id[:120]!r} is an address: give the id alone, as namespace/name")
    parts = repo_id.split("/")
    if len(parts) > 2 or not all(_PART.fullmatch(p) for p in parts) or "--" in repo_id or ".." in repo_id:
        raise ValueError(
            f"{repo_id[:120]!r} is not a repo id: it is namespace/name, of letters, digits, '-', '_' and '.',"
            " without '--' or '..'"
        )
    if len(repo_id) > MAX_LENGTH:
        raise ValueError(f"has {len(repo_id)} characters: a repo id has {MAX_LENGTH} at most")
    if namespaced and len(parts) == 1:
        raise ValueError(f"{repo_id!r} lacks its namespace: write your user name and a slash before it")
    return repo_id


def parse_model(text: str, paths: bool = False) -> str:
    """Return what a base model's name means: `demo`, a repo id, or the absolute path of a local folder.

    Args:
        text: What was typed.
        paths: Whether a folder of this machine may be meant; only the command line allows it.

    Raises:
        ValueError: It is none of these.
    """
    text = text.strip()
    if not text:
        raise ValueError("is empty: give a Hub id, as namespace/name, or demo")
    if text == DEMO:
        return text
    looks_local = text.startswith(("/", ".", "~"))
    if paths and (looks_local or Path(text).is_dir()):
        folder = Path(text).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"{text[:120]!r} is not a folder: check the path")
        return str(folder)
    if looks_local or "\\" in text:
        raise ValueError(f"{text[:120]!r} is a path: give a Hub id, as namespace/name, or demo")
    return parse_repo_id(text)


STORED: dict[str, Any] = {"paths": True, "stored": True}
"""The context in which an option model is read that was checked and stored before."""


def model_field(text: str, info: ValidationInfo) -> str:
    """Return what a name in an option model means; in a stored one, what it names may have gone since."""
    context = info.context or {}
    return text if context.get("stored") else parse_model(text, paths=bool(context.get("paths")))


def is_local(model: str) -> bool:
    """Return whether a parsed base model is a folder of this machine."""
    return model.startswith("/")
