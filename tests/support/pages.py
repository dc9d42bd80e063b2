"""The pages that a reader meets, and the commands in them."""

import re
import shlex

from backend.processes.child import ROOT

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
}


def blocks(text, language):
    """Return the code blocks of a page in one language."""
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(text):
    """Return what stands behind `python -m backend` on a page, in a block or within a line, as a shell splits it."""
    return [shlex.split(typed, comments=True) for typed in re.findall(r"python -m backend ([^`\n]+)", text)]
