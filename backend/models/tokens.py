"""What a tokenizer does to a text by itself, and which of its tokens steer a model.

A token steers where it is special, or where the chat template writes it: transformers names such tokens among the
special ones, among the added ones, or both. What the template writes around plain words is as good as special.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.models.chat_template import chat_text

THINKS, THOUGHT = "<think>", "</think>"
"""Around what a reasoning model says to itself, as most of them write it; so does a server that tells it apart."""

THOUGHTS = (
    (THINKS, THOUGHT),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
)
"""What opens and what closes thoughts, in all the ways in which models write them."""


class Around(NamedTuple):
    """The tokens that a tokenizer puts around every text."""

    before: list[int]
    after: list[int]


class Control(NamedTuple):
    """The texts of the tokens that steer a model.

    Attributes:
        special: Those that the tokenizer calls special, or that stand around the messages of every conversation.
        markup: Others that the chat template knows: tags of thoughts and tool calls, mostly.
    """

    special: frozenset[str]
    markup: frozenset[str]

    def pattern(self, answers: bool = False) -> re.Pattern[str]:
        """Return what finds them where they are typed; see THINKS.

        Args:
            answers: Whether in an answer, where markup is meant.
        """
        texts = self.special - {THINKS, THOUGHT} if answers else self.special | self.markup
        return any_of(texts)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of some texts, of two that begin alike the longer."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def around(tokenizer: Any) -> Around:
    """Return what a tokenizer puts around a text, such as the tokens that begin and end it."""
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
    return Around([], []) if at is None else Around(list(whole[:at]), list(whole[at + len(bare) :]))


def control_tokens(tokenizer: Any) -> Control:
    """Return the tokens that steer a model; a template that makes nothing of a conversation writes none.

    Args:
        tokenizer: Of transformers.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    template = tokenizer.chat_template or ""
    said, talk = "\n".join(template.values()) if isinstance(template, dict) else str(template), _talk(tokenizer)
    signs = [t.content for t in added if t.content.strip() and not t.content.isalnum()]
    special |= {sign for sign in signs if sign in talk} - {THINKS, THOUGHT}
    markup = {sign for sign in signs if sign in said or sign in talk}
    return Control(frozenset(special - {""}), frozenset(markup - special))


def _talk(tokenizer: Any) -> str:
    """Return what a chat template writes of a plain conversation; nothing where it takes none."""
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    try:
        return chat_text(tokenizer, turns, prompt=True) if tokenizer.chat_template else ""
    except SpecError:
        return ""


_OPENED = re.compile(rf"({'|'.join(re.escape(opens) for opens, _ in THOUGHTS)})\s*[^\s<\[]")
"""Thoughts that begin with a word: what closes them begins with a bracket, and may be cut."""


def has_thoughts(text: str) -> bool:
    """Return whether thoughts begin in a text, with the tokens that steer the model, that say something."""
    return bool(_OPENED.search(text))
