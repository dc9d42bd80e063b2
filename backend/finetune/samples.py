"""Samples: what is learned from, conversations or plain text."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from backend.finetune.findings import SHOWN, Finding, listed
from backend.strict_json import quoted

ROLES = ("system", "user", "assistant")
_MARK = "\0"


class Message(NamedTuple):
    """One turn."""

    role: str  # one of ROLES
    content: str


class Sample(NamedTuple):
    """What is learned from one row: a conversation, or plain text."""

    row: int  # from 1
    messages: tuple[Message, ...] = ()
    text: str | None = None  # where there are no messages
    prompt: int | None = None  # messages that are the prompt; None: every assistant turn is learned

    @property
    def digest(self) -> int:
        """64 bits that are the same for samples with the same contents."""
        parts = (self.text,) if self.text is not None else (part for message in self.messages for part in message)
        hashed = blake2b(_MARK.join(parts).encode("utf-8", "surrogatepass"), digest_size=8)
        return int.from_bytes(hashed.digest(), "big")


def find_literals(samples: Iterable[Sample], literals: Iterable[str], name: str) -> tuple[Finding, ...]:
    """Find texts, such as a tokenizer's special tokens, that stand in the rows themselves.

    Args:
        samples: To look through, once.
        literals: What to look for.
        name: The data set's, for the sentence.

    Returns:
        A finding for each literal that is there.
    """
    wanted = [literal for literal in dict.fromkeys(literals) if literal]
    rows: dict[str, list[int]] = {literal: [] for literal in wanted}
    counts = dict.fromkeys(wanted, 0)
    for sample in samples:
        texts = [sample.text] if sample.text is not None else [message.content for message in sample.messages]
        for literal in wanted:
            if any(literal in text for text in texts):
                counts[literal] += 1
                rows[literal] += [sample.row] if len(rows[literal]) < SHOWN else []
    return tuple(
        Finding(
            kind="special_token",
            text=f"{quoted(name)}: {quoted(literal)} stands in the text of {listed(rows[literal], count)}"
            f" ({count} in all): it is encoded as plain text, not as a special token.",
            rows=tuple(rows[literal]),
            count=count,
        )
        for literal, count in counts.items()
        if count
    )
