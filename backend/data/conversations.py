"""The embedded conversations that a calibration reads where nobody names rows: our own, some with thoughts or tools."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.data.samples import Message, Sample

FILE = Path(__file__).with_name("conversations.jsonl")
_THOUGHTS = "reasoning_content"


def conversations(tools: bool, thoughts: str | None) -> Iterator[Sample]:
    """Yield those that a chat template is made for.

    Args:
        tools: Whether it takes tools; where it does not, conversations with tools are left out.
        thoughts: The field in which it reads an answer's thoughts; None: it knows of none.
    """
    for number, line in enumerate(FILE.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if tools or "tools" not in row:
            functions = json.dumps(row["tools"]) if "tools" in row else ""
            yield Sample(number, tuple(_message(turn, thoughts) for turn in row["messages"]), tools=functions)


def _message(turn: dict[str, Any], thoughts: str | None) -> Message:
    more = {name: value for name, value in turn.items() if name not in ("role", "content", _THOUGHTS)}
    if thoughts and _THOUGHTS in turn:
        more[thoughts] = turn[_THOUGHTS]
    return Message(turn["role"], turn["content"], json.dumps(more) if more else "")
