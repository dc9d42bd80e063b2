"""Samples: what is learned from, conversations or plain text."""

import json
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

from backend.data.findings import SHOWN, Finding, listed
from backend.models.tokens import THOUGHT, Control
from backend.strict_json import quoted

ROLES = ("system", "user", "assistant", "tool")
_MARK = "\0"


class Message(NamedTuple):
    """One turn."""

    role: str  # one of ROLES
    content: str  # may be empty where tools are called
    more: str = ""  # JSON of the fields that it has besides: tool_calls, tool_call_id, name, reasoning_content, weight

    @property
    def fields(self) -> dict[str, Any]:
        """Its fields besides role and content."""
        return dict(json.loads(self.more)) if self.more else {}


class Sample(NamedTuple):
    """What is learned from one row: a conversation, or plain text."""

    row: int  # from 1
    messages: tuple[Message, ...] = ()
    text: str | None = None  # where there are no messages
    prompt: int | None = None  # messages that are the prompt; None: every assistant turn is learned
    tools: str = ""  # JSON of the functions that may be called, a list of schemas

    @property
    def thinks(self) -> bool:
        """Whether answers come with thoughts."""
        answers = [message for message in self.messages if message.role == "assistant"]
        return any("reasoning_content" in answer.fields or THOUGHT in answer.content for answer in answers)

    @property
    def digest(self) -> int:
        """64 bits that are the same for samples with the same contents."""
        said = [self.text] if self.text is not None else [part for message in self.messages for part in message]
        parts = [part for part in (*said, self.tools) if part]  # so that what has no tools keeps the digest it had
        hashed = blake2b(_MARK.join(parts).encode("utf-8", "surrogatepass"), digest_size=8)
        return int.from_bytes(hashed.digest(), "big")


def find_literals(samples: Iterable[Sample], control: Control, name: str) -> tuple[Finding, ...]:
    """Find tokens that steer a model where somebody has typed them into a conversation.

    Args:
        samples: To look through, once; plain text is read as it stands.
        control: The model's; in answers thoughts and tool calls are marked on purpose.
        name: The data set's, for the sentence.

    Returns:
        A finding for each that is there.
    """
    anywhere, in_answers = control.pattern(), control.pattern(answers=True)
    rows: dict[str, list[int]] = {}
    counts = Counter[str]()
    for sample in samples:
        found = dict[str, None]()
        for message in sample.messages:
            found |= dict.fromkeys((in_answers if message.role == "assistant" else anywhere).findall(message.content))
        counts.update(found.keys())
        for literal in found:
            rows.setdefault(literal, []).append(sample.row)
            del rows[literal][SHOWN:]
    return tuple(
        Finding(
            kind="special_token",
            text=f"{quoted(name)}: {quoted(literal)} stands in the text of {listed(rows[literal], count)}"
            f" ({count} in all): it is encoded as plain text, not as a special token.",
            rows=tuple(rows[literal]),
            count=count,
        )
        for literal, count in counts.items()
    )
