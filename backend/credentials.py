"""Credentials: texts that look like a token of the Hub or of another service, which go into nothing that is shown."""

import re

HUB_TOKEN = re.compile(r"(?<![A-Za-z0-9_])(?:hf|api_org)_[A-Za-z0-9]{20,}")

_OTHERS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{20,}|AIza[\w-]{35})",
    re.ASCII,
)


def holds_token(text: str) -> bool:
    """Return whether a text holds what looks like a token."""
    return HUB_TOKEN.search(text) is not None or _OTHERS.search(text) is not None
