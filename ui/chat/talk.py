"""A conversation as the page holds it, as a server takes it, and as the browser keeps it.

Gradio wraps each text of the browser in a list of blocks, makes a turn of its own of what was thought, and of the
pictures that stand before a question.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.serve.chat import turn

NOT_KEPT = "(With a picture, which is not kept.)"
"""What stands for a question's pictures where they are left out."""

Messages = list[dict[str, Any]]


class Asked(NamedTuple):
    """A question, and the files of the pictures that are shown before it."""

    text: str
    pictures: Sequence[str] = ()

    @property
    def turns(self) -> Messages:
        """As the page shows it."""
        seen: Messages = [{"role": "user", "content": [{"path": path} for path in self.pictures]}]
        return [*(seen if self.pictures else []), {"role": "user", "content": self.text}]


def typed(value: dict[str, Any] | None) -> Asked | None:
    """Return what stands in the message field; None where nothing does.

    Raises:
        SpecError: There are pictures, and no question about them.
    """
    text, pictures = ((value or {}).get("text") or "").strip(), (value or {}).get("files") or []
    if pictures and not text:
        raise SpecError("Write what you want to know of the picture.")
    return Asked(text, pictures) if text else None


def plain(messages: Messages) -> Messages:
    """Return a conversation without what the model said to itself, and without its pictures."""
    return [
        {"role": role, "content": f"{NOT_KEPT}\n\n{text}" if pictures else text}
        for role, text, pictures in _said(messages)
    ]


def told(messages: Messages) -> Messages:
    """Return a conversation as a server takes it: without what the model said to itself, its pictures as they are.

    Raises:
        SpecError: A picture cannot be taken, or is not there any more.
    """
    return [
        turn(text, [Path(path) for path in pictures]) if role == "user" else {"role": role, "content": text}
        for role, text, pictures in _said(messages)
    ]


def up_to(messages: Messages, index: int | tuple[int, int]) -> tuple[Messages, Asked]:
    """Return what was said before a question, and the question.

    Args:
        messages: The conversation.
        index: Of the question, or of something in its answer.
    """
    at = index if isinstance(index, int) else index[0]
    while at > 0 and messages[at]["role"] != "user":
        at -= 1
    while at + 1 < len(messages) and _is_shown(messages[at]):
        at += 1
    first = at
    while first > 0 and _is_shown(messages[first - 1]):
        first -= 1
    pictures = [path for message in messages[first:at] for path in _pictures(message["content"])]
    return messages[:first], Asked(text_of(messages[at]["content"]), pictures)


def text_of(content: str | list[dict[str, Any]]) -> str:
    """Return the text of a turn, or of what was typed in its place."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if isinstance(block, dict))


def _said(messages: Messages) -> Iterator[tuple[str, str, list[str]]]:
    """Yield who said what, and which pictures stand before it."""
    pictures = list[str]()
    for message in messages:
        pictures += _pictures(message["content"])
        if not (_is_shown(message) or (message.get("metadata") or {}).get("title")):
            yield message["role"], text_of(message["content"]), pictures
            pictures = []


def _is_shown(message: dict[str, Any]) -> bool:
    """Return whether a turn is the pictures of the question that follows."""
    return bool(_pictures(message["content"])) and not text_of(message["content"])


def _pictures(content: str | list[dict[str, Any]]) -> list[str]:
    """Return the files that a turn shows, as the browser or this side writes them."""
    blocks = [] if isinstance(content, str) else [block.get("file", block) for block in content]
    return [block["path"] for block in blocks if isinstance(block, dict) and "path" in block]
