"""A model's own chat template: what it makes of a conversation, or in one sentence why it makes nothing of it.

A template is a Jinja program of the model's author, so what it may raise is what a program may raise.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.models.bounded import TakesTooMuch, bounded
from backend.strict_json import quoted

Turn = Mapping[str, Any]
"""A message as templates take it: role, content, and what else it has."""

MAX_TEXT, GROWTH = 1_000_000, 20
"""Characters that a template writes at most, and as often as it may repeat what the conversation holds besides."""

_WHY = 200  # characters of what a template says when it refuses


class TemplateRefusal(SpecError):
    """The chat template does not take this conversation; it may take another.

    Args:
        why: In its own words.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The model's chat template does not take the conversation ({why}): repair the template, or choose another"
            " model."
        )
        self.why = why


def chat_text(tokenizer: Any, turns: Sequence[Turn], tools: Sequence[Any] | None = None, prompt: bool = False) -> str:
    """Return a conversation as the model's chat template writes it.

    Args:
        tokenizer: Of transformers, with a chat template.
        turns: The messages, at least one.
        tools: The functions that the model may call, as JSON schemas.
        prompt: Whether the beginning of an answer is to follow.

    Raises:
        TemplateRefusal: The template does not take this conversation; why.
        SpecError: The template takes none: it is not valid Jinja, or none of several is the default.
    """
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named and not (tools and "tool_use" in named):
        names = ", ".join(quoted(name, 40) for name in sorted(named)[:10])
        raise SpecError(
            f"The model has chat templates named {names} and none named 'default': name one of them so, or choose"
            " another model."
        )
    with in_words():
        text = str(
            tokenizer.apply_chat_template(
                list(turns), tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=prompt
            )
        )
    most = MAX_TEXT + GROWTH * sum(len(str(turn)) for turn in turns)
    if len(text) > most:
        raise SpecError(
            f"The model's chat template writes {len(text)} characters for one conversation, {most} at most: choose"
            " another model."
        )
    return text


@contextmanager
def in_words() -> Iterator[None]:
    """Bound what a template takes, and put what it raises into words; see chat_text()."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        with bounded():
            yield
    except TakesTooMuch as e:
        raise SpecError(f"The model's chat template takes {e} for one conversation: choose another model.") from e
    except TemplateSyntaxError as e:
        raise SpecError(
            f"The model's chat template is not valid Jinja (line {e.lineno}: {_line(e.message)}): repair it, or choose"
            " another model."
        ) from e
    except (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise TemplateRefusal(_line(str(e)) or type(e).__name__) from e


def check_template(tokenizer: Any, tools: bool = False) -> None:
    """Refuse a chat template that takes no conversation at all.

    Args:
        tokenizer: Of transformers, with a chat template.
        tools: Whether the conversations have tools.

    Raises:
        SpecError: What is wrong with it.
    """
    try:
        chat_text(tokenizer, [{"role": "user", "content": "Q"}], [_TOOL] if tools else None)
    except TemplateRefusal:
        return  # of this conversation, which says nothing of others


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object"}},
}


class Abilities(NamedTuple):
    """What a model's chat template knows of beside plain turns.

    Attributes:
        chats: Whether there is a template at all.
        thinks: Whether it knows of thoughts before an answer.
        tools: Whether it writes the tools that it is given.
    """

    chats: bool
    thinks: bool
    tools: bool


_THOUGHTS = re.compile(
    r"\b(enable_thinking|thinking|reasoning_content|reasoning_effort|reasoning)\b|<(seed:)?think>|\[THINK\]"
)
"""What templates of models that think hold: a variable, a field of an answer, or a tag."""

_LISTED = "listed_as_a_tool"


def abilities(tokenizer: Any) -> Abilities:
    """Return what conversations a model's chat template is made for.

    Args:
        tokenizer: Of transformers.
    """
    template = tokenizer.chat_template
    if not template:
        return Abilities(chats=False, thinks=False, tools=False)
    said = "\n".join(template.values()) if isinstance(template, dict) else str(template)
    function = {**_TOOL["function"], "name": _LISTED}
    try:
        written = chat_text(tokenizer, [{"role": "user", "content": "Q"}], [{**_TOOL, "function": function}])
    except SpecError:
        written = ""
    return Abilities(chats=True, thinks=bool(_THOUGHTS.search(said)), tools=_LISTED in written)


def _line(text: str | None) -> str:
    said = " ".join((text or "").split()).rstrip(".:")
    return said if len(said) <= _WHY else said[:_WHY] + "…"
